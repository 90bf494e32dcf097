"""Adaptive branching Monte Carlo tree search (Inoue, Misaki, Imajuku, Kuroki, Nakamura, Akiba 2025,
arXiv:2503.04412): how wide and how deep to go is itself sampled.

    from the root: draw a score for "a new child here" (GEN) and for going on below (Thompson)
                   take the largest; stop at GEN, or at a node without open children
    expand         one new child; its score r is what it has observed
    back up        r to the arms on the path

Variant A (node aggregation) has two arms at every node, GEN and CONT, and an arm per child, each
with a conjugate posterior: the direct children's scores belong to GEN, those of deeper ones to
CONT. Variant M (mixed model) has a group per child, r = alpha_j + s_y e, alpha_j = mu + s_a e_j;
GEN is a new group. Mean and group effects are integrated analytically, and a grid over the two
scales does the rest, so a decision takes no Markov chain. Not samplers: there is no evidence.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from ppl.errors import WeightError
from ppl.randomness import generator
from ppl.searchers.search import Searcher, all_dead
from ppl.tree import Node, Tree

Floats = NDArray[np.float64]


class Scores(NamedTuple):
    """What there is to know of a set of scores: their number, sum and sum of squares."""

    number: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, score: float) -> Scores:
        """With one score more."""
        return Scores(self.number + 1, self.total + score, self.squares + score * score)


NOTHING = Scores()


@dataclass
class Branch:
    """A node's memory: scores of its direct children, of deeper ones, and of each child's subtree.

    `rounded` counts the scores of each subtree, rounded to hundredths.
    """

    gen: Scores = field(default_factory=lambda: NOTHING)
    cont: Scores = field(default_factory=lambda: NOTHING)
    children: list[Node] = field(default_factory=list)
    below: list[Scores] = field(default_factory=list)
    rounded: list[Counter[int]] = field(default_factory=list)


@dataclass
class BranchState:
    """What the next round needs."""

    branches: dict[int, Branch]
    answers: list[Node] = field(default_factory=list)
    seen: list[Node] = field(default_factory=list)
    simulations: int = 0
    over: bool = False
    info: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _AdaptiveBranching(Searcher):
    simulations: int

    def __post_init__(self) -> None:
        if self.simulations < 1:
            raise ValueError(f"simulations={self.simulations}: at least 1")

    @abstractmethod
    def choose(self, here: Branch, going: Sequence[int], rng: np.random.Generator) -> int | None:
        """The child to go on with, an index out of `going` (not empty), or None for GEN."""

    def start(self, tree: Tree) -> BranchState:
        return BranchState({tree.root.identity: Branch()})

    def step(self, tree: Tree, state: BranchState) -> BranchState:
        rng = generator(tree.seed, "branching", state.simulations)
        path, taken = [tree.root], []
        while True:
            here = state.branches[path[-1].identity]
            going = [i for i, child in enumerate(here.children) if child.open]
            choice = self.choose(here, going, rng) if going else None
            if choice is None:
                break
            taken.append(choice)
            path.append(here.children[choice])
        (child,) = tree.expand([path[-1]])
        self._back_up(state.branches, path, taken, child)
        state.seen.append(child)
        if child.finished and not child.dead:
            state.answers.append(child)
        done = state.simulations + 1
        over = done == self.simulations
        if over and all(node.dead for node in state.seen):
            raise all_dead(tree, state.seen, self)
        return replace(state, simulations=done, over=over)

    def _back_up(
        self, branches: dict[int, Branch], path: list[Node], taken: list[int], child: Node
    ) -> None:
        """The score to the new child's parent (GEN) and to the arms of all ancestors (CONT)."""
        score = self._score(child)
        branches[child.identity] = Branch()
        parent = branches[path[-1].identity]
        parent.gen = parent.gen.add(score)
        parent.children.append(child)
        parent.below.append(NOTHING.add(score))
        parent.rounded.append(Counter([round(100 * score)]))
        for node, number in zip(path[:-1], taken, strict=True):
            here = branches[node.identity]
            here.cont = here.cont.add(score)
            here.below[number] = here.below[number].add(score)
            here.rounded[number][round(100 * score)] += 1

    def _score(self, node: Node) -> float:
        return node.value

    def result(
        self, tree: Tree, state: BranchState
    ) -> tuple[Sequence[Node], Sequence[float], float | None]:
        nodes = state.answers or [node for node in state.seen if node.open]
        return nodes, [node.log_likelihood for node in nodes], None


@dataclass(frozen=True)
class ABMCTSA(_AdaptiveBranching):
    """AB-MCTS with node aggregation.

    Attributes:
        simulations: nodes to grow.
        prior: `"gaussian"`: normal-inverse-chi-squared (0, 1, 1, 0.1); `"beta"`: (0.5, 0.5). What
            is drawn is an arm's mean.
    """

    prior: Literal["gaussian", "beta"] = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior not in ("gaussian", "beta"):
            raise ValueError(f"prior={self.prior!r}: 'gaussian' or 'beta'")

    def _score(self, node: Node) -> float:
        if self.prior == "beta" and not 0 <= node.value <= 1:
            raise WeightError(
                f"node {node.identity} has the score {node.value:.4g}; prior='beta' needs scores "
                "in [0, 1], as those of a verifier; take prior='gaussian'"
            )
        return node.value

    def choose(self, here: Branch, going: Sequence[int], rng: np.random.Generator) -> int | None:
        draw = draw_gaussian if self.prior == "gaussian" else draw_beta
        gen, cont = draw([here.gen, here.cont], rng)
        if gen >= cont:
            return None
        return going[int(np.argmax(draw([here.below[i] for i in going], rng)))]


