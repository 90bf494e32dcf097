"""Best-of-N: N independent runs of the program, weighted by what they observed.

This is importance sampling with the program as proposal, so the weighted set is properly weighted
and the evidence estimate is unbiased. `best` is the classic best-of-N (Cobbe et al. 2021), `vote()`
the weighted vote, and `vote(weights="flat")` self-consistency (Wang et al. 2022). With n = 1 it is
plain sampling.

All samples go on side by side, unless that would end a limited search with many beginnings and no
sample: see `_in_turn`. With a stopping rule they come in batches of 1, 1, 2, 4, ..., and the rule
is asked between them (adaptive consistency, Aggarwal et al. 2023, arXiv:2305.11860). With a mix so
many samples are drawn with each configuration (OSCA, Zhang et al. 2024, arXiv 2410.22480); see
`ppl.allocate.mix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ppl.decide.stopping import StoppingRule
from ppl.errors import ArgumentError, ProgramError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.runtime.node import Node
from ppl.runtime.particle import Decide
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.settling import rule_of, seen
from ppl.searchers.state import Frontier
from ppl.searchers.trees.actions import value_at

# How much dearer than the dearest so far samples are taken to become, where all are to go on.
_AMPLE = 4


@dataclass(frozen=True)
class Samples(Frontier):
    """What the next round needs.

    Attributes:
        dropped: places of samples that go no further.
    """

    dropped: tuple[int, ...] = ()

    @property
    def kept(self) -> list[int]:
        """Places of the others."""
        return [i for i in range(len(self.nodes)) if i not in self.dropped]


@dataclass(frozen=True, repr=False)
class BestOfN(Searcher[Frontier]):
    """N independent samples, or fewer if a rule says so.

    Under a limit of tokens or calls that may not pay for all, samples are completed a few at a
    time, so that a limit of ten samples' price gives about ten samples. Where a limit plainly
    suffices (for every open sample at four times the price of the dearest so far) the result is
    that of a search without limits; else the samples are the same in law only. Stopped early, short
    samples are more likely to be among those completed.

    With a rule, the samples are the first of the same search without; those of the last batch that
    were not needed any more are told in the note as `in_flight`: they are paid for, and vote.
    There is no evidence then, also where all n were drawn: whether they were depends on what they
    say.

    Attributes:
        n: how many, at most.
        stop: when fewer are enough, such as `Settled("beta", 0.95)`; `Budget(settled=)` does the
            same. A rule that looks at what unfinished samples say lets all go side by side, and may
            drop some of them (`Consensus(drop=)`), which notes tell as `dropped`.
        mix: how many of the n are drawn with each value of the discrete choice named `site`, in the
            order of its support; 0 for those that are impossible in the program. The mix then takes
            the place of the choice's law: samples count alike, whatever probabilities the program
            gives its configurations, and the evidence is that of the program with the mix's shares.
        site: name of that choice.
    """

    steers: ClassVar[bool] = False
    settles: ClassVar[bool] = True

    n: int
    stop: StoppingRule | None = field(default=None, metadata={"quiet": True})
    mix: tuple[int, ...] | None = field(default=None, metadata={"quiet": True})
    site: str = field(default="llm", metadata={"quiet": True})

    def __post_init__(self) -> None:
        checks.count(n=self.n)
        check_fields(self)
        if self.mix is not None:
            for count in self.mix:
                checks.count(least=0, mix=count)
            if sum(self.mix) != self.n:
                raise ArgumentError(f"mix={self.mix!r}: its sum is n={self.n}")

    def __repr__(self) -> str:
        stop = "" if self.stop is None else f", stop={self.stop!r}"
        mix = "" if self.mix is None else f", mix={self.mix!r}"
        site = "" if self.site == "llm" else f", site={self.site!r}"
        return f"{type(self).__name__}(n={self.n}{stop}{mix}{site})"

    def rules(self, tree: Tree) -> list[StoppingRule]:
        """Those that may end a search: its own, and its budget's."""
        return [r for r in (self.stop, rule_of(tree.budget.settled)) if r is not None]

    def start(self, tree: Tree) -> Samples:
        """`n` copies of the root."""
        return Samples((tree.root,) * self.n)

    def step(self, tree: Tree, state: Frontier) -> tuple[Samples, Note]:
        """Takes those whose turn it is one step further."""
        now = _samples(state)
        nodes, rules = list(now.nodes), self.rules(tree)
        going = [i for i in now.kept if nodes[i].open]
        between = [rule for rule in rules if not rule.probes]
        if between:
            going = _batch(tree, nodes, going, between)
        going = _in_turn(tree, nodes, going)
        decide = None if self.mix is None else [self._configured(i) for i in going]
        children = tree.expand([nodes[i] for i in going], decide=decide)
        for i, child in zip(going, children, strict=True):
            nodes[i] = child
        if all(node.dead for node in nodes):
            raise all_dead(tree, nodes, self)
        note: Note = {}
        now = now.after(nodes=tuple(nodes))
        if any(nodes[i].open for i in now.kept):
            now, note = self._judged(tree, now, rules)
        over = now.over or not any(nodes[i].open for i in now.kept)
        return replace(now, over=over), note

    def _judged(
        self, tree: Tree, now: Samples, rules: Sequence[StoppingRule]
    ) -> tuple[Samples, Note]:
        """Whether a rule ends the search, or some samples, and what there is to tell of it."""
        begun = [i for i in now.kept if now.nodes[i] is not tree.root]
        nodes = [now.nodes[i] for i in begun]
        between = not any(node.open for node in nodes)
        log_weights = [self._log_weight(node) for node in nodes]
        out: set[int] = set()
        for rule in rules:
            if not (between or rule.probes):
                continue
            sight = seen(rule, nodes, log_weights, left=now.nodes.count(tree.root))
            if rule.stops(sight):
                before = _before_last(nodes, len(now.nodes), [r for r in rules if not r.probes])
                enough = rule.first(sight, before) or len(begun)
                note = {"rule": repr(rule), "samples": len(begun)}
                note |= {"in_flight": len(begun) - enough}
                return replace(now, over=True, stopped="settled"), note
            out |= {begun[k] for k in rule.dissenters(sight) if nodes[k].open}
        if not out:
            return now, {}
        note = {"dropped": [now.nodes[i].identity for i in sorted(out)]}
        return replace(now, dropped=(*now.dropped, *sorted(out))), note

    def result(self, tree: Tree, state: Frontier) -> Result:
        """All samples with their importance weights, and the evidence once all have ended."""
        if state.over and not self.rules(tree):
            weights = Weights(np.array([self._log_weight(node) for node in state.nodes]))
            return Result(state.nodes, weights.tolist(), weights.log_evidence)
        kept = [state.nodes[i] for i in _samples(state).kept]
        begun = [node for node in kept if node is not tree.root]
        return Result(begun, [self._log_weight(node) for node in begun])

    def _configured(self, number: int) -> Decide:
        """Makes the choice of sample `number`. Configurations take turns by their shares, so that
        the first samples of a search that is stopped are about as mixed as all."""
        assert self.mix is not None
        order = sorted(((k + 0.5) / n, j) for j, n in enumerate(self.mix) for k in range(n))
        place = order[number][1]

        def decide(name: str, distribution: Any) -> Any:
            if name != self.site:
                return None
            return value_at(name, distribution, place, f"mix={self.mix!r}")

        return decide

    def _log_weight(self, node: Node) -> float:
        """A sample's weight. What the program says of a configuration's probability is taken out:
        with a mix it is not drawn from that law."""
        if self.mix is None or node.dead:
            return node.log_weight
        made = [r for r in node.history if r.kind == "choice" and r.name == self.site]
        if not made and node.finished:
            raise ProgramError(
                f"the program returned without a choice named {self.site!r}: site= names the "
                "pyro.sample site that picks the configuration"
            )
        return node.log_weight - sum(r.log_ratio for r in made)


