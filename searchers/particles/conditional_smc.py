"""Conditional SMC: one sweep of particles of which one is given (Andrieu, Doucet, Holenstein 2010,
JRSS-B 72(3)), with or without ancestor sampling (Lindsten, Jordan, Schon 2014, arXiv:1401.0604).

    t = 1   N - 1 particles start from the root, the last slot holds the first step of the reference
    repeat  N - 1 ancestors are drawn by the weights of step t - 1, the reference's among them;
            the reference keeps its own, or draws it with probability proportional to
            w_j * p(its future, and what is observed there, after the past of j)
            advance; every slot is weighed by the same formula at the same step
    finally draw one particle by its weight

The path drawn follows p(x) * prod G if the reference did, for every N: that is what makes chains
of sweeps exact. Ancestors are drawn in every round, and independently: other schemes would need a
conditional version. A finished particle stays as it is, with weight one in later rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights
from ppl.searchers.resampling import multinomial


@dataclass(frozen=True)
class Sweep:
    """A sweep between two rounds.

    Attributes:
        number: of the sweep in its search; keys its randomness.
        nodes: `[N]`; the last follows the reference, if there is one.
        weights: `[N]` gained in the last round.
        reference: the path that is given, from the root on; None for plain SMC.
        exponent: inverse temperature b; the sweep targets p(x) * A(x)^b.
        rounds: rounds done.
    """

    number: int
    nodes: tuple[Node, ...]
    weights: Weights
    reference: tuple[Node, ...] | None = None
    exponent: float = 1.0
    rounds: int = 0

    @property
    def over(self) -> bool:
        """True if every particle is finished or dead."""
        return not any(node.open for node in self.nodes)


def begin(
    tree: Tree, n: int, number: int, reference: Node | None = None, exponent: float = 1.0
) -> Sweep:
    """A sweep of n particles before its first round; `reference` is the last node of its path."""
    path = None if reference is None else tuple(reference.path)
    return Sweep(number, (tree.root,) * n, Weights.equal(n), path, exponent)


def advance(tree: Tree, sweeps: Sequence[Sweep], *, ancestor_sampling: bool) -> list[Sweep]:
    """One round of every sweep, their particles in one batch."""
    if ancestor_sampling:
        sweeps = [_new_past(tree, sweep) for sweep in sweeps]
    parents = [_resampled(tree, sweep) for sweep in sweeps]
    free = [p if s.reference is None else p[:-1] for s, p in zip(sweeps, parents, strict=True)]
    going = [node for nodes in free for node in nodes if node.open]
    children = iter(tree.expand(going, alone=True))  # given the reference, all are independent
    done = []
    for sweep, before, moving in zip(sweeps, parents, free, strict=True):
        nodes = [next(children) if node.open else node for node in moving]
        if sweep.reference is not None:
            nodes.append(_at(sweep.reference, sweep.rounds + 1))
        gains = [_gain(b, n, sweep.exponent) for b, n in zip(before, nodes, strict=True)]
        weights = Weights(np.array(gains))
        done.append(replace(sweep, nodes=tuple(nodes), weights=weights, rounds=sweep.rounds + 1))
    return done


def draw(tree: Tree, sweep: Sweep) -> Node:
    """One particle of a finished sweep, by its weight: the next reference."""
    rng = generator(tree.seed, "reference", sweep.number)
    return sweep.nodes[int(multinomial(sweep.weights.probabilities, 1, rng)[0])]


def _resampled(tree: Tree, sweep: Sweep) -> list[Node]:
    """The parents of the next round: ancestors of the free slots, then the reference itself."""
    if sweep.rounds == 0:
        return list(sweep.nodes)
    fixed = [] if sweep.reference is None else [_at(sweep.reference, sweep.rounds)]
    rng = generator(tree.seed, "resample", sweep.number, sweep.rounds)
    drawn = multinomial(sweep.weights.probabilities, len(sweep.nodes) - len(fixed), rng)
    return [sweep.nodes[a] for a in drawn] + fixed


def _new_past(tree: Tree, sweep: Sweep) -> Sweep:
    """The sweep with the reference's past drawn anew from all particles that could have its future:
    P(j) proportional to w_j * density(past of j, then the future) / density(past of j)."""
    if sweep.reference is None or sweep.rounds == 0 or not _at(sweep.reference, sweep.rounds).open:
        return sweep
    future = sweep.reference[sweep.rounds + 1 :]
    others = [i for i, node in enumerate(sweep.nodes[:-1]) if node.open]
    joined = {i: [sweep.nodes[i]] for i in others}
    for example in future:
        going = [i for i in others if joined[i][-1].open]
        heirs = tree.force([joined[i][-1] for i in going], [example] * len(going))
        for i, heir in zip(going, heirs, strict=True):
            joined[i].append(heir)
    last = len(sweep.nodes) - 1
    joined[last] = [sweep.nodes[last], *future]
    log_odds = np.full(len(sweep.nodes), -np.inf)
    for i, path in joined.items():
        gains = [_gain(a, b, sweep.exponent) for a, b in pairwise(path)]
        densities = [_log_proposal(node) for node in path[1:] if not node.dead]
        log_odds[i] = sweep.weights.log_weights[i] + math.fsum(gains) + math.fsum(densities)
    rng = generator(tree.seed, "ancestor", sweep.number, sweep.rounds)
    chosen = int(multinomial(Weights(log_odds).probabilities, 1, rng)[0])
    return replace(sweep, reference=(*joined[chosen][0].path, *joined[chosen][1:]))


def _at(path: Sequence[Node], t: int) -> Node:
    """Where a path is after t rounds; it waits where it has finished."""
    return path[min(t, len(path) - 1)]


def _gain(parent: Node, child: Node, exponent: float) -> float:
    """The log-weight of one step: of the likelihood only the power, of guide and twist all."""
    if child is parent:
        return 0.0
    if child.dead:
        return -math.inf
    likelihood = child.log_likelihood - parent.log_likelihood
    return child.log_increment - (1.0 - exponent) * likelihood


def _log_proposal(node: Node) -> float:
    """Log-probability with which the choices of a segment were proposed."""
    return math.fsum(r.proposal() for r in node.records if r.kind == "choice")
