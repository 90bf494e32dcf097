"""More samples, longer ones, or keys and values that take less: accuracy against bytes.

Lancucki, Staniszewski, Nawrot and Ponti 2025 (arXiv 2506.05345). Where steps wait for memory it is
keys and values, not tokens, that cost; a model that keeps less of them can draw more samples, or
longer ones, for the same bytes. A configuration is a setting of `kv=`, `N` samples and at most `L`
new tokens of each. For each there are accuracy and two costs of a question, what its steps read and
the most that is kept at once; those that no other one beats in both are the Pareto frontier.

The best of many configurations looks better than it is on the questions that it was chosen on. So
`HyperScale.gain` chooses on other questions than those it measures; frontiers, as published, do
not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ppl.decide.scaling import majority_at_k, pass_at_k
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields, checked, shown
from ppl.language.randomness import key

Floats = NDArray[np.float64]
By = Literal["bytes_read", "peak_bytes"]


class Use(Protocol):
    """Bytes of a batch, as `ppl.HFModel.kv_use` says them."""

    @property
    def read(self) -> int: ...  # noqa: D102
    @property
    def peak(self) -> int: ...  # noqa: D102


@runtime_checkable
class Counting(Protocol):
    """A model that counts what keys and values take: any that `ppl.load` runs in this process."""

    kv: str

    def kv_use(self, prompt: int, new: Sequence[int]) -> Use: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sample of a question.

    Attributes:
        tokens: that were drawn.
        answer: None without one.
        right: whether it is.
    """

    tokens: int
    answer: Any
    right: bool

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(tokens=self.tokens)


@dataclass(frozen=True, slots=True)
class KVRecord:
    """One configuration on one question.

    Attributes:
        problem: the question's name.
        kv: the setting, as `lm.kv` says it.
        samples: N.
        length: L, most new tokens of a sample.
        right: 0 or 1, or the chance to be right.
        bytes_read: by all steps of all samples.
        peak_bytes: most that is kept at once, with all samples side by side.
    """

    problem: str
    kv: str
    samples: int
    length: int
    right: float
    bytes_read: float
    peak_bytes: float

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(samples=self.samples, length=self.length)
        checks.probability(right=self.right)
        checks.nonnegative(bytes_read=self.bytes_read, peak_bytes=self.peak_bytes)


@checked
def kv_records(
    lm: object,
    problem: str,
    prompt: int,
    drawn: Sequence[Drawn],
    *,
    samples: Sequence[int],
    lengths: Sequence[int],
    rule: Literal["vote", "any"] = "vote",
) -> list[KVRecord]:
    """Records of a whole grid from the samples of one question under one `kv=`.

    A sample that is longer than L would have been cut there, without an answer. What N of the
    samples would have done is estimated without bias: the rule and the bytes that are read by all
    subsets of N, the peak by successive groups of N.

    Args:
        lm: that drew them; it is asked for its `kv` and for `kv_use`, nothing is run.
        problem: the question's name.
        prompt: tokens of its prompt.
        drawn: independent samples, drawn with a limit of the largest of `lengths` at least.
        samples: values of N, at most as many as were drawn.
        lengths: values of L.
        rule: the most frequent answer counts, ties by their share; or whether any is right.

    Raises:
        ArgumentError: a model that does not count bytes, more samples than were drawn, or a grid
            without values.
    """
    if not isinstance(lm, Counting):
        raise ArgumentError(
            f"lm={shown(lm)}: a model that ppl.load runs in this process, whose bytes are known; "
            "of others make allocate.KVRecord yourself"
        )
    checks.count(prompt=prompt)
    if not samples or not lengths:
        raise ArgumentError("samples, lengths: values of N and L, one of each at least")
    for count in samples:
        checks.count(samples=count)
        if count > len(drawn):
            raise ArgumentError(f"samples={count}: {len(drawn)} were drawn of {problem}")
    found = []
    for length in lengths:
        checks.count(lengths=length)
        cut = [d if d.tokens <= length else Drawn(length, None, False) for d in drawn]
        reads = sum(lm.kv_use(prompt, [d.tokens]).read for d in cut) / len(cut)
        rights = [d.right for d in cut]
        for count in samples:
            if rule == "vote":
                right = majority_at_k([d.answer for d in cut], rights, count)
            else:
                right = pass_at_k(len(cut), sum(rights), count)
            groups = [cut[i : i + count] for i in range(0, len(cut) - count + 1, count)]
            peaks = [lm.kv_use(prompt, [d.tokens for d in group]).peak for group in groups]
            peak = sum(peaks) / len(peaks)
            right = min(1.0, max(0.0, right))  # sums of chances, by their last digits
            found.append(KVRecord(problem, lm.kv, count, length, right, count * reads, peak))
    return found


