"""Value-guided sampling with backtracking (VGB: Rohatgi, Shetty, Saless, Li, Moitra, Risteski,
Foster 2025, arXiv:2510.03149): a lazy random walk on the tree of prefixes.

    x = the root
    repeat  with probability 1/2 stay; else go
                to the parent with weight V(x)
                to a child c with weight p(c | x) V(c)
    a leaf that is visited is a draw

V is an estimate of the value of a prefix, at leaves the true potential A. The walk is reversible
with p(x) V(x) on the edge above x, so that leaves are visited in proportion to p(x) A(x) for *any*
positive V of inner prefixes: errors of a reward model slow the walk and do not bend its law, where
going only down multiplies them. Every prefix keeps the children that it was once given: the law is
that of this finite tree, and a walk grows it only where it goes. No evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ppl.language import checks
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.duplicates import origin
from ppl.searchers.likelihood import log_prior_of
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State
from ppl.searchers.trees.persistent import IntMap, Log

Child = tuple[Node, float]
"""A child, and the log of p(c | x)."""


@dataclass(frozen=True)
class Place(State):
    """Where the walk is.

    Attributes:
        here: the node.
        children: of every node that has been gone on from, by its number.
        visits: how often each leaf was visited, by its number.
        leaves: those that were, in the order of their first visits.
        grown: nodes that have been gone on from.
    """

    here: Node
    children: IntMap[tuple[Child, ...]] = field(default_factory=IntMap)
    visits: IntMap[int] = field(default_factory=IntMap)
    leaves: Log[Node] = field(default_factory=Log)
    grown: Log[Node] = field(default_factory=Log)


@dataclass(frozen=True)
class VGB(Searcher[Place]):
    """A lazy walk on the tree of prefixes, up as well as down.

    The value of a prefix is what the program has observed there, with its twist of the moment:
    `last` verifiers say it as they are, `ppl.twist` says more. At its end a program has its true
    likelihood. It takes of the order of H^2 steps to forget where it began, H the depth.

    Attributes:
        simulations: steps of the walk; a step to a new prefix costs `expansions` samples, all
            others nothing.
        expansions: children drawn at a prefix when the walk first goes on from it.
        law: what p(c | x) is of the children drawn. `"drawn"`: their share among them, for steps of
            many tokens. `"model"`: their probabilities, made to sum to one, for steps so short that
            all children are found: then the law is that of the program itself, as in the paper.
    """

    simulations: int
    expansions: int = 8
    law: Literal["drawn", "model"] = "drawn"

    def __post_init__(self) -> None:
        checks.count(simulations=self.simulations, expansions=self.expansions)
        checks.one_of(("drawn", "model"), law=self.law)

    def start(self, tree: Tree) -> Place:
        """At the root."""
        return Place(tree.root)

    def step(self, tree: Tree, state: Place) -> tuple[Place, Note]:
        """One step of the walk."""
        here, children, grown = state.here, state.children, state.grown
        if here.open and here.identity not in children:
            drawn = tree.expand([here], self.expansions)
            if here is tree.root and all(child.dead for child in drawn):
                raise all_dead(tree, drawn, self)
            children = children.set(here.identity, self._weighed(drawn))
            grown = grown.append(here)
        nodes, shares = self.neighbours(here, children.get(here.identity, ()))
        u = generator(tree.seed, "walk", state.round).random()
        at = int(np.searchsorted(np.cumsum(shares), u, side="right"))
        there = nodes[min(at, len(nodes) - 1)]
        visits, leaves = state.visits, state.leaves
        if there.finished:
            before = visits.get(there.identity, 0)
            visits = visits.set(there.identity, before + 1)
            leaves = leaves if before else leaves.append(there)
        over = state.round + 1 == self.simulations
        new = state.after(
            here=there, children=children, visits=visits, leaves=leaves, grown=grown, over=over
        )
        return new, {"node": there.identity, "depth": there.depth}

    def neighbours(self, here: Node, children: Sequence[Child]) -> tuple[list[Node], np.ndarray]:
        """Where a step leads from a node, and with what probability: itself first."""
        nodes, log_weights = [here], list[float]()
        if here.parent is not None:
            nodes.append(here.parent)
            log_weights.append(here.log_promise)
        for child, log_p in children:
            nodes.append(child)
            log_weights.append(log_p + child.log_promise)
        weights = np.array(log_weights)
        moves = np.exp(weights - weights.max())
        return nodes, np.concatenate([[0.5], 0.5 * moves / moves.sum()])

    def _weighed(self, drawn: Sequence[Node]) -> tuple[Child, ...]:
        """Distinct living children with log p(c | x); the dead have their share and no weight."""
        groups: dict[tuple[object, ...], list[Node]] = {}
        for child in drawn:
            groups.setdefault(origin(child), []).append(child)
        logs = [
            math.log(len(group)) if self.law == "drawn" else log_prior_of(group[0].records)
            for group in groups.values()
        ]
        total = float(np.logaddexp.reduce(logs))
        firsts = [group[0] for group in groups.values()]
        return tuple(
            (node, log - total) for node, log in zip(firsts, logs, strict=True) if not node.dead
        )

    def result(self, tree: Tree, state: Place) -> Result:
        """The leaves, each weighing as often as it was visited; without any, where the walk was."""
        if not state.leaves:
            return Result.by_likelihood([node for node in state.grown if node.open])
        counts = [math.log(state.visits[node.identity]) for node in state.leaves]
        return Result(list(state.leaves), counts)
