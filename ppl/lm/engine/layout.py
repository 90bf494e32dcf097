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
        scored: heads of a layer that have a score of each token beside keys and values, which then
            are those of all layers; 0 for none.

    Attributes:
        groups: shapes that occur, and how many keys or values of all layers have each.
        places: for each layer, in which group its keys and its values are, and as the how manieth
            there; None where it keeps nothing.
        owners: for each of the groups, the layers of its keys or values, in their order.
    """

    layers: tuple[tuple[Heads, Heads] | None, ...]
    hidden: int
    scored: int = 0
    groups: tuple[tuple[int, Heads], ...] = field(init=False)
    places: tuple[tuple[tuple[int, int], tuple[int, int]] | None, ...] = field(init=False)
    owners: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        shapes: list[Heads] = []
        owners: list[list[int]] = []

        def place(number: int, shape: Heads) -> tuple[int, int]:
            if shape not in shapes:
                shapes.append(shape)
                owners.append([])
            group = shapes.index(shape)
            owners[group].append(number)
            return group, len(owners[group]) - 1

        places = tuple(
            None if layer is None else (place(i, layer[0]), place(i, layer[1]))
            for i, layer in enumerate(self.layers)
        )
        object.__setattr__(self, "places", places)
        object.__setattr__(self, "groups", tuple(zip(map(len, owners), shapes, strict=True)))
        object.__setattr__(self, "owners", tuple(map(tuple, owners)))

    def nbytes(self, dtype: torch.dtype, int8: bool = False) -> int:
        """Bytes that are kept of a token, last hidden state included.

        Args:
            int8: keys and values in eight bits, and a number of `dtype` for each head of either.
        """
        shapes = [(count * heads, dim) for count, (heads, dim) in self.groups]
        of_head = [dim + dtype.itemsize if int8 else dim * dtype.itemsize for _, dim in shapes]
        kept = sum(heads * size for (heads, _), size in zip(shapes, of_head, strict=True))
        scores = len(self.layers) * self.scored * torch.float32.itemsize
        return kept + self.hidden * dtype.itemsize + scores

    @property
    def alike(self) -> bool:
        """Whether all layers keep keys of equally many heads, and any."""
        heads = [layer and layer[0][0] for layer in self.layers]
        return all(heads) and len(set(heads)) == 1

    @property
    def widest(self) -> int:
        """Numbers of keys and values of a token in the layer that keeps most."""
        return max(
            (sum(heads * dim for heads, dim in layer) for layer in self.layers if layer), default=1
        )
