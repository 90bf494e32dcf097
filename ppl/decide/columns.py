"""What is known of candidates, as numbers, and what a rule is that makes weights of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ppl.errors import ArgumentError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

COLUMNS = {
    "log_weights": "importance weights, as logarithms",
    "log_scores": "logarithms of a verifier's values in [0, 1]",
    "rewards": "values on any scale, larger is better",
    "log_probs": "log p(text) under the law that was sampled",
    "log_joints": "log p(text) plus log p(observations)",
    "tokens": "generated tokens",
    "texts": "what tells texts apart",
    "confidences": "probabilities that the answer is right, in [0, 1]",
    "certainties": "how sure a model was of a text, larger is surer: see trace_confidence and "
    "self_certainty",
}
"""What may be known of candidates, a number each."""


class Columns:
    """What is known of candidates, by name: `columns["log_scores"]` is `[..., N]`.

    Leading axes are for several sets of candidates at once, which `take` makes.

    Attributes:
        there: `[..., N]`, which candidates have an answer that counts.
    """

    def __init__(self, there: Bools, known: Mapping[str, Callable[[], NDArray[Any]]]) -> None:
        self.there = there
        self._known = dict(known)
        self._made: dict[str, NDArray[Any]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Raises ArgumentError for what is not known, which says how to give it."""
        if name not in self._known:
            if name not in COLUMNS:
                raise ArgumentError(f"no column is called {name!r}; one of {', '.join(COLUMNS)}")
            raise ArgumentError(
                f"{name}: this rule needs them ({COLUMNS[name]}), and they are not known here; "
                f"give them as Candidates.of(..., {name}=[...]), one for each candidate"
            )
        if name not in self._made:
            self._made[name] = self._known[name]()
        return self._made[name]

    def take(self, members: Ints) -> Columns:
        """Sets of candidates, `[S, k]` indices: what is known of each set."""

        def taken(name: str) -> Callable[[], NDArray[Any]]:
            return lambda: self[name][members]

        return Columns(self.there[members], {name: taken(name) for name in self._known})


class Weighting(Protocol):
    """A rule: what each candidate's vote weighs.

    It is given what is known, `[..., N]` each, and returns logarithms `[..., N]`. Where a candidate
    is not `there`, its weight is that of no answer: it wins nothing, and lowers all shares.
    """

    def __call__(self, columns: Columns, /) -> Floats:
        """Log-weights, `[..., N]`."""


def dead(log_weights: Floats) -> Floats:
    """Zero, and minus infinity for the dead: what a weight of one is, as a logarithm."""
    return np.where(np.isneginf(log_weights), -math.inf, 0.0)
