"""The tables of a report as plain cells, for a terminal, for Markdown and for the page alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ppl.study.compare import Difference
from ppl.study.halves import Chosen, Threshold, names
from ppl.study.lines import Line
from ppl.study.tables import Section

DASH = "–"


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        title: what it shows.
        columns: headings; those of numbers are set to the right.
        rows: cells as text, one a column.
        words: how many columns, from the left, are words.
        note: how to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    note: str = ""


@dataclass(frozen=True)
class Results:
    """A section with all that was computed of it.

    Attributes:
        section: lines and candidates.
        differences: against the baseline.
        chosen: rules chosen on the first half, by size.
        threshold: of agreement, chosen on the first half; None if there is nothing to choose.
    """

    section: Section
    differences: tuple[Difference, ...] = ()
    chosen: tuple[Chosen, ...] = ()
    threshold: Threshold | None = field(default=None)


def sheets(results: Results) -> list[Sheet]:
    """Those tables of a section that have something to show."""
    found = [_by_size(results.section), _ways(results.section), _differences(results.differences)]
    found += [_chosen(results.chosen), _threshold(results.threshold)]
    return [sheet for sheet in found if sheet is not None and sheet.rows]


def _by_size(section: Section) -> Sheet | None:
    """Rules by sizes."""
    pools = section.pools
    if pools is None or pools.n == 1:
        return None
    rows: list[tuple[str, ...]] = []
    costs: dict[bool, list[str]] = {}
    for rule in pools.rules:
        lines = [pools.line(rule, k) for k in pools.sizes]
        last = lines[-1]
        rows.append((rule.name, *(_right(line) for line in lines), interval(*last.interval)))
        costs.setdefault(rule.verified, [count(line.cost.tokens) for line in lines])
    for verified, tokens in sorted(costs.items()):
        kind = "tokens, with verifier" if verified else "tokens, no verifier"
        rows.append((kind, *tokens, ""))
    return Sheet(
        f"Any N from the candidates of {pools.searcher}: % right of {len(pools.members)} questions",
        ("rule", *(f"N={k}" for k in pools.sizes), f"95% at N={pools.n}"),
        tuple(rows),
        note=(
            "Means over all subsets of N of the stored candidates: no model was asked. Oracle: "
            "some candidate is right. Random: one with an answer, blindly. Tokens of a question: "
            "prompt, generated and, where the rule asks a verifier, read by it."
        ),
    )


def _ways(section: Section) -> Sheet:
    """All ways to answer, re-selected ones at their largest size."""
    lines = [
        line
        for line in section.lines
        if not (line.reselected and section.pools is not None and line.n < section.pools.n)
    ]
    rows = tuple(
        (
            line.searcher + (f" ≤ {line.budget}" if line.budget else ""),
            line.rule,
            str(line.n),
            _right(line),
            interval(*line.interval),
            count(line.cost.tokens),
            count(line.cost.verifier_tokens),
            count(line.tokens_per_right),
            scientific(line.cost.flops),
            seconds(line.seconds),
            str(line.errors or DASH),
            str(line.unreadable or DASH),
        )
        for line in lines
    )
    return Sheet(
        "What each way to answer costs",
        (
            "searcher",
            "rule",
            "N",
            "% right",
            "95%",
            "tokens",
            "verifier",
            "per right",
            "FLOPs",
            "s",
            "failed",
            "unread",
        ),
        rows,
        words=2,
        note=(
            "Wilson intervals over questions. Tokens, those of verifiers among them, FLOPs and "
            "seconds are a question's; per right: tokens of all questions for each right answer. "
            "Failed searches and unread answers count as not right."
        ),
    )


def _differences(found: Sequence[Difference]) -> Sheet | None:
    """Differences: every searcher, and each rule at the largest size that can be compared."""
    if not found:
        return None
    largest: dict[str, Difference] = {}
    for each in found:
        if each.line.reselected and each.paired is not None:
            largest[each.line.rule] = each
    shown = [d for d in found if not d.line.reselected or largest.get(d.line.rule) is d]
    rows = []
    for each in shown:
        if each.paired is None:
            rows.append((each.name, each.against, *[DASH] * 4, "out of reach"))
            continue
        p = each.paired
        rows.append(
            (
                each.name,
                each.against,
                f"{100 * p.difference:+.1f}",
                f"{100 * p.low:+.1f} … {100 * p.high:+.1f}",
                f"{p.wins}/{p.losses}",
                probability(p.p) + ("" if p.test == "McNemar" else "*"),
                "equal" if each.equal else f"{each.ratio:.2g}×",
            )
        )
    return Sheet(
        f"Against {found[0].baseline}, question by question",
        ("line", "baseline", "points", "95%", "better/worse", "p", "tokens"),
        tuple(rows),
        words=2,
        note=(
            "The baseline takes as many candidates as the line's tokens pay for, where it can be "
            "re-selected. 95%: bootstrap over questions. p: exact McNemar test; with * a sign-flip "
            "test, of chances. No correction for the number of comparisons. Out of reach: the "
            "stored candidates do not cost as much, or one costs more."
        ),
    )


def _chosen(found: Sequence[Chosen]) -> Sheet | None:
    if not found:
        return None
    first, second = found[0].questions
    return Sheet(
        f"Rule CHOSEN on one half ({first} questions), REPORTED on the other ({second})",
        ("rule chosen", "N", "tried", "% on its half", "% on the other", "95%", "vote there"),
        tuple(
            (
                name,
                str(c.k),
                str(c.tried),
                percent(c.seen),
                percent(c.accuracy),
                interval(c.low, c.high),
                percent(c.plain),
            )
            for name, c in zip(names(found), found, strict=True)
        ),
        note=(
            "Halves by SHA-256 of the question's id. The number on its own half is what it was "
            "chosen by, and no estimate of what it gives."
        ),
    )


def _threshold(t: Threshold | None) -> Sheet | None:
    if t is None:
        return None
    return Sheet(
        f"Agreement needed, CHOSEN on one half ({t.questions[0]} questions), REPORTED on the other "
        f"({t.questions[1]})",
        ("answer only if", "N", "answered", "% right of these", "95%", "utility", "if always"),
        (
            (
                f"{percent(t.threshold)}% agree" if t.threshold <= 1 else "never",
                str(t.k),
                f"{percent(t.answered)}%",
                percent(t.accuracy),
                interval(t.low, t.high),
                f"{t.utility:+.3f}",
                f"{t.always:+.3f}",
            ),
        ),
        note=(
            "Utility: 1 for a right answer, -1 for a wrong one, 0 for none, a question. "
            f"On the half it was chosen by: {t.seen:+.3f}."
        ),
    )


# -- numbers as text -----------------------------------------------------------------------------


def _right(line: Line) -> str:
    return ("" if line.exact else "~") + percent(line.accuracy)


def percent(share: float) -> str:
    """`0.4525` as `45.2`."""
    return DASH if math.isnan(share) else f"{100 * share:.1f}"


def interval(low: float, high: float) -> str:
    """In percent."""
    return f"{100 * low:.1f} … {100 * high:.1f}"


def count(number: float) -> str:
    """Whole, with thousands set apart."""
    return f"{number:,.0f}" if math.isfinite(number) else DASH


def scientific(number: float) -> str:
    """`3.7e11`."""
    if not math.isfinite(number):
        return DASH
    return f"{number:.1e}".replace("e+0", "e").replace("e+", "e") if number else "0"


def seconds(number: float) -> str:
    """Three digits."""
    return DASH if math.isnan(number) else f"{number:.3g}"


def probability(p: float) -> str:
    """A p-value."""
    return "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"
