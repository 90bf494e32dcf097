"""Nodes of a search tree: particles at checkpoints.

A node knows the segment of its particle's record since its parent's checkpoint; the path from the
root is the particle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ppl.language.cost import Cost
from ppl.language.text import Continuation, Text
from ppl.runtime.particle import Checkpoint, Particle
from ppl.runtime.record import Record


@dataclass(eq=False, slots=True)
class Node:
    """A particle at a checkpoint.

    Attributes:
        identity: number of the node in its tree; with the seed it keys the randomness of the
            segment that leads to it.
        parent: the node it continues, None for the root.
        records: what happened between the parent's checkpoint and this one.
        log_increment: log-weight gained in the segment: observed log-probabilities, plus log model
            minus log proposal, plus the new twist, minus the parent's twist.
        log_weight: sum of the increments from the root.
        log_likelihood: sum of the observed log-probabilities from the root; with verifiers this is
            the log of their current potential A.
        log_twist: the twist that `log_weight` includes for now.
        finished: True if the program has returned.
        result: what it returned.
        dead_at: the site that made the weight zero, or None.
        text: the text that a language model last extended, None before the first.
        simulated: True for nodes made by `Tree.rollout`.
        forced: True for nodes made by `Tree.force`: their choices were given, not drawn.
        provisional: what the program said last (`ppl.answer`) that its result would be; empty if
            nothing.
    """

    identity: int
    parent: Node | None
    records: tuple[Record, ...] = ()
    log_increment: float = 0.0
    log_weight: float = 0.0
    log_likelihood: float = 0.0
    log_twist: float = 0.0
    finished: bool = False
    result: Any = None
    dead_at: str | None = None
    text: Text | None = None
    simulated: bool = False
    forced: bool = False
    depth: int = 0
    provisional: tuple[Any, ...] = ()
    _particle: Particle | None = None

    @property
    def dead(self) -> bool:
        """True if the weight is zero: nothing can come of this particle."""
        return self.log_weight == -math.inf

    @property
    def open(self) -> bool:
        """True if the particle can be expanded."""
        return not self.finished and not self.dead

    @property
    def answered(self) -> bool:
        """True if there is a result, or the program has said what it would be."""
        return not self.dead and (self.finished or bool(self.provisional))

    @property
    def answer(self) -> Any:
        """The result, or what it would be; None without one."""
        return self.result if self.finished or not self.provisional else self.provisional[0]

    @property
    def log_promise(self) -> float:
        """What searchers that rank go by: the log-likelihood and the twist of the moment."""
        return self.log_likelihood + self.log_twist

    @property
    def value(self) -> float:
        """exp(log_likelihood): with verifiers, the probability they give the text so far."""
        return math.exp(min(self.log_likelihood, 700.0))

    @property
    def step(self) -> str:
        """What language models wrote in this segment."""
        values = (r.value for r in self.records if r.kind == "choice")
        return "".join(v.text for v in values if isinstance(v, Continuation))

    @property
    def path(self) -> list[Node]:
        """The nodes from the root to this one."""
        nodes: list[Node] = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]

    @property
    def history(self) -> list[Record]:
        """All records on the path."""
        return [record for node in self.path for record in node.records]

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values chosen in this segment; equal for children that are duplicates."""
        return tuple(r.value for r in self.records if r.kind == "choice")

    @property
    def cost(self) -> Cost:
        """What the segment generated (shared costs such as prompts belong to the tree)."""
        drawn = [v for v in self.choices if isinstance(v, Continuation) and not self.forced]
        return Cost(lm_tokens=sum(len(v.tokens) for v in drawn), lm_calls=len(drawn))

    def __getstate__(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__[:-1])

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(self.__slots__[:-1], state, strict=True):
            setattr(self, name, value)
        self._particle = None

    def __repr__(self) -> str:
        kind = "dead" if self.dead else "finished" if self.finished else "open"
        return f"Node({self.identity}, {kind}, log_weight={self.log_weight:.4g}, {self.step!r})"


def child_of(parent: Node, particle: Particle, checkpoint: Checkpoint, simulated: bool) -> Node:
    """The node at which a particle that went on from `parent` has arrived."""
    records = tuple(particle.records)
    likelihood = math.fsum([r.log_likelihood for r in records])
    ratio = math.fsum([r.log_ratio for r in records])
    increment = likelihood + ratio + particle.log_twist - parent.log_twist
    dead = checkpoint.dead_at is not None
    child = Node(
        identity=particle.identity,
        parent=parent,
        records=records,
        log_increment=-math.inf if dead else increment,
        log_weight=-math.inf if dead else parent.log_weight + increment,
        log_likelihood=-math.inf if dead else parent.log_likelihood + likelihood,
        log_twist=0.0 if dead else particle.log_twist,
        finished=checkpoint.finished,
        result=checkpoint.result,
        dead_at=checkpoint.dead_at,
        text=particle.text,
        simulated=simulated,
        forced=particle.segment.forced is not None,
        depth=parent.depth + 1,
        provisional=particle.provisional,
    )
    if child.open:
        child._particle = particle
    else:
        particle.close()
    return child
