"""What a model behind a server is asked: draws and scores, and which it can give exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ppl.errors import ServerError
from ppl.language.codec import Codec
from ppl.language.randomness import key
from ppl.lm.base import ScoreRequest, Spec, Tokens
from ppl.lm.row import Row
from ppl.lm.sampling import Warp
from ppl.lm.server.answer import Answer
from ppl.lm.server.endpoint import Endpoint

PLAIN = Warp()


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a server can do, as its start-up probe found.

    Attributes:
        scores: it scores given tokens.
        processed: it reports log-probabilities of the warped distribution.
        gives_end: whether ids include the end token; None: unknown.
    """

    scores: bool = False
    processed: bool = False
    gives_end: bool | None = None


class Client:
    """Asks for the draws and scores of one model.

    Args:
        endpoint: where.
        name: of the model there.
        codec: its tokenizer.

    Attributes:
        abilities: what it can do; nothing is known until the probe has set it.
    """

    def __init__(self, endpoint: Endpoint, name: str, codec: Codec) -> None:
        self.endpoint, self.name, self.codec = endpoint, name, codec
        self.abilities = Abilities()
        self._answering: str | None = None

    def check_scores(self, spec: Spec, label: str) -> None:
        """Raises ServerError unless this server can score under `spec`."""
        if not self.abilities.scores:
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
        if warp != PLAIN and not certain(warp) and not self.abilities.processed:
            raise ServerError(
                f"{label}: {self.name}'s server reports the model's log-probabilities, not those "
                f"under {warp}; start vLLM with --logprobs-mode processed_logprobs, or leave the "
                "warp out"
            )

    async def draw(self, row: Row, max_tokens: int) -> Answer:
        """The next tokens of a row, at most `max_tokens`."""
        spec, label = row.request.spec, row.request.label
        seed = key(row.request.key, len(row.new)) >> 1  # servers take signed 64-bit seeds
        body = self.body(row.tokens, spec.warp, max_tokens, seed)
        if spec.rule.strings:
            body |= {"stop": list(spec.rule.strings), "include_stop_str_in_output": True}
        answer = await self.complete(body, label)
        if certain(spec.warp):
            answer = replace(answer, log_probs=(0.0,) * len(answer.tokens))
        if answer.stopped and not isinstance(answer.stop, str):
            answer = await self._with_end(row, answer)
        if len(answer.log_probs) != len(answer.tokens) or not 0 < len(answer.tokens) <= max_tokens:
            raise ServerError(
                f"{label}: {self.name}'s server answered {len(answer.tokens)} token_ids with "
                f"{len(answer.log_probs)} token_logprobs; asked were at most {max_tokens}"
            )
        if -math.inf in answer.log_probs:
            raise ServerError(
                f"{label}: {self.name}'s server drew a token that it gives probability zero "
                f"(token_logprobs: {list(answer.log_probs)[:8]})"
            )
        return answer

    async def _with_end(self, row: Row, answer: Answer) -> Answer:
        """The end token that the server drew and left out, with its log-probability."""
        ends, label = self.codec.end_tokens, row.request.label
        if answer.tokens and answer.tokens[-1] in ends:
            return answer
        new = (*row.new, *answer.tokens)
        if row.request.spec.rule(self.codec.decode_after(new, row.request.spec.tokens)):
            return answer
        if self.abilities.gives_end is not False or len(ends) > 1:
            raise ServerError(
                f"{label}: {self.name}'s server stopped without saying which token ended the text "
                "(finish_reason: 'stop', and no end token among token_ids)"
            )
        end = min(ends)
        log_prob = 0.0
        if not certain(row.request.spec.warp):
            self.check_scores(row.request.spec, label)
            log_prob = (await self.score((*row.tokens, *answer.tokens, end), label))[-1]
        return replace(
            answer, tokens=(*answer.tokens, end), log_probs=(*answer.log_probs, log_prob)
        )

    async def scored(self, request: ScoreRequest) -> Answer:
        """The score of a given continuation: the log-probabilities of the last tokens."""
        tokens = request.spec.tokens + request.value.tokens
        return await self._with_prompt(tokens, request.label)

    async def score(self, tokens: Tokens, label: str) -> tuple[float, ...]:
        """Log-probabilities of all tokens but the first, for which there is NaN."""
        return (await self._with_prompt(tokens, label)).prompt_log_probs

    async def _with_prompt(self, tokens: Tokens, label: str) -> Answer:
        answer = await self.complete(self.body(tokens, PLAIN, 1, 1) | {"prompt_logprobs": 1}, label)
        if len(answer.prompt_log_probs) != len(tokens):
            raise ServerError(
                f"{label}: {self.name}'s server scored {len(answer.prompt_log_probs)} of "
                f"{len(tokens)} tokens (prompt_logprobs)"
            )
        return answer

    async def complete(self, body: dict[str, Any], label: str) -> Answer:
        """The answer to one request, by the model that has answered all the others."""
        answer = await self.endpoint.complete(body, label)
        if answer.model is not None:
            self._answering = self._answering or answer.model
            if answer.model != self._answering:
                raise ServerError(
                    f"{label}: {self.endpoint.url} answered as {answer.model!r} (model), before as "
                    f"{self._answering!r}: another model's numbers"
                )
        return answer

    def body(self, tokens: Tokens, warp: Warp, max_tokens: int, seed: int) -> dict[str, Any]:
        """A request for what follows `tokens`.

        Everything is said: a server takes what is not from the model's generation_config.json.
        """
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


def certain(warp: Warp) -> bool:
    """True if only the likeliest token can be drawn: its log-probability is zero."""
    return warp.temperature == 0 or warp.top_k == 1
