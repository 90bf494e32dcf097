"""The search for an architecture, under a limit on calls (Saad-Falcon et al. 2024).

The published optimiser tunes five whole numbers by Bayesian optimisation; this one searches any
finite space of choices by one of four policies (`ppl.programs.archon.policies`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ppl.errors import ArgumentError, PPLError
from ppl.language import checks
from ppl.language.arguments import checked
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
class Found:
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

    A call is a request to a model, a function or a verifier; an architecture says by its `calls`
    how many a question takes at most (others count as one), and what would exceed the limit is not
    begun. All architectures meet the same problems in the same random order.

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
        self.spent: dict[Point, int] = {}
        self.failed: dict[Point, int] = {}

    def found(self) -> Found:
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
        board, asks, reserved = self.board, [], 0
        board.pending.clear()
        if self.left < min(map(self._bound, board.points), default=0):
            return []
        while len(asks) < self.workers and (ask := POLICIES[self.method](board)) is not None:
            new = ask.problems - len(board.scores.get(ask.point, ()))
            price = new * self._bound(ask.point)
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
        return max(1, int(getattr(self.space.programs[point], "calls", 1)))

    def _evaluate(self, asks: Sequence[Ask]) -> None:
        jobs = [
            (ask.point, self.order[place])
            for ask in asks
            for place in range(len(self.board.scores.get(ask.point, ())), ask.problems)
        ]
        for (point, _), (score, spent, failed) in zip(jobs, self._scored(jobs), strict=True):
            self.board.scores.setdefault(point, []).append(score)
            self.spent[point] = self.spent.get(point, 0) + spent
            self.failed[point] = self.failed.get(point, 0) + failed
            self.left -= spent

    def _scored(self, jobs: Sequence[tuple[Point, int]]) -> list[tuple[float, int, bool]]:
        """The score of each job, what it has cost, and whether it failed."""
        task = self.task
        if callable(task):
            return [
                (float(task(self.space.settings(point), number)), self._bound(point), False)
                for point, number in jobs
            ]
        searches: list[Search] = [
            BestOfN(1).begin(
                self.space.programs[point], task[number].question, seed=_seed(self.seed, number)
            )
            for point, number in jobs
        ]
        rows = []
        for (point, number), posterior in zip(jobs, run_all(searches, collect=True), strict=True):
            if isinstance(posterior, PPLError):
                rows.append((0.0, self._bound(point), True))
                continue
            right = task.score(task[number], posterior.best)
            # Functions in the place of models are not on the bill.
            rows.append((float(bool(right)), posterior.cost.calls or self._bound(point), False))
        return rows


def _seed(seed: int, number: int) -> int:
    """One for each problem, whatever the architecture."""
    return seed * 1_000_003 + number
