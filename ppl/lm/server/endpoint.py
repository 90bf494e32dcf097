"""A completions endpoint over HTTP: requests with retries, answers as token ids and log-probs."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppl.errors import ServerError
from ppl.language.cost import Ledger
from ppl.lm.base import Tokens

# What vLLM writes for minus infinity, which JSON cannot hold.
_MINUS_INFINITY = -9999.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered completion.

    Attributes:
        tokens: the new token ids.
        log_probs: one per new token, as the server reports them.
        prompt_log_probs: one per prompt token, NaN for the first; empty if they were not given.
        stopped: True unless the length ended it.
        stop: the stop string or token id that ended it, where the server says so.
        prompt_tokens, reused_tokens: computed prompt tokens, and those taken from its cache.
    """

    tokens: Tokens
    log_probs: tuple[float, ...]
    prompt_log_probs: tuple[float, ...]
    stopped: bool
    stop: str | int | None
    prompt_tokens: int
    reused_tokens: int

    def book_prompt(self, ledger: Ledger | None) -> None:
        """Books the prompt's tokens, computed and reused."""
        if ledger is not None:
            ledger.add(prompt_tokens=self.prompt_tokens, reused_tokens=self.reused_tokens)


class Endpoint:
    """Talks to one server. Safe to use from several threads.

    Proxies and credentials of the environment are not used (httpx's `trust_env=False`): what is
    sent goes to `url` and nowhere else.

    Args:
        url: up to and including `/v1`.
        api_key: sent as a bearer token, never shown.
        retries: how often a request is repeated after a lost connection, a timeout, 429 or 5xx.
        backoff: seconds before the first repetition; doubled each time.
        timeout: seconds that one answer may take.

    Attributes:
        close: drops the open connections; also done when nobody uses the endpoint any more.

    Raises:
        ImportError: httpx is missing.
    """

    def __init__(
        self, url: str, *, api_key: str | None, retries: int, backoff: float, timeout: float
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ImportError(
                "models behind a server need httpx: pip install 'ppl-search[server]'"
            ) from error
        self.url = url.rstrip("/")
        self._key, self._retries, self._backoff = api_key, retries, backoff
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._lost: type[Exception] = httpx.TransportError
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.Client(
            headers=headers, timeout=timeout, trust_env=False, limits=limits
        )
        # Whoever forgets to close it leaves no connection open.
        self.close = weakref.finalize(self, self._client.close)

    def ask(self, path: str, body: dict[str, Any] | None, label: str) -> Any:
        """The JSON answer to a POST of `body`, or to a GET without one.

        Raises:
            ServerError: the server refuses the request, or fails more often than `retries`.
        """
        where = f"{label}: {self.url}{path}"
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(self._backoff * 2 ** (attempt - 1))
            try:
                method = "GET" if body is None else "POST"
                reply = self._client.request(method, self.url + path, json=body)
            except self._lost as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            problem = f"answered {reply.status_code}: {self._redacted(reply.text)[:500]}"
            if reply.status_code == 429 or reply.status_code >= 500:
                continue
            if reply.status_code != 200:
                raise ServerError(f"{where} {problem}")
            try:
                return reply.json()
            except ValueError as error:
                raise ServerError(f"{where} {problem}, which is no JSON") from error
        raise ServerError(
            f"{where} failed {self._retries + 1} times, the last time: {problem}; is it running, "
            "and can it take so many requests (concurrency=, timeout=, retries=)?"
        )

    def complete(self, body: dict[str, Any], label: str) -> Answer:
        """The answer to one completion request. Raises ServerError."""
        answer = self.ask("/completions", body, label)
        try:
            return _parsed(answer)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(
                f"{label}: {self.url} answered something that is no completion "
                f"({type(error).__name__}: {error})"
            ) from error

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _parsed(answer: Any) -> Answer:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    if choice.get("finish_reason") not in ("stop", "length"):
        raise ValueError(f"finish_reason {choice.get('finish_reason')!r}")
    asked = answer.get("prompt_token_ids") or choice.get("prompt_token_ids") or ()
    reused = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer(
        tokens=tuple(choice.get("token_ids") or ()),
        log_probs=_finite((choice.get("logprobs") or {}).get("token_logprobs") or ()),
        prompt_log_probs=_along(asked, choice.get("prompt_logprobs") or ()),
        stopped=choice["finish_reason"] == "stop",
        stop=choice.get("stop_reason"),
        prompt_tokens=max(0, (usage.get("prompt_tokens") or 0) - reused),
        reused_tokens=reused,
    )


def _along(tokens: Sequence[int], tables: Sequence[Any]) -> tuple[float, ...]:
    """From a table per prompt token (the first has none) to the log-prob of the token itself."""
    if not tables:
        return ()
    pairs = zip(tokens[1:], tables[1:], strict=True)
    return (float("nan"), *_finite([table[str(token)]["logprob"] for token, table in pairs]))


def _finite(log_probs: Sequence[float]) -> tuple[float, ...]:
    return tuple(float("-inf") if p <= _MINUS_INFINITY else float(p) for p in log_probs)
