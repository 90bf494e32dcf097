"""One line of a report: a way to answer, its outcomes question by question, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppl.language.cached import cached_property
from ppl.study.intervals import wilson
from ppl.study.runs import Row
from ppl.study.sharing import Beginnings

Floats = NDArray[np.float64]


class Group(NamedTuple):
    """What is compared with each other: the same task, model and program."""

    task: str
    model: str
    program: str

    def __str__(self) -> str:
        return f"{self.task} · {self.model} · {self.program}"


class Spent(NamedTuple):
    """What one question costs. `flops` is NaN where a model's size is unknown."""

    lm_tokens: float
    prompt_tokens: float
    verifier_tokens: float
    flops: float

    @property
    def tokens(self) -> float:
        """All that went through a model: prompt, generated, read by verifiers."""
        return self.lm_tokens + self.prompt_tokens + self.verifier_tokens


@dataclass(frozen=True, eq=False)
class Line:
    """A way to answer, over all questions of a group.

    Attributes:
        group: task, model and program.
        searcher: as it prints; `BestOfN` for rules on subsets of its candidates.
        family: the searcher without its size: lines of a family make a curve.
        rule: how the answer is chosen.
        n: completions a question.
        budget: limits, as text.
        questions: their ids.
        outcomes: `[Q]` chances to be right, means over seeds.
        spent: `[Q]` costs, means over seeds.
        errors: rows that failed; they count as not right.
        unreadable: rows, without errors, whose answer is missing or cannot be judged.
        exact: whether outcomes are what happened, or means over all subsets; else over random ones.
        reselected: whether it was computed from stored candidates.
        seconds: mean of a question; NaN for what was not run as such.
    """

    group: Group
    searcher: str
    family: str
    rule: str
    n: int
    budget: str
    questions: tuple[str, ...]
    outcomes: Floats = field(repr=False)
    spent: tuple[Spent, ...] = field(repr=False)
    errors: int = 0
    unreadable: int = 0
    exact: bool = True
    reselected: bool = False
    seconds: float = math.nan

    @property
    def name(self) -> str:
        """Searcher, limits and rule."""
        limits = f" ≤ {self.budget}" if self.budget else ""
        return f"{self.searcher}{limits}, {self.rule}"

    @property
    def curve(self) -> str:
        """What it shares with the other points of its curve."""
        return f"{self.family}, {self.rule}"

    @cached_property
    def accuracy(self) -> float:
        """Mean outcome."""
        return float(self.outcomes.mean())

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy; a question is the unit, whatever the seeds."""
        return wilson(float(self.outcomes.sum()), len(self.outcomes))

    @cached_property
    def cost(self) -> Spent:
        """Mean over questions."""
        return Spent(*np.mean(np.array(self.spent), axis=0).tolist())

    @property
    def tokens_per_right(self) -> float:
        """Tokens of all questions for each one that is right; infinite if none is."""
        return self.cost.tokens / self.accuracy if self.accuracy else math.inf

    @property
    def flops_per_right(self) -> float:
        """FLOPs of all questions for each one that is right; NaN where they are unknown."""
        if math.isnan(self.cost.flops):
            return math.nan
        return self.cost.flops / self.accuracy if self.accuracy else math.inf

    def on(self, questions: Sequence[str]) -> tuple[Floats, float]:
        """Outcomes of these questions, and their mean tokens."""
        place = {question: i for i, question in enumerate(self.questions)}
        rows = [place[q] for q in questions]
        return self.outcomes[rows], float(np.mean([self.spent[i].tokens for i in rows]))


def spent(row: Row) -> Spent:
    """The whole cost of a row."""
    cost = row.cost
    flops = cost.get("flops")
    return Spent(
        float(cost.get("lm_tokens") or 0),
        float(cost.get("prompt_tokens") or 0),
        float(cost.get("verifier_tokens") or 0),
        math.nan if flops is None else float(flops),
    )


def spent_on(row: Row, k: int, beginnings: Beginnings, *, verified: bool) -> Spent:
    """What k of the row's n independent candidates cost on average.

    Generated tokens by k/n, which is exact. The question is computed once; what goes through a
    model again because a candidate goes on (a token after each step), and what a verifier reads,
    by the beginnings that k candidates hold, see `ppl.study.sharing`. What else a program adds to
    its texts is not told apart from the question. Without `verified` verifiers are left out: the
    rule does not ask them. With k = n this is what was measured.
    """
    whole, n = spent(row), beginnings.n
    kept, joints = beginnings.kept(k)
    question, prompt = _prompt(whole.prompt_tokens, beginnings, joints)
    read = _read(whole.verifier_tokens, question, beginnings, kept) if verified else 0.0
    models: Mapping[str, Any] = row.cost.get("models") or {}
    flops = k / n * whole.flops if verified else math.nan
    if models and not math.isnan(whole.flops):
        flops = 0.0
        for page in models.values():
            generated, draws = page.get("lm_tokens", 0), page.get("draws", 0)
            judged = max(0, page.get("verifier_tokens", 0) - (0 if generated else draws))
            tokens = _prompt(page.get("prompt_tokens", 0), beginnings, joints)[1]
            tokens += k / n * (generated - (draws if generated else 0))
            if verified and whole.verifier_tokens:
                tokens += judged * read / whole.verifier_tokens
            flops += 2.0 * (page.get("parameters") or 0) * max(0.0, tokens)
    return Spent(k / n * whole.lm_tokens, prompt, read, flops)


def _prompt(whole: float, beginnings: Beginnings, joints: float) -> tuple[float, float]:
    """Tokens of the question, and prompt tokens with those that are put in after steps."""
    again = min(float(beginnings.joints), whole)
    return whole - again, whole - again + joints * again


def _read(whole: float, question: float, beginnings: Beginnings, kept: float) -> float:
    """What verifiers read: the question once, as far as it is beyond the candidates' tokens."""
    once = min(max(0.0, whole - beginnings.total), question)
    return once + kept * (whole - once)
