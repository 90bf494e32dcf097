"""From the rows of runs to the lines of a report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ppl.study.lines import Group, Line, Spent, spent, spent_on
from ppl.study.runs import Candidate, Row, Runs
from ppl.study.selection import FITTED, RULES, Pool, Rule

# One that a rule may have stopped is none: its samples are as many as their answers made them.
BEST_OF_N = re.compile(r"BestOfN\((?:n=)?\d+\)$")
_CALL = re.compile(r"(\w+)\((.*)\)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Pools:
    """The candidates of `BestOfN(n)` for the questions of a group: every rule at every k up to n.

    Attributes:
        group: task, model and program.
        searcher: as it prints, `"BestOfN(64)"`.
        members: by question, its rows and pools, one for each seed.
        known: rules that are tried.
    """

    group: Group
    searcher: str
    members: Mapping[str, tuple[tuple[Row, Pool], ...]] = field(repr=False)
    known: tuple[Rule, ...] = RULES
    _lines: dict[tuple[Rule, int], Line] = field(default_factory=dict, repr=False)
    _costs: dict[tuple[bool, int], tuple[Spent, ...]] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """The largest k that every question has candidates for."""
        return min(pool.n for each in self.members.values() for _, pool in each)

    @property
    def sizes(self) -> list[int]:
        """Powers of two up to n, and n."""
        return sorted({2**i for i in range(self.n.bit_length())} | {self.n})

    @property
    def rules(self) -> list[Rule]:
        """Rules that all questions have what it takes for, and that tell candidates apart."""
        return [rule for rule in self.known if self.lacking(rule) is None]

    def lacking(self, rule: Rule) -> str | None:
        """Why a rule cannot be used here, None if it can."""
        pools = [pool for each in self.members.values() for _, pool in each]
        lacking = [missing for pool in pools if (missing := pool.missing(rule))]
        if lacking:
            what = " and ".join(map(repr, lacking[0]))
            return f"{rule.name}: {len(lacking)} of {len(pools)} questions lack {what} values"
        if rule.value in ("likelihood", "weight"):
            kept = [pool.values[rule.value][pool.answered] for pool in pools]
            if all((values == values[:1]).all() for values in kept):
                return f"{rule.name}: all candidates of a question have the same {rule.value!r}"
        own = {"best": "likelihood", "weighted": "weight"}.get(rule.choice)
        if own is not None and rule.value in ("last", "min", "prod"):
            # The verifier's own aggregation gives two names to one rule.
            both = [(p.values[str(rule.value)], p.values.get(own)) for p in pools]
            if all(b is not None and np.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in both):
                return (
                    f"{rule.name}: the same as {'best' if own == 'likelihood' else 'weighted vote'}"
                )
        return None

    def costs(self, rule: Rule, k: int) -> tuple[Spent, ...]:
        """What k candidates of each question cost, with the verifier if the rule asks it."""
        if (rule.verified, k) not in self._costs:
            self._costs[rule.verified, k] = tuple(
                _mean(
                    spent_on(row, k, pool.beginnings, verified=rule.verified or pool.pruned)
                    for row, pool in each
                )
                for each in self.members.values()
            )
        return self._costs[rule.verified, k]

    def tokens(self, rule: Rule, k: int, questions: Sequence[str]) -> float:
        """Mean tokens of k candidates, of some questions."""
        wanted = set(questions)
        costs = zip(self.members, self.costs(rule, k), strict=True)
        return float(np.mean([cost.tokens for question, cost in costs if question in wanted]))

    def line(self, rule: Rule, k: int) -> Line:
        """What a rule would do with k candidates."""
        if (rule, k) not in self._lines:
            self._lines[rule, k] = self._line(rule, k)
        return self._lines[rule, k]

    def _line(self, rule: Rule, k: int) -> Line:
        outcomes, exact = [], True
        for each in self.members.values():
            found = [pool.estimate(rule, k) for _, pool in each]
            exact &= all(estimate.exact for estimate in found)
            outcomes.append(float(np.mean([estimate.chance for estimate in found])))
        rows = [row for each in self.members.values() for row, _ in each]
        return Line(
            self.group,
            "BestOfN",
            "BestOfN",
            rule.name,
            k,
            "",
            tuple(self.members),
            np.array(outcomes),
            self.costs(rule, k),
            errors=sum(row.error is not None for row in rows),
            unreadable=sum(
                not pool.answered.any()
                for each in self.members.values()
                for row, pool in each
                if row.error is None
            ),
            exact=exact,
            reselected=True,
            seconds=float(np.mean([row.seconds for row in rows])) if k == self.n else math.nan,
        )

    def lines(self) -> list[Line]:
        """Every rule at every size."""
        return [self.line(rule, k) for rule in self.rules for k in self.sizes]


@dataclass(frozen=True, eq=False)
class Section:
    """All lines of one group.

    Attributes:
        group: task, model and program.
        lines: re-selected ones first, then the searchers' own.
        pools: what they were re-selected from, if there is any.
        notes: what a reader has to know.
    """

    group: Group
    lines: tuple[Line, ...]
    pools: Pools | None
    notes: tuple[str, ...]


def sections(runs: Runs, more: Sequence[Rule] = ()) -> list[Section]:
    """One for each task, model and program, in the order in which they were run; `more` rules are
    tried beside those of every report."""
    groups: dict[Group, list[Row]] = {}
    for row in runs.rows:
        groups.setdefault(Group(row.task, row.model, row.program), []).append(row)
    return [_section(group, rows, runs, (*RULES, *more)) for group, rows in groups.items()]


def _section(group: Group, rows: Sequence[Row], runs: Runs, rules: tuple[Rule, ...]) -> Section:
    notes: list[str] = []
    by_searcher: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_searcher.setdefault((row.searcher, _limits(row)), []).append(row)
    pools = _pools(group, by_searcher, runs, notes, rules)
    lines: list[Line] = []
    if pools is not None:
        lines += pools.lines()
        lacking = [why for rule in rules if (why := pools.lacking(rule)) is not None]
        if lacking:
            notes.append("Left out: " + "; ".join(lacking) + ".")
        if any(not line.exact for line in lines):
            notes.append(
                "~ marks means over 1,000 seeded subsets a question"
                + (f", {FITTED} for rules that fit a law" * any(r.fitted for r in pools.rules))
                + "; all others are exact means over all subsets of the stored candidates."
            )
        mixed = sum(pool.mixed for each in pools.members.values() for _, pool in each)
        if mixed:
            notes.append(
                f"{mixed} pools have equal answers that were judged differently: votes take the "
                "more frequent judgement."
            )
    # A posterior votes by its weights, which stored candidates call the weighted vote. `vote` is
    # the plain one in every line; where nothing is ever weighed both are one.
    weighed = any(_uneven(runs.candidates.get(row.cell, ())) for row in rows)
    vote = "weighted vote" if weighed else "vote"
    for (searcher, budget), mine in by_searcher.items():
        if pools is None or searcher != pools.searcher or budget:
            lines += _own(group, searcher, budget, mine, vote)
    counts = {len(line.questions) for line in lines}
    if len(counts) > 1:
        notes.append(
            f"Lines have from {min(counts)} to {max(counts)} questions: differences are of those "
            "that both have."
        )
    failed = sum(row.error is not None for row in rows)
    if failed:
        notes.append(f"{failed} of {len(rows)} searches failed and count as not right.")
    return Section(group, tuple(lines), pools, tuple(notes))


def _pools(
    group: Group,
    by_searcher: Mapping[tuple[str, str], Sequence[Row]],
    runs: Runs,
    notes: list[str],
    rules: tuple[Rule, ...],
) -> Pools | None:
    """The searcher whose candidates are re-selected: most questions first, then the largest n."""
    found: list[tuple[int, int, Pools]] = []
    for (searcher, budget), rows in by_searcher.items():
        if not BEST_OF_N.match(searcher):
            continue
        if budget or any(row.stopped == "budget" and row.error is None for row in rows):
            notes.append(
                f"{searcher}{' ≤ ' + budget if budget else ''} had a limit: which of its "
                "candidates were completed depends on their length, so none are re-selected."
            )
            continue
        members: dict[str, list[tuple[Row, Pool]]] = {}
        for row in rows:
            candidates = runs.candidates.get(row.cell, ())
            if candidates or row.error is not None:  # else they are still being written
                pool = Pool.of(row, candidates)
                members.setdefault(row.problem, []).append((row, pool))
        if members:
            pools = Pools(group, searcher, {q: tuple(each) for q, each in members.items()}, rules)
            found.append((len(members), pools.n, pools))
    return max(found, key=lambda each: each[:2])[2] if found else None


def _own(group: Group, searcher: str, budget: str, rows: Sequence[Row], vote: str) -> list[Line]:
    """What a searcher answered by its own rules; `vote` is what its vote is called."""
    rules = list(dict.fromkeys(rule for row in rows for rule in row.rights)) or ["answer"]
    found = []
    for rule in rules:
        outcomes: dict[str, list[float]] = {}
        costs: dict[str, list[Spent]] = {}
        unreadable = 0
        for row in rows:
            right = row.right if rule == "answer" else row.rights.get(rule)
            outcomes.setdefault(row.problem, []).append(float(right is True))
            costs.setdefault(row.problem, []).append(spent(row))
            unreadable += right is None and row.error is None
        found.append(
            Line(
                group,
                searcher,
                family(searcher, rows[0].n),
                vote if rule == "vote" else rule,
                rows[0].n,
                budget,
                tuple(outcomes),
                np.array([float(np.mean(each)) for each in outcomes.values()]),
                tuple(_mean(each) for each in costs.values()),
                errors=sum(row.error is not None for row in rows),
                unreadable=unreadable,
                seconds=float(np.mean([row.seconds for row in rows])),
            )
        )
    return found


def _uneven(candidates: Sequence[Candidate]) -> bool:
    """Whether some that may win weigh more than others."""
    return len({c.log_weight for c in candidates if c.log_weight > -math.inf}) > 1


def family(searcher: str, n: int) -> str:
    """The searcher without its size: `SMC(16)` and `SMC(num_particles=16)` are `SMC`; other
    settings stay, `SMC(ess_threshold=0.3)`."""
    call = _CALL.fullmatch(searcher)
    if call is None:
        return searcher
    settings = [part.strip() for part in re.split(r",\s*(?![^()\[\]]*[)\]])", call[2])]
    kept = [s for s in settings if "=" in s and s.partition("=")[2] != str(n)]
    return f"{call[1]}({', '.join(kept)})" if kept else call[1]


def _limits(row: Row) -> str:
    return ", ".join(f"{limit:g} {name}" for name, limit in row.budget.items() if limit is not None)


def _mean(costs: Iterable[Spent]) -> Spent:
    return Spent(*np.mean(np.array(list(costs)), axis=0).tolist())
