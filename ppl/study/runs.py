"""What study runs have left behind, read back: one row a question, with its candidates.

A run's folder holds `config.json`, `results.jsonl` and `candidates.jsonl`; lines of the two latter
belong together by their `cell`. Folders may be shards of one study, and runs that are still going:
a last line without its end is not counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppl.errors import ArgumentError, StudyError
from ppl.language.arguments import checked, shown

FORMAT, VERSIONS = "ppl-study", (1,)
"""What `config.json` says under `format` and `version`."""
RESULTS, CANDIDATES, CONFIG = "results.jsonl", "candidates.jsonl", "config.json"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One generation for a question.

    Attributes:
        answer: None without one.
        right: None if the scorer could not read it.
        log_weight: as the searcher gave it, not normalised; minus infinity for a dead candidate.
        log_likelihood: sum of the verifiers' logs.
        log_prob: of the tokens, under the model.
        tokens: generated.
        scores: the verifier's value after each step.
        steps: its text, in parts.
        confidence: the model's own, in [0, 1]; NaN where nobody asked.
        certainty: how sure the model was of its tokens, larger is surer; NaN where not kept.
    """

    answer: Any
    right: bool | None
    log_weight: float
    log_likelihood: float
    log_prob: float
    tokens: int
    scores: tuple[float, ...]
    steps: tuple[str, ...] = ()
    confidence: float = math.nan
    certainty: float = math.nan


@dataclass(frozen=True, slots=True)
class Row:
    """One question, put to one searcher with one seed.

    Attributes:
        cell: names the row in all files.
        searcher: as it prints, `"SMC(16)"`.
        n: completions that it makes.
        budget: limits by their names; empty without any.
        right: whether the searcher's own answer is right; None if it is unreadable or missing.
        rights: whether the answer by each rule is right.
        cost: counts by name, `models` by model, `flops` (None if unknown).
        stopped: `"done"`; `"budget"` where a limit ended it, `"settled"` where a rule did, and
            `"expansions"` where the searcher's own limit did.
        error: what went wrong; None if nothing did.
    """

    cell: str
    task: str
    problem: str
    model: str
    program: str
    searcher: str
    n: int
    budget: Mapping[str, float] = field(hash=False)
    seed: int
    answer: Any = field(hash=False)
    right: bool | None
    answers: Mapping[str, Any] = field(hash=False)
    rights: Mapping[str, bool | None] = field(hash=False)
    cost: Mapping[str, Any] = field(hash=False)
    seconds: float
    stopped: str
    error: str | None


@dataclass(frozen=True)
class Runs:
    """Rows and candidates of one or several folders.

    Attributes:
        folders: that were read.
        rows: each cell once, in the order of the files.
        candidates: by cell; none for cells that failed.
        configs: what each folder says of itself.
        doubled: rows that were left out because another folder had their cell before.
        torn: files whose last line had no end.
    """

    folders: tuple[str, ...]
    rows: tuple[Row, ...]
    candidates: Mapping[str, tuple[Candidate, ...]]
    configs: tuple[Mapping[str, Any], ...]
    doubled: int = 0
    torn: tuple[str, ...] = ()

    def __repr__(self) -> str:
        failed = sum(row.error is not None for row in self.rows)
        return f"<Runs: {len(self.rows)} rows, {failed} failed, of {', '.join(self.folders)}>"


