"""Fractured sampling (Liao et al. 2025, "Fractured Chain-of-Thought Reasoning", arXiv:2505.12992):
answers from thoughts that were cut short, as well as from whole ones.

    n traces think to their end
    H depths of each: its thought is cut after h/H of it, and it is told to answer now
    m answers at every depth

A program says where it may be cut, by a yes or no before it thinks on:

    for t in range(64):
        text = text + pyro.sample(f"think_{t}", lm(text, until="\\n"))
        ppl.twist(f"cut_{t}", 0.0)                                      # a checkpoint
        if done(text) or pyro.sample(f"answer_{t}", dist.Bernoulli(1e-6)) == 1:
            break
    return answer(text + "</think>" + ...)

The searcher decides: "no" in traces, "yes" at a cut. All answers of a trace share its prefix in the
cache, so that a question costs n (C_think + m H C_answer) tokens. Not a sampler.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.posterior.posterior import Posterior
from ppl.runtime.node import Node
from ppl.runtime.particle import Decide
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State
from ppl.searchers.trees.actions import support


@dataclass(frozen=True)
class Cut:
    """One answer.

    Attributes:
        trace: whose thought, from 0.
        depth: h, from 1; H is the whole thought.
        answer: which of the answers there, from 0.
        node: how far it has come.
    """

    trace: int
    depth: int
    answer: int
    node: Node


@dataclass(frozen=True)
class Fractures(State):
    """What the next round needs.

    Attributes:
        traces: the n traces.
        cuts: answers, once all traces have ended; the traces' own are among them.
    """

    traces: tuple[Node, ...] = ()
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class FracturedSampling(Searcher[Fractures]):
    """N traces, cut at H depths, with m answers each.

    A trace's own answer is the first at its full depth. A thought of fewer parts than `depths` is
    cut at each of them once. A program without such a choice has only whole thoughts, up to its
    first checkpoint. `places` says which sample is which; `pass@k` over traces counts all answers
    of a trace as one, and is not to be compared with that over samples at equal k.

    Attributes:
        n: traces.
        depths: H; 1: whole thoughts only, which with one answer is `BestOfN(n)`.
        answers: m.
        site: name of the choice to answer now, without a trailing number.
    """

    steers: ClassVar[bool] = False

    n: int = 16
    depths: int = 16
    answers: int = 4
    site: str = "answer"

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(n=self.n, depths=self.depths, answers=self.answers)

    def start(self, tree: Tree) -> Fractures:
        """N traces at the root."""
        return Fractures((tree.root,) * self.n)

    def step(self, tree: Tree, state: Fractures) -> tuple[Fractures, Note]:
        """Traces think on; once all have ended they are cut, and the cuts answer."""
        going = [node for node in state.traces if node.open]
        if going:
            children = iter(tree.expand(going, decide=self._saying(now=False)))
            traces = tuple(next(children) if node.open else node for node in state.traces)
            if any(node.open for node in traces):
                return state.after(traces=traces), {}
            cuts = [cut for i, trace in enumerate(traces) for cut in self._cuts(tree, i, trace)]
            state = replace(state, traces=traces, cuts=tuple(cuts))
        else:
            running = [cut.node for cut in state.cuts if cut.node.open]
            moved = iter(tree.expand(running, decide=self._saying(now=True)))
            cuts = [replace(c, node=next(moved)) if c.node.open else c for c in state.cuts]
            state = replace(state, cuts=tuple(cuts))
        over = not any(cut.node.open for cut in state.cuts)
        nodes = [cut.node for cut in state.cuts]
        if over and all(node.dead for node in nodes):
            raise all_dead(tree, nodes, self)
        rows = [[cut.node.identity, cut.trace, cut.depth, cut.answer] for cut in state.cuts]
        return state.after(over=over), {"places": rows} if over else {}

    def _cuts(self, tree: Tree, number: int, trace: Node) -> list[Cut]:
        """The answers of a trace, where they start; its own, first, where it has ended."""
        cuts = [Cut(number, self.depths, 0, trace)]
        thought = self._thought(tree, trace)
        known: set[int] = set()
        for depth in range(self.depths, 0, -1):
            part = depth * len(thought) // self.depths
            if part == 0 or part in known:
                continue
            known.add(part)
            node = thought[part - 1]
            own = depth == self.depths  # the trace's own answer is one of those
            if node is not None:
                cuts += [Cut(number, depth, k, node) for k in range(own, self.answers)]
        return cuts

    def _thought(self, tree: Tree, trace: Node) -> list[Node | None]:
        """Where a trace can be cut, after each part of its thought; at last where it is whole, None
        if it went on to its answer without a checkpoint."""
        path = trace.path
        asked = [i for i in range(2, len(path)) if self._is_asked(path[i])]
        whole = path[asked[-1]] if asked else path[1]
        return [*(path[i - 1] for i in asked), whole if whole.open else None]

    def _is_asked(self, node: Node) -> bool:
        return any(r.kind == "choice" and self._named(r.name) for r in node.records)

    def _named(self, name: str) -> bool:
        return re.sub(r"_\d+$", "", name) == self.site

    def _saying(self, *, now: bool) -> Decide:
        def decide(name: str, distribution: Any) -> Any:
            if not self._named(name):
                return None
            values = support(name, distribution)
            if len(values) != 2:
                raise ArgumentError(f"site={self.site!r}: {name!r} is no choice between no and yes")
            return values[now]

        return decide

    def result(self, tree: Tree, state: Fractures) -> Result:
        """All answers by likelihood; before there are any, the traces."""
        if state.cuts:
            return Result.by_likelihood([cut.node for cut in state.cuts])
        return Result.by_likelihood([node for node in state.traces if node is not tree.root])

    @staticmethod
    def places(posterior: Posterior) -> dict[int, tuple[int, int, int]]:
        """Trace, depth and answer of each sample, by `sample.node`; empty for a search that was
        stopped."""
        rows: Any = next((note["places"] for note in posterior.history if "places" in note), [])
        return {node: (trace, depth, answer) for node, trace, depth, answer in rows}

    @staticmethod
    def coverage_by(
        posterior: Posterior,
        right: Callable[[Any], bool],
        axis: Literal["trace", "depth", "answer"],
    ) -> dict[int, bool]:
        """Whether some answer is right among those up to each place of an axis.

        Args:
            posterior: of such a search.
            right: whether a result is.
            axis: along `"depth"` the whole thoughts come first, then shorter ones.

        Returns:
            By how many places are taken, from 1.
        """
        checks.one_of(("trace", "depth", "answer"), axis=axis)
        column = ("trace", "depth", "answer").index(axis)
        places = FracturedSampling.places(posterior)
        found: dict[int, bool] = {}
        for sample in posterior.samples:
            if sample.node in places and sample.finished:
                place = places[sample.node][column]
                found[place] = found.get(place, False) or right(sample.value)
        ordered = sorted(found, reverse=axis == "depth")
        return {k: any(found[p] for p in ordered[:k]) for k in range(1, len(ordered) + 1)}
