"""What a searcher hands back: weighted nodes of the tree, and the evidence where it has a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppl.language.arguments import check_fields, checked
from ppl.runtime.node import Node


@dataclass(frozen=True)
class Result:
    """Weighted nodes.

    Attributes:
        nodes: `[N]`, finished or not.
        log_weights: `[N]` unnormalised log-weights.
        log_evidence: log of an unbiased estimate of the evidence; None from searchers that have no
            claim to one. Says nothing before the search is over.
    """

    nodes: Sequence[Node]
    log_weights: Sequence[float]
    log_evidence: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.nodes) != len(self.log_weights):
            raise ValueError(f"log_weights: {len(self.log_weights)} for {len(self.nodes)} nodes")

    @classmethod
    @checked
    def by_likelihood(cls, nodes: Sequence[Node]) -> Result:
        """Nodes that count by what they have observed, without evidence."""
        return cls(nodes, [node.log_likelihood for node in nodes])

    @property
    def answered(self) -> bool:
        """True if one of the nodes with weight is an answer."""
        return any(node.answered for node in self.nodes)
