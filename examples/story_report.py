"""Tables and the picture of `word_problems.py`, from the records of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from story_problems import worth

from ppl.decide.scaling.estimators import (
    answer_classes,
    best_of_k,
    majority_at_k,
    pass_at_k,
)
from ppl.decide.scaling.subsets import subsets, vote_on_sets
from ppl.study.intervals import Paired, paired, wilson

RULES = ("best", "vote", "weighted", "pass")
BASE = "best-of-N"
SIZES = (1, 4, 16, 64)
RESAMPLES = 2000  # of the bootstrap

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Pool:
    """Candidates of one method for one story.

    Attributes:
        answers: `[n]`, None where a line could not be read.
        right: `[n]`.
        scores: `[n]`, the head's log-probability that all lines are right.
        log_weights: `[n]`; minus infinity for none.
        tokens: generated.
        verifier_tokens: computed for the head.
    """

    answers: Sequence[str | None]
    right: Sequence[bool]
    scores: Sequence[float]
    log_weights: Sequence[float]
    tokens: int
    verifier_tokens: int

    def chances(self, k: int) -> dict[str, float]:
        """For each rule the chance that it is right with k of the candidates."""
        n = len(self.answers)
        there = [i for i, answer in enumerate(self.answers) if answer is not None]
        best = best_of_k([self.scores[i] for i in there], [self.right[i] for i in there], k, n=n)
        classes, right = answer_classes(self.answers, self.right)
        weights = np.asarray(self.log_weights, dtype=np.float64)
        sets = subsets(n, k).members
        weighted = vote_on_sets(classes[sets], weights[sets], right)
        return {
            "best": best if there else 0.0,
            "vote": majority_at_k(self.answers, self.right, k),
            "weighted": weighted,
            "pass": pass_at_k(n, sum(self.right), k),
        }


def pool(records: Sequence[Record]) -> Pool:
    """The candidates of records of one story, whose blocks are independent."""
    found = [candidate for record in records for candidate in record["candidates"]]
    return Pool(
        [c[0] for c in found],
        [c[0] == records[0]["gold"] for c in found],
        [sum(c[4]) for c in found],
        [-np.inf if c[1] is None else c[1] for c in found],
        sum(r["tokens"] for r in records),
        sum(r["verifier_tokens"] for r in records),
    )


@dataclass(frozen=True)
class Row:
    """A method with N completions.

    Attributes:
        method, n: which.
        chances: for each rule the chance to be right, `[stories]`.
        tokens, verifier_tokens: a story's.
        equal: of best-of-N, how many completions cost as many tokens.
        against: the best answer's difference from best-of-N of so many; None of best-of-N itself.
    """

    method: str
    n: int
    chances: Mapping[str, Sequence[float]]
    tokens: float
    verifier_tokens: float
    equal: int | None = None
    against: Paired | None = None

    @property
    def stories(self) -> int:
        """How many it is about."""
        return len(self.chances["best"])

    def accuracy(self, rule: str = "best") -> float:
        """Share of stories that are right."""
        return float(np.mean(self.chances[rule]))

    def interval(self, rule: str = "best") -> tuple[float, float]:
        """95% Wilson interval of it."""
        return wilson(sum(self.chances[rule]), self.stories)


def rows_of(records: Iterable[Record]) -> list[Row]:
    """A row a method and N, on the stories that every method with up to 16 completions has had.

    Rows of 64 are on those that also have had all that there is with 64; so many have all blocks
    of best-of-N, whose samples give its rows of fewer.
    """
    found: dict[tuple[str, int], dict[str, list[Record]]] = {}
    for record in records:
        if not any(r["block"] == record["block"] for r in _of(found, record)):
            _of(found, record).append(record)
    few = _common([by for (_, n), by in found.items() if n <= 16])
    base = {s: pool(found[BASE, 16][s]) for s in few} if (BASE, 16) in found else {}
    whole = [s for s in few if s in base and len(base[s].answers) >= 64]
    large = [by for (_, n), by in found.items() if n == 64]
    many = [s for s in whole if all(s in by for by in large)]
    rows = []
    for n in SIZES:
        mine = few if n <= 16 else many
        if mine and base:
            rows.append(_estimated(n, [base[s] for s in mine]))
    for method in dict.fromkeys(method for method, _ in found if method != BASE):
        for n in SIZES:
            mine = few if n <= 16 else many
            if mine and (method, n) in found:
                pools = [pool(found[method, n][s]) for s in mine]
                rows.append(_measured(method, n, pools, [base[s] for s in mine]))
    return rows


def _of(found: dict[tuple[str, int], dict[str, list[Record]]], record: Record) -> list[Record]:
    by_story = found.setdefault((record["method"], record["n"]), {})
    return by_story.setdefault(record["story"], [])


def _common(parts: Sequence[Mapping[str, object]]) -> list[str]:
    shared = set.intersection(*(set(part) for part in parts)) if parts else set()
    return sorted(shared, key=lambda story: int(story.rpartition("/")[2]))


def _estimated(n: int, pools: Sequence[Pool]) -> Row:
    chances = [p.chances(n) for p in pools]
    return Row(
        BASE,
        n,
        {rule: [c[rule] for c in chances] for rule in RULES},
        float(np.mean([p.tokens * n / len(p.answers) for p in pools])),
        float(np.mean([p.verifier_tokens * n / len(p.answers) for p in pools])),
    )


def _measured(method: str, n: int, pools: Sequence[Pool], base: Sequence[Pool]) -> Row:
    chances = [p.chances(len(p.answers)) for p in pools]
    tokens = float(np.mean([p.tokens for p in pools]))
    each = float(np.mean([p.tokens / len(p.answers) for p in base]))
    fewest = min(len(p.answers) for p in base)
    equal = min(max(1, round(tokens / each)), fewest)
    best = [c["best"] for c in chances]
    return Row(
        method,
        n,
        {rule: [c[rule] for c in chances] for rule in RULES},
        tokens,
        float(np.mean([p.verifier_tokens for p in pools])),
        equal,
        paired(best, [p.chances(equal)["best"] for p in base]),
    )


@dataclass(frozen=True)
class Siblings:
    """How right lines are told from wrong ones after one right beginning.

    Attributes:
        stories, pairs: how many have any, and how many pairs (right, wrong) there are.
        auc: share of pairs in which the right line has the larger number.
        low, high: 95% interval, bootstrap over stories.
    """

    stories: int
    pairs: int
    auc: float
    low: float
    high: float


def siblings(records: Iterable[Record], by: str, seed: int = 0) -> Siblings:
    """AUC among the distinct lines that best-of-N wrote after one right beginning.

    A line is right if its result is the account's.

    Args:
        records: of a run.
        by: `"head"`, or `"model"` for the line's log-probability.
        seed: of the bootstrap.
    """
    groups: dict[str, dict[tuple[str, ...], dict[str, tuple[bool, float]]]] = {}
    for record in records:
        if record["method"] != BASE:
            continue
        story = groups.setdefault(record["story"], {})
        for _, _, lines, log_probs, scores in record["candidates"]:
            numbers = {"head": scores, "model": log_probs}[by]
            before = record["start"]
            for t, (line, number) in enumerate(zip(lines, numbers, strict=True)):
                after = worth(f"{before}{line.removesuffix('=')}")
                right = str(after) == record["account"][t] and line.endswith("=")
                story.setdefault(tuple(lines[:t]), {})[line] = (right, number)
                if not right:
                    break
                before = after
    won, pairs = [], []
    for story in groups.values():
        score = count = 0.0
        for children in story.values():
            good = [number for right, number in children.values() if right]
            bad = [number for right, number in children.values() if not right]
            score += sum((a > b) + 0.5 * (a == b) for a in good for b in bad)
            count += len(good) * len(bad)
        if count:
            won.append(score)
            pairs.append(count)
    if not pairs:
        return Siblings(0, 0, float("nan"), float("nan"), float("nan"))
    some = np.random.default_rng(seed).integers(0, len(won), (RESAMPLES, len(won)))
    drawn = np.asarray(won)[some].sum(axis=1) / np.asarray(pairs)[some].sum(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    auc = sum(won) / sum(pairs)
    return Siblings(len(won), round(sum(pairs)), float(auc), float(low), float(high))


def show(rows: Sequence[Row], records: Sequence[Record], console: Console) -> None:
    """Prints a row a method and N, and the AUC among siblings."""
    if not rows:
        console.print("no story has been put to all methods yet")
        return
    table = Table(title="held-out stories answered rightly", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in ("N", "stories", "best", "95% int.", "vote", "weighted", "pass@N", "tokens",
                   "scored", "to best-of", "95% int.", "p"):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        low, high = row.interval()
        gap = row.against
        table.add_row(
            row.method,
            str(row.n),
            str(row.stories),
            f"{100 * row.accuracy():.1f}%",
            f"{100 * low:.0f}-{100 * high:.0f}",
            *(f"{100 * row.accuracy(rule):.1f}%" for rule in RULES[1:]),
            f"{row.tokens:.0f}",
            f"{row.verifier_tokens:.0f}",
            f"{row.equal}: {100 * gap.difference:+.1f}" if gap else "",
            f"{100 * gap.low:+.1f} {100 * gap.high:+.1f}" if gap else "",
            f"{gap.p:.3f}" if gap else "",
        )
    console.print(table)
    console.print(
        "best: by the head; vote: flat; weighted: by weight. To best-of: the difference of the "
        "best answer, in points, from the best of as many samples as cost the same tokens (how "
        "many), with its bootstrap interval and p-value. Tokens (generated) and scored (computed "
        "for the head) are a story's. Rows of best-of-N are estimates from all of its samples."
    )
    for by, name in (("head", "the head"), ("model", "the model's log-probability")):
        s = siblings(records, by)
        console.print(
            f"AUC among siblings, {name}: {s.auc:.3f} [{s.low:.3f}, {s.high:.3f}] "
            f"({s.pairs} pairs, {s.stories} stories)"
        )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy of the best answer and of the vote against N."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    if not rows:
        return
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    titles = {"best": "best by the head", "vote": "vote"}
    for axes, rule in zip(figure.subplots(1, 2, sharey=True), titles, strict=True):
        for shift, method in enumerate(dict.fromkeys(row.method for row in rows)):
            mine = [row for row in rows if row.method == method]
            ys = [row.accuracy(rule) for row in mine]
            errors = [
                [y - row.interval(rule)[0] for y, row in zip(ys, mine, strict=True)],
                [row.interval(rule)[1] - y for y, row in zip(ys, mine, strict=True)],
            ]
            xs = [row.n * 1.04**shift for row in mine]
            axes.errorbar(xs, ys, errors, marker="o", ms=3, lw=1.4, elinewidth=0.6, label=method)
        axes.set_title(titles[rule], fontsize=10)
        axes.set_xscale("log")
        sizes = sorted({row.n for row in rows})
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels(map(str, sizes))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    figure.supxlabel("completions per story", fontsize=9)
    figure.supylabel("stories answered rightly", fontsize=9)
    figure.savefig(path, dpi=140)
