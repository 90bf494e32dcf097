"""Problems of your own: JSON lines, CSV, and data sets of the Hugging Face hub.

    load("mine.jsonl")                                           fields question, answer, id
    load("mine.csv", fields={"question": "prompt", "gold": "target"})
    load("openai/gsm8k", config="main", split="test", fields={"solution": "answer"})

A map of fields says which one of a record is what. `gold` is the right answer as it stands;
`solution` is a worked one, which states it (`#### 18`, a box, a last line).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ppl.errors import TaskError
from ppl.language import checks
from ppl.language.answers import extract_answer
from ppl.language.arguments import checked
from ppl.language.json_numbers import finite, no_constant
from ppl.tasks.task import Problem, Score, Task, same_answer, same_text

Scoring = Literal["answer", "text"]

ROLES = ("id", "question", "gold", "solution")
# Looked for in this order where the map says nothing; what they are called most often.
USUAL: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "unique_id", "task_id"),
    "question": ("question", "problem", "prompt"),
    "gold": ("gold", "answer", "target"),
    "solution": ("solution",),
}
SCORES: Mapping[str, Score] = {"answer": same_answer, "text": same_text}


@checked
def read_file(
    path: str | Path,
    *,
    fields: Mapping[str, str] | None = None,
    score: Scoring = "answer",
    licence: str = "not stated",
) -> Task:
    """A task from a file of JSON lines (.jsonl, .ndjson) or a CSV with a heading, called like it.

    Args:
        path: where the file is, in UTF-8.
        fields: which field of a record is the `id`, the `question`, the `gold` answer or a worked
            `solution` that states it; by default looked for by their usual names. Without an id a
            problem is called by its number. All other fields are in `problem.meta`.
        score: "answer" compares as `ppl.equality` does, "text" letter by letter.
        licence: under which its problems may be used.

    Raises:
        TaskError: the file cannot be read, or a record has not the fields; the line is named.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".ndjson", ".csv"):
        raise TaskError(f"path={str(path)!r}: give a file that ends in .jsonl, .ndjson or .csv")
    records = _csv(path) if kind == ".csv" else _json_lines(path)
    return _task(records, path.stem, fields, score, licence, f"from {path.name}")


@checked
def read_hub(
    dataset: str,
    *,
    config: str | None = None,
    split: str = "test",
    revision: str | None = None,
    n: int | None = None,
    fields: Mapping[str, str] | None = None,
    score: Scoring = "answer",
    licence: str | None = None,
) -> Task:
    """A task from a data set that the package `datasets` knows by its id.

    Args:
        dataset: its id, such as "openai/gsm8k".
        config: which of its configurations.
        split: which of its parts.
        revision: a branch, tag or commit.
        n: number of problems, from the first; all by default.
        fields: see `read_file`.
        score: see `read_file`.
        licence: if the data set does not state one itself.

    Raises:
        TaskError: `datasets` is not installed, it cannot load this, or the fields are not there.
    """
    if n is not None:
        checks.count(n=n)
    try:
        from datasets import load_dataset  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise TaskError(
            f"{dataset!r} is no task that comes with the library and no file; as an id of the hub"
            " it needs the package datasets: pip install datasets"
        ) from error
    try:
        loaded = load_dataset(dataset, config, split=split, revision=revision)
    except Exception as error:  # whatever the network, the id and the package raise
        raise TaskError(f"datasets cannot load {dataset!r}, split {split!r}: {error}") from error
    stated = licence or getattr(getattr(loaded, "info", None), "license", None) or "not stated"
    places = ((f"row {i}", dict(row)) for i, row in enumerate(islice(loaded, n)))
    return _task(places, dataset, fields, score, str(stated), f"split {split} of {dataset}")


def _task(
    records: Iterable[tuple[str, Mapping[str, Any]]],
    name: str,
    fields: Mapping[str, str] | None,
    score: Scoring,
    licence: str,
    about: str,
) -> Task:
    strange = [role for role in fields or {} if role not in ROLES]
    if strange:
        raise TaskError(
            f"fields: {strange[0]!r} is unknown; what can be told is {', '.join(ROLES)}"
        )
    problems = [
        _problem(f"{name}/{i}", place, record, fields or {})
        for i, (place, record) in enumerate(records)
    ]
    if not problems:
        raise TaskError(f"{name}: there is not one problem in it")
    return Task(name, problems, SCORES[score], about=about, licence=licence)


def _problem(
    number: str, place: str, record: Mapping[str, Any], fields: Mapping[str, str]
) -> Problem:
    found = {role: _field(role, place, record, fields) for role in ROLES}
    question = found["question"]
    if question is None:
        raise _missing("question", place, record)
    gold = None if found["gold"] is None else _string(record[found["gold"]])
    # A solution that is named comes before an answer that is only guessed at.
    if found["solution"] and (gold is None or ("solution" in fields and "gold" not in fields)):
        gold = extract_answer(_string(record[found["solution"]]))
        if gold is None:
            raise TaskError(f"{place}: the solution in {found['solution']!r} states no answer")
    if gold is None:
        raise _missing("gold", place, record)
    name = number if found["id"] is None else _string(record[found["id"]])
    meta = {k: v for k, v in record.items() if k not in (question, found["id"])}
    return Problem(name, _string(record[question]), gold, meta)


def _field(
    role: str, place: str, record: Mapping[str, Any], fields: Mapping[str, str]
) -> str | None:
    if role in fields:
        if fields[role] not in record:
            raise TaskError(
                f"{place}: there is no field {fields[role]!r} for {role!r}; it has"
                f" {', '.join(map(str, record))}"
            )
        return fields[role]
    return next((name for name in USUAL[role] if record.get(name) is not None), None)


def _missing(role: str, place: str, record: Mapping[str, Any]) -> TaskError:
    return TaskError(
        f"{place}: which field is the {role}? It has {', '.join(map(str, record))}; say so, as in"
        f' fields={{"{role}": "..."}}'
    )


def _string(value: Any) -> str:
    """A field as it would be written by hand: 7 and not 7.0 for a whole number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path.name}, line {number}"
        try:
            record = json.loads(line, parse_constant=no_constant, parse_float=finite)
        except ValueError as error:
            raise TaskError(f"{place} is no JSON: {error}") from error
        if not isinstance(record, dict):
            raise TaskError(f"{place} is no JSON object")
        yield place, record


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True), strict=True)
    try:
        for record in reader:
            place = f"{path.name}, line {reader.line_num}"
            if None in record or None in record.values():
                raise TaskError(f"{place} has not as many cells as the heading")
            yield place, record
    except csv.Error as error:
        raise TaskError(f"{path.name}, line {reader.line_num} is no CSV: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not in UTF-8: {error}") from error
