"""Where a continuation stops: the rule of its step, asked after every token as the text grows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ppl.errors import ProgramError
from ppl.language.codec import Codec, Reader
from ppl.language.steps import StepRule
from ppl.language.text import StopReason

_NO_CHARACTER = "\ufffd"


class Stop:
    """Follows one continuation; what a token costs does not grow with its length.

    A regular expression or a callable is asked about the whole step every time, as it may look
    anywhere in it.

    Args:
        codec: the tokenizer.
        rule: ends the step.
        before: the tokens that the continuation follows.
        label: who asks, for messages.
    """

    __slots__ = ("_codec", "_label", "_reader", "_rule", "_stops", "_text")

    def __init__(self, codec: Codec, rule: StepRule, before: Sequence[int], label: str) -> None:
        characters = rule.single_characters
        self._codec, self._rule, self._label, self._text = codec, rule, label, ""
        self._stops = None if characters is None else _tokens_with(codec, characters)
        reads = self._stops is None and not rule.never
        self._reader = Reader(codec, before) if reads else None

    @property
    def asked(self) -> bool:
        """Whether the rule has to be asked after every token, whichever it is."""
        rule = self._rule
        # What is no character is shown by a token that is no part of it.
        plain = all(string and string[-1] != _NO_CHARACTER for string in rule.strings)
        return rule.pattern is not None or rule.predicate is not None or not plain

    def pauses(self, size: int) -> NDArray[np.uint8]:
        """`[size]` of each token 1 if the continuation may end with it, 0 if it goes on whatever
        was there; of rules that need not be asked."""
        last = frozenset(string.encode()[-1] for string in self._rule.strings)
        return _pauses(self._codec, last, size)

    def after(self, token: int) -> StopReason | None:
        """Why the continuation ends with this token, None if it goes on."""
        if token in self._codec.end_tokens:
            return "end"
        if self._stops is not None:
            return "until" if token in self._stops else None
        if self._reader is None:
            return None
        new = self._reader.read((token,))
        self._text += new
        try:
            return "until" if self._rule(self._text, len(new)) else None
        except Exception as error:  # the program's own callable
            raise ProgramError(
                f"{self._label}: until= raised {type(error).__name__}: {error} for {self._text!r}"
            ) from error


@lru_cache(maxsize=32)
def _pauses(codec: Codec, last: frozenset[int], size: int) -> NDArray[np.uint8]:
    """Marks end tokens, and all that have a byte with which a string ends."""
    some = [i for i in range(min(codec.size, size)) if not last.isdisjoint(codec.piece(i))]
    marks = np.zeros(size, dtype=np.uint8)
    marks[[*some, *(token for token in codec.end_tokens if token < size)]] = 1
    return marks


class Stops(Protocol):
    """What says where a continuation stops (`ppl.lm.base.Spec`)."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """What it follows."""
        ...

    @property
    def rule(self) -> StepRule:
        """Ends the step."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """Cuts it."""
        ...


def misfit(codec: Codec, spec: Stops, context_length: int, value: Any, label: str) -> str | None:
    """Why a draw that chose the tokens of the continuation `value` would not have stopped at the
    last and not before; for the beginning of a step (`"open"`), why it would have stopped before.
    None if it fits."""
    tokens = value.tokens
    room = context_length - len(spec.tokens)
    limit = room if spec.max_tokens is None else min(room, spec.max_tokens)
    if not tokens:
        return "is empty: a draw has a token at least"
    if len(tokens) > limit:
        return (
            f"has {len(tokens)} tokens, a draw has {limit} at most: raise max_tokens=, or shorten "
            "it or the text before it"
        )
    stop = Stop(codec, spec.rule, spec.tokens, label)
    for count, token in enumerate(tokens, start=1):
        reason = stop.after(token)
        if reason is not None and count < len(tokens):
            return (
                f"goes on where a draw would have ended, after {count} of {len(tokens)} tokens "
                f"(until {spec.rule}): observe it step by step, or without until="
            )
    cut = spec.max_tokens is not None and len(tokens) == limit
    if value.reason == "open" or reason is not None or cut:
        return None
    return (
        f"ends where no draw would have ended (until {spec.rule}): observe it as the beginning of "
        "a step, lm.continuation(string, finished=False), or as the whole text, finished=True"
    )


@lru_cache(maxsize=32)
def _tokens_with(codec: Codec, characters: frozenset[str]) -> frozenset[int]:
    """Ids of all tokens whose string contains one of `characters` (single ASCII characters)."""
    stops = frozenset("".join(characters).encode())
    return frozenset(i for i in range(codec.size) if not stops.isdisjoint(codec.piece(i)))
