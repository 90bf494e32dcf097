"""Beam search over checkpoints, guided by the verifier (Snell et al. 2024, arXiv:2408.03314, 5.2),
the model's own likelihood, or both; and its stochastic form (Xie et al. 2023, arXiv:2305.00633).

    frontier = {root}, expanded into width * expansions first steps
    repeat  keep the `beam_width` best of the children and of the beams that have finished
            expand every kept, unfinished node `expansions` times

The stochastic form draws those it keeps, without replacement, from P(s) proportional to
exp(E(s) / tau) with E = p(s)^lambda * A(s)^(1 - lambda), and cools tau in every round.
Finished beams keep their place and compete with their final value; nothing weighs them again.
Not a sampler: the kept set follows no stated distribution and there is no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppl.language.randomness import generator
from ppl.language.text import Continuation
from ppl.runtime.record import Record
from ppl.runtime.tree import Node, Tree
from ppl.searchers.search import Searcher, State, all_dead


@dataclass(frozen=True)
class BeamSearch(Searcher):
    """Beam search on (1 - lambda) * log A + lambda * log p.

    A is the observed likelihood (with verifiers, their potential) and twist, p the probability of
    the choices under the model, the whole path's.

    Attributes:
        beam_width: nodes kept after each round.
        expansions: samples drawn from every kept node; the first round draws
            `beam_width * expansions` from the root, so every round costs the same.
        drop_duplicates: keep one of siblings that made the same choices.
        likelihood: lambda. 0 ranks by the verifier, 1 by the model's likelihood, 0.5 as the
            posterior does.
    """

    beam_width: int
    expansions: int = 4
    drop_duplicates: bool = True
    likelihood: float = 0.0

    def __post_init__(self) -> None:
        if self.beam_width < 1 or self.expansions < 1:
            raise ValueError(f"{self!r}: beam_width and expansions are at least 1")
        if not 0 <= self.likelihood <= 1:
            raise ValueError(f"likelihood={self.likelihood}: a share, in [0, 1]")

    def start(self, tree: Tree) -> State:
        return State([tree.root], np.zeros(1))

    def step(self, tree: Tree, state: State) -> State:
        going = [node for node in state.nodes if node.open]
        first = going == [tree.root]
        count = self.expansions * (self.beam_width if first else 1)
        children = tree.expand(going, count)
        if self.drop_duplicates:
            children = distinct(children)
        pool = [node for node in state.nodes if node.finished]
        pool += [child for child in children if not child.dead]
        if not pool:
            raise all_dead(tree, children, self)
        kept = self._keep(tree, pool, len(state.info))
        over = not any(node.open for node in kept)
        info = [*state.info, {"candidates": len(pool)}]
        return State(kept, np.array([n.log_likelihood for n in kept]), over=over, info=info)

    def _keep(self, tree: Tree, pool: Sequence[Node], rounds: int) -> list[Node]:
        # A stable sort: equals stay in the order in which they were drawn.
        order = np.argsort([-s for s in self._log_scores(tree, pool)], kind="stable")
        return [pool[i] for i in order[: self.beam_width]]

    def _log_scores(self, tree: Tree, nodes: Sequence[Node]) -> list[float]:
        share = self.likelihood
        scores = [(1 - share) * node.log_promise for node in nodes]
        if share == 0:
            return scores
        return [s + share * log_prior(node) for s, node in zip(scores, nodes, strict=True)]

    def result(
        self, tree: Tree, state: State
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        return state.nodes, state.log_weights.tolist(), None


@dataclass(frozen=True)
class StochasticBeamSearch(BeamSearch):
    """Beam search that draws which beams to keep.

    Attributes:
        temperature: tau of the first round. Towards 0 this is beam search.
        decay: tau is multiplied by this after every round.

    The paper's setting is `StochasticBeamSearch(5, 16, likelihood=0.5)`, with a self-evaluation of
    the model as the verifier (`ppl.verifiers.SelfEvaluation`).
    """

    likelihood: float = 0.5
    temperature: float = 0.5
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf or not 0 < self.decay <= 1:
            raise ValueError(f"{self!r}: temperature above zero, decay in (0, 1]")

    def _keep(self, tree: Tree, pool: Sequence[Node], rounds: int) -> list[Node]:
        tau = self.temperature * self.decay**rounds
        log_weights = [math.exp(min(s, 700.0)) / tau for s in self._log_scores(tree, pool)]
        rng = generator(tree.seed, "beams", rounds)
        return [pool[i] for i in without_replacement(log_weights, self.beam_width, rng)]


@dataclass(frozen=True)
class LookaheadSearch(BeamSearch):
    """Beam search that scores a candidate by where it leads (Snell et al. 2024, 5.3).

    Every candidate is run on for `lookahead` more steps with the model's most likely tokens, and
    scored by what is observed there; the candidate itself is kept. Costs `lookahead` more steps
    per candidate. In the paper it is mostly worse than beam search at equal cost.

    Attributes:
        lookahead: k steps; 0 is beam search. The paper tried 1 and 3.
    """

    lookahead: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lookahead < 0:
            raise ValueError(f"lookahead={self.lookahead}: zero or more steps")

    def _log_scores(self, tree: Tree, nodes: Sequence[Node]) -> list[float]:
        ahead = tree.rollout(nodes, self.lookahead, greedy=True)
        return super()._log_scores(tree, ahead)


def without_replacement(
    log_weights: Sequence[float], count: int, rng: np.random.Generator
) -> list[int]:
    """Indices drawn one after the other in proportion to their weights, none twice.

    By the largest of log-weight plus Gumbel noise, which is the same in one go (Vieira 2014).
    """
    keys = np.asarray(log_weights) + rng.gumbel(size=len(log_weights))
    chosen: list[int] = np.argsort(-keys, kind="stable")[:count].tolist()
    return chosen


def log_prior(node: Node) -> float:
    """Log-probability of all choices on the path, under the model."""
    return math.fsum(r.prior() for r in node.history if r.kind == "choice")


def confidence(records: Sequence[Record]) -> float:
    """Mean log-probability of what was chosen, per token; 0 if nothing was."""
    chosen = [r for r in records if r.kind == "choice"]
    sizes = [len(r.value.tokens) if isinstance(r.value, Continuation) else 1 for r in chosen]
    return math.fsum(r.prior() for r in chosen) / max(sum(sizes), 1)


def distinct(children: list[Node]) -> list[Node]:
    """The first of every group of siblings with equal choices. Choices that cannot be compared by
    a hash (tensors are compared by identity) count as distinct."""
    seen: dict[tuple[object, ...], Node] = {}
    for child in children:
        parent = child.parent
        assert parent is not None
        seen.setdefault((parent.identity, *child.choices), child)
    return list(seen.values())
