"""What is left to do, in pieces that one process does at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ppl.errors import StudyError
from ppl.study.plan import Group, Plan
from ppl.study.sources import Source
from ppl.tasks import Problem


@dataclass(frozen=True)
class Job:
    """Problems of one group.

    Attributes:
        group: task, model, program, searcher, budget, seed.
        problems: of its task.
    """

    group: Group
    problems: Sequence[Problem]

    def without(self, cells: Collection[str]) -> Job:
        """The job without what is done."""
        left = [p for p in self.problems if self.group.cell(p.id) not in cells]
        return Job(self.group, left)

    def pieces(self, size: int) -> list[Job]:
        """The job as several of at most so many problems."""
        starts = range(0, len(self.problems), size)
        return [Job(self.group, self.problems[start : start + size]) for start in starts]


def jobs(
    study: Plan, chosen: Mapping[str, Sequence[Problem]], done: Collection[str]
) -> Iterator[Job]:
    """A job for every group in which something is left to do.

    Args:
        study: of its groups.
        chosen: the problems of each task.
        done: cells that are there.
    """
    for group in study.groups:
        job = Job(group, chosen[group.task]).without(done)
        if job.problems:
            yield job


class Pieces:
    """Jobs in pieces, for processes that may end at any moment.

    What a process has not done when it ends is given to others a question at a time, so that one
    that ends every process does not take others with it; after `PATIENCE` ends it is given up.

    Args:
        todo: the jobs.
        size: most problems of a piece.
    """

    PATIENCE = 3

    def __init__(self, todo: Sequence[Job], size: int) -> None:
        self._waiting = [piece for job in todo for piece in job.pieces(size)][::-1]
        self._ends: Counter[str] = Counter()

    def take(self) -> Job | None:
        """The next piece; None if none is waiting."""
        return self._waiting.pop() if self._waiting else None

    def lost(self, piece: Job) -> list[Problem]:
        """Takes back what a process that has ended did not do; the problems that are given up."""
        given_up = []
        for problem in reversed(piece.problems):
            cell = piece.group.cell(problem.id)
            self._ends[cell] += 1
            if self._ends[cell] >= self.PATIENCE:
                given_up.append(problem)
            else:
                self._waiting.append(Job(piece.group, [problem]))
        return given_up


def portable(study: Plan, how: str) -> None:
    """Raises StudyError if other processes cannot have the study's models."""
    for kind in ("models", "verifiers"):
        for name, source in getattr(study, kind).items():
            if not isinstance(source, Source):
                raise StudyError(
                    f"{kind}.{name} is an object of this process, which {how} cannot have: name it "
                    "({'load': ...}), or make it by an import path ({'make': 'module:function'})"
                )
