"""A language model behind an OpenAI-compatible completions server with vLLM's extras.

Token in, token out: prompts are sent as ids and ids come back, so that no text is ever re-encoded.
A server hands out draws and their log-probabilities, not logits. What it cannot compute exactly is
refused by name; what it says of itself is tested once, when the model is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from ppl.errors import ServerError
from ppl.language.codec import Codec
from ppl.language.randomness import key
from ppl.lm.base import LanguageModel, ScoreRequest, Spec, Tokens
from ppl.lm.decode import Row, could_be_drawn
from ppl.lm.quiet import quiet_transformers
from ppl.lm.sampling import Warp
from ppl.lm.server.endpoint import Answer, Endpoint
from ppl.lm.server.flight import ServerSession
from ppl.lm.tokenizer import HFCodec

PLAIN = Warp()


class ServerModel(LanguageModel):
    """A language model that a server runs.

    Draws are exact: the server draws from its model, and the step is cut, here and token by token,
    where its rule first holds. Their log-probabilities and those of `score_batch` are the server's
    own, in its precision. Two equal runs need not agree: seeds are sent, but servers compute a
    request differently in different batches.

    Args:
        url: of the server, up to and including `/v1`.
        model: its name there; may be left out where the server has only one.
        tokenizer: a folder or Hub id, or a `Codec`; the model's name unless given.
        api_key: sent as a bearer token; never part of a message.
        context_length: most tokens of a text; None asks the server.
        concurrency: most requests in flight at a time.
        retries, backoff, timeout: see `Endpoint`.
        tolerance: most difference, in nats per token, between what the server reports for a draw
            and what it scores for the same tokens. Half precision needs some.

    Raises:
        ServerError: the server is not there, lacks something without which nothing is exact, or
            contradicts itself.
        ImportError: httpx is missing.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        tokenizer: str | Codec | None = None,
        api_key: str | None = None,
        context_length: int | None = None,
        concurrency: int = 32,
        retries: int = 4,
        backoff: float = 0.5,
        timeout: float = 600.0,
        tolerance: float = 0.2,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency={concurrency}: must be at least 1")
        self.endpoint = Endpoint(
            url, api_key=api_key, retries=retries, backoff=backoff, timeout=timeout
        )
        self.concurrency = concurrency
        about = _listed(self.endpoint, model)
        self.name: str = about["id"]
        longest = context_length or about.get("max_model_len")
        if not longest:
            raise ServerError(f"{url} does not say how long a text may be; pass context_length=")
        # Servers want room for one new token even where they only score.
        self.context_length = int(longest) - 1
        if tokenizer is None or isinstance(tokenizer, str):
            self.codec: Codec = _tokenizer(tokenizer or self.name)
        else:
            self.codec = tokenizer
        self.scores = self.processed = False
        self.gives_end: bool | None = None
        self._probe(tolerance)

    def _probe(self, tolerance: float) -> None:
        """Tests what the server can do and whether it agrees with itself.

        Sets `scores` (it scores given tokens), `processed` (it reports log-probabilities of the
        warped distribution) and `gives_end` (whether ids include the end token; None: unknown).
        """
        here, end = f"start-up probe of {self.name}", min(self.codec.end_tokens)
        first = min(set(range(self.codec.size)) - self.codec.end_tokens)
        ask = self._body((first,), PLAIN, 3, 1)
        answer = self.endpoint.complete(ask, here)
        if not answer.tokens:
            raise ServerError(
                f"{here}: no token ids come back; use vLLM 0.10.2 or later (return_token_ids)"
            )
        if len(answer.log_probs) != len(answer.tokens):
            raise ServerError(
                f"{here}: no log-probabilities come back; start vLLM with --max-logprobs 1 or more"
            )
        scored = self._scored((first, *answer.tokens), here)
        self.scores = scored is not None
        if scored is None:
            scored = ()
        for token, said, now in zip(answer.tokens, answer.log_probs, scored[1:], strict=False):
            if not abs(said - now) <= tolerance:
                raise ServerError(
                    f"{here}: it drew token {token} with log-probability {said:.4f} and scores it "
                    f"as {now:.4f}; its numbers cannot be weights (tolerance={tolerance})"
                )
        likeliest = self.endpoint.complete(self._body((first,), Warp(top_k=1), 1, 1), here)
        if likeliest.tokens and self.scores:
            raw = self._scored((first, *likeliest.tokens), here) or (0.0, 0.0)
            self.processed = likeliest.log_probs[0] > -1e-6 and raw[1] < -1e-3
        biased = {**self._body((first,), PLAIN, 1, 1), "logit_bias": {str(end): 100}}
        ended = self.endpoint.complete(biased, here)
        self.gives_end = True if ended.tokens == (end,) else False if not ended.tokens else None

    def session(self) -> ServerSession:
        return ServerSession(self)

    def score_batch(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Log-probabilities of given continuations, `-inf` for those that cannot be drawn.

        Raises:
            ServerError: a warp or allowed tokens, under which the server does not score.
        """
        for request in requests:
            self.check_scores(request.spec, request.label)
        possible = [i for i, request in enumerate(requests) if could_be_drawn(self, request)]
        with ThreadPoolExecutor(self.concurrency) as pool:
            answers = list(pool.map(self._score, [requests[i] for i in possible]))
        results = [-math.inf] * len(requests)
        for i, answer in zip(possible, answers, strict=True):
            request = requests[i]
            length = len(request.value.tokens)
            results[i] = math.fsum(answer.prompt_log_probs[-length:])
            answer.book_prompt(request.ledger)
            if request.ledger is not None:
                request.ledger.add(scored_tokens=length)
        return results

    def check_scores(self, spec: Spec, label: str) -> None:
        """Raises ServerError unless this server can score under `spec`."""
        if not self.scores:
            raise ServerError(
                f"{label}: {self.name}'s server does not score given tokens; use a server with "
                "vLLM's prompt_logprobs"
            )
        if spec.warp != PLAIN or spec.allowed is not None:
            raise ServerError(
                f"{label}: {self.name}'s server scores under the model itself only, not under "
                f"{spec.warp} or allowed=; leave them out here, or use ppl.load on a folder"
            )

    def check_draws(self, spec: Spec, label: str) -> None:
        """Raises ServerError unless draws from `spec` come with exact log-probabilities."""
        warp = spec.warp
        if spec.allowed is not None:
            raise ServerError(
                f"{label}: {self.name}'s server cannot renormalise over allowed=; observe the "
                "constraint instead, or use ppl.load on a folder"
            )
        if warp.min_p > 0 and (warp.top_p < 1 or warp.top_k is not None):
            raise ServerError(
                f"{label}: servers apply min_p before top_k and top_p, ppl after them; on "
                f"{self.name}'s server use one or the other"
            )
        if warp != PLAIN and not _certain(warp) and not self.processed:
            raise ServerError(
                f"{label}: {self.name}'s server reports the model's log-probabilities, not those "
                f"under {warp}; start vLLM with --logprobs-mode processed_logprobs, or leave the "
                "warp out"
            )

    def draw(self, row: Row, max_tokens: int) -> Answer:
        """The next tokens of a row, at most `max_tokens`."""
        spec = row.request.spec
        seed = key(row.request.key, len(row.new)) >> 1  # servers take signed 64-bit seeds
        body = self._body(row.tokens, spec.warp, max_tokens, seed)
        if spec.rule.strings:
            body |= {"stop": list(spec.rule.strings), "include_stop_str_in_output": True}
        answer = self.endpoint.complete(body, row.request.label)
        if _certain(spec.warp):
            answer = replace(answer, log_probs=(0.0,) * len(answer.tokens))
        if self.gives_end is not True and answer.stopped and not isinstance(answer.stop, str):
            answer = self._with_end(row, answer)
        if len(answer.log_probs) != len(answer.tokens) or not 0 < len(answer.tokens) <= max_tokens:
            raise ServerError(
                f"{row.request.label}: {self.name}'s server answered {len(answer.tokens)} tokens "
                f"with {len(answer.log_probs)} log-probabilities; asked were at most {max_tokens}"
            )
        return answer

    def _with_end(self, row: Row, answer: Answer) -> Answer:
        """The end token that the server drew and left out, with its log-probability."""
        ends, label = self.codec.end_tokens, row.request.label
        if answer.tokens and answer.tokens[-1] in ends:
            return answer
        new = (*row.new, *answer.tokens)
        if row.request.spec.rule(self.codec.decode_after(new, row.request.spec.tokens)):
            return answer
        if self.gives_end is None or len(ends) > 1:
            raise ServerError(
                f"{label}: {self.name}'s server stopped without saying which token ended the text"
            )
        end = min(ends)
        log_prob = 0.0
        if not _certain(row.request.spec.warp):
            self.check_scores(row.request.spec, label)
            log_prob = self._scored_all((*row.tokens, *answer.tokens, end), label)[-1]
        return replace(
            answer, tokens=(*answer.tokens, end), log_probs=(*answer.log_probs, log_prob)
        )

    def _body(self, tokens: Tokens, warp: Warp, max_tokens: int, seed: int) -> dict[str, Any]:
        # Everything is said: a server takes what is not from the model's generation_config.json.
        return {
            "model": self.name,
            "prompt": list(tokens),
            "max_tokens": max_tokens,
            "temperature": warp.temperature,
            "top_p": warp.top_p,
            "top_k": warp.top_k or 0,
            "min_p": warp.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(self.codec.end_tokens),
            "seed": seed,
            "logprobs": 1,
            "return_token_ids": True,
        }

    def _score(self, request: ScoreRequest) -> Answer:
        tokens = request.spec.tokens + request.value.tokens
        body = self._body(tokens, PLAIN, 1, 1) | {"prompt_logprobs": 1}
        answer = self.endpoint.complete(body, request.label)
        if len(answer.prompt_log_probs) != len(tokens):
            raise ServerError(
                f"{request.label}: {self.name}'s server scored {len(answer.prompt_log_probs)} of "
                f"{len(tokens)} tokens"
            )
        return answer

    def _scored_all(self, tokens: Tokens, label: str) -> tuple[float, ...]:
        body = self._body(tokens, PLAIN, 1, 1) | {"prompt_logprobs": 1}
        return self.endpoint.complete(body, label).prompt_log_probs

    def _scored(self, tokens: Tokens, label: str) -> tuple[float, ...] | None:
        """Log-probabilities of all tokens, None if the server does not score."""
        try:
            log_probs = self._scored_all(tokens, label)
        except ServerError:
            return None
        return log_probs if len(log_probs) == len(tokens) else None


def _certain(warp: Warp) -> bool:
    """True if only the likeliest token can be drawn: its log-probability is zero."""
    return warp.temperature == 0 or warp.top_k == 1


def _listed(endpoint: Endpoint, model: str | None) -> Any:
    """What the server says about the model."""
    answer = endpoint.ask("/models", None, "start-up probe")
    try:
        models = {about["id"]: about for about in answer["data"]}
    except (KeyError, TypeError) as error:
        raise ServerError(f"{endpoint.url}/models lists no models; does url end in /v1?") from error
    if model is None and len(models) == 1:
        return next(iter(models.values()))
    if model not in models:
        names = ", ".join(sorted(models))
        raise ServerError(f"{endpoint.url} has no model {model!r}; pass model=, one of {names}")
    return models[model]


def _tokenizer(source: str) -> HFCodec:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ServerError(
            f"there is no tokenizer {source!r} ({str(error).splitlines()[0]}); pass tokenizer= "
            "with a folder or Hub id"
        ) from error
    ends: set[int] = set()
    for holder in (_generation_config(source), tokenizer):
        value = getattr(holder, "eos_token_id", None)
        ends |= {value} if isinstance(value, int) else set(value or ())
    if not ends:
        raise ServerError(f"the tokenizer {source!r} names no end-of-text token")
    return HFCodec(tokenizer, frozenset(ends), source)


def _generation_config(source: str) -> Any:
    """Chat models often have end tokens that only this file names; None without it."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source)
    except (OSError, ValueError):
        return None
