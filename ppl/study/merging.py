"""Shards together: several folders of one study as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppl.errors import StudyError
from ppl.language.arguments import checked
from ppl.study import config, records
from ppl.study.records import CANDIDATES, RESULTS, TREES, Records

_PASSING = ("seconds", "cost")  # may differ between two runs of one cell


@checked
def merge(folders: Sequence[str | Path], into: str | Path) -> int:
    """Brings the results of several folders into one, which may hold some of them already.

    The folders are read as they are and left so. The same call again goes on where a killed one
    ended.

    Args:
        folders: of runs of one study, or of studies that agree on their names.
        into: the folder that gets everything; made if it is not there.

    Returns:
        How many cells were added.

    Raises:
        StudyError: one of the folders is no run; two mean different things by one name, or have
            different results of one cell; or a process is writing into `into`.
    """
    if not folders:
        raise StudyError("folders: merge needs at least one")
    told = []
    for folder in folders:
        found = config.read(folder)
        if found is None:
            raise StudyError(f"folders: {folder} has no {records.CONFIG}: it is no run")
        told.append(found)
    added = 0
    with Records(into) as target:
        records.clean(target.folder)
        whole = config.read(into) or {**told[0], **config.here(), "earlier": []}
        for folder, found in zip(folders, told, strict=True):
            whole["study"] = config.together(whole["study"], found["study"], str(folder))
            writers = [*found["earlier"], {name: found[name] for name in config.here()}]
            now = {name: whole[name] for name in config.here()}
            news = [w for w in writers if w != now and w not in whole["earlier"]]
            whole["earlier"] = [*whole["earlier"], *news]
        config.write(target.folder, whole)
        known = {row["cell"]: _lasting(row) for row in records.read(target.folder / RESULTS)}
        for folder in map(Path, folders):
            added += _add(folder, target, known)
    return added


def _add(folder: Path, target: Records, known: dict[str, Any]) -> int:
    results: dict[str, Mapping[str, Any]] = {}
    for row in records.read(folder / RESULTS) if (folder / RESULTS).exists() else ():
        cell = row["cell"]
        if cell not in known:
            results[cell] = row
            known[cell] = _lasting(row)
        elif known[cell] != _lasting(row):
            differ = [k for k, v in _lasting(row).items() if known[cell].get(k) != v]
            raise StudyError(
                f"{folder}: {row['problem']} under {row['searcher']} (cell {cell}) is there "
                f"already with another result (they differ in {', '.join(differ)}): were both run "
                "by the same version, on the same kind of machine?"
            )
    number = len(results)
    for row in records.read(folder / CANDIDATES) if number else ():
        result = results.pop(row["cell"], None)
        if result is not None:
            tree = folder / TREES / f"{row['cell']}.ppl"
            kept = {row["cell"]: tree.read_bytes()} if tree.exists() else None
            target.write([(result, row)], kept)
    # Whoever has taken the candidates away still has the results.
    target.write([(result, {"cell": cell, "candidates": []}) for cell, result in results.items()])
    return number


def _lasting(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _PASSING}
