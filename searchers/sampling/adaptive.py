"""Adaptive sampling with mid-generation self-evaluation (Manvi, Singh, Ermon 2024,
arXiv:2410.02725): draw more only if starting again would probably give something better, and give
up early what is probably not worth its end.

    q = P(a new start gives nothing better), asked of a judge
    draw batches of 1, 1, 2, 4, 8 samples, the later ones at a higher temperature
        where its samples have `prune_at` tokens, keep the share `keep` of them with the largest q
        stop if one that has ended has q >= accept
    the sample of largest q is the answer

If q is exact, q = F(reward), a draw is accepted with probability 1 - accept, so that one by one
1 / (1 - accept) samples are drawn on average. The best rule for a cost per sample has the same
form: accept what is worth r* or more, where E max(0, R - r*) is the cost (Weitzman 1979). Not a
sampler.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.particle import Decide
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.runtime.verdict import Scorer
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State

# q is the exponential of a logarithm: a bar that is met exactly is met.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Attempts(State):
    """What the next round needs.

    Attributes:
        ended: samples that have ended, with their q.
        live: samples of the present batch that have not.
        batch: number of the present batch.
        started: samples that have begun, in all batches.
        passed: how many of `prune_at` the present batch has passed.
        pruned: samples that were given up.
    """

    ended: tuple[tuple[Node, float], ...] = ()
    live: tuple[Node, ...] = ()
    batch: int = -1
    started: int = 0
    passed: int = 0
    pruned: int = 0


@dataclass(frozen=True)
class AdaptiveSampling(Searcher[Attempts]):
    """Samples until one is good enough, and drops what is not on the way.

    Tokens are looked at where the program has checkpoints; one without any is never pruned.

    Attributes:
        n: most samples.
        accept: q at which a sample that has ended is the answer.
        restart: who is asked, not observed by the program, such as a `Judge` with the question "is
            there no better answer?"; None: q is what the program's own verifiers say of the text.
            With one, the answer is `posterior.samples[0]`, and weights are q.
        batches: samples of each batch; the last goes for all that follow.
        prune_at: tokens of a sample at which its batch is pruned, ascending; `()`: never.
        keep: share that is kept, rounded up. Among equals it is drawn.
        temperatures: of the first and the last batch, those between in equal steps; for a program
            that has a choice of this name, `pyro.sample("temperature", dist.Uniform(0, 2))`.
        site: the name of that choice, without a trailing number.
    """

    steers: ClassVar[bool] = False

    n: int = 16
    accept: float = 0.8
    restart: Scorer | None = None
    batches: tuple[int, ...] = (1, 1, 2, 4, 8)
    prune_at: tuple[int, ...] = (64, 128, 256)
    keep: float = 0.5
    temperatures: tuple[float, float] = (0.1, 1.0)
    site: str = "temperature"

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(n=self.n)
        checks.probability(accept=self.accept, keep=self.keep)
        for size in self.batches:
            checks.count(batches=size)
        for tokens in self.prune_at:
            checks.count(prune_at=tokens)
        if not self.batches:
            raise ArgumentError("batches=(): at least one size")
        if list(self.prune_at) != sorted(set(self.prune_at)):
            raise ArgumentError(f"prune_at={self.prune_at!r}: numbers of tokens, ascending")
        if len(self.temperatures) != 2:
            raise ArgumentError(f"temperatures={self.temperatures!r}: the first and the last")
        for temperature in self.temperatures:
            checks.positive(temperatures=temperature)

    def start(self, tree: Tree) -> Attempts:
        """No sample yet."""
        return Attempts()

    def step(self, tree: Tree, state: Attempts) -> tuple[Attempts, Note]:
        """Takes those of the batch that are behind one step further; what all have reached is
        judged."""
        if not state.live:
            state = self._next_batch(tree, state)
        mark = next(iter(self.prune_at[state.passed :]), math.inf)
        behind = [node for node in state.live if written(node) < mark]
        moved = iter(tree.expand(behind, decide=self._decide(state.batch)))
        nodes = [next(moved) if written(node) < mark else node for node in state.live]
        over = [node for node in nodes if not node.open]
        ended = (*state.ended, *zip(over, self._q(tree, over), strict=True))
        live, dropped, passed = [node for node in nodes if node.open], 0, state.passed
        while passed < len(self.prune_at) and live:
            if any(written(node) < self.prune_at[passed] for node in live):
                break
            kept = self._kept(tree, live, state.round, passed)
            dropped, live, passed = dropped + len(live) - len(kept), kept, passed + 1
        state = replace(state, live=tuple(live), ended=ended, passed=passed)
        accepted = any(q >= self.accept - _ROUNDING for _, q in ended)
        done = not live and (accepted or state.started == self.n)
        if done and all(node.dead for node, _ in ended):
            raise all_dead(tree, [node for node, _ in ended], self)
        note = {"batch": state.batch, "ended": len(over), "pruned": dropped}
        return state.after(pruned=state.pruned + dropped, over=done), note

    def _next_batch(self, tree: Tree, state: Attempts) -> Attempts:
        batch = state.batch + 1
        size = min(self.batches[min(batch, len(self.batches) - 1)], self.n - state.started)
        live = (tree.root,) * size
        return replace(state, live=live, batch=batch, started=state.started + size, passed=0)

    def _decide(self, batch: int) -> Decide:
        """Sets the temperature of a batch."""
        share = min(1.0, batch / max(1, len(self.batches) - 1))
        first, last = self.temperatures
        value = torch.tensor(first + share * (last - first))

        def decide(name: str, distribution: Any) -> Any:
            return value if re.sub(r"_\d+$", "", name) == self.site else None

        return decide

    def _q(self, tree: Tree, nodes: Sequence[Node]) -> list[float]:
        """q of nodes; 0 of dead ones, of which nobody is asked."""
        alive = [node for node in nodes if not node.dead]
        if self.restart is None:
            asked = iter([node.value for node in alive])
        else:
            asked = iter([math.exp(min(0.0, s)) for s in tree.score(alive, self.restart)])
        return [0.0 if node.dead else next(asked) for node in nodes]

    def _kept(self, tree: Tree, nodes: Sequence[Node], number: int, mark: int) -> list[Node]:
        """The share with the largest q, in the order in which they stand."""
        size = max(1, math.ceil(self.keep * len(nodes) - 1e-9))
        if size == len(nodes):
            return list(nodes)
        q = self._q(tree, nodes)
        tie = generator(tree.seed, number, mark, "pruning").random(len(nodes))
        best = sorted(range(len(nodes)), key=lambda i: (-q[i], tie[i]))[:size]
        return [nodes[i] for i in sorted(best)]

    def result(self, tree: Tree, state: Attempts) -> Result:
        """Samples that have ended, the surest first; before one has, those that go on."""
        ordered = sorted(state.ended, key=lambda pair: -pair[1])
        begun = [node for node in state.live if node is not tree.root]
        nodes = [*(node for node, _ in ordered), *begun]
        if self.restart is None:
            return Result.by_likelihood(nodes)
        sure = [-math.inf if node.dead or q <= 0 else math.log(q) for node, q in ordered]
        return Result(nodes, [*sure, *(-math.inf for _ in begun)])


def written(node: Node) -> int:
    """Tokens that language models wrote on a path."""
    return sum(step.cost.lm_tokens for step in node.path)
