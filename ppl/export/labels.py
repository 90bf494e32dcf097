"""How often what came of a prefix was right: values of nodes, and labels of steps.

References: Wang et al. 2024 (Math-Shepherd), arXiv:2312.08935, for labels from what became of each
prefix; Luo et al. 2024 (OmegaPRM), arXiv:2406.06592, for those of a tree search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ppl.export.source import searched
from ppl.language.arguments import checked
from ppl.posterior.lineage import Lineage, prompt_of, words
from ppl.posterior.posterior import Posterior
from ppl.runtime.tree import Tree

Right = Callable[[Any], bool | float | None]
Law = Literal["draws", "visits", "posterior"]


@checked
def step_labels(
    posterior: Posterior | Tree,
    right: Right | None = None,
    *,
    law: Law = "draws",
    merge: bool = False,
    threshold: float | None = None,
) -> list[dict[str, Any]]:
    """Every finished path with a label for each of its steps: how often it came out right.

    Args:
        posterior, right, law, merge: as of `node_values`.
        threshold: makes labels booleans, `value > threshold`: 0 is Math-Shepherd's hard label.

    Returns:
        Rows `prompt`, `completions` (the steps), `labels`, `answer`, `nodes`; equal paths once.
    """
    posterior = searched(posterior)
    lineage = Lineage(posterior)
    values = node_values(posterior, right, law=law, merge=merge)
    prompt, rows, seen = prompt_of(posterior.samples), [], set[tuple[str, ...]]()
    for i, row in enumerate(lineage.rows):
        path = [j for j in lineage.path(i) if lineage.parents[j] >= 0]
        steps = tuple(lineage.written(j) for j in path)
        labels = [values[j] for j in path]
        if not row["finished"] or steps in seen or None in labels:
            continue
        seen.add(steps)
        rows.append(
            {
                "prompt": prompt,
                "completions": list(steps),
                "labels": [
                    v if threshold is None else bool(v > threshold) for v in labels if v is not None
                ],
                "answer": words(row["result"]),
                "nodes": [lineage.rows[j]["node"] for j in path],
            }
        )
    return rows


@checked
def node_values(
    posterior: Posterior | Tree,
    right: Right | None = None,
    *,
    law: Law = "draws",
    merge: bool = False,
) -> list[float | None]:
    """For each node how often what descends from it came out right; None if nothing did.

    Dead ends count as wrong under the first two laws; what has not finished says nothing.

    `"draws"` estimates P(right | prefix) under the program's own choices: V = mean of V over the
    children. It is unbiased where which children were continued did not depend on how they looked
    (independent samples, full expansions, rollouts). A search that drops what looks bad makes these
    values too high.

    `"visits"` is wins / visits, the Q of a tree search: every end below a node counts once. Where
    a search returns to what looks good it is higher than the former, and where some children end
    early and others are expanded it is another number than P(right | prefix).

    `"posterior"` is the share of the final weights, sum of w right / sum of w over the particles
    that came through the node: P(right | prefix) under the posterior, for weighted searchers.

    Args:
        posterior: a posterior with its nodes, or a tree.
        right: says if a result is right, or how good it is in [0, 1]; None from it leaves the
            result out. Without it, an end counts by what its verifiers say of it.
        law: what "how often" means.
        merge: nodes that say the same below one prefix are one, for samplers that draw a prefix
            again and again. For programs whose state is what they wrote.

    Returns:
        A value per node, in the order of `ppl.posterior.lineage.Lineage.rows`: as they were made.
    """
    posterior = searched(posterior)
    lineage = Lineage(posterior)
    first = _merged(lineage) if merge else list(range(len(lineage)))
    members = np.bincount(first, minlength=len(lineage))
    total, count = np.zeros(len(lineage)), np.zeros(len(lineage))
    for i in range(len(lineage) - 1, -1, -1):  # children before parents
        at = first[i]
        for worth, weight in _ends(posterior, lineage, i, right, law):
            total[at] += worth * weight
            count[at] += weight
        parent = lineage.parents[i]
        if i == at and parent >= 0 and count[i] > 0:  # all that say the same have been here
            # Under "draws" every draw of a prefix is worth what all of them are on average.
            ended = lineage.rows[i]["finished"] or lineage.fates[i] == "dead"
            share = members[i] / count[i] if law == "draws" and not ended else 1.0
            total[first[parent]] += total[i] * share
            count[first[parent]] += count[i] * share
    return [float(total[at] / count[at]) if count[at] > 0 else None for at in first]


def _ends(
    posterior: Posterior, lineage: Lineage, i: int, right: Right | None, law: Law
) -> list[tuple[float, float]]:
    """What ended at node i: its worth, and what it weighs."""
    if law == "posterior":
        ends = [(posterior.samples[n], posterior.probabilities[n])
                for n in lineage.carriers.get(i, [])]  # fmt: skip
        judged = [
            (s.score if right is None else right(s.value), float(p)) for s, p in ends if s.answered
        ]
    else:
        row = lineage.rows[i]
        if lineage.fates[i] == "dead":
            judged = [(0.0, 1.0)]
        elif row["finished"]:
            judged = [(row["value"] if right is None else right(row["result"]), 1.0)]
        else:
            judged = []
    return [(float(worth), weight) for worth, weight in judged if worth is not None]


def _merged(lineage: Lineage) -> list[int]:
    """For each node the first that says the same below the same prefix, and ends like it."""
    known: dict[tuple[int, str, bool, bool], int] = {}
    first: list[int] = []
    for i, (row, parent) in enumerate(zip(lineage.rows, lineage.parents, strict=True)):
        before = first[parent] if parent >= 0 else -1 - i  # roots stay apart
        end = bool(row["finished"]), lineage.fates[i] == "dead"
        first.append(known.setdefault((before, lineage.written(i), *end), i))
    return first
