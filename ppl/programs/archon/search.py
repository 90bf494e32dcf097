"""The search for an architecture, under a limit on calls (Saad-Falcon et al. 2024).

The published optimiser tunes five whole numbers by Bayesian optimisation; this one searches any
finite space of choices by one of four policies (`ppl.programs.archon.policies`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np

from ppl.errors import ArgumentError, PPLError
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.cost import Budget
from ppl.language.printed import Printed
from ppl.language.randomness import generator
from ppl.programs.archon.policies import POLICIES, Method
from ppl.programs.archon.space import Ask, Board, Point, Space
from ppl.searchers.sampling.best_of_n import BestOfN
from ppl.searchers.search import Search, run_all

Evaluation = Callable[[Mapping[str, Any], int], float]
"""The score of the architecture with these settings on the problem of this number."""


class Judged(Protocol):
    """Problems with a judge of their answers, such as a `ppl.tasks.Task`."""

    def __len__(self) -> int:
        """How many problems."""
        ...

    def __getitem__(self, at: int, /) -> Any:
        """A problem, with its `question`."""
        ...

    @property
    def score(self) -> Callable[[Any, Any], bool | None]:
        """`score(problem, answer)`: True if it is right."""
        ...


@dataclass(frozen=True)
class Trial:
    """An architecture and what it did.

    Attributes:
        settings: values by name.
        scores: on the first problems of a random order that all share.
        calls: that it took.
        failed: problems on which its run ended in an error, which score zero.
    """

    settings: Mapping[str, Any]
    scores: tuple[float, ...]
    calls: int
    failed: int = 0

    @property
    def score(self) -> float:
        """The mean."""
        return float(np.mean(self.scores))


@dataclass(frozen=True)
class Found(Printed):
    """What a search has found.

    Attributes:
        trials: of all that was looked at, the best first: those on more problems before others.
        program: that the best settings build.
        calls: spent.
        evaluations: architecture-problem pairs that were scored.
        method: the policy.
    """

    trials: tuple[Trial, ...]
    program: Any
    calls: int
    evaluations: int
    method: str

    @property
    def best(self) -> Trial:
        """The best trial. Its score was chosen for being large: measure it on other problems."""
        return self.trials[0]

    def __str__(self) -> str:
        lines = [f"{self.method}: {len(self.trials)} architectures, {self.calls} calls"]
        for trial in self.trials[:5]:
            said = ", ".join(f"{name}={value!r}" for name, value in trial.settings.items())
            lines.append(f"  {trial.score:.3f} on {len(trial.scores)}: {said}")
        return "\n".join(lines)


@checked
def search_architectures(
    space: Space,
    task: Judged | Evaluation,
    *,
    calls: int,
    method: Method = "tpe",
    problems: int | None = None,
    workers: int = 1,
    seed: int = 0,
) -> Found:
    """Looks for the architecture that does best, with no more than so many calls.

    A call is a request to a model or a verifier, or, where none of them is asked, to a function. An
    architecture says by its `calls` how often it asks at most for a question (others count as one),
    times what the dearest program that it asks has made of that so far; what would exceed the
    limit is not begun, and what does all the same is stopped and not counted. All architectures
    meet the same problems in the same random order.

    Args:
        space: what there is to choose from.
        task: problems with a judge: an architecture's answer counts 1 if it is right. Or a
            function `(settings, number of the problem) -> score`, for scores of other kinds.
        calls: the limit.
        method: "random", "greedy", "tpe" or "halving".
        problems: how many there are, where `task` is a function.
        workers: architectures that are asked for before the first is known; their runs share
            batches. Policies never wait for a whole round.
        seed: of the orders, of what policies draw, and of all runs.

    Raises:
        ArgumentError: the limit does not pay for any architecture.
    """
    checks.count(calls=calls, workers=workers)
    checks.seed(seed=seed)
    if callable(task) == (problems is None):
        raise ArgumentError(
            f"problems={problems!r}: how many there are, if task= is a function; a Task knows"
        )
    if problems is not None:
        checks.count(problems=problems)
    count = problems if problems is not None else len(task)  # type: ignore[arg-type]
    if not count:
        raise ArgumentError("task: it has no problems")
    return _Run(space, task, count, calls, method, workers, seed).found()


Job = tuple[Point, int]
"""An architecture and the number of a problem."""


@dataclass(frozen=True)
class _Row:
    """A job: its score and calls; whether it failed, or the limit ended it."""

    score: float
    calls: int
    failed: bool = False
    cut: bool = False


class _Run:
    def __init__(
        self,
        space: Space,
        task: Judged | Evaluation,
        problems: int,
        calls: int,
        method: str,
        workers: int,
        seed: int,
    ) -> None:
        self.space, self.task, self.left, self.limit = space, task, calls, calls
        self.method, self.workers, self.seed = method, workers, seed
        rng = generator(seed, "architectures", method)
        points = [space.points[i] for i in rng.permutation(len(space))]
        self.board = Board(points, problems, rng)
        self.order = generator(seed, "problems").permutation(problems).tolist()
        self.factor = 1.0
        self.known: dict[Job, _Row] = {}
        self.spent: dict[Point, int] = {}
        self.failed: dict[Point, int] = {}

    def found(self) -> Found:
        if not callable(self.task):
            self._probe()
        while asks := self._asked():
            self._evaluate(asks)
        if not self.board.scores:
            raise ArgumentError(f"calls={self.limit}: too few for any architecture of the space")
        trials = [
            Trial(self.space.settings(point), tuple(scores), self.spent[point], self.failed[point])
            for point, scores in self.board.scores.items()
        ]
        ranks = sorted(
            range(len(trials)),
            key=lambda i: (-len(trials[i].scores), -trials[i].score, trials[i].calls),
        )
        best = list(self.board.scores)[ranks[0]]
        evaluations = sum(map(len, self.board.scores.values()))
        return Found(
            tuple(trials[i] for i in ranks),
            self.space.programs[best],
            self.limit - self.left,
            evaluations,
            self.method,
        )

    def _asked(self) -> list[Ask]:
        """What is looked at next, as much as the limit pays for."""
        board, reserved = self.board, 0
        asks: list[Ask] = []
        board.pending.clear()
        if self.left < min(map(self._bound, board.points), default=1):
            return []
        while len(asks) < self.workers and (ask := POLICIES[self.method](board)) is not None:
            price = sum(job not in self.known for job in self._jobs(ask)) * self._bound(ask.point)
            if reserved + price > self.left:
                if asks:
                    break  # it may do once it is known what these have cost
                board.drop(ask.point)
                continue
            reserved += price
            board.pending[ask.point] = ask.problems
            asks.append(ask)
        return asks

    def _bound(self, point: Point) -> int:
        """Calls for a question: as the architecture says, times the most that one made of it."""
        return math.ceil(self._said(point) * self.factor)

    def _said(self, point: Point) -> int:
        return max(1, int(getattr(self.space.programs[point], "calls", 1)))

    def _jobs(self, ask: Ask) -> list[Job]:
        seen = len(self.board.scores.get(ask.point, ()))
        return [(ask.point, self.order[place]) for place in range(seen, ask.problems)]

    def _probe(self) -> None:
        """The first problem for whoever asks least often: says what an asking costs."""
        cheapest = min(self.board.points, key=self._said)
        self._score([(cheapest, self.order[0])])

    def _evaluate(self, asks: Sequence[Ask]) -> None:
        jobs = [job for ask in asks for job in self._jobs(ask)]
        self._score([job for job in jobs if job not in self.known])
        rows = [self.known.pop(job) for job in jobs]
        cut = {point for (point, _), row in zip(jobs, rows, strict=True) if row.cut}
        for point in cut:  # the limit ended it: what it would have answered is not known
            self.board.drop(point)
        for (point, _), row in zip(jobs, rows, strict=True):
            if point not in cut:
                self.board.scores.setdefault(point, []).append(row.score)
                self.spent[point] = self.spent.get(point, 0) + row.calls
                self.failed[point] = self.failed.get(point, 0) + row.failed

    def _score(self, jobs: Sequence[Job]) -> None:
        """Runs jobs and pays for them; what came of them is known from then on."""
        if jobs:
            rows = self._scored(jobs)
            self.left -= sum(row.calls for row in rows)
            self.known |= zip(jobs, rows, strict=True)

    def _scored(self, jobs: Sequence[Job]) -> list[_Row]:
        """What came of each job."""
        task = self.task
        if callable(task):
            return [
                _Row(_number(task(settings, number), settings, number), self._said(point))
                for point, number in jobs
                for settings in (self.space.settings(point),)
            ]
        budget = Budget(calls=self.left // len(jobs))
        searches: list[Search] = [
            BestOfN(1).begin(
                self.space.programs[point],
                task[number].question,
                seed=_seed(self.seed, number),
                budget=budget,
            )
            for point, number in jobs
        ]
        rows = []
        for (point, number), search, posterior in zip(
            jobs, searches, run_all(searches, collect=True), strict=True
        ):
            # Functions in the place of models are not on the bill.
            calls = search.tree.cost.calls or min(self._said(point), self.left // len(jobs))
            self.factor = max(self.factor, calls / self._said(point))
            if isinstance(posterior, PPLError):
                rows.append(_Row(0.0, calls, failed=True))
                continue
            right = task.score(task[number], posterior.best)
            rows.append(_Row(float(bool(right)), calls, cut=posterior.stopped == "budget"))
        return rows


def _number(score: Any, settings: Mapping[str, Any], number: int) -> float:
    """A score that can be compared."""
    if not isinstance(score, Real | np.bool_) or not math.isfinite(score):
        raise ArgumentError(
            f"task: it scored {shown(score)} for {shown(dict(settings))} on problem {number}; a "
            "finite number"
        )
    return float(score)


def _seed(seed: int, number: int) -> int:
    """One for each problem, whatever the architecture."""
    return seed * 1_000_003 + number
