"""Answers that one reply gave together: dependent, so no independent votes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppl.errors import ArgumentError
from ppl.language.answers.extraction import Answer


class JointAnswer(Answer):
    """An answer that was read from a reply to several questions.

    Attributes:
        call: a number of the reply: the same for all answers that were read from it.
    """

    call: int

    def __new__(cls, answer: str, call: int) -> JointAnswer:
        """An answer of a reply."""
        made = super().__new__(cls, answer)
        made.call = call
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return JointAnswer, (str(self), self.call)


def refuse_joint(answers: Sequence[Any]) -> None:
    """Raises ArgumentError if two of the answers are of one reply."""
    seen: dict[int, int] = {}
    for i, answer in enumerate(answers):
        if isinstance(answer, JointAnswer) and seen.setdefault(answer.call, i) != i:
            raise ArgumentError(
                f"answers {seen[answer.call]} and {i} were read from one reply: they depend on "
                "each other and are no independent votes. Take one of each reply, as in "
                "[s.value[0] for s in posterior.samples], or say with ppl.Answer(answer) that it "
                "may count by itself"
            )
