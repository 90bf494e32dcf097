"""Siblings that chose the same."""

from __future__ import annotations

from collections.abc import Iterable

from ppl.runtime.node import Node


def origin(child: Node) -> tuple[object, ...]:
    """Equal for siblings with equal choices. Choices that cannot be compared by a hash (tensors are
    compared by identity) count as distinct."""
    assert child.parent is not None
    return (child.parent.identity, *child.choices)


def distinct(children: Iterable[Node]) -> list[Node]:
    """The first of every group of siblings with equal choices."""
    seen: dict[tuple[object, ...], Node] = {}
    for child in children:
        seen.setdefault(origin(child), child)
    return list(seen.values())
