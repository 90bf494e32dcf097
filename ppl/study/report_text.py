"""A report as text: for a terminal (rich), Markdown, and CSV for further use."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ppl.study.sheets import Results, Sheet, sheets


def terminal(results: Sequence[Results], head: Sequence[str]) -> RenderableType:
    """What `rich` prints."""
    parts: list[RenderableType] = [Text(line, style="dim") for line in head]
    for each in results:
        parts += ["", Text(str(each.section.group), style="bold")]
        for sheet in sheets(each):
            parts += ["", _table(sheet)]
        parts += ["", *(Text(note, style="dim") for note in each.section.notes)]
    return Stack(*parts)


def _table(sheet: Sheet) -> Table:
    table = Table(
        title=Text(sheet.title),
        title_justify="left",
        title_style="",
        caption=Text(sheet.note),
        caption_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for i, heading in enumerate(sheet.columns):
        words = i < sheet.words
        table.add_column(heading, justify="left" if words else "right", no_wrap=not words)
    for row in sheet.rows:
        faint = row[0] in ("oracle", "random") or row[0].startswith("tokens,")
        table.add_row(*map(Text, row), style="dim" if faint else "")
    return table


def markdown(results: Sequence[Results], head: Sequence[str], pictures: Sequence[str] = ()) -> str:
    """One page of Markdown; `pictures` are file names, one a section or none."""
    lines = ["# Report", "", *head]
    for i, each in enumerate(results):
        lines += ["", f"## {_plain(str(each.section.group))}"]
        if i < len(pictures):
            lines += ["", f"![Accuracy against tokens]({pictures[i]})"]
        for sheet in sheets(each):
            lines += ["", f"### {_plain(sheet.title)}", ""]
            lines.append("| " + " | ".join(map(_plain, sheet.columns)) + " |")
            sides = [":--" if c < sheet.words else "--:" for c in range(len(sheet.columns))]
            lines.append("| " + " | ".join(sides) + " |")
            lines += ["| " + " | ".join(map(_plain, row)) + " |" for row in sheet.rows]
            if sheet.note:
                lines += ["", _plain(sheet.note)]
        lines += [f"\n* {_plain(note)}" for note in each.section.notes]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """What a cell of Markdown would take for markup."""
    escaped = text.replace("\\", "\\\\")
    for mark in "|*_<`[":
        escaped = escaped.replace(mark, "\\" + mark)
    return " ".join(escaped.split())


LINES = (
    "task", "model", "program", "searcher", "budget", "rule", "n", "reselected", "exact",
    "questions", "accuracy", "low", "high", "lm_tokens", "prompt_tokens", "verifier_tokens",
    "tokens", "tokens_per_right", "flops", "flops_per_right", "seconds", "errors", "unreadable",
)  # fmt: skip
DIFFERENCES = (
    "task", "model", "program", "searcher", "budget", "rule", "n", "baseline", "k", "questions",
    "tokens", "baseline_tokens", "equal_tokens", "difference", "low", "high", "wins", "losses",
    "p", "test",
)  # fmt: skip
CHOSEN = (
    "task", "model", "program", "n", "rule", "draws", "tried", "chosen_on", "reported_on",
    "accuracy_where_chosen", "accuracy", "low", "high", "vote",
)  # fmt: skip


def lines_csv(results: Iterable[Results]) -> str:
    """Every line, numbers in full."""
    rows = []
    for each in results:
        for line in each.section.lines:
            cost = line.cost
            rows.append([
                *line.group, line.searcher, line.budget, line.rule, line.n, line.reselected,
                line.exact, len(line.questions), line.accuracy, *line.interval, cost.lm_tokens,
                cost.prompt_tokens, cost.verifier_tokens, cost.tokens, line.tokens_per_right,
                cost.flops, line.flops_per_right, line.seconds, line.errors, line.unreadable,
            ])  # fmt: skip
    return _csv(LINES, rows)


def differences_csv(results: Iterable[Results]) -> str:
    """Every difference, also those that are out of reach."""
    rows = []
    for each in results:
        for d in each.differences:
            p = d.paired
            found: list[Any] = [None] * 7
            if p is not None:
                found = [p.difference, p.low, p.high, p.wins, p.losses, p.p, p.test]
            line = d.line
            rows.append([
                *line.group, line.searcher, line.budget, line.rule, line.n, d.baseline, d.k,
                d.questions, d.tokens, d.baseline_tokens, d.equal, *found,
            ])  # fmt: skip
    return _csv(DIFFERENCES, rows)


def chosen_csv(results: Iterable[Results]) -> str:
    """Rules chosen on one half and reported on the other."""
    rows = [
        [
            *each.section.group, c.k, c.rule, c.draws, c.tried, *c.questions, c.seen, c.accuracy,
            c.low, c.high, c.plain,
        ]
        for each in results
        for c in each.chosen
    ]  # fmt: skip
    return _csv(CHOSEN, rows)


def _csv(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Empty for what there is not."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return int(value) if isinstance(value, bool) else value
