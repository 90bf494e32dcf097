"""A language model behind an OpenAI-compatible completions server with vLLM's extras.

Token in, token out: prompts are sent as ids and ids come back, so that no text is ever re-encoded.
A server hands out draws and their log-probabilities, not logits. What it cannot compute exactly is
refused by name; what it says of itself is tested once, when the model is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppl.errors import ServerError
from ppl.language import checks
from ppl.language.codec import Codec
from ppl.lm.base import LanguageModel, ScoreRequest
from ppl.lm.running import answers
from ppl.lm.server.client import Client
from ppl.lm.server.endpoint import Endpoint
from ppl.lm.server.flight import ServerSession
from ppl.lm.server.probe import abilities
from ppl.lm.tokenizer import HFCodec


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

    elsewhere = True

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
        checks.nonnegative(tolerance=tolerance)
        if context_length is not None:
            checks.count(least=3, context_length=context_length)
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise ValueError(f"url={url!r}: an address such as 'http://localhost:8000/v1'")
        self.concurrency = concurrency
        self.endpoint = Endpoint(
            url,
            api_key=api_key,
            concurrency=concurrency,
            retries=retries,
            backoff=backoff,
            timeout=timeout,
        )
        try:
            self.name, said = _listed(self.endpoint, model)
            longest = context_length or said
            if not longest:
                raise ServerError(
                    f"{url} does not say how long a text may be; pass context_length="
                )
            if isinstance(longest, bool) or not isinstance(longest, int) or longest < 3:
                raise ServerError(
                    f"{url}/models: max_model_len: {longest!r} is no number of tokens"
                )
            # Servers want room for one new token even where they only score.
            self.context_length = longest - 1
            if tokenizer is None or isinstance(tokenizer, str):
                self.codec: Codec = _tokenizer(tokenizer or self.name)
            else:
                self.codec = tokenizer
            self.endpoint.vocabulary = self.codec.size
            self.client = Client(self.endpoint, self.name, self.codec)
            probe = abilities(self.client, tolerance, self.context_length)
            self.client.abilities = self.endpoint.wait(probe)
        except BaseException:
            self.endpoint.close()
            raise

    def session(self) -> ServerSession:
        """A running batch of requests in flight."""
        return ServerSession(self, self.client, self.concurrency)

    def score_batch(self, requests: Sequence[ScoreRequest]) -> list[float | None]:
        """Log-probabilities of given continuations, `-inf` for those that cannot be drawn; None
        where the paying ledger ran out of time, as in `sample_batch`.

        Raises:
            ServerError: a warp or allowed tokens, under which the server does not score.
        """
        return answers(self.session(), requests)


def _listed(endpoint: Endpoint, model: str | None) -> tuple[str, Any]:
    """The model's name there, and most tokens of a text, if the server says so."""
    answer = endpoint.wait(endpoint.ask("/models", None, "start-up probe"))
    try:
        models = {str(about["id"]): about.get("max_model_len") for about in answer["data"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ServerError(f"{endpoint.url}/models lists no models; does url end in /v1?") from error
    if model is None and len(models) == 1:
        return next(iter(models.items()))
    if model is None or model not in models:
        names = ", ".join(sorted(models))
        raise ServerError(f"{endpoint.url} has no model {model!r}; pass model=, one of {names}")
    return model, models[model]


def _tokenizer(source: str) -> HFCodec:
    from transformers import AutoTokenizer

    from ppl.lm.quiet import quiet_transformers

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