@dataclass(frozen=True, slots=True)
class KVPoint:
    """A configuration over all questions.

    Attributes:
        kv, samples, length: see `KVRecord`.
        accuracy: share of questions.
        error: its standard error, over questions.
        bytes_read, peak_bytes: of a question, means.
    """

    kv: str
    samples: int
    length: int
    accuracy: float
    error: float
    bytes_read: float
    peak_bytes: float


@dataclass(frozen=True, slots=True)
class KVGain:
    """What a setting brings over another for the same bytes.

    Attributes:
        budget: bytes of a question, of either kind.
        choice, other: the best configuration of each setting, chosen on all questions.
        accuracy, other_accuracy: of configurations that were chosen on other questions.
        gain: the first less the second.
        error: its standard error, over questions.
    """

    budget: float
    choice: KVPoint
    other: KVPoint
    accuracy: float
    other_accuracy: float
    gain: float
    error: float


@dataclass(frozen=True)
class HyperScale:
    """Accuracy against bytes.

    Attributes:
        points: all configurations, by setting, samples and length.
        questions: that they were measured on.
    """

    points: tuple[KVPoint, ...]
    questions: int
    _right: Floats = field(repr=False, compare=False)  # [Q, points]
    _fold: NDArray[np.int64] = field(repr=False, compare=False)  # [Q]

    @checked
    def frontier(self, by: By = "bytes_read", kv: str | None = None) -> tuple[KVPoint, ...]:
        """Points to which none is equal or better in accuracy and bytes, by rising bytes.

        Args:
            by: which bytes.
            kv: among the points of one setting; None among all.
        """
        best, found = -math.inf, []
        for point in sorted(self._of(kv), key=lambda p: (getattr(p, by), -p.accuracy)):
            if point.accuracy > best:
                found.append(point)
                best = point.accuracy
        return tuple(found)

    @checked
    def gain(self, budget: float, kv: str, over: str = "full", by: By = "bytes_read") -> KVGain:
        """What the best configuration of a setting brings over that of another one, both within a
        budget, and each chosen on other questions than those it is measured on.

        Args:
            budget: bytes of a question, on average.
            kv, over: the settings.
            by: which bytes.

        Raises:
            ArgumentError: a setting without points, or without any that the budget pays for.
        """
        checks.positive(budget=budget)
        choice, own = self._choices(budget, by, self._of(kv))
        other, theirs = self._choices(budget, by, self._of(over, "over"))
        apart = own - theirs
        error = float(np.std(apart, ddof=1)) / math.sqrt(len(apart))
        means = float(own.mean()), float(theirs.mean())
        return KVGain(budget, choice, other, *means, means[0] - means[1], error)

    def _choices(self, budget: float, by: By, points: list[KVPoint]) -> tuple[KVPoint, Floats]:
        """The best point on all questions; `[Q]`, what the best on the others did on each."""
        cost = {p: getattr(p, by) for p in points}
        within = [i for i, p in enumerate(self.points) if p in cost and cost[p] <= budget]
        if not within:
            raise ArgumentError(
                f"budget={budget:g}: the cheapest of {points[0].kv!r} takes {min(cost.values()):g}"
            )
        # Of equal ones the cheapest: bytes that bring nothing are not spent.
        within.sort(key=lambda i: cost[self.points[i]])
        did = np.empty(self.questions)
        for fold in np.unique(self._fold):
            means = self._right[self._fold != fold][:, within].mean(axis=0)
            best = within[int(np.argmax(means))]
            did[self._fold == fold] = self._right[self._fold == fold, best]
        best = within[int(np.argmax(self._right[:, within].mean(axis=0)))]
        return self.points[best], did

    def _of(self, kv: str | None, name: str = "kv") -> list[KVPoint]:
        found = [p for p in self.points if kv in (None, p.kv)]
        if not found:
            known = ", ".join(dict.fromkeys(p.kv for p in self.points))
            raise ArgumentError(f"{name}={kv!r}: no record is of it; there are {known}")
        return found

    @property
    def markdown(self) -> str:
        """A row a point; `r` and `p` mark those on the frontier by bytes read and by the peak."""
        fronts = {"r": self.frontier("bytes_read"), "p": self.frontier("peak_bytes")}
        lines = ["| kv | N | L | right | MB read | MB at most | frontier |", "|---" * 7 + "|"]
        for p in self.points:
            marks = " ".join(name for name, front in fronts.items() if p in front)
            cells = [p.kv, str(p.samples), str(p.length)]
            cells += [f"{100 * p.accuracy:.1f} ± {100 * p.error:.1f}"]
            cells += [f"{p.bytes_read / 1e6:.4g}", f"{p.peak_bytes / 1e6:.4g}", marks]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