@checked
def read(*folders: str | Path) -> Runs:
    """Reads the folders of runs.

    Raises:
        ArgumentError: no folders, or a folder that holds no run.
        StudyError: a format that is not known, or a line that is no record; file and line are
            named.
    """
    if not folders:
        raise ArgumentError("folders: none given; name the folder of a run")
    rows: dict[str, Row] = {}
    candidates: dict[str, tuple[Candidate, ...]] = {}
    configs: list[Mapping[str, Any]] = []
    torn: list[str] = []
    doubled = 0
    for folder in map(Path, folders):
        configs.append(_config(folder))
        mine = []
        for where, record in _records(folder / RESULTS, torn):
            row = _row(record, where)
            if row.cell in rows:
                doubled += 1
                continue
            rows[row.cell] = row
            mine.append(row.cell)
        wanted = set(mine)
        for where, record in _records(folder / CANDIDATES, torn):
            cell = _of(record, "cell", str, where)
            if cell in wanted and cell not in candidates:
                found = _of(record, "candidates", list, where)
                candidates[cell] = tuple(_candidate(each, where) for each in found)
    return Runs(
        tuple(str(f) for f in folders),
        tuple(rows.values()),
        candidates,
        tuple(configs),
        doubled,
        tuple(torn),
    )


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.exists():
        if (folder / RESULTS).exists():
            return {}
        raise ArgumentError(f"folders: {folder} holds no run ({CONFIG} and {RESULTS} are missing)")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise StudyError(f"{path} is no JSON object")
    told = config.get("format", FORMAT), config.get("version", VERSIONS[-1])
    if told[0] != FORMAT or told[1] not in VERSIONS:
        raise StudyError(
            f"{path} says format {shown(told[0])}, version {shown(told[1])}; this ppl reads "
            f"{FORMAT!r}, version {VERSIONS[-1]}: read it with the ppl that wrote it"
        )
    return config


def _records(path: Path, torn: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a file, each with its place; a line without its end is still being written."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                torn.append(str(path))
                return
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise StudyError(
                    f"{where} is no JSON: {error}; remove the line, and the same run "
                    "again fills the gap"
                ) from error
            if not isinstance(record, dict):
                raise StudyError(f"{where} is no JSON object")
            yield where, record


_NUMBER = (int, float)


def _of(record: Mapping[str, Any], name: str, kind: Any, where: str, default: Any = ...) -> Any:
    """A field, of a kind; the default stands for one that is missing or null."""
    value = record.get(name)
    if value is None and default is not ...:
        return default
    wrong = isinstance(value, bool) and kind is not bool
    if name not in record or wrong or not isinstance(value, kind):
        told = shown(value) if name in record else "is missing"
        raise StudyError(f"{where}: {name} {told}; this is no line of a run's folder")
    return value


def _row(record: Mapping[str, Any], where: str) -> Row:
    rights = _of(record, "rights", dict, where, {})
    for rule in rights:
        _of(rights, rule, bool, where, None)
    return Row(
        **{
            name: _of(record, name, str, where)
            for name in ("cell", "task", "problem", "model", "program", "searcher")
        },
        n=_of(record, "n", int, where),
        budget=_of(record, "budget", dict, where, {}),
        seed=_of(record, "seed", int, where),
        answer=record.get("answer"),
        right=_of(record, "right", bool, where, None),
        answers=_of(record, "answers", dict, where, {}),
        rights=rights,
        cost=_of(record, "cost", dict, where, {}),
        seconds=float(_of(record, "seconds", _NUMBER, where, 0.0)),
        stopped=_of(record, "stopped", str, where, "done"),
        error=_of(record, "error", str, where, None),
    )


def _candidate(record: Any, where: str) -> Candidate:
    if not isinstance(record, dict):
        raise StudyError(f"{where}: a candidate is no JSON object")
    scores = _of(record, "scores", list, where, [])
    return Candidate(
        answer=record.get("answer"),
        right=_of(record, "right", bool, where, None),
        log_weight=_number(record.get("log_weight", 0.0), "log_weight", where),
        log_likelihood=_number(record.get("log_likelihood", 0.0), "log_likelihood", where),
        log_prob=_number(record.get("log_prob", math.nan), "log_prob", where),
        tokens=_of(record, "tokens", int, where, 0),
        scores=tuple(_number(score, "scores", where) for score in scores),
        steps=tuple(map(str, _of(record, "steps", list, where, []))),
        confidence=_number(record.get("confidence"), "confidence", where),
        certainty=_number(record.get("certainty"), "certainty", where),
    )


def _number(value: Any, name: str, where: str) -> float:
    """A float; what JSON has no number for is written as a string, null is not known."""
    if value is None:
        return math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if value in ("inf", "-inf", "nan"):
        return float(value)
    raise StudyError(f"{where}: {name} {shown(value)} is no number")
