"""What a run would do and cost, before it does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ppl.language.printed import Printed
from ppl.study import config, records, resolving
from ppl.study.plan import Group, Plan
from ppl.study.problems import select
from ppl.study.sources import READY

Basis = Literal["measured", "scaled", "at most", "unknown"]
"""Where a number comes from: means of the same kind of cell, means of another searcher scaled by
the number of completions, a limit that is never passed, or nowhere."""

_BOUNDS = {"steps": (64, 256, 0), "whole": (1, 2048, 0), "thinking": (64, 512, 1024)}


@dataclass(frozen=True)
class Expected:
    """One kind of cell: all problems and seeds of a task, model, program, searcher and budget.

    Attributes:
        label: what it is.
        cells: how many there are.
        done: of these, how many are there.
        calls: requests to models and verifiers that the others will make, None if not known.
        tokens: tokens that language models will generate for them, None if not known.
        verifier_tokens: tokens of verifiers for them, None if not known.
        basis: where the numbers come from.
    """

    label: str
    cells: int
    done: int
    calls: float | None
    tokens: float | None
    verifier_tokens: float | None
    basis: Basis


@dataclass(frozen=True)
class Forecast(Printed):
    """What a run would do. Prints as a table."""

    rows: tuple[Expected, ...]

    @property
    def cells(self) -> int:
        """All cells."""
        return sum(row.cells for row in self.rows)

    @property
    def done(self) -> int:
        """Those that are there."""
        return sum(row.done for row in self.rows)

    @property
    def calls(self) -> float | None:
        """Requests expected; None if some are not known."""
        return _sum(row.calls for row in self.rows)

    @property
    def tokens(self) -> float | None:
        """Tokens expected of language models; None if some are not known."""
        return _sum(row.tokens for row in self.rows)

    @property
    def verifier_tokens(self) -> float | None:
        """Tokens expected of verifiers; None if some are not known."""
        return _sum(row.verifier_tokens for row in self.rows)

    def __str__(self) -> str:
        lines = ["   cells    done       calls      tokens  verifier tokens  basis     what"]
        total = Expected(
            "all", self.cells, self.done, self.calls, self.tokens, self.verifier_tokens, "unknown"
        )
        for row in (*self.rows, total):
            basis = "" if row is total else row.basis
            numbers = f"{_shown(row.calls):>11} {_shown(row.tokens):>11}"
            lines.append(
                f"{row.cells:8d} {row.done:7d} {numbers} {_shown(row.verifier_tokens):>16}"
                f"  {basis:9} {row.label}"
            )
        if any(row.tokens is None for row in self.rows):
            lines.append("?: not known yet; run with limit=2 first, what that costs is measured")
        return "\n".join(lines)


def forecast(
    study: Plan,
    folder: str | Path | None = None,
    *,
    limit: int | None = None,
    problems: str | None = None,
    shard: tuple[int, int] | None = None,
) -> Forecast:
    """See `ppl.study.Study.dry_run`.

    Raises:
        StudyError: the folder holds something else by one of the study's names.
    """
    done: dict[str, bool] = {}
    means = _Means()
    if folder is not None and (there := config.read(folder)) is not None:
        config.together(there["study"], records.plain(resolving.resolved(study)), str(folder))
        path = Path(folder) / records.RESULTS
        for row in records.read(path) if path.exists() else ():
            done[row["cell"]] = True
            means.add(row)
    kinds: dict[tuple[Any, ...], list[tuple[Group, int, int]]] = {}
    for group in study.groups:
        chosen = select(study.task(group.task), limit=limit, problems=problems, shard=shard)
        there_now = sum(group.cell(problem.id) in done for problem in chosen)
        kinds.setdefault(_kind(group), []).append((group, len(chosen), there_now))
    rows = []
    for members in kinds.values():
        group = members[0][0]
        cells, ready = sum(m[1] for m in members), sum(m[2] for m in members)
        basis, each = means.expected(group) or _bound(study, group)
        left = cells - ready
        calls, tokens, verifier = (None if x is None else x * left for x in each)
        label = str(group).rpartition(" seed ")[0]
        rows.append(Expected(label, cells, ready, calls, tokens, verifier, basis))
    return Forecast(tuple(rows))


_Each = tuple[float | None, float | None, float | None]


class _Means:
    """Mean calls, tokens and verifier tokens of a cell, by kind, of what has been run."""

    def __init__(self) -> None:
        self._sums: dict[tuple[Any, ...], list[float]] = {}
        self._scaled: dict[tuple[Any, ...], list[float]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        cost = row["cost"]
        spent = [cost["lm_calls"] + cost["verifier_calls"], cost["lm_tokens"]]
        spent = [*map(float, spent), float(cost["verifier_tokens"]), 1.0]
        kind = (row["task"], row["model"], row["program"], row["searcher"], _frozen(row["budget"]))
        _add(self._sums, kind, spent)
        if row["n"] and row["budget"] is None and row["error"] is None:
            _add(self._scaled, kind[:3], [*spent[:3], float(row["n"])])

    def expected(self, group: Group) -> tuple[Basis, _Each] | None:
        kind = _kind(group)
        if kind in self._sums:
            *spent, number = self._sums[kind]
            return "measured", (spent[0] / number, spent[1] / number, spent[2] / number)
        if kind[:3] in self._scaled and group.n is not None:
            *spent, number = self._scaled[kind[:3]]
            calls, tokens, verifier = (x / number * group.n for x in spent)
            limits = group.limits or {}
            calls = min(calls, limits.get("calls", math.inf))
            return "scaled", (calls, min(tokens, limits.get("tokens", math.inf)), verifier)
        return None


def _bound(study: Plan, group: Group) -> tuple[Basis, _Each]:
    """What cannot be passed: the budget, or all steps of a ready program at their full length."""
    use, limits = study.named("programs")[group.program], group.limits or {}
    calls, tokens = limits.get("calls"), limits.get("tokens")
    if use.program in READY and group.n is not None:
        steps, length, more = _BOUNDS[str(use.program)]
        steps = int(use.settings.get("max_steps", steps))
        length = int(use.settings.get("max_tokens", length))
        answer = int(use.settings.get("answer_tokens", more)) if more else 0
        judged = study.verifier(group.program, group.model) is not None
        most_calls = group.n * (steps + bool(more)) * (1 + judged)
        most_tokens = group.n * (steps * length + answer)
        calls = most_calls if calls is None else min(calls, most_calls)
        tokens = most_tokens if tokens is None else min(tokens, most_tokens)
    known = calls is not None or tokens is not None
    return ("at most" if known else "unknown"), (calls, tokens, None)


def _kind(group: Group) -> tuple[Any, ...]:
    return (group.task, group.model, group.program, group.searcher, _frozen(group.limits))


def _frozen(limits: Mapping[str, Any] | None) -> tuple[Any, ...] | None:
    return None if limits is None else tuple(sorted(limits.items()))


def _add(sums: dict[tuple[Any, ...], list[float]], key: tuple[Any, ...], more: list[float]) -> None:
    known = sums.setdefault(key, [0.0] * len(more))
    known[:] = [a + b for a, b in zip(known, more, strict=True)]


def _sum(values: Iterable[float | None]) -> float | None:
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _shown(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"
