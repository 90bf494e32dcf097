"""Whole texts for supervised training, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppl.errors import ArgumentError
from ppl.export.labels import Right
from ppl.export.source import searched
from ppl.language.arguments import checked
from ppl.posterior.container import replace_file
from ppl.posterior.lineage import words
from ppl.posterior.posterior import Posterior
from ppl.runtime.tree import Tree


@checked
def trajectories(
    posterior: Posterior | Tree, *, least: float = 0.0, right: Right | None = None
) -> list[dict[str, Any]]:
    """Finished texts for supervised training, each once, the best first.

    Args:
        posterior: a posterior or a tree.
        least: least score; a particle's score is what its verifiers say of the whole text.
        right: keeps only results that it calls right.

    Returns:
        Rows `prompt`, `completion`, `answer`, `score`, `probability` (of all particles with it).
    """
    posterior = searched(posterior)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for sample, p in zip(posterior.samples, posterior.probabilities.tolist(), strict=True):
        if not sample.finished or sample.text is None or sample.score < least:
            continue
        if right is not None and not right(sample.value):
            continue
        key = (sample.text.prompt, sample.text.text)
        row = found.setdefault(
            key,
            {
                "prompt": key[0],
                "completion": key[1],
                "answer": words(sample.value),
                "score": sample.score,
                "probability": 0.0,
            },
        )
        row["probability"] += p
    return sorted(found.values(), key=lambda row: -row["score"])


@checked
def write_rows(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Writes rows as JSON lines, whole or not at all.

    Raises:
        ArgumentError: a row holds what is no JSON, such as an infinite score.
        SearchStateError: the file cannot be written; an old one is as it was.
    """
    try:
        lines = [json.dumps(row, ensure_ascii=True, allow_nan=False) for row in rows]
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"rows: not all of them are JSON ({error}); leave such out") from error
    replace_file(path, "".join(line + "\n" for line in lines).encode("ascii"))
