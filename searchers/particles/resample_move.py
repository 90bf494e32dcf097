"""Resample-move: SMC whose copies are moved apart (Gilks and Berzuini 2001, JRSS-B 63(1)).

    after every resampling, for every particle
        forget its last L steps and propose new ones: let the program run on (or the guide propose)
        accept with probability min(1, w' / w),
            w = the weight gained in those steps, w' in the new ones

Because the steps are proposed by what SMC itself proposes with, the ratio of target times proposal
is the ratio of weights, exactly; the move leaves the target of the round invariant, and evidence
and posterior are those of SMC.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppl.language import checks
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.tree import Tree
from ppl.searchers.particles.metropolis import before, decided, redrawn
from ppl.searchers.particles.smc import SMC
from ppl.searchers.search import Note


@dataclass(frozen=True)
class ResampleMove(SMC):
    """SMC with Metropolis moves of the last steps.

    Attributes:
        last: L, steps (checkpoints) redrawn by a move.
        moves: moves per particle after each resampling; each costs L steps.
    """

    last: int = 1
    moves: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(last=self.last, moves=self.moves)

    def move(self, tree: Tree, nodes: list[Node], rounds: int) -> tuple[list[Node], Note]:
        """`moves` Metropolis-Hastings proposals of each particle's `last` steps: the target is left
        as it is."""
        accepted = 0
        for move in range(self.moves):
            uniforms = generator(tree.seed, "move", rounds, move).random(len(nodes))
            nodes, count = move_last(tree, nodes, rounds, self.last, uniforms)
            accepted += count
        return nodes, {"accepted": accepted / (self.moves * len(nodes))}


def move_last(
    tree: Tree,
    nodes: list[Node],
    rounds: int,
    last: int,
    uniforms: NDArray[np.float64],
) -> tuple[list[Node], int]:
    """One Metropolis move of every particle, as one batch per step.

    Args:
        nodes: particles after `rounds` rounds; a finished one may have arrived earlier.
        last: steps to redraw, of those rounds.
        uniforms: `[N]` decide on acceptance.

    Returns:
        The particles and how many of them moved.
    """
    # A particle that finished before keeps all it has: its path is no longer than that.
    beginnings = [before(node, max(rounds - last, 0) + 1) for node in nodes]
    proposed = redrawn(tree, beginnings, rounds)
    pairs = zip(proposed, nodes, strict=True)
    ratios = np.array([new.log_weight - old.log_weight for new, old in pairs])
    return decided(nodes, proposed, ratios, uniforms)
