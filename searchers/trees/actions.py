"""Actions: choices of the program that the searcher makes, by Thompson sampling.

A program says with a discrete choice what its next step is made by, such as which language model
writes it: `pyro.sample(f"llm_{t}", dist.Categorical(torch.ones(2)))`. Every value is an arm, whose
scores are those of all nodes in the tree that it made, wherever they are (the default of TreeQuest,
the code of Inoue et al. 2025, arXiv:2503.04412).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ppl.errors import ArgumentError, ProgramError
from ppl.runtime.node import Node
from ppl.runtime.particle import Decide
from ppl.searchers.trees.arms import Arms, Floats

Draw = Callable[[Floats, np.random.Generator], Floats]


@dataclass(frozen=True)
class Actions:
    """What is known of each action: an immutable value.

    Attributes:
        site: name of the choices, up to a trailing number as in `llm_3`.
        scores: an arm per action.
        number: the arm of each action.
    """

    site: str
    scores: Arms = field(default_factory=Arms.without_scores)
    number: Mapping[tuple[float, ...], int] = field(default_factory=lambda: MappingProxyType({}))

    def decide(self, draw: Draw, rng: np.random.Generator, wanted: int | None = None) -> Decide:
        """For `Tree.expand`: the action whose draw is the largest. An action that is met for the
        first time is an arm without scores.

        Args:
            draw: a number for each arm, from `[3, K]` sums of its scores.
            wanted: the arm to take, where it is possible; None to draw.
        """
        known = self  # grows with the actions that this expansion meets

        def decide(name: str, distribution: Any) -> Any:
            nonlocal known
            if not self._named(name):
                return None
            values = support(name, distribution)
            known = known.met(values)
            arms = [known.number[_key(value)] for value in values]
            if wanted in arms:
                return values[arms.index(wanted)]
            return values[draw(known.scores.sums, rng)[arms].argmax()]

        return decide

    def met(self, values: Iterable[Any]) -> Actions:
        """With an arm for each of these actions."""
        scores, number = self.scores, dict(self.number)
        for value in values:
            if _key(value) not in number:
                number[_key(value)] = len(scores)
                scores = scores.append()
        return replace(self, scores=scores, number=MappingProxyType(number))

    def back_up(self, child: Node, score: float) -> Actions:
        """With the score of a new node, for the actions that made it.

        Raises:
            ProgramError: the program has returned, and there was never such a choice.
        """
        known = self
        for record in child.records:
            if record.kind == "choice" and self._named(record.name):
                known = known.met([record.value])
                arm = known.number[_key(record.value)]
                known = replace(known, scores=known.scores.add(arm, score))
        if child.finished and not known.number:
            raise ProgramError(
                f"the program returned without a choice named {self.site!r} or '{self.site}_0': "
                f"actions={self.site!r} names the pyro.sample sites that pick what makes a step"
            )
        return known

    def maker(self, child: Node) -> int:
        """The arm of the action that made a node, -1 if none did; the last if several had part."""
        made = [r for r in child.records if r.kind == "choice" and self._named(r.name)]
        return self.number[_key(made[-1].value)] if made else -1

    def _named(self, name: str) -> bool:
        return re.sub(r"_\d+$", "", name) == self.site

    def __reduce__(self) -> tuple[Any, ...]:
        return _actions, (self.site, self.scores, dict(self.number))


def _actions(site: str, scores: Arms, number: dict[tuple[float, ...], int]) -> Actions:
    return Actions(site, scores, MappingProxyType(number))


def _key(value: Any) -> tuple[float, ...]:
    return tuple(value.flatten().tolist())


def support(name: str, distribution: Any) -> list[Any]:
    """The possible values of a choice."""
    return [value for value in _values(name, distribution) if _possible(distribution, value)]


def value_at(name: str, distribution: Any, place: int, argument: str) -> Any:
    """The value of a choice with this number, among all that it has, possible or not.

    Raises:
        ArgumentError: there is none, or it is impossible; `argument` is what asked for it.
    """
    values = _values(name, distribution)
    if place >= len(values):
        raise ArgumentError(
            f"{argument}: site {name!r} has no value {place}, only {len(values)} of them"
        )
    if not _possible(distribution, values[place]):
        raise ArgumentError(f"{argument}: value {place} of site {name!r} has probability zero")
    return values[place]


def _values(name: str, distribution: Any) -> list[Any]:
    if not getattr(distribution, "has_enumerate_support", False) or distribution.batch_shape:
        raise ProgramError(
            f"site {name!r}: {type(distribution).__name__} is no single choice out of a list, so "
            "its values cannot be actions; use dist.Categorical"
        )
    return list(distribution.enumerate_support())


def _possible(distribution: Any, value: Any) -> bool:
    # PyTorch clamps probabilities of zero to this.
    impossible = torch.finfo(torch.float32).eps
    return bool(distribution.log_prob(value).exp() > 1.01 * impossible)
