"""The report of runs: tables, pictures and a page, computed from stored files alone.

    report(["runs/first", "runs/second"], baseline="vote", out="report")

No model is asked. See docs/report.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import RenderableType

from ppl.errors import ArgumentError, StudyError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.posterior.container import write_whole
from ppl.study import report_text
from ppl.study.compare import differences
from ppl.study.halves import choose_rules, choose_threshold
from ppl.study.report_page import page
from ppl.study.report_plots import picture
from ppl.study.runs import Runs, read
from ppl.study.selection import MORE
from ppl.study.sheets import Results
from ppl.study.tables import Section, sections

__all__ = ["FORMATS", "Report", "Runs", "read", "report"]

FORMATS = ("md", "csv", "png", "svg", "html")
"""What a report is written as: Markdown, tables of numbers, pictures, one page."""


@dataclass(frozen=True)
class Report:
    """All that is known of some runs. `rich` prints it: `Console().print(report)`.

    Attributes:
        runs: what it was made of.
        results: by task, model and program: lines, differences, choices.
        files: that were written.
    """

    runs: Runs
    results: tuple[Results, ...]
    files: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        lines = sum(len(each.section.lines) for each in self.results)
        return f"<Report: {lines} lines of {len(self.runs.rows)} searches>"

    def _repr_markdown_(self) -> str:
        """The tables, for notebooks."""
        return self.markdown

    def __rich__(self) -> RenderableType:
        return report_text.terminal(self.results, self.head)

    @property
    def head(self) -> list[str]:
        """What was read, and what is amiss with it."""
        runs = self.runs
        failed = sum(row.error is not None for row in runs.rows)
        questions = len({(row.task, row.problem) for row in runs.rows})
        text = f"{len(runs.rows):,} searches on {questions:,} questions"
        head = [f"{text}, {failed:,} failed, from {', '.join(runs.folders)}."]
        if runs.torn:
            head.append(
                "A run is going on, or was killed: a last line without its end is left out."
            )
        if runs.doubled:
            head.append(f"{runs.doubled:,} searches were in several folders: each counts once.")
        return head

    @property
    def markdown(self) -> str:
        """The tables as Markdown, without pictures."""
        return report_text.markdown(self.results, self.head)

    @property
    def csv(self) -> str:
        """Every line with its numbers in full."""
        return report_text.lines_csv(self.results)

    @property
    def html(self) -> str:
        """The page: one file that needs nothing else. Needs matplotlib."""
        return page(self.results, self.head)


@checked
def report(
    folders: str | Path | Sequence[str | Path],
    *,
    baseline: str | None = None,
    out: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    seed: int = 0,
    rules: Sequence[str] = (),
) -> Report:
    """Reads runs, computes everything, and writes it.

    Args:
        folders: of runs; shards of one study together are one.
        baseline: what all else is compared with: a rule on independent samples (`"vote"`), a
            searcher (`"SMC(16)"`) or a line (`"SMC(16), best"`). By default the vote.
        out: folder to write to, made if it is not there; by default nothing is written.
        formats: of `FORMATS`.
        seed: of the bootstrap and of sign flips. Random subsets are keyed by their questions.
        rules: names of `ppl.study.selection.MORE` that are tried beside those of every report.

    Raises:
        ArgumentError: a folder without a run, a baseline that no section has, an unknown format or
            rule.
        StudyError: files that cannot be read or written; a format that needs matplotlib, which is
            not there.
    """
    several = [folders] if isinstance(folders, str | Path) else list(folders)
    for each in formats:
        if each not in FORMATS:
            raise ArgumentError(f"formats={each!r}: of {', '.join(FORMATS)}")
    checks.seed(seed=seed)
    by_name = {rule.name: rule for rule in MORE}
    for each in rules:
        if each not in by_name:
            raise ArgumentError(f"rules={each!r}: one of {', '.join(map(repr, by_name))}")
    runs = read(*several)
    found = sections(runs, [by_name[each] for each in dict.fromkeys(rules)])
    if not found:
        raise ArgumentError(f"folders: no results yet in {', '.join(runs.folders)}")
    results = tuple(_results(section, baseline, seed, len(found) > 1) for section in found)
    if baseline is not None and not any(each.differences for each in results):
        raise ArgumentError(
            f"baseline={baseline!r}: no such line; one of "
            f"{sorted({name for s in found for name in _names(s)})}"
        )
    made = Report(runs, results)
    return made if out is None else Report(runs, results, _written(made, Path(out), formats))


def _results(section: Section, baseline: str | None, seed: int, lenient: bool) -> Results:
    """One section's; with several, a baseline need not be in all of them."""
    try:
        compared = tuple(differences(section, baseline, seed=seed))
    except ArgumentError:
        if not lenient:
            raise
        compared = ()
    pools = section.pools
    if pools is None:
        return Results(section, compared)
    return Results(section, compared, tuple(choose_rules(pools)), choose_threshold(pools))


def _names(section: Section) -> list[str]:
    rules = [rule.name for rule in section.pools.rules] if section.pools else []
    return rules + [line.name for line in section.lines if not line.reselected]


def _written(made: Report, out: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """Writes the files that are asked for."""
    stems = _stems([each.section for each in made.results])
    files: dict[str, Callable[[], str | bytes]] = {}
    kinds: tuple[Literal["png", "svg"], ...] = ("png", "svg")
    for kind in kinds:
        if kind in formats:
            for each, stem in zip(made.results, stems, strict=True):
                section = each.section
                files[f"{stem}.{kind}"] = partial(picture, section, kind)
    if "md" in formats:
        drawn = [kind for kind in kinds if kind in formats][:1]
        shown = [f"{stem}.{kind}" for stem in stems for kind in drawn]
        files["report.md"] = lambda: report_text.markdown(made.results, made.head, shown)
    if "csv" in formats:
        files["lines.csv"] = lambda: report_text.lines_csv(made.results)
        files["differences.csv"] = lambda: report_text.differences_csv(made.results)
        files["chosen.csv"] = lambda: report_text.chosen_csv(made.results)
    if "html" in formats:
        files["report.html"] = lambda: made.html
    contents = {name: make() for name, make in files.items()}  # before anything is written
    paths = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            path = out / name
            write_whole(path, content.encode() if isinstance(content, str) else content)
            paths.append(path)
    except OSError as error:
        raise StudyError(
            f"out={str(out)!r} cannot be written: {error.strerror or error}"
        ) from error
    return tuple(paths)


def _stems(found: Sequence[Section]) -> list[str]:
    """File names of pictures: what the section is, in plain letters; numbered where alike."""
    if len(found) == 1:
        return ["accuracy"]
    stems: list[str] = []
    for section in found:
        stem = "accuracy-" + re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(section.group)).strip("-")
        stem = stem[:80]
        same = sum(other == stem or other.startswith(f"{stem}.") for other in stems)
        stems.append(f"{stem}.{same + 1}" if same else stem)
    return stems
