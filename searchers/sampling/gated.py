"""Momentum uncertainty (MUR: Yan, Zhang, Wang, Zhang, Guo, Bing 2025, arXiv:2507.14958): spend more
on a step only where the model is less sure than it has been so far.

    u_t = -(1 / |step|) sum of log p(token)             uncertainty of a step that was drawn once
    draw the step `expansions` times and take the best, if exp(u_t) > exp(m_{t-1}) / gamma
    m_t = alpha m_{t-1} + (1 - alpha) u_t,  m_0 = 0     u_t of the step that was taken

m starts at zero and is too small for long: with constant u and the published settings fourteen
steps are drawn again although nothing is unusual. Corrected, m_t / (1 - alpha^t) takes its place.
The first step is never drawn again. Not a sampler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.language.text import Continuation
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.parse import register
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State


@register
@dataclass(frozen=True)
class MomentumUncertainty:
    """Opens where a step is less sure than those before it.

    Attributes:
        alpha: how long the past counts.
        gamma: above 0 and at most 1; the smaller, the fewer steps are drawn again. Published: .9,
            and .8 in one script.
        corrected: divide m_t by 1 - alpha^t; as published: not.
    """

    alpha: float = 0.9
    gamma: float = 0.9
    corrected: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.alpha < 1:
            raise ArgumentError(f"alpha={self.alpha!r}: from 0, and below 1")
        if not 0 < self.gamma <= 1:
            raise ArgumentError(f"gamma={self.gamma!r}: above 0, and at most 1")

    def opens(self, uncertainty: float, momentum: float, steps: int) -> bool:
        """Whether a step is drawn again.

        Args:
            uncertainty: u_t.
            momentum: m_{t-1}.
            steps: t - 1, steps that have gone into it.
        """
        if steps == 0:
            return False
        usual = momentum / (1 - self.alpha**steps) if self.corrected else momentum
        return uncertainty > usual - math.log(self.gamma) + 1e-12  # in logarithms: u has no bound

    def after(self, uncertainty: float, momentum: float) -> float:
        """m_t."""
        return self.alpha * momentum + (1 - self.alpha) * uncertainty


@dataclass(frozen=True)
class Line:
    """One text.

    Attributes:
        node: where it stands.
        momentum: m_t.
        steps: t, steps of language models that have gone into it.
        again: how often a step was drawn again.
    """

    node: Node
    momentum: float = 0.0
    steps: int = 0
    again: int = 0


@dataclass(frozen=True)
class Lines(State):
    """What the next round needs.

    Attributes:
        lines: the n texts.
    """

    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Gated(Searcher[Lines]):
    """Draws every step once, and unsure ones several times.

    Of the candidates, the first draw among them, the one that the verifiers like best is taken;
    among equals, and where nothing is observed, the one that the model is surest of. So a step that
    is drawn again costs `expansions` steps and judgements in all. A step that has died is drawn
    again, too.

    Attributes:
        n: texts, each for itself; their vote is `posterior.vote(weights="flat")`.
        expansions: candidates for a step that is drawn again.
        gate: when that is; None: every step, the first too.
    """

    n: int = 1
    expansions: int = 4
    gate: MomentumUncertainty | None = field(default_factory=MomentumUncertainty)

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(n=self.n)
        checks.count(least=2, expansions=self.expansions)

    def start(self, tree: Tree) -> Lines:
        """N texts at the root."""
        return Lines((Line(tree.root),) * self.n)

    def step(self, tree: Tree, state: Lines) -> tuple[Lines, Note]:
        """The next step of every text; where the gate opens, the best of several."""
        lines = list(state.lines)
        going = [i for i, line in enumerate(lines) if line.node.open]
        first = tree.expand([lines[i].node for i in going])
        unsure = [i for i, child in zip(going, first, strict=True) if self._opens(lines[i], child)]
        more = tree.expand([lines[i].node for i in unsure], self.expansions - 1)
        drawn = {i: [child] for i, child in zip(going, first, strict=True)}
        for place, child in enumerate(more):
            drawn[unsure[place // (self.expansions - 1)]].append(child)
        for i, candidates in drawn.items():
            lines[i] = self._taken(lines[i], candidates)
        nodes = [line.node for line in lines]
        if all(node.dead for node in nodes):
            raise all_dead(tree, nodes, self)
        note = {"again": [lines[i].node.parent.identity for i in unsure]}  # type: ignore[union-attr]
        over = not any(node.open for node in nodes)
        return state.after(lines=tuple(lines), over=over), note

    def _opens(self, line: Line, child: Node) -> bool:
        if child.dead or self.gate is None:
            return True
        u = uncertainty(child)
        return u is not None and self.gate.opens(u, line.momentum, line.steps)

    def _taken(self, line: Line, candidates: Sequence[Node]) -> Line:
        def liking(node: Node) -> tuple[bool, float, float]:
            return not node.dead, node.log_promise, -(uncertainty(node) or 0.0)

        best = max(candidates, key=liking)
        u, again = uncertainty(best), line.again + (len(candidates) > 1)
        if u is None or self.gate is None:
            return Line(best, line.momentum, line.steps, again)
        return Line(best, self.gate.after(u, line.momentum), line.steps + 1, again)

    def result(self, tree: Tree, state: Lines) -> Result:
        """The texts, by likelihood."""
        return Result.by_likelihood([line.node for line in state.lines])


def uncertainty(node: Node) -> float | None:
    """u: mean negative log-probability of the tokens that language models drew in a segment, under
    the distributions that the program has for them; None where they drew none."""
    drawn = [r for r in node.records if r.kind == "choice" and isinstance(r.value, Continuation)]
    tokens = sum(len(r.value.tokens) for r in drawn)
    return -math.fsum(r.prior() for r in drawn) / tokens if tokens else None
