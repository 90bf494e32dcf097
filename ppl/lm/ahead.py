"""What is known of one row that draws with guesses, beside the row itself (`ppl.lm.drafting`)."""

from __future__ import annotations

import numpy as np

from ppl.errors import PPLError
from ppl.lm.base import Drawn
from ppl.lm.ngrams import Guess


class Ahead:
    """How far a row is.

    Attributes:
        key: `[1]` of its numbers.
        lead: tokens that it has drawn and not shown.
        outcome: how it ends with the last of these; None if it goes on.
        fatal: whether the outcome is an error that ends the batch.
        proposed: what it guesses, and how much of it is computed (`depth`).
        right, hoped: guesses that were right, and as many as were expected to be, lately.
    """

    __slots__ = ("depth", "fatal", "hoped", "key", "lead", "outcome", "proposed", "right")

    def __init__(self, key: int) -> None:
        self.key = np.array([key], dtype=np.uint64)
        self.lead = self.depth = 0
        self.outcome: Drawn | PPLError | None = None
        self.fatal = False
        self.proposed: list[Guess] = []
        self.right = self.hoped = 0.0

    @property
    def trust(self) -> float:
        """By how much its guesses are right more often than others of their kinds."""
        return min(1.5, max(0.3, (self.right + 2) / (self.hoped + 2)))