def _samples(state: Frontier) -> Samples:
    """A state, also one that was saved before samples could be dropped."""
    if isinstance(state, Samples):
        return state
    return Samples(state.nodes, round=state.round, over=state.over, stopped=state.stopped)


def _batch(
    tree: Tree, nodes: list[Node], going: list[int], rules: Sequence[StoppingRule]
) -> list[int]:
    """The samples of the running batch; if all that have begun are done, the next."""
    begun = [i for i, node in enumerate(nodes) if node is not tree.root]
    running = [i for i in going if nodes[i] is not tree.root]
    if running:
        return running
    size = _size([nodes[i] for i in begun], len(nodes), rules)
    return [i for i, node in enumerate(nodes) if node is tree.root][:size]


def _size(begun: Sequence[Node], most: int, rules: Sequence[StoppingRule]) -> int:
    """How many samples are drawn next, of `most`."""
    logs = [node.log_weight for node in begun]
    return min(rule.batch(seen(rule, begun, logs, left=most - len(begun))) for rule in rules)


def _before_last(begun: Sequence[Node], most: int, rules: Sequence[StoppingRule]) -> int:
    """How many samples had been drawn before the last batch."""
    before = drawn = 0
    while rules and drawn < len(begun):
        before, drawn = drawn, drawn + _size(begun[:drawn], most, rules)
    return before


def _in_turn(tree: Tree, nodes: list[Node], everyone: list[int]) -> list[int]:
    """The samples that go on, of those that may: all that are furthest behind, if the limits pay
    for all.

    What a sample will cost is not known before it ends. The first draws its first step alone; if
    the limits do not pay for all, it is completed, and then others, twice as many each time and no
    more than the dearest so far says.
    """
    budget = tree.account.budget
    behind = min(nodes[i].depth for i in everyone)
    in_step = [i for i in everyone if nodes[i].depth == behind]
    if budget.tokens is None and budget.calls is None:
        return in_step
    begun = [node for node in nodes if node is not tree.root]
    if not begun:
        return in_step[:1]
    tokens, calls = (max(1, *costs) for costs in zip((1, 1), *map(_spent, begun), strict=True))
    affordable = min(tree.account.tokens_left / tokens, tree.account.calls_left / calls)
    ended = sum(not node.open for node in nodes)
    if affordable >= _AMPLE * len(everyone):
        return in_step
    ahead = sorted(everyone, key=lambda i: -nodes[i].depth)
    return ahead[: max(1, int(min(affordable, 2 * ended)))]


def _spent(node: Node) -> tuple[int, int]:
    """Tokens and calls of a path."""
    costs = [step.cost for step in node.path]
    judged = sum(r.log_scores is not None for r in node.history)
    return sum(c.lm_tokens for c in costs), sum(c.lm_calls for c in costs) + judged
