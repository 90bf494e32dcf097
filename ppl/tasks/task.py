"""What a task is: problems, and a judge of their answers.

    task = ppl.tasks.load("gsm8k")
    problem = task[0]                      # Problem(id="gsm8k/0", question="Janet's ducks ...")
    task.score(problem, "$18")             # True; False where it is wrong, None where unreadable

A task is data: it can be pickled, sliced (`task[:100]`), and split into halves that are the same on
every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, overload

from ppl.errors import ArgumentError, TaskError
from ppl.language import checks
from ppl.language.answers import extract_answer
from ppl.language.arguments import check_fields, checked, shown

Half = Literal["train", "test"]


@dataclass(frozen=True)
class Problem:
    """One question with its answer.

    Attributes:
        id: its name, different from that of every other problem of the task.
        question: what a model is asked.
        gold: a right answer; None where only the judge knows. There may be other right ones.
        meta: what else is known (a level, a worked solution, tests), as JSON values. Not changed
            after the problem is made, and no part of its hash.
    """

    id: str
    question: str
    gold: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.id:
            raise ArgumentError("id='': a problem needs a name, by which results are found again")


Score = Callable[[Problem, str | None], bool | None]
"""Is the answer right? None: it cannot be read, or not told. No answer (None) is wrong."""

CheckStep = Callable[[Problem, Sequence[str]], bool]
"""After right steps, is the last one right: can a right answer still be reached? Exact."""


@checked
def same_answer(problem: Problem, answer: str | None) -> bool | None:
    """Whether an answer equals the gold one, by `ppl.equality` with math-verify behind it.

    Another spelling of it is right. Isolated and time-limited, see `ppl.verifiers.MathAnswer`.

    Raises:
        TaskError: the problem has no gold answer.
        MathAnswerError: its gold answer has no content.
    """
    if problem.gold is None:
        raise TaskError(f"{problem.id} has no gold answer: give the task a score that needs none")
    if answer is None:
        return False
    from ppl.verifiers.exact.math_answer import shared_comparer  # torch, to judge and not to list

    return shared_comparer().equal(problem.gold, str(answer))


@checked
def same_text(problem: Problem, answer: str | None) -> bool | None:
    """Whether an answer is the gold one letter by letter, without spaces around it."""
    if problem.gold is None:
        raise TaskError(f"{problem.id} has no gold answer: give the task a score that needs none")
    return answer is not None and answer.strip() == problem.gold.strip()


def stated_answer(problem: Problem, text: str) -> str | None:
    """What a text says its answer is, see `ppl.extract_answer`."""
    return extract_answer(text)


@dataclass(frozen=True)
class Task:
    """Problems with a judge.

    Attributes:
        name: what it is called in results; `ppl.tasks.load` finds those that come with the library.
        problems: its problems, in a fixed order.
        score: `score(problem, answer)` is True for a right answer, False for a wrong one (no answer
            is wrong), None for one that cannot be read. Equality of answers, unless given.
        check_step: where there is an exact oracle of steps: `check_step(problem, steps)` says
            whether the last of some steps is right after right ones.
        extract: `extract(problem, text)` is the answer that a whole response states, None if none.
        about: one line that says what is asked.
        licence: under which its problems may be used.

    Raises:
        TaskError: two problems have one id.

    Example:
        >>> from ppl.tasks import Problem, Task
        >>> task = Task("sums", [Problem("sums/0", "What is 1/4 + 1/4?", "1/2")])
        >>> task.score(task[0], "0.5"), task.score(task[0], "2/3"), task.score(task[0], "5 + + /")
        (True, False, None)
    """

    name: str
    problems: Sequence[Problem]
    score: Score = same_answer
    check_step: CheckStep | None = None
    extract: Callable[[Problem, str], str | None] = stated_answer
    about: str = ""
    licence: str = "not stated"

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "problems", tuple(self.problems))
        places: dict[str, int] = {}
        for place, problem in enumerate(self.problems):
            if places.setdefault(problem.id, place) != place:
                raise TaskError(
                    f"task {self.name}: problems {places[problem.id]} and {place} are both called"
                    f" {problem.id!r}; results could not be told apart"
                )
        object.__setattr__(self, "_places", places)

    def __repr__(self) -> str:
        return f"<Task {self.name}: {len(self)} problems>"

    def __len__(self) -> int:
        return len(self.problems)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)

    @overload
    def __getitem__(self, at: int | str) -> Problem: ...

    @overload
    def __getitem__(self, at: slice) -> Self: ...

    def __getitem__(self, at: int | str | slice) -> Problem | Self:
        """A problem by its place or its id; a slice is the same task with some of the problems."""
        if isinstance(at, slice):
            return replace(self, problems=self.problems[at])
        if isinstance(at, str):
            places: dict[str, int] = getattr(self, "_places")  # noqa: B009  (no field)
            if at not in places:
                raise TaskError(f"task {self.name} has no problem {at!r}")
            return self.problems[places[at]]
        return self.problems[at]


@checked
def split(task: Task, half: Half, fraction: float = 0.5) -> Task:
    """The problems of one part of a task; every problem is in exactly one of the two.

    Which one is told by the SHA-256 of its id: the same on every machine, and whatever other
    problems there are. What is chosen on `train` (a threshold, a setting) is reported on `test`.

    Args:
        task: what is split.
        half: which part is wanted.
        fraction: expected share of `train`.
    """
    checks.probability(fraction=fraction)
    chosen = [p for p in task.problems if (_uniform(p.id) < fraction) == (half == "train")]
    return replace(task, problems=chosen)


def _uniform(name: str) -> float:
    """A number in [0, 1) that is told by a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


_HOW_MANY = ("n", "size", "limit", "count", "num_problems", "max_problems", "first")


def fitting(task: str, settings: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuses settings that a task does not have.

    Raises:
        TaskError: there is one; the message names those that there are.
    """
    strange = [name for name in settings if name not in known]
    if strange:
        has = f"its settings are {', '.join(known)}" if known else "it has no settings"
        few = "; task[:20] has its first 20 problems" if strange[0] in _HOW_MANY else ""
        raise TaskError(
            f"{task}: {strange[0]}={shown(settings[strange[0]])} is unknown; {has}{few}"
        )
