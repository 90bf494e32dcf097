"""What operators hand on: a question, and texts that may answer it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from ppl.language.arguments import check_fields
from ppl.language.text import Text


@dataclass(frozen=True)
class Draft:
    """A text that may be the answer.

    Attributes:
        text: what it says.
        log_weight: of a draw from the model that wrote it, 0.0; None where a text was made of
            others, or was read together with what was said of it: such a text has no density that
            anybody could name.
        origin: the site that wrote it.
        passed: the operators that it has passed since, in order.
        sources: the origins of the texts that it was made of.
        critique: what a critic said of it.
        written: the text in its model's tokens, for verifiers; None where a string was all.
    """

    text: str
    log_weight: float | None
    origin: str
    passed: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    critique: str | None = None
    written: Text | None = field(default=None, compare=False, repr=False)

    @property
    def provenance(self) -> tuple[str, ...]:
        """Who wrote it, and all that it has passed."""
        return (self.origin, *self.passed)

    def through(self, operator: str, **changes: object) -> Self:
        """The same draft behind an operator."""
        return replace(self, passed=(*self.passed, operator), **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Drafts:
    """The texts between two operators, the best known first where somebody has ranked them.

    Attributes:
        question: what is asked.
        drafts: the texts; none before a generator.
        tests: Python assertions that somebody has written for the question.
        flags: what went otherwise than it should, such as a verifier that rejected all.
        depth: operators passed, which number the sites of the next.
    """

    question: str
    drafts: tuple[Draft, ...] = ()
    tests: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    depth: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def __len__(self) -> int:
        return len(self.drafts)

    def __iter__(self) -> Iterator[Draft]:
        return iter(self.drafts)

    @property
    def texts(self) -> list[str]:
        """What they say."""
        return [draft.text for draft in self.drafts]

    def after(self, drafts: Sequence[Draft], *flags: str, tests: Sequence[str] = ()) -> Drafts:
        """With other drafts, one operator later."""
        return replace(
            self,
            drafts=tuple(drafts),
            flags=(*self.flags, *flags),
            tests=tuple(tests) or self.tests,
            depth=self.depth + 1,
        )
