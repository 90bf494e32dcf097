"""What is searched: choices with names, the architecture that each set of them builds, and what is
known of each so far."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppl.errors import ArgumentError
from ppl.language.arguments import check_fields
from ppl.language.cached import cached_property

Point = tuple[int, ...]
"""For each choice the place of its value."""


@dataclass(frozen=True)
class Space:
    """Architectures by their settings.

    Attributes:
        choices: values by the name of the choice.
        build: called with a value for each name; returns a program of the question, such as an
            `Archon`. What breaks a rule of construction (an `ArgumentError`) is no part of the
            space, and neither is None.
    """

    choices: Mapping[str, Sequence[Any]]
    build: Callable[..., Any]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.choices or not all(len(values) for values in self.choices.values()):
            raise ArgumentError("choices: at least one, each with at least one value")
        if not self.points:
            raise ArgumentError("build: no setting gives a valid architecture")

    def settings(self, point: Point) -> dict[str, Any]:
        """Values by name."""
        pairs = zip(self.choices.items(), point, strict=True)
        return {name: values[place] for (name, values), place in pairs}

    @cached_property
    def programs(self) -> dict[Point, Any]:
        """All valid architectures."""
        found = {}
        for point in itertools.product(*(range(len(v)) for v in self.choices.values())):
            try:
                program = self.build(**self.settings(point))
            except ArgumentError:
                continue
            if program is not None:
                found[point] = program
        return found

    @property
    def points(self) -> list[Point]:
        """Of all valid architectures, in order."""
        return list(self.programs)

    def __len__(self) -> int:
        return len(self.programs)


@dataclass(frozen=True)
class Ask:
    """A wish: the architecture at `point`, scored on the first `problems` of all."""

    point: Point
    problems: int


@dataclass
class Board:
    """What is known.

    Attributes:
        points: all there are, in a random order.
        problems: how many there are.
        scores: of each point that was looked at, on the first problems of a random order.
        pending: what is asked for and not yet known.
        rng: for what policies draw.
    """

    points: list[Point]
    problems: int
    rng: np.random.Generator
    scores: dict[Point, list[float]] = field(default_factory=dict)
    pending: dict[Point, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members = set(self.points)
        self.sizes: Point = tuple(max(places) + 1 for places in zip(*self.points, strict=True))

    def drop(self, point: Point) -> None:
        """Nobody is to ask for this one again."""
        self.points.remove(point)
        self.members.remove(point)

    def row(self, here: Point, choice: int) -> list[Point]:
        """All points that differ from one in no other choice."""
        beside = ((*here[:choice], v, *here[choice + 1 :]) for v in range(self.sizes[choice]))
        return [point for point in beside if point in self.members]

    def mean(self, point: Point, problems: int | None = None) -> float:
        """The mean score, on the first so many problems."""
        scores = self.scores[point][:problems]
        return math.fsum(scores) / len(scores)

    def whole(self, point: Point) -> bool:
        """Whether it was scored on all problems."""
        return len(self.scores.get(point, ())) == self.problems

    def free(self, point: Point) -> bool:
        """Whether nobody has looked at it yet."""
        return point not in self.scores and point not in self.pending
