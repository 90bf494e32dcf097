"""Rollover budget forcing for texts (Kim, Yoon, Hwang, Sung 2025, arXiv:2503.19385, there for flow
models): take the first step that is an improvement, and save the tries it left for later steps.

    quota = tries / steps, bar = nothing
    repeat  draw a next step
            if it is worth more than the bar: go there, quota = tries / steps + what is left of it
            if the quota is used up: go to the best step drawn here, quota = tries / steps

The paper's bar is the best reward ever seen; its last two steps, which are without forcing, have no
counterpart in a text whose length is not known. Not a sampler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ppl.language import checks
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State

# Scores are sums of telescoping logarithms: an equal one may come out a little above the bar.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Tries(State):
    """What the next round needs.

    Attributes:
        node: where the text stands.
        quota: tries left for its next step.
        bar: log-score that a try has to beat.
        best: the best next step drawn here, None before the first.
        answers: all that have finished.
        spent: tries of the whole search.
    """

    node: Node
    quota: int
    bar: float = -math.inf
    best: Node | None = None
    answers: tuple[Node, ...] = ()
    spent: int = 0


@dataclass(frozen=True)
class RolloverBudgetForcing(Searcher[Tries]):
    """Draws one step at a time and goes on with the first that beats the bar.

    Scores are the observed likelihood with its twist. With a product of scores later steps are
    worth less than earlier ones, and none beats the bar: use `last`. A step whose tries have all
    died gets another quota. If the tries end before the text does, the best is run on to its end
    by plain sampling; nobody chooses there, and it is not counted.

    Attributes:
        simulations: tries, steps to draw and judge in the whole search.
        steps: how many steps a text is expected to have; a step's quota is
            `simulations // steps`.
        bar: `"ever"`: the best score seen so far, as published; `"parent"`: the score of the text
            as it stands, which with `last` is easier to beat later on.
    """

    simulations: int
    steps: int = 10
    bar: Literal["ever", "parent"] = "ever"

    def __post_init__(self) -> None:
        checks.count(steps=self.steps)
        checks.count(least=self.steps, simulations=self.simulations)
        checks.one_of(("ever", "parent"), bar=self.bar)

    @property
    def quota(self) -> int:
        """Tries for one step, before what rolls over."""
        return self.simulations // self.steps

    def start(self, tree: Tree) -> Tries:
        """The root, with a full quota."""
        return Tries(tree.root, self.quota)

    def step(self, tree: Tree, state: Tries) -> tuple[Tries, Note]:
        """One try from the current node: the search goes on from a child that beats the bar, or
        from the best once the quota is spent."""
        if state.spent == self.simulations:
            return self._run_on(tree, state), {}
        (child,) = tree.expand([state.node])
        beats = not child.dead and child.log_promise > state.bar + _ROUNDING
        left, best = state.quota - 1, state.best
        if not child.dead and (best is None or child.log_promise > best.log_promise):
            best = child
        note = {"node": child.identity, "quota": state.quota, "beats": beats}
        tried = state.after(
            bar=max(state.bar, child.log_promise) if self.bar == "ever" else state.bar,
            answers=state.answers + (child,) * (child.finished and not child.dead),
            spent=state.spent + 1,
        )
        if beats:
            return self._go_to(tried, child, self.quota + left), note
        if left:
            return replace(tried, best=best, quota=left), note
        if best is None:
            return replace(tried, quota=self.quota), note
        return self._go_to(tried, best, self.quota), note

    def _go_to(self, state: Tries, node: Node, quota: int) -> Tries:
        bar = state.bar if self.bar == "ever" else node.log_promise
        return replace(state, node=node, quota=quota, bar=bar, best=None, over=node.finished)

    def _run_on(self, tree: Tree, state: Tries) -> Tries:
        """The tries are spent: what has finished is the answer, or else the best becomes it."""
        if state.answers:
            return state.after(over=True)
        (end,) = tree.rollout([state.best or state.node])
        if end.dead:
            raise all_dead(tree, [end], self)
        return state.after(answers=(end,), over=True)

    def result(self, tree: Tree, state: Tries) -> Result:
        """Answers, weighted by likelihood; before the first, the best node."""
        return Result.by_likelihood(state.answers or [state.best or state.node])
