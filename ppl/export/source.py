"""What is exported from: a posterior with its nodes, or a tree that is still growing."""

from __future__ import annotations

from ppl.errors import ArgumentError
from ppl.posterior.posterior import Posterior
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree


def searched(source: Posterior | Tree) -> Posterior:
    """The posterior itself; of a tree that of its ends and answers, weighted by likelihood.

    Raises:
        ArgumentError: it holds no particle.
    """
    if isinstance(source, Tree):
        inner = {id(node.parent) for node in source.nodes}
        ends = [node for node in source.nodes if node.answered or id(node) not in inner]
        source = Posterior.of(source, Result.by_likelihood(ends))
    if not source.samples:
        raise ArgumentError(f"posterior={source.searcher or 'Posterior'}: it holds no particle")
    return source
