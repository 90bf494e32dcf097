"""What a stopping rule looks at: answers in the order in which they came."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.answers.joint import refuse_joint
from ppl.language.arguments import checked, shown
from ppl.language.cached import cached_property
from ppl.language.classes import numbered
from ppl.runtime.node import Node

NOTHING = -1
"""The class of a sample without an answer; it never leads."""


@dataclass(frozen=True)
class Seen:
    """Answers so far, as classes of equal ones.

    Attributes:
        classes: `[n]` class of each sample's answer, numbered from 0; -1 for none.
        weights: `[n]` of a weighted vote, zero or more, on any scale; None: all alike.
        confidences: `[n]` how likely each is right, from 0 to 1; None: not known.
        left: most samples that may still come; infinite if that is not known.
        probes: classes of the same samples' answers at earlier checkpoints, the oldest first, and
            at last as they are now; empty where nobody looks at them.
    """

    classes: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    confidences: tuple[float, ...] | None = None
    left: float = math.inf
    probes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        # Rules are replayed on many thousands: arrays are checked at once.
        classes = _listed("classes", self.classes)
        if (classes < NOTHING).any() or (classes % 1 != 0).any():
            raise ArgumentError(
                f"classes={shown(self.classes)}: whole numbers from 0, or -1 for none"
            )
        for name, most in (("weights", math.inf), ("confidences", 1.0)):
            values = getattr(self, name)
            if values is None:
                continue
            listed = _listed(name, values)
            if len(listed) != len(classes):
                raise ArgumentError(f"{name}: {len(values)} for {len(classes)} answers")
            if ((listed < 0) | (listed > most) | np.isinf(listed)).any():
                told = "zero or more, and finite" if name == "weights" else "from 0 to 1"
                raise ArgumentError(f"{name}={shown(values)}: {told}")
        checks.number(left=self.left)
        if self.left < 0:
            raise ArgumentError(f"left={self.left!r}: zero or more samples may still come")
        known: Any = self.probes if isinstance(self.probes, tuple) else (None,)
        if any(len(_listed("probes", row)) != len(classes) for row in known):
            raise ArgumentError(f"probes={shown(self.probes)}: rows like classes")

    @classmethod
    @checked
    def of(
        cls,
        answers: Sequence[Any],
        *,
        confidences: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
        left: float = math.inf,
    ) -> Self:
        """Of answers, None for none; equal ones are classes as in `Posterior.vote`."""
        refuse_joint(answers)
        (classes,) = classes_of([answers])
        return cls(
            classes,
            None if weights is None else tuple(map(float, weights)),
            None if confidences is None else tuple(map(float, confidences)),
            left,
        )

    @classmethod
    def of_nodes(
        cls,
        nodes: Sequence[Node],
        log_weights: Sequence[float] | None = None,
        *,
        confidence: Callable[[Node], float] | None = None,
        left: float = math.inf,
        probes: int = 0,
    ) -> Self:
        """Of nodes of a search.

        Args:
            nodes: one per sample, finished or not; only finished ones have an answer.
            log_weights: of each; None: all are equal.
            confidence: of a finished node; by default its `value`, the probability that verifiers
                give it.
            left: as above.
            probes: how many checkpoints to look back at; above zero, what unfinished samples say
                with `ppl.answer` counts too.
        """
        now = [node.answer if node.finished and not node.dead else None for node in nodes]
        (classes,) = classes_of([now])
        weights = None
        if log_weights is not None and nodes:
            logs = np.array(log_weights, dtype=np.float64)
            top = logs.max()
            weights = (0.0,) * len(logs) if top == -math.inf else tuple(np.exp(logs - top).tolist())
        confidences = tuple(
            (confidence(node) if confidence is not None else min(1.0, node.value))
            if known >= 0
            else 0.0
            for node, known in zip(nodes, classes, strict=True)
        )
        return cls(classes, weights, confidences, left, _probes(nodes, probes))

    def __len__(self) -> int:
        return len(self.classes)

    def first(self, n: int) -> Seen:
        """What was seen when the first n had come."""
        return Seen(
            self.classes[:n],
            None if self.weights is None else self.weights[:n],
            None if self.confidences is None else self.confidences[:n],
            self.left + len(self) - n,
        )

    def counts(self, amounts: ArrayLike | None = None) -> NDArray[np.float64]:
        """`[C]` how much each class has of some amounts, `[n]`; None counts every answer as 1."""
        kept = np.array(self.classes, dtype=np.int64)
        given = np.ones(len(kept)) if amounts is None else np.asarray(amounts, dtype=np.float64)
        return np.bincount(kept[kept >= 0], given[kept >= 0]).astype(np.float64)

    @property
    def weighted(self) -> NDArray[np.float64]:
        """`[C]` what the weights give to each class; all together count as their effective size."""
        if self.weights is None:
            return self.votes
        given = np.array(self.weights, dtype=np.float64)
        top = given.max(initial=0.0)
        if top == 0:
            return self.counts(given)
        given /= top
        return self.counts(given * (given.sum() / np.square(given).sum()))

    @cached_property
    def votes(self) -> NDArray[np.float64]:
        """`[C]` samples of each class."""
        return self.counts()


def _listed(name: str, values: Any) -> NDArray[np.float64]:
    if not isinstance(values, tuple):
        raise ArgumentError(f"{name}={shown(values)}: a tuple of numbers, one per sample")
    named: dict[str, Any] = {name: values}
    return checks.numbers(**named)


def classes_of(rows: Sequence[Sequence[Any]]) -> list[tuple[int, ...]]:
    """The classes of several rows of answers, numbered together; None is -1."""
    every = [answer for row in rows for answer in row if answer is not None]
    numbers = iter(numbered(every))
    return [tuple(NOTHING if a is None else next(numbers) for a in row) for row in rows]


def _probes(nodes: Sequence[Node], back: int) -> tuple[tuple[int, ...], ...]:
    """What each sample had said at its last checkpoints, up to now."""
    if back == 0 or not nodes:
        return ()
    deepest = max(node.depth for node in nodes)
    paths = [node.path for node in nodes]
    rows = []
    # At the root nobody has said anything; where all stand there, that is what is seen.
    for depth in range(max(min(1, deepest), deepest - back + 1), deepest + 1):
        at = [path[min(depth, len(path) - 1)] for path in paths]
        rows.append([node.answer if node.answered else None for node in at])
    return tuple(classes_of(rows))
