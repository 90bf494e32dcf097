"""One training problem of the embedded tiny model."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Task = Literal["arithmetic", "countdown"]
Number = int | Fraction


@dataclass(frozen=True)
class Item:
    """One training problem with a worked solution.

    ``truth`` is what the labels need: the compact expression (arithmetic) or
    ``"3,5,7=21"`` (countdown).  ``solution`` is the text before ``<|end|>``.
    """

    task: Task
    question: str
    key: str
    truth: str
    solution: str
