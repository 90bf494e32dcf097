"""How a child of a search tree came about: the choices between two checkpoints.

Choices whose values are a short list (`dist.Bernoulli`, `dist.Categorical`, ...) are forks. What
follows, a text or a number, is drawn: the tail.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from ppl.errors import ProgramError
from ppl.language.classes import identity
from ppl.language.site import Site
from ppl.runtime.node import Node
from ppl.runtime.record import Record

MOST_VALUES = 256
"""A choice among more values is drawn, as a text is."""

Key = tuple[float, ...]


@dataclass(frozen=True)
class Fork:
    """A choice out of a short list.

    Attributes:
        name: the site.
        decision: whether the program marks it as one.
        values: what can be taken, as numbers.
        log_probs: log-probability of each under the program.
        taken: which was, from 0.
    """

    name: str
    decision: bool
    values: tuple[Key, ...]
    log_probs: tuple[float, ...]
    taken: int

    @property
    def possible(self) -> list[int]:
        """Values that can come."""
        return [i for i, p in enumerate(self.log_probs) if p > -math.inf]


@dataclass(frozen=True)
class Way:
    """How a child came about.

    Attributes:
        forks: the choices before the tail.
        log_prob: of the tail, under the program; NaN if it has a density.
        tail: which records of the child it is.
        decision: whether the tail is a decision: then it is the last choice.
        drawn: how often it was drawn.
    """

    forks: tuple[Fork, ...] = ()
    log_prob: float = 0.0
    tail: tuple[int, ...] = ()
    decision: bool = False
    drawn: int = 1

    def same(self, child: Node, other: Way, sibling: Node) -> bool:
        """Whether a child came about as a sibling did; what has a density never does."""
        # Equal tails have equal probabilities, which are compared more cheaply; NaN equals nothing.
        alike = self.log_prob == other.log_prob and self.forks == other.forks
        return alike and _drawn(child, self) == _drawn(sibling, other)


def way_of(child: Node) -> Way:
    """The way to a child that has just been made.

    Raises:
        ProgramError: a decision and what was drawn cannot be told apart: a checkpoint is missing.
    """
    forks: list[Fork] = []
    tail: list[int] = []
    for number, record in enumerate(child.records):
        told = isinstance(record.distribution, Site) and record.distribution.told
        if record.kind != "choice" or told:  # what is told follows from the choices before it
            continue
        fork = None if tail else _fork_of(record)
        if fork is not None:
            forks.append(fork)
            continue
        if tail and (record.decision or child.records[tail[-1]].decision):
            raise ProgramError(
                f"site {record.name!r} comes after {child.records[tail[-1]].name!r}, which was "
                "drawn, with no checkpoint between them, and one of them is a decision: expectimax "
                f'cannot tell them apart. Put ppl.twist("seen_{record.name}", 0.0) between the two'
            )
        tail.append(number)
    drawn = [child.records[i] for i in tail]
    log_prob = math.fsum(r.prior() if _counted(r.distribution) else math.nan for r in drawn)
    return Way(tuple(forks), log_prob, tuple(tail), any(r.decision for r in drawn))


def _drawn(child: Node, way: Way) -> Hashable:
    return tuple(identity(child.records[i].value) for i in way.tail)


def _fork_of(record: Record) -> Fork | None:
    values = listed(record.distribution)
    if values is None:
        return None
    keys = tuple(key_of(value) for value in values)
    log_probs = [float(record.distribution.log_prob(value)) for value in values]
    if not record.decision:  # PyTorch clamps probabilities of zero to this.
        none = math.log(1.01 * torch.finfo(torch.float32).eps)
        log_probs = [p if p > none else -math.inf for p in log_probs]
    taken = keys.index(key_of(record.value))
    return Fork(record.name, record.decision, keys, tuple(log_probs), taken)


def listed(distribution: Any) -> list[Any] | None:
    """The values of a choice out of a short list; None for any other."""
    if isinstance(distribution, Site) or not getattr(distribution, "has_enumerate_support", False):
        return None
    if distribution.batch_shape or distribution.event_shape:
        return None
    values = list(distribution.enumerate_support())
    return values if len(values) <= MOST_VALUES else None


def key_of(value: Any) -> Key:
    """A value of a short list, as numbers."""
    return tuple(torch.as_tensor(value).flatten().tolist())


def _counted(distribution: Any) -> bool:
    """Whether values have probabilities, not densities."""
    if isinstance(distribution, Site):
        return True
    try:
        return bool(distribution.support.is_discrete)
    except NotImplementedError:
        return False
