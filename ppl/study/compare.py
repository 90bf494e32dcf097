"""Differences against a baseline, question by question and at equal tokens.

Of what is re-selected, any number of tokens can be had: between k and k + 1 candidates, k + 1 are
taken for a share of the questions, drawn blindly, and outcomes and costs are the mean of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppl.errors import ArgumentError
from ppl.study.intervals import Paired, paired
from ppl.study.lines import Line
from ppl.study.selection import Rule
from ppl.study.tables import Section

EQUAL = 0.02
"""Tokens that differ by less than this share are said to be equal."""


@dataclass(frozen=True)
class Difference:
    """A line against the baseline.

    Attributes:
        line: what is compared.
        baseline: what with.
        k: candidates a question of what is re-selected; a fraction between two, NaN for none.
        questions: that both have.
        tokens: of the line, a question.
        baseline_tokens: of the baseline.
        paired: the difference in accuracy; None where the stored candidates do not cost as much.
        against_rule: whether the baseline is re-selected, to the line's tokens, or the line is.
    """

    line: Line
    baseline: str
    k: float
    questions: int
    tokens: float
    baseline_tokens: float
    paired: Paired | None
    against_rule: bool

    @property
    def name(self) -> str:
        """The line, and of how many candidates if they were re-selected."""
        if not self.line.reselected:
            return self.line.name
        n = self.line.n if self.against_rule or math.isnan(self.k) else round(self.k, 1)
        return f"{self.line.name} of {n:g}"

    @property
    def against(self) -> str:
        """The baseline, and of how many candidates if they were re-selected."""
        if not self.against_rule or math.isnan(self.k):
            return self.baseline
        return f"{self.baseline} of {round(self.k, 1):g}"

    @property
    def ratio(self) -> float:
        """Tokens of the line for each of the baseline's."""
        return self.tokens / self.baseline_tokens if self.baseline_tokens else math.nan

    @property
    def equal(self) -> bool:
        """Whether both spend the same."""
        return self.paired is not None and abs(self.ratio - 1) <= EQUAL


def named(section: Section, baseline: str | None) -> Rule | Line | None:
    """The baseline of a section.

    A rule's name (`"vote"`) is that rule on candidates of `BestOfN`; a searcher (`"SMC(16)"`) or a
    line (`"SMC(16), best"`) is that line. By default the vote, which needs no verifier; without
    stored candidates the first searcher.

    Raises:
        ArgumentError: there is no such line here; those that there are are named.
    """
    rules = {rule.name: rule for rule in section.pools.rules} if section.pools else {}
    own = [line for line in section.lines if not line.reselected]
    if baseline is None:
        return rules.get("vote") or (own[0] if own else None)
    plain = baseline.removeprefix("BestOfN, ")
    if plain in rules:
        return rules[plain]
    for line in own:
        if baseline in (line.name, line.searcher):
            return line
    known = [*rules, *(line.name for line in own)]
    raise ArgumentError(f"baseline={baseline!r}: no such line of {section.group}; one of {known}")


def differences(
    section: Section, baseline: str | None = None, *, seed: int = 0
) -> list[Difference]:
    """Every line that could be used in earnest against the baseline."""
    base = named(section, baseline)
    if base is None:
        return []
    known = section.pools.known if section.pools else ()
    real = {rule.name for rule in known if rule.real}
    found = []
    for line in section.lines:
        if line.reselected and (line.rule not in real or line.n == 1):
            continue  # of one candidate, every rule makes the same
        if isinstance(base, Rule):
            if not (line.reselected and line.rule == base.name):
                found.append(_with_rule(section, line, base, seed))
        elif line is not base and not (line.reselected and _repeated(found, line)):
            found.append(_with_line(section, line, base, seed))
    return found


def _with_rule(section: Section, line: Line, base: Rule, seed: int) -> Difference:
    """The baseline takes as many candidates as the line's tokens pay for."""
    questions = _shared(line.questions, section.pools.members) if section.pools else []
    if not questions:
        return Difference(line, base.name, math.nan, 0, math.nan, math.nan, None, True)
    outcomes, tokens = line.on(questions)
    theirs = _at_tokens(section, base, questions, tokens)
    if theirs is None:
        return Difference(line, base.name, math.nan, len(questions), tokens, math.nan, None, True)
    k, other, spent = theirs
    result = paired(outcomes, other, seed=seed)
    return Difference(line, base.name, k, len(questions), tokens, spent, result, True)


def _with_line(section: Section, line: Line, base: Line, seed: int) -> Difference:
    """A searcher is what it is; what is re-selected is taken at the searcher's tokens."""
    questions = _shared(line.questions, base.questions)
    if not questions:
        return Difference(line, base.name, math.nan, 0, math.nan, math.nan, None, False)
    other, spent = base.on(questions)
    outcomes, tokens = line.on(questions)
    if line.reselected:
        assert section.pools is not None
        rule = next(rule for rule in section.pools.known if rule.name == line.rule)
        mine = _at_tokens(section, rule, questions, spent)
        if mine is None:
            return Difference(line, base.name, math.nan, len(questions), tokens, spent, None, False)
        k, outcomes, tokens = mine
    else:
        k = math.nan
    result = paired(outcomes, other, seed=seed)
    return Difference(line, base.name, k, len(questions), tokens, spent, result, False)


def _repeated(found: Sequence[Difference], line: Line) -> bool:
    """Whether a rule was compared already: at equal tokens, all its sizes are one."""
    return any(d.line.reselected and d.line.rule == line.rule for d in found)


def _shared(a: Iterable[str], b: Iterable[str]) -> list[str]:
    there = set(b)
    return [question for question in a if question in there]


def _at_tokens(
    section: Section, rule: Rule, questions: Sequence[str], tokens: float
) -> tuple[float, NDArray[np.float64], float] | None:
    """Candidates, outcomes `[Q]` and tokens of a rule that may spend so much; None out of reach.

    What k candidates cost rises with k, so that the size is found by halving.
    """
    pools = section.pools
    assert pools is not None
    first, last = (pools.tokens(rule, k, questions) for k in (1, pools.n))
    if not first * (1 - EQUAL) <= tokens <= last * (1 + EQUAL):
        return None
    tokens = min(max(tokens, first), last)
    low, high = 1, pools.n  # tokens(low) <= tokens <= tokens(high)
    while high - low > 1:
        middle = (low + high) // 2
        if pools.tokens(rule, middle, questions) <= tokens:
            low = middle
        else:
            high = middle
    below, above = (pools.tokens(rule, k, questions) for k in (low, high))
    share = (tokens - below) / (above - below) if above > below else 0.0
    k = low + share * (high - low)
    outcomes, spent = pools.line(rule, low).on(questions)
    if share > 1e-9:
        more, dearer = pools.line(rule, high).on(questions)
        outcomes = (1 - share) * outcomes + share * more
        spent = (1 - share) * spent + share * dearer
    return k, outcomes, spent
