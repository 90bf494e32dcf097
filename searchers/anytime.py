"""The best so far is an answer: what a search has to show when it ends without one, or is stopped.

Every searcher ends through here, so that none has to think of it:

* one that is over, or stopped, while nothing has finished runs its best open node on to the
  program's end, by plain sampling, as far as the budget pays for it;
* one that is stopped shows the best answer of its tree, also one that the round it was stopped in
  had made, or that the searcher itself had given up.
"""

from __future__ import annotations

import math

from ppl.runtime.node import Node
from ppl.runtime.program import warn_of
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree


def answers(tree: Tree) -> list[Node]:
    """All nodes whose program has returned, and that are worth something."""
    return [node for node in tree.nodes if node.finished and not node.dead]


def rank(node: Node) -> tuple[bool, float]:
    """What answers are compared by: their score, and one that is None (no answer) is the last."""
    return node.answer is not None, node.log_likelihood


def run_best_on(tree: Tree, result: Result) -> list[Node]:
    """Runs the best open node of a result without answers to its end; if it dies, the next best.

    Returns:
        The ends of what was run on. The last is an answer, or everything is dead.

    Raises:
        BudgetExhausted: it is not paid for. What was run of it stays in the tree.
    """
    if any(node.answered for node in tree.nodes):
        return []
    ends: list[Node] = []
    standing = [node for node in result.nodes if node.open] or [tree.root]
    for node in sorted(standing, key=lambda node: -node.log_promise):
        ends += tree.rollout([node])
        if not ends[-1].dead:
            break
    return ends


def best_so_far(tree: Tree, result: Result) -> Result:
    """What a search that is stopped has to show: it claims no evidence and hides no answer."""
    found = [node for node in tree.nodes if node.answered]
    nodes, log_weights = list(result.nodes), list(result.log_weights)
    held = [
        rank(node)
        for node, log_weight in zip(nodes, log_weights, strict=True)
        if node.answered and log_weight > -math.inf
    ]
    if found and not held:
        return Result.by_likelihood(_one_a_path(found))
    if found and result.log_evidence is None:  # weights of a sampler follow a law of their own
        best = max(found, key=rank)
        if rank(best) > max(held):
            nodes, log_weights = [best, *nodes], [best.log_likelihood, *log_weights]
    return Result(nodes, log_weights)


def _one_a_path(found: list[Node]) -> list[Node]:
    """The best answer on the way to each last one, the latest among equals: a sample that has said
    several is still one."""
    inner = {id(node.parent) for node in found}
    ends = [node for node in found if id(node) not in inner]
    best = [max((n for n in e.path[::-1] if n.answered), key=rank) for e in ends]
    return list({id(node): node for node in best}.values())


def warn_without_steps(tree: Tree, searcher: str) -> None:
    """Warns of a program that marks no checkpoint, for searchers that act at checkpoints."""
    first = [node for node in tree.nodes if node.parent is tree.root]
    marked = any(r.kind in ("observed", "twist") for node in first for r in node.records)
    if first and not marked and all(node.finished for node in first):
        warn_of(
            tree.program,
            f"the program marks no steps, so {searcher} has nothing to choose between before the "
            "end: it draws whole results, as BestOfN does. Mark the end of a step by what is known "
            "of it, pyro.sample(name, verifier(text), obs=True), pyro.factor or ppl.condition, or "
            "by ppl.twist(name, 0.0) if nothing is",
        )
