"""Siblings that chose the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ppl.runtime.node import Node


def origin(child: Node) -> tuple[object, ...]:
    """Equal for siblings with equal choices."""
    assert child.parent is not None
    return (child.parent.identity, *map(_comparable, child.choices))


def _comparable(value: Any) -> Any:
    """By value also for tensors, which are hashed by identity."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), tuple(value.flatten().tolist()))
    return value


def distinct(children: Iterable[Node]) -> list[Node]:
    """The first of every group of siblings with equal choices."""
    seen: dict[tuple[object, ...], Node] = {}
    for child in children:
        seen.setdefault(origin(child), child)
    return list(seen.values())
