"""What allocation reads: one strategy on one question, whether it was right and what it cost.

`records(ppl.study.report.read(folder))` makes them of a study's folder; records of one's own are as
good. A strategy is a whole way to answer, searcher, size and rule: `"SMC(16), vote"`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields, checked, shown

# One with a stopping rule draws by what samples say, one with a mix from several laws.
_INDEPENDENT = re.compile(r"BestOfN\((?:n=)?\d+\)$")


@dataclass(frozen=True, slots=True)
class Record:
    """One strategy on one question.

    Attributes:
        problem: the question's name.
        strategy: the way to answer.
        right: 0 or 1, or the chance to be right.
        cost: in the unit of the budgets.
        seed: records of a question with the same seed may share random numbers.
        samples: of independent samples, whether each was right; empty where there are none.
        scores: of these, the verifier's value of the whole text.
    """

    problem: str
    strategy: str
    right: float
    cost: float
    seed: int = 0
    samples: tuple[bool, ...] = field(default=(), repr=False)
    scores: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        check_fields(self)
        checks.probability(right=self.right)
        checks.nonnegative(cost=self.cost)
        if self.scores and self.samples and len(self.scores) != len(self.samples):
            raise ArgumentError(f"scores: {len(self.scores)} for {len(self.samples)} samples")


class StudyRuns(Protocol):
    """What is read of `ppl.study.report.Runs`."""

    @property
    def rows(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def candidates(self) -> Mapping[str, Sequence[Any]]: ...  # noqa: D102


@checked
def records(
    runs: StudyRuns,
    *,
    rules: Sequence[str] = ("best", "vote"),
    unit: Literal["tokens", "lm_tokens", "flops", "n"] = "tokens",
) -> list[Record]:
    """Records of a study: one for each row and rule.

    A row that failed, and an answer that could not be read, are not right. The candidates of
    `BestOfN` are independent, and become `samples` and `scores` (of their last step, 0 for one that
    was not judged; none where no verifier judged at all); those of other searchers are not, and do
    not.

    Args:
        runs: as `ppl.study.report.read` gives them.
        rules: those of `rights` that are wanted; each is a strategy of its own.
        unit: what cost is: all tokens that were read or written, those the language model wrote,
            FLOPs, or completions.

    Raises:
        ArgumentError: a rule that a row does not have; FLOPs that are not known; no rows.
    """
    if not (hasattr(runs, "rows") and hasattr(runs, "candidates")):
        raise ArgumentError(f"runs={shown(runs)}: what ppl.study.report.read(folder) returns")
    if not rules:
        raise ArgumentError("rules: none; name the rules that are compared, such as 'best'")
    found = []
    several = [
        name for name in ("model", "program") if len({getattr(row, name) for row in runs.rows}) > 1
    ]
    for row in runs.rows:
        words = [*(getattr(row, name) for name in several), row.searcher]
        words += [f"{name} {limit:g}" for name, limit in row.budget.items()]
        pool = runs.candidates.get(row.cell, ()) if _INDEPENDENT.match(row.searcher) else ()
        judged = any(c.scores for c in pool)
        for rule in rules:
            if row.error is None and rule not in row.rights:
                raise ArgumentError(f"rules: {rule!r} is not among {', '.join(row.rights)}")
            found.append(
                Record(
                    f"{row.task}/{row.problem}",
                    f"{' '.join(words)}, {rule}",
                    float(row.rights.get(rule) is True),
                    _cost(row, unit),
                    row.seed,
                    tuple(c.right is True for c in pool),
                    tuple(c.scores[-1] if c.scores else 0.0 for c in pool if judged),
                )
            )
    if not found:
        raise ArgumentError(f"runs: {runs!r} has no rows")
    return found


def _cost(row: Any, unit: str) -> float:
    if unit == "n":
        return float(row.n)
    if unit == "tokens":
        return float(
            sum(row.cost.get(f"{who}_tokens") or 0 for who in ("lm", "prompt", "verifier"))
        )
    known = row.cost.get(unit)
    if known is None:
        raise ArgumentError(f"unit={unit!r}: not known of {row.searcher} on {row.problem}")
    return float(known)