@dataclass(frozen=True)
class ABMCTSM(_AdaptiveBranching):
    """AB-MCTS with a mixed model. Priors as published: mu ~ N(0.5, 0.2^2), s_a ~ HalfNormal(0.2),
    s_y ~ HalfNormal(0.3); what is drawn is a new score.

    A child is passed over once its subtree has four scores of which three quarters are equal to two
    digits, as in the published code: then the next best child, and GEN only if none is left.

    Attributes:
        simulations: nodes to grow.
    """

    def choose(self, here: Branch, going: Sequence[int], rng: np.random.Generator) -> int | None:
        scores, new = draw_mixed(here.below, rng)
        best = max(going, key=lambda i: scores[i])
        if new >= scores[best]:
            return None
        alive = [i for i in going if not _settled(here.rounded[i])]
        return max(alive, key=lambda i: scores[i]) if alive else None


def _settled(rounded: Counter[int]) -> bool:
    return rounded.total() >= 4 and rounded.most_common(1)[0][1] >= 0.75 * rounded.total()


def gaussian_posterior(arms: Sequence[Scores]) -> tuple[Floats, Floats, Floats, Floats]:
    """m, kappa, nu, tau^2 of the normal-inverse-chi-squared posterior of each arm."""
    n, total, squares = np.array(arms, dtype=float).T
    mean = total / np.maximum(n, 1)
    spread = np.maximum(squares - n * mean**2, 0.0)
    kappa, nu = 1 + n, 1 + n
    m = n * mean / kappa
    tau2 = (0.1 + spread + n * mean**2 / kappa) / nu
    return m, kappa, nu, tau2


def draw_gaussian(arms: Sequence[Scores], rng: np.random.Generator) -> Floats:
    """A mean for each arm, from its posterior."""
    m, kappa, nu, tau2 = gaussian_posterior(arms)
    variance = nu * tau2 / 2 / rng.gamma(nu / 2)
    return m + np.sqrt(variance / kappa) * rng.standard_normal(len(m))


def draw_beta(arms: Sequence[Scores], rng: np.random.Generator) -> Floats:
    """A mean for each arm, from its posterior."""
    n, total, _ = np.array(arms, dtype=float).T
    drawn: Floats = rng.beta(0.5 + total, 0.5 + n - total)
    return drawn


# The scales of the mixed model, in equal steps of their logarithm; s_a down, s_y across.
_SCALES = np.geomspace(1e-3, 1.5, 32)
_S_A, _S_Y = (axis.ravel() for axis in np.meshgrid(_SCALES, _SCALES, indexing="ij"))
# Half-normal densities, times the scale: the grid is uniform in the logarithm.
_LOG_PRIOR = -((_S_A / 0.2) ** 2 + (_S_Y / 0.3) ** 2) / 2 + np.log(_S_A * _S_Y)
_MU, _MU_PRECISION = 0.5, 1 / 0.2**2


def mixed_posterior(groups: Sequence[Scores]) -> tuple[Floats, Floats, Floats, Floats]:
    """The mixed model given scores in groups, over the grid of `G` pairs of scales.

    Returns:
        `[G]` probabilities of the pairs; `[G]` mean and precision of mu; `[G, J]` variances of the
        groups' means given mu.
    """
    n, total, squares = np.array(groups, dtype=float).T
    mean = total / n
    spread = np.maximum(squares - n * mean**2, 0.0)
    variance = _S_A[:, None] ** 2 + _S_Y[:, None] ** 2 / n
    precision = _MU_PRECISION + (1 / variance).sum(1)
    centre = (_MU_PRECISION * _MU + (mean / variance).sum(1)) / precision
    # Scores around their group's mean, the means around mu, and mu integrated out.
    log_likelihood = -(n - 1).sum() * np.log(_S_Y) - spread.sum() / (2 * _S_Y**2)
    log_likelihood -= (np.log(variance) + mean**2 / variance).sum(1) / 2
    log_likelihood += precision * centre**2 / 2 - np.log(precision) / 2
    log_posterior = _LOG_PRIOR + log_likelihood
    return np.exp(log_posterior - logsumexp(log_posterior)), centre, precision, variance


def draw_mixed(groups: Sequence[Scores], rng: np.random.Generator) -> tuple[Floats, float]:
    """A new score for each group, and one for a group that is new: one joint draw."""
    probabilities, centre, precision, _ = mixed_posterior(groups)
    g = int(rng.choice(len(probabilities), p=probabilities))
    mu = centre[g] + rng.standard_normal() / math.sqrt(precision[g])
    s_a, s_y = float(_S_A[g]), float(_S_Y[g])
    n, total, _ = np.array(groups, dtype=float).T
    own = 1 / s_a**2 + n / s_y**2  # precision of a group's effect given mu
    effects = (mu / s_a**2 + total / s_y**2) / own + rng.standard_normal(len(n)) / np.sqrt(own)
    scores = effects + s_y * rng.standard_normal(len(n))
    return scores, float(mu + math.hypot(s_a, s_y) * rng.standard_normal())
