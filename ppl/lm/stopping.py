"""Where a continuation stops: the rule of its step, asked after every token as the text grows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ppl.errors import ProgramError
from ppl.language.codec import Codec, Reader
from ppl.language.steps import StepRule
from ppl.language.text import StopReason


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
def _tokens_with(codec: Codec, characters: frozenset[str]) -> frozenset[int]:
    """Ids of all tokens whose string contains one of `characters` (single ASCII characters)."""
    stops = frozenset("".join(characters).encode())
    return frozenset(i for i in range(codec.size) if not stops.isdisjoint(codec.piece(i)))
