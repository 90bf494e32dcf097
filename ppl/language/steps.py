"""Step rules: when does a continuation end?

`until=` takes a string, several strings, a regular expression, or any callable on the new text;
all become a `StepRule`, a value that can be compared, printed and pickled. The rule is asked after
every token, about the new text only; the token that makes it true belongs to the step, whole.

Models that think aloud need nothing special: sample `until="</think>"` first to skip the thinking,
or split it into steps with `until=["\\n\\n", "</think>"]`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Until = str | Iterable[str] | re.Pattern[str] | Callable[[str], bool] | None


@dataclass(frozen=True, slots=True)
class StepRule:
    """Says of the new text whether the step ends here.

    Attributes:
        strings: the step ends once it contains one of these.
        pattern: the step ends once this matches somewhere in it.
        predicate: the step ends once this returns True. It must be a pure function of the text.
    """

    strings: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    predicate: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.strings, tuple) or not all(isinstance(s, str) for s in self.strings):
            raise TypeError(f"strings={self.strings!r}: a tuple of strings")
        if self.pattern is not None and not isinstance(self.pattern, re.Pattern):
            raise TypeError(f"pattern={self.pattern!r}: a compiled pattern, re.compile(...)")
        if self.predicate is not None and not callable(self.predicate):
            raise TypeError(f"predicate={self.predicate!r}: a function of the new text")

    def __call__(self, new_text: str, fresh: int | None = None) -> bool:
        """Whether the step ends here.

        Args:
            new_text: all that the step says so far.
            fresh: how many of its last characters are new since the rule was last asked; None if
                it was not. Stop strings are looked for there only, so that asking after every
                token costs no more with a long step.
        """
        if self.strings:
            known = 0 if fresh is None else len(new_text) - fresh
            start = max(0, known + 1 - max(map(len, self.strings)))
            if any(new_text.find(string, start) >= 0 for string in self.strings):
                return True
        if self.pattern is not None and self.pattern.search(new_text):
            return True
        return self.predicate is not None and bool(self.predicate(new_text))

    @property
    def never(self) -> bool:
        """True if only the end of the text (or `max_tokens`) ends the step."""
        return not self.strings and self.pattern is None and self.predicate is None

    @property
    def single_characters(self) -> frozenset[str] | None:
        """The stop characters, if the rule is only about single ASCII characters.

        Such a rule can be decided from each token on its own, which is cheaper: these characters
        never span two tokens.
        """
        plain = self.pattern is None and self.predicate is None and bool(self.strings)
        if plain and all(len(s) == 1 and s.isascii() for s in self.strings):
            return frozenset(self.strings)
        return None

    def __str__(self) -> str:
        if self.strings:
            return " | ".join(repr(s) for s in self.strings)
        if self.pattern is not None:
            return f"/{self.pattern.pattern}/"
        if self.predicate is not None:
            return getattr(self.predicate, "__qualname__", repr(self.predicate))
        return "end of text"

    @staticmethod
    def of(until: Until | StepRule) -> StepRule:
        """The rule that `until` describes. Raises TypeError or ValueError on anything else."""
        match until:
            case None:
                return _NEVER
            case StepRule():
                return until
            case str() if until:
                return _ended_by((until,))
            case re.Pattern():
                return StepRule(pattern=until)
            case _ if callable(until):
                return StepRule(predicate=until)
            case _ if isinstance(until, Iterable):
                strings: tuple[str, ...] = tuple(until)
            case _:
                raise TypeError(f"until={until!r}: give a string, strings, a regex or a callable")
        if not strings or not all(isinstance(s, str) and s for s in strings):
            raise ValueError(f"until={until!r}: stop strings must be non-empty strings")
        return _ended_by(strings)


_NEVER = StepRule()
# Programs ask for the same few rules at every step.
_ended_by = functools.lru_cache(maxsize=256)(StepRule)
