"""Preference pairs: two continuations of one prefix, or a refined answer and what it came from.

Reference of the second kind: Cheng et al. 2024 (SPaR), arXiv:2412.11605. An answer that was not
good enough is refined by a tree search; the refinement that passed and the answer that it came from
differ in what made the answer better and in little else, unlike two independent answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from statistics import fmean
from typing import Any, Literal

from ppl.errors import ArgumentError
from ppl.export.labels import Right, node_values
from ppl.export.source import searched
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.posterior.lineage import Lineage, prompt_of, words
from ppl.posterior.posterior import Posterior
from ppl.runtime.tree import Tree

Worths = list[float | None]
Couple = tuple[int, int, float, float]  # two nodes and their worths


@checked
def preference_pairs(
    posterior: Posterior | Tree,
    *,
    kind: Literal["steps", "refinements"] = "steps",
    margin: float = 0.0,
    least: float = 0.0,
    right: Right | None = None,
    answer: Callable[[str], Any] | None = None,
    against: Literal["draft", "path"] = "draft",
) -> list[dict[str, Any]]:
    """Pairs of texts of which one was better. Both continue one prompt, and one prefix.

    `"steps"`: siblings, that is, two continuations of one prefix: `prompt` is the search's prompt,
    `prefix` what both share. The better is the child of higher worth.

    `"refinements"`: for programs that write an answer, judge it and write it anew (the program of
    `TreeRefinement`, whatever its order): `chosen` is the best answer that came of a draft,
    `rejected` the draft itself, its own ancestor. A draft that nothing improved makes no pair.

    Args:
        posterior: a posterior with its nodes, or a tree.
        kind: what a pair is.
        margin: least difference of the two worths, zero or more; equal ones are never a pair.
        least: least worth of what is chosen; SPaR keeps refinements that pass (0.5 there).
        right: says if a result is right. The worth of a step is then its share of right results,
            see `node_values`, and that of a refinement what is said of itself. Without it, a worth
            is the verifier's value.
        answer: for refinements: reads the answer off what was written until then. By default it is
            what the program says with `ppl.answer`, or returns.
        against: for refinements: `"path"` also rejects all other ancestors of the chosen answer
            that are worse than it.

    Returns:
        Rows `prompt`, `prefix`, `chosen`, `rejected`, `chosen_score`, `rejected_score`, `nodes`.
        Siblings that say the same are one, of their mean worth; equal texts are no pair, equal
        pairs are one, and texts that are found in both orders are none.

    Raises:
        ArgumentError: refinements of a program that does not say what its answers are.
    """
    checks.nonnegative(margin=margin)
    posterior = searched(posterior)
    lineage = Lineage(posterior)
    texts: list[str | None]
    if kind == "steps":
        worth = _values(lineage) if right is None else node_values(posterior, right)
        texts = [lineage.written(i) for i in range(len(lineage))]
        couples = _siblings(lineage, worth)
    else:
        said = _answers(lineage, answer)
        worth = _values(lineage) if right is None else _judged(lineage, said, right)
        texts = [None if each is None else words(each) for each in said]
        couples = _refined(lineage, worth, texts, against)
    prompt, found = prompt_of(posterior.samples), dict[tuple[str, str, str], dict[str, Any]]()
    for good, bad, better, worse in couples:
        chosen, rejected = texts[good], texts[bad]
        assert chosen is not None
        assert rejected is not None
        if not (better > worse and better - worse >= margin and better >= least):
            continue
        prefix = _text(lineage, lineage.parents[good]) if kind == "steps" else ""
        row = {
            "prompt": prompt,
            "prefix": prefix,
            "chosen": chosen,
            "rejected": rejected,
            "chosen_score": better,
            "rejected_score": worse,
            "nodes": [lineage.rows[good]["node"], lineage.rows[bad]["node"]],
        }
        found.setdefault((prefix, chosen, rejected), row)
    return [row for (at, a, b), row in found.items() if (at, b, a) not in found]


def _siblings(lineage: Lineage, worth: Worths) -> Iterator[Couple]:
    """Children of each node, two at a time; those of equal texts are one, of their mean worth."""
    for children in lineage.children:
        alike: dict[str, list[tuple[int, float]]] = {}
        for child in children:
            value = worth[child]
            if value is not None:
                alike.setdefault(lineage.written(child), []).append((child, value))
        means = [(all_[0][0], fmean(v for _, v in all_)) for all_ in alike.values()]
        for (a, x), (b, y) in permutations(means, 2):
            yield a, b, x, y


def _refined(
    lineage: Lineage, worth: Worths, texts: list[str | None], against: str
) -> Iterator[Couple]:
    """The best answer below each draft, with the draft; or with all that it came through."""
    draft: list[int] = []  # of each node: the first answer on its path, -1 before there is one
    best: dict[int, tuple[int, float]] = {}
    for i, parent in enumerate(lineage.parents):
        own = worth[i]
        answered = texts[i] is not None and own is not None and lineage.fates[i] != "dead"
        draft.append(draft[parent] if parent >= 0 else -1)
        if draft[i] < 0:
            draft[i] = i if answered else -1
        elif answered and own is not None and own > best.get(draft[i], (i, -1.0))[1]:
            best[draft[i]] = i, own
    for first, (good, better) in best.items():
        path = lineage.path(good)
        for bad in [first] if against == "draft" else path[path.index(first) : -1]:
            worse = worth[bad]
            if texts[bad] is not None and worse is not None:
                yield good, bad, better, worse


def _answers(lineage: Lineage, read: Callable[[str], Any] | None) -> list[Any]:
    """What the answer of each node is; None where it has none.

    Raises:
        ArgumentError: nobody says what the answers are.
    """
    if read is not None:
        return [None if p < 0 else read(_text(lineage, i)) for i, p in enumerate(lineage.parents)]
    said = [row["result"] if row["finished"] else row.get("provisional") for row in lineage.rows]
    inner = [row for i, row in enumerate(lineage.rows)
             if lineage.children[i] and lineage.parents[i] >= 0]  # fmt: skip
    if inner and not any("provisional" in row for row in inner):
        raise ArgumentError(
            "kind='refinements': the program does not say what its answer is while it refines it; "
            "let it call ppl.answer(...) before each judgement, or give answer=, which reads it "
            "off what was written"
        )
    return said


def _judged(lineage: Lineage, said: list[Any], right: Right) -> Worths:
    found: Worths = []
    for answer in said:
        verdict = None if answer is None else right(answer)
        found.append(None if verdict is None else float(verdict))
    return found


def _values(lineage: Lineage) -> Worths:
    return [float(row["value"]) for row in lineage.rows]


def _text(lineage: Lineage, i: int) -> str:
    return "".join(lineage.written(j) for j in lineage.path(i))
