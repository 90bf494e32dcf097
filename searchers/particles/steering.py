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

from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights
from ppl.searchers.duplicates import origin
from ppl.searchers.resampling import optimal
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Particles


@dataclass(frozen=True)
class SMCSteering(Searcher[Particles]):
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
        checks.count(num_particles=self.num_particles, expansions=self.expansions)
        check_fields(self)

    def start(self, tree: Tree) -> Particles:
        """N copies of the root that share weight one."""
        n = self.num_particles
        return Particles((tree.root,) * n, Weights.equal(n, -np.log(n)))

    def step(self, tree: Tree, state: Particles) -> tuple[Particles, Note]:
        """Expands every open particle and thins all atoms to N, none of them twice."""
        nodes, weights = self._expand(tree, state)
        if weights.dead:
            raise all_dead(tree, nodes, self)
        if self.merge_duplicates:
            nodes, weights = merged(nodes, weights, tree.seed)
        total = weights.log_sum
        note = {"atoms": len(nodes), "ess": weights.ess, "log_evidence": total}
        rng = generator(tree.seed, "resample", state.round)
        chosen, shares = optimal(weights.probabilities, self.num_particles, rng)
        kept = tuple(nodes[i] for i in chosen)
        over = not any(node.open for node in kept)
        return state.after(nodes=kept, weights=Weights(total + np.log(shares)), over=over), note

    def _expand(self, tree: Tree, state: Particles) -> tuple[list[Node], Weights]:
        """All atoms after the expansion and their weights, those of one parent side by side."""
        going = [node for node in state.nodes if node.open]
        children = iter(tree.expand(going, self.expansions))
        nodes: list[Node] = []
        log_weights: list[float] = []
        for node, log_weight in zip(state.nodes, state.weights.tolist(), strict=True):
            if not node.open:
                nodes.append(node)
                log_weights.append(log_weight)
                continue
            for child in islice(children, self.expansions):
                nodes.append(child)
                log_weights.append(log_weight - np.log(self.expansions) + child.log_increment)
        return nodes, Weights(np.array(log_weights))

    def result(self, tree: Tree, state: Particles) -> Result:
        """The particles with their weights, whose sum is the evidence."""
        return Result(state.nodes, state.weights.tolist(), state.weights.log_sum)


def merged(nodes: Sequence[Node], weights: Weights, seed: int) -> tuple[list[Node], Weights]:
    """One atom per group of siblings with equal choices, of all their weight.

    What comes after divides by what the atom's own verifiers have said. Where siblings were told
    different numbers (pseudo-marginal verifiers), one is therefore drawn in proportion to its
    weight, which leaves every estimate with the share of the weight that came with it.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, node in enumerate(nodes):
        groups.setdefault(origin(node), []).append(i)
    log_weights = np.array(weights.tolist())
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
    return atoms, Weights(np.array(masses))


def _told(node: Node) -> tuple[object, ...]:
    return tuple(r.log_scores for r in node.records)
