"""Metropolis moves of particles: forget the end of a path, draw it anew, accept or stay.

What is drawn anew comes from what proposes anyway, so that the ratio of target times proposal is
the ratio of weights: a move from x to y that share a beginning is accepted with probability
min(1, w(y) / w(x)), w the weight of the whole path. That leaves the target of the weights as it is,
provided that where the forgetting begins does not depend on what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ppl.runtime.node import Node
from ppl.runtime.tree import Tree

Floats = NDArray[np.float64]
T = TypeVar("T")


def redrawn(
    tree: Tree, beginnings: Sequence[Node], depth: int | None = None, power: float = 1.0
) -> list[Node]:
    """Runs a particle on from every node, all as one batch a step; who has finished stays.

    Args:
        depth: steps that a path has at most; None to run to the end.
        power: what language models draw with, see `Tree.expand`.
    """
    nodes = list(beginnings)
    while going := [
        i for i, node in enumerate(nodes) if node.open and (depth is None or node.depth < depth)
    ]:
        for i, child in zip(
            going, tree.expand([nodes[i] for i in going], power=power, alone=True), strict=True
        ):
            nodes[i] = child
    return nodes


def before(node: Node, step: int) -> Node:
    """Where a path was before its step 1, 2, ...; one that has ended by then stays whole."""
    return node.path[:step][-1]


def decided(
    nodes: Sequence[T], proposed: Sequence[T], log_ratios: Floats, uniforms: Floats
) -> tuple[list[T], int]:
    """Who moves.

    Args:
        nodes, proposed: nodes, or what else a state is made of.
        log_ratios: `[N]` log of the acceptance ratio; NaN, from nothing to nothing, stays.
        uniforms: `[N]` decide.

    Returns:
        The nodes after the move, and how many are others than before.
    """
    moves = np.log(uniforms) < log_ratios
    after = [new if move else old for old, new, move in zip(nodes, proposed, moves, strict=True)]
    return after, sum(a is not b for a, b in zip(after, nodes, strict=True))


def log_ratio(new: float, old: float) -> float:
    """Of two log-weights; whatever weighs something is better than what weighs nothing."""
    return math.inf if old == -math.inf < new else new - old
