"""Who runs several copies of a model: a room above this one, which has the processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RUN: list[Callable[..., Any]] = []


def runs_replicas(loader: Callable[..., Any]) -> None:
    """Says how several copies of a model are run: `(source, devices, **settings)`."""
    RUN[:] = [loader]
