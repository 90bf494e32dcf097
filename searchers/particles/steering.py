"""SMC steering: SMC without replacement (Lew, Zhi-Xuan, Grand, Mansinghka 2023, arXiv:2306.03081).

    repeat  expand every unfinished particle K times, each copy with 1/K of the weight;
            finished particles stay as they are
            w *= G p / q for every copy
            thin to N atoms by optimal resampling: heavy ones stay, light ones are drawn and
            all of those weigh the same

Like beam search it never copies what it already has; unlike beam search the light are kept with
fair probability and compensated, so the set is properly weighted and the evidence unbiased.
Weights here are shares of the evidence: they start at 1/N and sum to the estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from ppl.language.randomness import generator
from ppl.runtime.tree import Node, Tree
from ppl.searchers.resampling import ess, normalised, optimal
from ppl.searchers.search import Searcher, State, all_dead

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SMCSteering(Searcher):
    """Without-replacement SMC.

    Attributes:
        num_particles: N, atoms kept after each round.
        expansions: K, copies of every unfinished particle. With K = 1 nothing is ever thinned, and
            this is importance sampling.
        merge_duplicates: make one atom of siblings that chose the same, with their weights summed.
            Then "without replacement" holds for texts, not only for slots. Not in the paper; it
            leaves the estimate unbiased.
    """

    num_particles: int
    expansions: int
    merge_duplicates: bool = False

    def __post_init__(self) -> None:
        if self.num_particles < 1 or self.expansions < 1:
            raise ValueError(f"{self!r}: num_particles and expansions are at least 1")

    def start(self, tree: Tree) -> State:
        n = self.num_particles
        return State([tree.root] * n, np.full(n, -np.log(n)))

    def step(self, tree: Tree, state: State) -> State:
        nodes, log_weights = self._expand(tree, state)
        if log_weights.max() == -np.inf:
            raise all_dead(tree, nodes, self)
        if self.merge_duplicates:
            nodes, log_weights = _merged(nodes, log_weights, tree.seed)
        total = float(logsumexp(log_weights))
        probabilities = normalised(log_weights)
        note = {"atoms": len(nodes), "ess": ess(probabilities), "log_evidence": total}
        rng = generator(tree.seed, "resample", len(state.info))
        chosen, weights = optimal(probabilities, self.num_particles, rng)
        nodes = [nodes[i] for i in chosen]
        over = not any(node.open for node in nodes)
        return State(nodes, total + np.log(weights), None, over, [*state.info, note])

    def _expand(self, tree: Tree, state: State) -> tuple[list[Node], Floats]:
        """All atoms after the expansion and their log-weights, those of one parent side by side."""
        going = [node for node in state.nodes if node.open]
        children = iter(tree.expand(going, self.expansions))
        nodes: list[Node] = []
        log_weights: list[float] = []
        for node, log_weight in zip(state.nodes, state.log_weights.tolist(), strict=True):
            if not node.open:
                nodes.append(node)
                log_weights.append(log_weight)
                continue
            for child in islice(children, self.expansions):
                nodes.append(child)
                log_weights.append(log_weight - np.log(self.expansions) + child.log_increment)
        return nodes, np.array(log_weights)

    def result(
        self, tree: Tree, state: State
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        return state.nodes, state.log_weights.tolist(), float(logsumexp(state.log_weights))


def _merged(nodes: Sequence[Node], log_weights: Floats, seed: int) -> tuple[list[Node], Floats]:
    """One atom per group of siblings with equal choices, of all their weight. Choices that cannot
    be compared by a hash (tensors are compared by identity) count as distinct.

    What comes after divides by what the atom's own verifiers have said. Where siblings were told
    different numbers (pseudo-marginal verifiers), one is therefore drawn in proportion to its
    weight, which leaves every estimate with the share of the weight that came with it.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, node in enumerate(nodes):
        assert node.parent is not None
        groups.setdefault((node.parent.identity, *node.choices), []).append(i)
    atoms, masses = [], []
    for group in groups.values():
        first = nodes[group[0]]
        shares = log_weights[group]
        mass = float(np.logaddexp.reduce(shares))
        if mass > -np.inf and len({_told(nodes[i]) for i in group}) > 1:
            rng = generator(seed, "merge", first.identity)
            first = nodes[group[int(rng.choice(len(group), p=np.exp(shares - mass)))]]
        atoms.append(first)
        masses.append(mass)
    return atoms, np.array(masses)


def _told(node: Node) -> tuple[object, ...]:
    return tuple(r.log_scores for r in node.records)
