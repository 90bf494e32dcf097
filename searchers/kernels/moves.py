"""Moves: kernels that leave the target where it is.

`SuffixMH` forgets the last steps of every particle and proposes new ones; `TraceMH` forgets all
from a step on that is drawn from the particle's own; `PIMH` proposes a whole run of SMC (particle
independent Metropolis-Hastings: Andrieu, Doucet, Holenstein 2010, JRSS-B 72(3)).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ppl.errors import SearchStateError
from ppl.language import checks
from ppl.runtime.node import Node
from ppl.runtime.tree import Tree
from ppl.searchers.kernels.kernel import Cloud, Keeps, Kernel
from ppl.searchers.parse import register
from ppl.searchers.particles import conditional_smc
from ppl.searchers.particles.conditional_smc import Sweep
from ppl.searchers.particles.metropolis import before, decided, log_ratio, redrawn


class Move(Kernel):
    """A Metropolis move of every particle: from a step on, all is proposed anew."""

    keeps: ClassVar[Keeps] = "invariant"
    needs_paid: ClassVar[bool] = True

    @abstractmethod
    def first(self, cloud: Cloud, node: Node, u: float) -> int:
        """The step 1, 2, ... from which a particle is drawn anew; `u` is uniform."""

    def log_correction(self, old: Node, new: Node) -> float:
        """Log of how likely that step is from the new particle, over how likely from the old."""
        return 0.0

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """Proposes, and accepts by the ratio of weights."""
        rng = cloud.rng(tree, "kernel move")
        where, uniforms = rng.random((2, len(cloud.nodes)))
        beginnings = [
            before(node, self.first(cloud, node, u))
            for node, u in zip(cloud.nodes, where, strict=True)
        ]
        proposed = redrawn(tree, beginnings, cloud.extended)
        ratios = [
            log_ratio(new.log_weight, old.log_weight) + self.log_correction(old, new)
            for old, new in zip(cloud.nodes, proposed, strict=True)
        ]
        nodes, _ = decided(cloud.nodes, proposed, np.array(ratios), uniforms)
        return replace(cloud, nodes=tuple(nodes), draws=cloud.draws + 1)


@register
@dataclass(frozen=True)
class SuffixMH(Move):
    """Redraws the last steps of those that all particles have been taken: the move of
    `ResampleMove`. Who finished before that keeps all it has.

    Attributes:
        last: how many steps.
    """

    last: int = 1

    def __post_init__(self) -> None:
        checks.count(last=self.last)

    def first(self, cloud: Cloud, node: Node, u: float) -> int:
        """Counted from the steps that have been taken, not from the particle's own."""
        steps = 0 if cloud.extended is None else cloud.extended
        return max(steps - self.last, 0) + 1


@register
@dataclass(frozen=True)
class TraceMH(Move):
    """Redraws from a step on that is uniform among the particle's own. A longer particle offers
    more steps, so that the ratio has the factor len(x) / len(y)."""

    def first(self, cloud: Cloud, node: Node, u: float) -> int:
        """Uniform on 1 .. len."""
        return 1 + min(int(u * node.depth), max(node.depth - 1, 0))

    def log_correction(self, old: Node, new: Node) -> float:
        """log of len(x) / len(y)."""
        return math.log(max(old.depth, 1) / max(new.depth, 1))


@register
@dataclass(frozen=True)
class PIMH(Kernel):
    """Proposes a particle of a fresh run of SMC, and accepts it by the ratio of the runs'
    evidences. A rejected proposal leaves the old evidence as it was: to estimate it anew would bend
    the law. Particles that come without one get it from a conditional run.

    Attributes:
        num_particles: of each run.
    """

    keeps: ClassVar[Keeps] = "invariant"
    needs_paid: ClassVar[bool] = True

    num_particles: int

    def __post_init__(self) -> None:
        checks.count(num_particles=self.num_particles)

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """One proposal for every particle, all runs in shared batches."""
        n, serial = len(cloud.nodes), cloud.sweeps
        old = cloud.log_evidences
        if not cloud.done:
            raise SearchStateError("pimh moves whole runs: put it behind repeat(...)")
        if old is None:
            whole = [i for i, node in enumerate(cloud.nodes) if node.finished and not node.dead]
            _, found = _runs(tree, self.num_particles, serial, [cloud.nodes[i] for i in whole])
            logs = dict(zip(whole, found, strict=True))
            old = tuple(logs.get(i, -math.inf) for i in range(n))
            serial += n
        drawn, new = _runs(tree, self.num_particles, serial, [None] * n)
        uniforms = cloud.rng(tree, "kernel move").random(n)
        ratios = np.array([log_ratio(a, b) for a, b in zip(new, old, strict=True)])
        # A run goes with the estimate of its evidence.
        pairs, _ = decided(
            list(zip(cloud.nodes, old, strict=True)),
            list(zip(drawn, new, strict=True)),
            ratios,
            uniforms,
        )
        nodes, kept = zip(*pairs, strict=True)
        return replace(
            cloud,
            nodes=nodes,
            log_evidences=kept,
            draws=cloud.draws + 1,
            sweeps=serial + n,
        )


def _runs(
    tree: Tree, n: int, serial: int, references: Sequence[Node | None]
) -> tuple[list[Node], tuple[float, ...]]:
    """Runs of SMC side by side: a particle of each, by its weight, and the log-evidences."""
    sweeps: list[Sweep] = [
        conditional_smc.begin(tree, n, serial + i, node) for i, node in enumerate(references)
    ]
    logs = [0.0] * len(sweeps)
    dead: set[int] = set()
    while going := [i for i, s in enumerate(sweeps) if i not in dead and not s.over]:
        moved = conditional_smc.advance(tree, [sweeps[i] for i in going], ancestor_sampling=False)
        for i, sweep in zip(going, moved, strict=True):
            sweeps[i] = sweep
            logs[i] += sweep.weights.log_mean
            if sweep.weights.dead:
                dead.add(i)
    drawn = [
        sweep.nodes[0] if i in dead else conditional_smc.draw(tree, sweep)
        for i, sweep in enumerate(sweeps)
    ]
    return drawn, tuple(logs)
