"""What the model itself thinks of what was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ppl.language.text import Continuation
from ppl.runtime.node import Node
from ppl.runtime.record import Record


def log_prior(node: Node) -> float:
    """Log-probability of all choices on the path, under the model."""
    return log_prior_of(node.history)


def log_prior_of(records: Sequence[Record]) -> float:
    """Log-probability of the choices among some records, under the model."""
    return math.fsum(r.prior() for r in records if r.kind == "choice")


def confidence(records: Sequence[Record]) -> float:
    """Mean log-probability of what was chosen, per token; 0 if nothing was."""
    chosen = [r for r in records if r.kind == "choice"]
    sizes = [len(r.value.tokens) if isinstance(r.value, Continuation) else 1 for r in chosen]
    return math.fsum(r.prior() for r in chosen) / max(sum(sizes), 1)
