"""The parts of particle methods: draw, weigh, resample, split, merge, twist.

Weights are meant relative to the number of particles: the evidence is carried plus their mean.
Whatever changes the number corrects for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ppl.errors import WeightError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.runtime.node import Node
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights
from ppl.searchers.kernels.kernel import Cloud, Debt, Keeps, Kernel
from ppl.searchers.parse import register
from ppl.searchers.particles.steering import merged
from ppl.searchers.resampling import Scheme, Uneven, check_scheme, resampled


@register
@dataclass(frozen=True)
class Extend(Kernel):
    """Takes every open particle of positive weight to its next checkpoint, all as one batch. What
    that gains is owed until it is weighed."""

    keeps: ClassVar[Keeps] = "proper"
    owes: ClassVar[Debt | None] = "weigh"

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """One expansion each."""
        alive = cloud.weights.log_weights > -np.inf
        going = [i for i, node in enumerate(cloud.nodes) if node.open and alive[i]]
        nodes, pending = list(cloud.nodes), list(cloud.pending)
        for i, child in zip(going, tree.expand([nodes[i] for i in going]), strict=True):
            nodes[i] = child
            pending[i] += child.log_increment
        extended = None if cloud.extended is None else cloud.extended + 1
        return replace(cloud, nodes=tuple(nodes), pending=tuple(pending), extended=extended)


@register
@dataclass(frozen=True)
class Weigh(Kernel):
    """Weighs what was drawn: w *= G p / q."""

    keeps: ClassVar[Keeps] = "proper"
    pays: ClassVar[Debt | None] = "weigh"

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """All that is pending goes into the weights."""
        weights = cloud.weights.add(list(cloud.pending))
        return replace(cloud, weights=weights, pending=(0.0,) * len(cloud.nodes))


@register
@dataclass(frozen=True)
class Resample(Kernel):
    """Draws particles by their weights, which are equal afterwards, their mean in the evidence.

    Nothing is drawn once all particles have finished: it would only add noise.

    Attributes:
        scheme: `"systematic"`, `"stratified"`, `"residual"`, `"ssp"`, `"multinomial"` or
            `"chopthin"`.
        below: only if the effective sample size is below this share of the particles; 1 whenever
            weights differ.
        size: particles afterwards; None for as many as before. Where it differs, always.
    """

    keeps: ClassVar[Keeps] = "proper"

    scheme: Scheme | Uneven = "systematic"
    below: float = 0.5
    size: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_scheme(self.scheme, uneven=True)
        checks.probability(below=self.below)
        if self.size is not None:
            checks.count(size=self.size)

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """Ancestors, or the cloud as it is."""
        weights, n = cloud.weights, len(cloud.nodes)
        size = n if self.size is None else self.size
        if cloud.done or weights.dead:
            return cloud
        if size == n and not weights.ess < self.below * n * (1 - 1e-9):
            return cloud
        rng = cloud.rng(tree, "resample")
        ancestors, shares = resampled(self.scheme, weights.probabilities, size, rng)
        weights = weights.resample(ancestors)
        if shares is not None:
            weights = weights.add(np.log(size * shares))
        return replace(cloud.taken(ancestors, weights), draws=cloud.draws + 1)


@register
@dataclass(frozen=True)
class Split(Kernel):
    """Makes m particles of every open one, which share its weight.

    Attributes:
        m: how many.
    """

    keeps: ClassVar[Keeps] = "proper"

    m: int

    def __post_init__(self) -> None:
        checks.count(m=self.m)

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """Copies side by side; finished particles stay one."""
        copies = [self.m if node.open else 1 for node in cloud.nodes]
        origins = np.repeat(np.arange(len(copies)), copies)
        ratio = math.log(len(origins) / len(copies))
        logs = cloud.weights.log_weights[origins] - np.log(copies)[origins] + ratio
        return cloud.taken(origins, Weights(logs, cloud.weights.log_carried))


@register
@dataclass(frozen=True)
class Merge(Kernel):
    """Makes one particle of siblings that chose the same, with their weights summed."""

    keeps: ClassVar[Keeps] = "proper"
    needs_paid: ClassVar[bool] = True

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """The first of each group, or one by weight where verifiers told them apart."""
        if any(node is tree.root for node in cloud.nodes):
            return cloud
        n = len(cloud.nodes)
        nodes, weights = merged(cloud.nodes, cloud.weights, tree.seed)
        place = {node.identity: i for i, node in reversed(list(enumerate(cloud.nodes)))}
        logs = weights.log_weights + math.log(len(nodes) / n)
        kept = [place[node.identity] for node in nodes]
        return cloud.taken(kept, Weights(logs, cloud.weights.log_carried))


@register
@dataclass(frozen=True)
class Twist(Kernel):
    """Multiplies every weight by a guess of what is to come; `untwist` takes it out again.

    Attributes:
        function: log of the guess, from a particle's node; finite. At the top level of a module if
            the search is to be saved.
    """

    keeps: ClassVar[Keeps] = "proper"
    owes: ClassVar[Debt | None] = "untwist"

    function: Callable[[Node], float]

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """For all that are not dead."""
        logs = [0.0 if node.dead else float(self.function(node)) for node in cloud.nodes]
        if not np.isfinite(checks.numbers(twist=logs)).all():
            raise WeightError(
                f"{self!r}: what cannot be taken out again is no guess; keep its log finite"
            )
        twists = tuple(a + b for a, b in zip(cloud.twists, logs, strict=True))
        return replace(cloud, weights=cloud.weights.add(logs), twists=twists)


@register
@dataclass(frozen=True)
class Untwist(Kernel):
    """Takes all twists out of the weights."""

    keeps: ClassVar[Keeps] = "proper"
    pays: ClassVar[Debt | None] = "untwist"

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """Divides by what was multiplied in."""
        weights = cloud.weights.add([-twist for twist in cloud.twists])
        return replace(cloud, weights=weights, twists=(0.0,) * len(cloud.nodes))
