"""What a completion says, checked against what was asked: its numbers become weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppl.language.cost import Account
from ppl.lm.base import ScoreRequest, Tokens

# What vLLM writes for minus infinity, which JSON cannot hold.
_MINUS_INFINITY = -9999.0
# A softmax in single precision may end so far above zero.
_ROUNDING = 1e-4


class AnswerError(ValueError):
    """An answer is none to what was asked; the message begins with the field."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered completion.

    Attributes:
        tokens: the new token ids.
        log_probs: one per new token, as the server reports them; empty if they were not given.
        prompt_log_probs: one per prompt token, NaN for the first; empty if they were not given.
        stopped: True unless the length ended it.
        stop: the stop string or token id that ended it, where the server says so.
        prompt_tokens, reused_tokens: computed prompt tokens, and those taken from its cache.
        model: what the server calls the model, None if it does not say.
    """

    tokens: Tokens
    log_probs: tuple[float, ...]
    prompt_log_probs: tuple[float, ...]
    stopped: bool
    stop: str | int | None
    prompt_tokens: int
    reused_tokens: int
    model: str | None = None

    def score_of(self, request: ScoreRequest) -> float:
        """The log-probability of the continuation that was to be scored, which is booked."""
        length = len(request.value.tokens)
        self.book_prompt(request.ledger)
        if request.ledger is not None:
            request.ledger.add(scored_tokens=length)
        return math.fsum(self.prompt_log_probs[-length:])

    def book_prompt(self, ledger: Account | None) -> None:
        """Books the prompt's tokens, computed and reused."""
        if ledger is not None:
            ledger.add(prompt_tokens=self.prompt_tokens, reused_tokens=self.reused_tokens)


def checked(answer: Any, body: Mapping[str, Any], vocabulary: int) -> Answer:
    """The answer to a request.

    Args:
        answer: what the server said.
        body: what it was asked.
        vocabulary: number of token ids.

    Raises:
        AnswerError: it is no completion, or not of this prompt; ids are not in the vocabulary or
            more than were asked for; log-probabilities are none; counts are not those of the
            prompt.
    """
    prompt: Sequence[int] = body["prompt"]
    choices = _is("choices", _is("the answer", answer, dict).get("choices"), list)
    if len(choices) != 1:
        raise AnswerError(f"choices: {len(choices)} of them, asked was 1")
    choice = _is("choices[0]", choices[0], dict)
    finish = choice.get("finish_reason")
    if finish not in ("stop", "length"):
        raise AnswerError(f"finish_reason: {finish!r}, neither 'stop' nor 'length'")
    tokens = _ids("token_ids", choice.get("token_ids") or [], vocabulary)
    if len(tokens) > body["max_tokens"]:
        raise AnswerError(f"token_ids: {len(tokens)} of them, asked {body['max_tokens']}")
    reported = choice.get("logprobs")
    said = {} if reported is None else _is("logprobs", reported, dict)
    log_probs = [
        _log_prob("token_logprobs", p)
        for p in _is("token_logprobs", said.get("token_logprobs") or [], list)
    ]
    if tokens and log_probs and len(log_probs) != len(tokens):
        raise AnswerError(f"token_logprobs: {len(log_probs)} of them for {len(tokens)} token_ids")
    for holder in (answer, choice):
        echo = holder.get("prompt_token_ids")
        if echo is not None and _ids("prompt_token_ids", echo, vocabulary) != tuple(prompt):
            raise AnswerError("prompt_token_ids: not the prompt that was sent")
    computed, reused = _prompt_counts(answer.get("usage"), len(prompt))
    model = answer.get("model")
    return Answer(
        tokens=tokens,
        log_probs=tuple(log_probs),
        prompt_log_probs=_along(prompt, choice.get("prompt_logprobs")),
        stopped=finish == "stop",
        stop=_stop(choice.get("stop_reason"), body) if finish == "stop" else None,
        prompt_tokens=computed,
        reused_tokens=reused,
        model=None if model is None else _is("model", model, str),
    )


def _is(field: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        name = "an object" if kind is dict else "a list" if kind is list else "a string"
        raise AnswerError(f"{field}: {_short(value)}, not {name}")
    return value


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) < 80 else said[:77] + "..."


def _count(field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise AnswerError(f"{field}: {_short(value)} is no count")
    return value


def _ids(field: str, values: Any, vocabulary: int) -> Tokens:
    for value in _is(field, values, list):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocabulary:
            raise AnswerError(
                f"{field}: {_short(value)} is no token id (integers from 0 to {vocabulary - 1}); "
                "is tokenizer= that of the model?"
            )
    return tuple(values)


def _log_prob(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= _ROUNDING:
        raise AnswerError(f"{field}: {_short(value)} is no log-probability")
    return -math.inf if value <= _MINUS_INFINITY else min(float(value), 0.0)


def _along(prompt: Sequence[int], tables: Any) -> tuple[float, ...]:
    """From a table per prompt token (the first has none) to the log-prob of the token itself."""
    if tables is None or tables == []:
        return ()
    if len(_is("prompt_logprobs", tables, list)) != len(prompt):
        raise AnswerError(f"prompt_logprobs: {len(tables)} of them for {len(prompt)} prompt tokens")
    found = [math.nan]
    for at, (token, table) in enumerate(zip(prompt[1:], tables[1:], strict=True), 1):
        field = f"prompt_logprobs[{at}]"
        entry = _is(field, table, dict).get(str(token))
        if entry is None:
            raise AnswerError(f"{field}: nothing about token {token}, which is there in the prompt")
        found.append(_log_prob(field, _is(field, entry, dict).get("logprob")))
    return tuple(found)


def _prompt_counts(usage: Any, length: int) -> tuple[int, int]:
    """Prompt tokens that were computed, and those that a cache gave."""
    if usage is None:
        return length, 0
    total = _is("usage", usage, dict).get("prompt_tokens")
    if total is not None and _count("usage.prompt_tokens", total) != length:
        raise AnswerError(f"usage.prompt_tokens: {total}, sent were {length}")
    details = usage.get("prompt_tokens_details")
    cached = None if details is None else _is("prompt_tokens_details", details, dict)
    reused = _count("usage.cached_tokens", (cached or {}).get("cached_tokens") or 0)
    if reused > length:
        raise AnswerError(f"usage.cached_tokens: {reused}, sent were {length}")
    return length - reused, reused


def _stop(reason: Any, body: Mapping[str, Any]) -> str | int | None:
    known = [*body.get("stop", ()), *body["stop_token_ids"]]
    if reason is not None and (isinstance(reason, bool) or reason not in known):
        raise AnswerError(f"stop_reason: {_short(reason)}, which was not asked for")
    return reason  # type: ignore[no-any-return]