@checked
def hyper_scale(records: Sequence[KVRecord], *, folds: int = 2, seed: int = 0) -> HyperScale:
    """Accuracy against bytes read and peak bytes, for each setting, N and L.

    Args:
        records: every configuration on every question, as `kv_records` makes them; several of one
            are averaged.
        folds: into which questions are divided where one is chosen and measured.
        seed: of the division.

    Raises:
        ArgumentError: a configuration that was not run on some question, or too few questions.
    """
    checks.count(least=2, folds=folds)
    problems = sorted({r.problem for r in records})
    if len(problems) < folds:
        raise ArgumentError(
            f"folds={folds}: {len(problems)} questions in records are too few for them"
        )
    order = list(dict.fromkeys(r.kv for r in records))
    called = sorted(
        {(r.kv, r.samples, r.length) for r in records}, key=lambda c: (order.index(c[0]), *c[1:])
    )
    place = {problem: q for q, problem in enumerate(problems)}
    column = {name: i for i, name in enumerate(called)}
    sums = np.zeros((4, len(problems), len(called)))
    for r in records:
        at = place[r.problem], column[r.kv, r.samples, r.length]
        sums[(slice(None), *at)] += (1.0, r.right, r.bytes_read, r.peak_bytes)
    if (missing := np.argwhere(sums[0] == 0)).size:
        q, i = missing[0]
        kv, n, length = called[i]
        raise ArgumentError(
            f"records: kv={kv!r} with {n} samples of {length} tokens was not run on {problems[q]}; "
            "points are compared on the same questions, so run it there, or leave it out"
        )
    right, read, peak = sums[1:] / sums[0]
    error = right.std(axis=0, ddof=1) / math.sqrt(len(problems))
    points = tuple(
        KVPoint(*name, *(float(x[i]) for x in (right.mean(0), error, read.mean(0), peak.mean(0))))
        for i, name in enumerate(called)
    )
    by_key = sorted(range(len(problems)), key=lambda q: key(seed, "fold", problems[q]))
    fold = np.empty(len(problems), dtype=np.int64)
    fold[by_key] = np.arange(len(problems)) % folds
    return HyperScale(points, len(problems), right, fold)
