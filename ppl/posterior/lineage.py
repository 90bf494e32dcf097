"""Who descends from whom in a search, and what became of each node.

Pictures, pages and exports read a posterior through this one view of it: rows in an order in which
parents come before their children, and a fate for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ppl.language.cached import cached_property
from ppl.language.cost import Cost
from ppl.language.text import Continuation, Text

Fate = Literal["kept", "dead", "finished", "dropped", "simulated"]
UNFINISHED = "(unfinished)"


class Searched(Protocol):
    """What is read of a posterior; see `ppl.posterior.posterior.Posterior`."""

    samples: list[Any]
    log_evidence: float | None
    cost: Cost
    searcher: str
    stopped: Any
    history: list[Mapping[str, Any]]

    @property
    def nodes(self) -> list[dict[str, Any]]: ...  # noqa: D102
    @cached_property
    def probabilities(self) -> NDArray[np.float64]: ...  # noqa: D102
    @property
    def ess(self) -> float: ...  # noqa: D102
    @property
    def best_sample(self) -> Any: ...  # noqa: D102
    def vote(self) -> Any: ...  # noqa: D102


class Lineage:
    """The genealogy of a search by index: node i has row `rows[i]` and parent `parents[i]`.

    A posterior that was made from samples alone has no nodes; it gets a root and a node a sample.

    Attributes:
        rows: the nodes' rows, parents before children.
        parents: index of the parent, -1 for roots.
        children: indices of the children, in the order in which they were made.
        carriers: index of a node to the samples that ended there (copies share a node).
        fates: `"kept"` on the way to a sample of positive weight; `"dead"` if the weight is zero;
            `"finished"` if it has a result that is not among the samples; `"simulated"` for
            rollouts; `"dropped"` for everything else: resampled away, pruned, not looked at again.
        best: index of the sample of highest score, or None.
    """

    def __init__(self, posterior: Searched) -> None:
        rows = posterior.nodes or _flat(posterior.samples)
        found = {row["node"]: row for row in rows}
        order, seen = list[dict[str, Any]](), set[Any]()
        for row in rows:  # a child may have arrived before others, never before its parent
            chain, at = list[dict[str, Any]](), row
            while at["node"] not in seen:
                seen.add(at["node"])
                chain.append(at)
                at = found.get(at["parent"], at)
            order += reversed(chain)
        index = {row["node"]: i for i, row in enumerate(order)}
        self.rows = order
        self.parents = [index.get(row["parent"], -1) for row in order]
        self.children: list[list[int]] = [[] for _ in order]
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                self.children[parent].append(i)
        flat = not posterior.nodes
        self.carriers: dict[int, list[int]] = {}
        for number, sample in enumerate(posterior.samples):
            end = number + 1 if flat else index.get(sample.node)
            if end is not None:
                self.carriers.setdefault(end, []).append(number)
        self.node_of = {n: i for i, numbers in self.carriers.items() for n in numbers}
        alive = [s.log_weight > -math.inf for s in posterior.samples]
        kept = {i for i, numbers in self.carriers.items() if any(alive[n] for n in numbers)}
        for i in range(len(order) - 1, -1, -1):
            if i in kept and self.parents[i] >= 0:
                kept.add(self.parents[i])
        self.fates = [_fate(row, i in kept) for i, row in enumerate(order)]
        best = posterior.best_sample
        self.best = next((n for n, s in enumerate(posterior.samples) if s is best), None)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def roots(self) -> list[int]:
        """Nodes without a parent; one, for most searchers."""
        return [i for i, parent in enumerate(self.parents) if parent < 0]

    def path(self, i: int) -> list[int]:
        """From the root to node i."""
        path = [i]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return path[::-1]

    def written(self, i: int) -> str:
        """What the text gained at node i: what the model wrote, with the program's own words."""
        row = self.rows[i]
        return str(row["step"] if row.get("written") is None else row["written"])

    def rounds(self) -> list[list[int]]:
        """Nodes by depth, without rollouts: `rounds()[t]` are the particles after t steps."""
        deepest = max((int(row["depth"]) for row in self.rows), default=-1)
        rounds: list[list[int]] = [[] for _ in range(deepest + 1)]
        for i, row in enumerate(self.rows):
            if not row["simulated"]:
                rounds[row["depth"]].append(i)
        return rounds


def shown(sample: Any) -> str:
    """The answer of a sample in words."""
    return words(sample.value) if sample.answered else UNFINISHED


def words(value: Any) -> str:
    """A result in words: what is written is itself, everything else as Python shows it."""
    return str(value) if isinstance(value, str | Text | Continuation) else repr(value)


def prompt_of(samples: Sequence[Any]) -> str:
    """What the texts of a search began with; empty without texts, or if they differ."""
    prompts = {s.text.prompt for s in samples if s.text is not None}
    return str(prompts.pop()) if len(prompts) == 1 else ""


def _fate(row: Mapping[str, Any], kept: bool) -> Fate:
    if row["dead_at"] is not None or row["log_weight"] == -math.inf:
        return "dead"
    if kept:
        return "kept"
    if row["simulated"]:
        return "simulated"
    return "finished" if row["finished"] else "dropped"


def _flat(samples: Sequence[Any]) -> list[dict[str, Any]]:
    """A root, and every sample right below it."""
    root = {"node": 0, "parent": None, "depth": 0, "step": "", "log_weight": 0.0, "value": 1.0}
    rest = {"finished": False, "dead_at": None, "simulated": False, "result": None}
    rows: list[dict[str, Any]] = [{**root, **rest}]
    for number, sample in enumerate(samples, start=1):
        text = sample.text
        rows.append(
            {
                **rest,
                "node": number,
                "parent": 0,
                "depth": 1,
                "step": "" if text is None else text.text,
                "log_weight": sample.log_weight,
                "value": sample.score,
                "finished": sample.finished,
                "result": sample.value if sample.finished else None,
            }
        )
    return rows
