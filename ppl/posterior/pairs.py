"""A search as training data: preference pairs, trajectories, step labels.

Rows have the names that trainers of preference, supervised and process reward models read (TRL:
`prompt`, `chosen`, `rejected`; `prompt`, `completion`; `prompt`, `completions`, `labels`).
Pairs of an answer and the refinement that became of it: Cheng et al. 2024, arXiv:2412.11605; step
labels from what became of each prefix: Wang et al. 2024, arXiv:2312.08935.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from ppl.language.arguments import checked
from ppl.posterior.container import replace_file
from ppl.posterior.lineage import Lineage, Searched, prompt_of, words

Right = Callable[[Any], bool | float | None]
Worths = list[float | None]


@checked
def preference_pairs(
    posterior: Searched,
    *,
    kind: Literal["steps", "refinements"] = "steps",
    margin: float = 0.0,
    right: Right | None = None,
) -> list[dict[str, Any]]:
    """Pairs of texts of which one was better.

    `"steps"`: siblings, that is, two continuations of one prefix: `prompt` is the search's prompt,
    `prefix` what both share. The better is the child of higher worth. `"refinements"`: answers and
    their own ancestors, for programs that write an answer, judge it and write it anew (the program
    of `TreeRefinement`): `chosen` is a node's text, `rejected` that of its parent, both judged.

    Args:
        posterior: a posterior with its nodes.
        kind: what a pair is.
        margin: least difference of the two worths, zero or more; equal ones are never a pair.
        right: says if a result is right. Then a node's worth is its share of right results, see
            `step_labels`; without it, it is the verifier's value.

    Returns:
        Rows `prompt`, `prefix`, `chosen`, `rejected`, `chosen_score`, `rejected_score`, `nodes`.
        Siblings that say the same are one, of their mean worth; equal texts are no pair.
    """
    if not margin >= 0:
        raise ValueError(f"margin={margin!r}: a difference of worths is zero or more")
    lineage = Lineage(posterior)
    worth = _values(lineage) if right is None else node_values(posterior, right)
    couples = _siblings if kind == "steps" else _refined
    prompt, rows = prompt_of(posterior.samples), []
    for i in range(len(lineage)):
        for good, bad, better, worse in couples(lineage, worth, i):
            if better > worse and better - worse >= margin:
                rows.append(
                    {
                        "prompt": prompt,
                        "prefix": _text(lineage, i) if kind == "steps" else "",
                        "chosen": lineage.written(good),
                        "rejected": lineage.written(bad),
                        "chosen_score": better,
                        "rejected_score": worse,
                        "nodes": [lineage.rows[good]["node"], lineage.rows[bad]["node"]],
                    }
                )
    return rows


Couple = tuple[int, int, float, float]  # two nodes and their worths


def _siblings(lineage: Lineage, worth: Worths, i: int) -> Iterator[Couple]:
    """Children of node i, two at a time; those of equal texts are one, of their mean worth."""
    alike: dict[str, list[tuple[int, float]]] = {}
    for child in lineage.children[i]:
        value = worth[child]
        if value is not None:
            alike.setdefault(lineage.written(child), []).append((child, value))
    means = [(all_[0][0], fmean(v for _, v in all_)) for all_ in alike.values()]
    for (a, x), (b, y) in permutations(means, 2):
        yield a, b, x, y


def _refined(lineage: Lineage, worth: Worths, i: int) -> Iterator[Couple]:
    """Children of node i, each with node i itself, which is an answer unless it is the root."""
    mine = worth[i]
    if lineage.parents[i] < 0 or mine is None:
        return
    for child in lineage.children[i]:
        value = worth[child]
        if value is not None and lineage.written(child) != lineage.written(i):
            yield child, i, value, mine


@checked
def trajectories(
    posterior: Searched, *, least: float = 0.0, right: Right | None = None
) -> list[dict[str, Any]]:
    """Finished texts for supervised training, each once, the best first.

    Args:
        posterior: a posterior.
        least: least score; a particle's score is what its verifiers say of the whole text.
        right: keeps only results that it calls right.

    Returns:
        Rows `prompt`, `completion`, `answer`, `score`, `probability` (of all particles with it).
    """
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
def step_labels(
    posterior: Searched,
    right: Right,
    *,
    law: Literal["draws", "posterior"] = "draws",
    threshold: float | None = None,
) -> list[dict[str, Any]]:
    """Every finished path with a label for each of its steps: how often it came out right.

    Args:
        posterior: a posterior with its nodes.
        right: says if a result is right; None from it leaves the result out.
        law: what "how often" means, see `node_values`.
        threshold: makes labels booleans, `value > threshold`: 0 is Math-Shepherd's hard label.

    Returns:
        Rows `prompt`, `completions` (the steps), `labels`, `answer`, `nodes`; equal paths once.
    """
    lineage = Lineage(posterior)
    values = node_values(posterior, right, law=law)
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
    posterior: Searched,
    right: Right,
    *,
    law: Literal["draws", "posterior"] = "draws",
) -> Worths:
    """For each node how often what descends from it came out right; None if nothing did.

    `"draws"` estimates P(right | prefix) under the program's own choices, V = mean of V over the
    children, and is unbiased where which children were continued did not depend on how they looked
    (independent samples, full expansions, rollouts). Children of which nothing finished are left
    out, dead ones count as wrong. A search that drops what looks bad makes these values too high.
    `"posterior"` is the share of the final weights, sum of w right / sum of w over the particles
    that came through the node: P(right | prefix) under the posterior, for weighted searchers.

    Args:
        posterior: a posterior with its nodes.
        right: says if a result is right.
        law: `"draws"` or `"posterior"`.

    Returns:
        A value per node, in the order of `Lineage.rows`.
    """
    lineage = Lineage(posterior)
    if law == "posterior":
        return _shares(posterior, lineage, right)
    sums, numbers = np.zeros(len(lineage)), np.zeros(len(lineage))
    values: Worths = [None] * len(lineage)
    for i in range(len(lineage) - 1, -1, -1):
        row = lineage.rows[i]
        if row["finished"]:
            said = right(row["result"])
            values[i] = None if said is None else float(said)
        elif numbers[i]:
            values[i] = float(sums[i] / numbers[i])
        if lineage.fates[i] == "dead":
            values[i] = 0.0
        value, parent = values[i], lineage.parents[i]
        if value is not None and parent >= 0:
            sums[parent] += value
            numbers[parent] += 1
    return values


def _shares(posterior: Searched, lineage: Lineage, right: Right) -> Worths:
    good, mass = np.zeros(len(lineage)), np.zeros(len(lineage))
    for i in range(len(lineage) - 1, -1, -1):
        for number in lineage.carriers.get(i, []):
            sample = posterior.samples[number]
            said = right(sample.value) if sample.answered else None
            if said is not None:
                good[i] += float(said) * posterior.probabilities[number]
                mass[i] += posterior.probabilities[number]
        if lineage.parents[i] >= 0:
            good[lineage.parents[i]] += good[i]
            mass[lineage.parents[i]] += mass[i]
    return [float(g / m) if m > 0 else None for g, m in zip(good, mass, strict=True)]


def write_rows(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Writes rows as JSON lines, whole or not at all.

    Raises:
        SearchStateError: the file cannot be written; an old one is as it was.
    """
    lines = [json.dumps(row, ensure_ascii=True, allow_nan=False) for row in rows]
    replace_file(path, "".join(line + "\n" for line in lines).encode("ascii"))


def _values(lineage: Lineage) -> Worths:
    return [float(row["value"]) for row in lineage.rows]


def _text(lineage: Lineage, i: int) -> str:
    return "".join(lineage.written(j) for j in lineage.path(i))
