"""What tree search knows of a node."""

from __future__ import annotations

from dataclasses import dataclass

from ppl.runtime.node import Node
from ppl.searchers.trees.ways import Way


@dataclass(frozen=True)
class Statistics:
    """What MCTS knows of one tree node.

    Attributes:
        visits: N.
        total: sum of values, or what another backup keeps.
        children: that were drawn.
        closed: nothing is left below.
        way: how it came about; None where nobody asks.
    """

    visits: int = 0
    total: float = 0.0
    children: tuple[Node, ...] = ()
    closed: bool = False
    way: Way | None = None
