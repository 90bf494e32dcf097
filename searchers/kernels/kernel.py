"""Kernels: parts of a sampler that can be put together, and what they keep.

    smc = repeat(extend >> weigh >> resample())
    Composed(16, smc).run(program)

A kernel takes a cloud of weighted particles to the next. Each says what it keeps, and a composition
keeps what all of its parts do: `proper` weighting (for every f the sum of w f(x) is right in
expectation, so that the evidence is), or the target `invariant` (particles that follow it still
do), which keeps proper weighting too. Some parts leave a debt that a later one has to pay: what was
drawn has to be weighed, a twist has to be taken out. Only a composition whose parts are all proper
and that owes nothing offers an evidence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from ppl.errors import SearchStateError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.tree import Tree
from ppl.runtime.weights import Weights
from ppl.searchers.parse import register
from ppl.searchers.state import Particles

Keeps = Literal["proper", "invariant", "neither"]
Debt = Literal["weigh", "untwist"]


@dataclass(frozen=True)
class Cloud(Particles):
    """`[N]` weighted particles between two kernels.

    Attributes:
        pending: `[N]` log-weight gained by what was drawn and not weighed yet.
        twists: `[N]` log of what a twist has multiplied in.
        extended: steps that particles have been taken; None for whole runs from elsewhere.
        log_evidences: `[N]` of the run of SMC that each came from, where a chain keeps them.
        draws: how often this round has drawn; keys its randomness.
        sweeps: how many runs of SMC have been begun inside of kernels.
    """

    pending: tuple[float, ...] = ()
    twists: tuple[float, ...] = ()
    extended: int | None = 0
    log_evidences: tuple[float, ...] | None = None
    draws: int = 0
    sweeps: int = 0

    @classmethod
    def of(cls, nodes: Sequence[Node], extended: int | None = 0) -> Cloud:
        """Particles of equal weight."""
        n = len(nodes)
        return cls(tuple(nodes), Weights.equal(n), (0.0,) * n, (0.0,) * n, extended)

    @property
    def done(self) -> bool:
        """True if every particle of positive weight has finished."""
        alive = self.weights.log_weights > -np.inf
        return not any(node.open and alive[i] for i, node in enumerate(self.nodes))

    def rng(self, tree: Tree, word: str) -> np.random.Generator:
        """A generator for the next draw of this round; the cloud that follows counts it."""
        number = (self.draws,) if self.draws else ()
        return generator(tree.seed, word, self.round, *number)

    def taken(self, indices: Sequence[int] | np.ndarray, weights: Weights) -> Cloud:
        """The particles of these numbers, with new weights."""
        kept = list(map(int, indices))
        logs = self.log_evidences
        return replace(
            self,
            nodes=tuple(self.nodes[i] for i in kept),
            weights=weights,
            pending=tuple(self.pending[i] for i in kept),
            twists=tuple(self.twists[i] for i in kept),
            log_evidences=None if logs is None else tuple(logs[i] for i in kept),
        )


@dataclass(frozen=True)
class Law:
    """What a kernel keeps, if it is begun without debts.

    Attributes:
        proper: particles stay properly weighted, so that the evidence is unbiased.
        invariant: particles that follow the target still do.
        owes: what is left to be paid; with debts neither holds.
    """

    proper: bool
    invariant: bool
    owes: frozenset[Debt] = frozenset()

    @property
    def says(self) -> str:
        """In words."""
        if self.owes:
            return f"neither, as it owes {' and '.join(sorted(self.owes))}"
        return "invariant" if self.invariant else "proper" if self.proper else "neither"


class Kernel(ABC):
    """A part of a sampler. Subclasses are frozen dataclasses of settings, and `register`ed to be
    saved with a search.

    Attributes:
        keeps: what the kernel keeps when nothing is owed.
        owes: the debt that it leaves.
        pays: the debt that it pays.
        needs_paid: what it keeps, it keeps only where nothing is owed.
    """

    keeps: ClassVar[Keeps] = "neither"
    owes: ClassVar[Debt | None] = None
    pays: ClassVar[Debt | None] = None
    needs_paid: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """The next cloud; the one given stays as it is."""

    def after(self, law: Law) -> Law:
        """The law of what came before, followed by this kernel."""
        keeps: Keeps = "neither" if self.needs_paid and law.owes else self.keeps
        owes = law.owes - {self.pays} if self.pays else law.owes
        if self.owes:
            owes |= {self.owes}
        proper = law.proper and keeps != "neither"
        return Law(proper, law.invariant and keeps == "invariant", frozenset(owes))

    @property
    def law(self) -> Law:
        """What it keeps, derived from its parts."""
        law = self.after(Law(True, True))
        return replace(law, proper=False, invariant=False) if law.owes else law

    def __rshift__(self, other: Kernel) -> Chain:
        """This kernel, then the other."""
        if not isinstance(other, Kernel):
            return NotImplemented
        return Chain((*_parts(self), *_parts(other)))


def _parts(kernel: Kernel) -> tuple[Kernel, ...]:
    return kernel.parts if isinstance(kernel, Chain) else (kernel,)


@register
@dataclass(frozen=True)
class Chain(Kernel):
    """Kernels one after the other: what `>>` makes.

    Attributes:
        parts: in order.
    """

    parts: tuple[Kernel, ...]

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """All parts in turn."""
        for part in self.parts:
            cloud = part(tree, cloud)
        return cloud

    def after(self, law: Law) -> Law:
        """Part by part."""
        for part in self.parts:
            law = part.after(law)
        return law


@register
@dataclass(frozen=True)
class Repeat(Kernel):
    """A kernel again and again.

    Attributes:
        kernel: which.
        times: how often; None until every particle is finished, for kernels that extend them.
    """

    kernel: Kernel
    times: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.times is not None:
            checks.count(least=0, times=self.times)

    def over(self, cloud: Cloud, done: int) -> bool:
        """True if nothing is left to do after `done` times."""
        return cloud.done if self.times is None else done >= self.times

    def __call__(self, tree: Tree, cloud: Cloud) -> Cloud:
        """The kernel, until it is over."""
        done = 0
        while not self.over(cloud, done):
            cloud, done = self.once(tree, cloud), done + 1
        return self.left(cloud)

    def once(self, tree: Tree, cloud: Cloud) -> Cloud:
        """The kernel, one time.

        Raises:
            SearchStateError: it is to go on until all have finished, and goes nowhere.
        """
        after = self.kernel(tree, cloud)
        if self.times is None and after.nodes == cloud.nodes and not self.over(after, 0):
            raise SearchStateError(
                f"{self!r}: a round has taken no particle any further, so that it would never end; "
                "put extend into it, or say how many times="
            )
        return after

    def left(self, cloud: Cloud) -> Cloud:
        """Where all have finished, what comes next moves whole runs: to their ends, however many
        steps those take."""
        return replace(cloud, extended=None) if self.times is None else cloud

    def after(self, law: Law) -> Law:
        """What one round leaves owing, the next begins with; two show all of it. Without a number
        of times there may be none, so that what was owed before may still be."""
        after = law
        for _ in range(2 if self.times is None else min(self.times, 2)):
            after = self.kernel.after(after)
        return replace(after, owes=after.owes | law.owes) if self.times is None else after
