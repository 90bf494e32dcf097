"""Beam search over checkpoints, guided by the verifier (Snell et al. 2024, arXiv:2408.03314, 5.2),
the model's own likelihood, or both; and its stochastic form (Xie et al. 2023, arXiv:2305.00633).

    frontier = {root}, expanded into width * expansions first steps
    repeat  keep the `beam_width` best of the children and of the beams that have finished
            expand every kept, unfinished node `expansions` times

The stochastic form draws those it keeps, without replacement, from P(s) proportional to
exp(E(s) / tau) with E = p(s)^lambda * A(s)^(1 - lambda), and cools tau in every round. That is how
it is written. As released it draws from E(s)^(1 / tau), with E the geometric mean over steps of
C^(1 - lambda) * P^lambda: C what a step was judged, P its probability per token.
Finished beams keep their place and compete with their final value; nothing weighs them again.
Not a sampler: the kept set follows no stated distribution and there is no evidence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.duplicates import distinct
from ppl.searchers.likelihood import confidence, log_prior
from ppl.searchers.resampling import without_replacement
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import Frontier


@dataclass(frozen=True)
class BeamSearch(Searcher[Frontier]):
    """Beam search on (1 - lambda) * log A + lambda * log p.

    A is the observed likelihood (with verifiers, their potential) and twist, p the probability of
    the choices under the model, the whole path's.

    Attributes:
        beam_width: nodes kept after each round.
        expansions: samples drawn from every kept node; the first round draws
            `beam_width * expansions` from the root, as many as a round with all beams open.
        drop_duplicates: keep one of siblings that made the same choices. Where steps are few, fewer
            beams are left than `beam_width`, and the next round draws for these alone; the notes
            (`posterior.history`) say how many were drawn.
        likelihood: lambda. 0 ranks by the verifier, 1 by the model's likelihood, 0.5 as the
            posterior does.
    """

    beam_width: int
    expansions: int = 4
    drop_duplicates: bool = True
    likelihood: float = 0.0

    def __post_init__(self) -> None:
        checks.count(beam_width=self.beam_width, expansions=self.expansions)
        checks.probability(likelihood=self.likelihood)
        check_fields(self)

    def start(self, tree: Tree) -> Frontier:
        """The root alone."""
        return Frontier((tree.root,))

    def step(self, tree: Tree, state: Frontier) -> tuple[Frontier, Note]:
        """Draws `expansions` children of every open node, of the root `beam_width` times as many;
        keeps the best `beam_width`, finished ones among them."""
        going = [node for node in state.nodes if node.open]
        first = going == [tree.root]
        children = tree.expand(going, self.expansions * (self.beam_width if first else 1))
        new = distinct(children) if self.drop_duplicates else children
        pool = [node for node in state.nodes if node.finished]
        pool += [child for child in new if not child.dead]
        if not pool:
            raise all_dead(tree, children, self)
        kept = self._keep(tree, pool, state.round)
        over = not any(node.open for node in kept)
        note = {"drawn": len(children), "distinct": len(new), "candidates": len(pool)}
        return state.after(nodes=tuple(kept), over=over), note

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

    def result(self, tree: Tree, state: Frontier) -> Result:
        """The beam, weighted by likelihood."""
        return Result.by_likelihood(state.nodes)


@dataclass(frozen=True)
class StochasticBeamSearch(BeamSearch):
    """Beam search that draws which beams to keep.

    Attributes:
        temperature: tau of the first round. Towards 0 this is beam search.
        decay: tau is multiplied by this after every round.
        form: `"paper"`: from exp(E / tau), as written, which hardly tells scores below 1 apart;
            `"released"`: from E^(1 / tau) with steps counted alike, as the authors' code does.
        normalise: of the released form: the geometric mean over steps; without it the product,
            under which longer paths score lower.

    The paper's setting is `StochasticBeamSearch(5, 16, likelihood=0.5)`, with a self-evaluation of
    the model as the verifier (`ppl.verifiers.SelfEvaluation`).
    """

    likelihood: float = 0.5
    temperature: float = 0.5
    decay: float = 1.0
    form: Literal["paper", "released"] = "paper"
    normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(temperature=self.temperature, decay=self.decay)
        checks.probability(decay=self.decay)
        checks.one_of(("paper", "released"), form=self.form)

    def _keep(self, tree: Tree, pool: Sequence[Node], rounds: int) -> list[Node]:
        tau = self.temperature * self.decay**rounds
        scores = self._log_scores(tree, pool)
        if self.form == "released":
            log_weights = [score / tau for score in scores]
        else:
            log_weights = [math.exp(min(score, 700.0)) / tau for score in scores]
        rng = generator(tree.seed, "beams", rounds)
        return [pool[i] for i in without_replacement(log_weights, self.beam_width, rng)]

    def _log_scores(self, tree: Tree, nodes: Sequence[Node]) -> list[float]:
        if self.form == "paper":
            return super()._log_scores(tree, nodes)
        return [self._by_steps(node) for node in nodes]

    def _by_steps(self, node: Node) -> float:
        """Log of the mean (or product) over steps of C^(1 - lambda) P^lambda."""
        share, path = self.likelihood, node.path
        steps = [
            (1 - share) * (after.log_promise - before.log_promise)
            + share * confidence(after.records)
            for before, after in itertools.pairwise(path)
        ]
        return math.fsum(steps) / (len(steps) if self.normalise and steps else 1)


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
        checks.count(least=0, lookahead=self.lookahead)

    def _log_scores(self, tree: Tree, nodes: Sequence[Node]) -> list[float]:
        ahead = tree.rollout(nodes, self.lookahead, greedy=True)
        return super()._log_scores(tree, ahead)
