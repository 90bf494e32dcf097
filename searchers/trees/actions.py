"""Actions: choices of the program that the searcher makes, by Thompson sampling.

A program says with a discrete choice what its next step is made by, such as which language model
writes it: `pyro.sample(f"llm_{t}", dist.Categorical(torch.ones(2)))`. Every value is an arm, whose
scores are those of all nodes in the tree that it made, wherever they are (the default of TreeQuest,
the code of Inoue et al. 2025, arXiv:2503.04412).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ppl.errors import ProgramError
from ppl.runtime.particle import Decide
from ppl.runtime.tree import Node
from ppl.searchers.trees.arms import Arms, Floats

Draw = Callable[[Floats, np.random.Generator], Floats]


@dataclass
class Actions:
    """What is known of each action.

    Attributes:
        site: name of the choices, up to a trailing number as in `llm_3`.
        scores: an arm per action.
        number: the arm of each action.
    """

    site: str
    scores: Arms = field(default_factory=Arms)
    number: dict[tuple[float, ...], int] = field(default_factory=dict)

    def decide(self, draw: Draw, rng: np.random.Generator) -> Decide:
        """For `Tree.expand`: the action whose draw is the largest.

        Args:
            draw: a number for each arm, from `[3, K]` sums of its scores.
        """

        def decide(name: str, distribution: Any) -> Any:
            if not self._named(name):
                return None
            values = _support(name, distribution)
            arms = [self._arm(value) for value in values]
            return values[draw(self.scores.sums, rng)[arms].argmax()]

        return decide

    def back_up(self, child: Node, score: float) -> None:
        """The score of a new node, to the actions that made it.

        Raises:
            ProgramError: the program has returned, and there was never such a choice.
        """
        for record in child.records:
            if record.kind == "choice" and self._named(record.name):
                self.scores.add(self._arm(record.value), score)
        if child.finished and not self.number:
            raise ProgramError(
                f"the program returned without a choice named {self.site!r} or '{self.site}_0': "
                f"actions={self.site!r} names the pyro.sample sites that pick what makes a step"
            )

    def _named(self, name: str) -> bool:
        return re.sub(r"_\d+$", "", name) == self.site

    def _arm(self, value: Any) -> int:
        key = tuple(value.flatten().tolist())
        if key not in self.number:
            self.number[key] = len(self.scores)
            self.scores.append()
        return self.number[key]


def _support(name: str, distribution: Any) -> list[Any]:
    """The possible values of a choice."""
    if not getattr(distribution, "has_enumerate_support", False) or distribution.batch_shape:
        raise ProgramError(
            f"site {name!r}: {type(distribution).__name__} is no single choice out of a list, so "
            "its values cannot be actions; use dist.Categorical"
        )
    values = list(distribution.enumerate_support())
    # PyTorch clamps probabilities of zero to this.
    impossible = torch.finfo(torch.float32).eps
    return [value for value in values if distribution.log_prob(value).exp() > 1.01 * impossible]
