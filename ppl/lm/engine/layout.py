"""What a model keeps of a token, layer by layer, and how it lies in memory.

Most models keep keys and values of one shape in all layers. Some do not: latent attention keeps two
short vectors of unlike length, some layers have other heads than the rest, and some keep nothing
because they read what another layer keeps. What has one shape lies together, in one tensor: a copy
is then one copy, however many layers there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

Heads = tuple[int, int]
"""How many heads, and numbers a head."""


@dataclass(frozen=True)
class Layout:
    """Shapes of what is kept of a token.

    Args:
        layers: keys and values of each layer, None for a layer that keeps nothing.
        hidden: size of the last hidden state.

    Attributes:
        groups: shapes that occur, and how many keys or values of all layers have each.
        places: for each layer, in which group its keys and its values are, and as the how manieth
            there; None where it keeps nothing.
    """

    layers: tuple[tuple[Heads, Heads] | None, ...]
    hidden: int
    groups: tuple[tuple[int, Heads], ...] = field(init=False)
    places: tuple[tuple[tuple[int, int], tuple[int, int]] | None, ...] = field(init=False)

    def __post_init__(self) -> None:
        shapes: list[Heads] = []
        counts: list[int] = []

        def place(shape: Heads) -> tuple[int, int]:
            if shape not in shapes:
                shapes.append(shape)
                counts.append(0)
            group = shapes.index(shape)
            counts[group] += 1
            return group, counts[group] - 1

        places = tuple(
            None if layer is None else (place(layer[0]), place(layer[1])) for layer in self.layers
        )
        object.__setattr__(self, "places", places)
        object.__setattr__(self, "groups", tuple(zip(counts, shapes, strict=True)))

    def nbytes(self, dtype: torch.dtype, int8: bool = False) -> int:
        """Bytes that are kept of a token, last hidden state included.

        Args:
            int8: keys and values in eight bits, and a number of `dtype` for each head of either.
        """
        shapes = [(count * heads, dim) for count, (heads, dim) in self.groups]
        of_head = [dim + dtype.itemsize if int8 else dim * dtype.itemsize for _, dim in shapes]
        kept = sum(heads * size for (heads, _), size in zip(shapes, of_head, strict=True))
        return kept + self.hidden * dtype.itemsize

    @property
    def widest(self) -> int:
        """Numbers of keys and values of a token in the layer that keeps most."""
        return max(
            (sum(heads * dim for heads, dim in layer) for layer in self.layers if layer), default=1
        )
