"""What the rows of a pass have in common, as a table of pointers for attention of our own.

Rows that stand on the same trunk, and rows whose slots begin alike, are groups: what they have in
common is read for several of them at a time (`attention.cpp`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ppl.lm.engine.runs import Part, Trunk
from ppl.lm.engine.slots import Place


class Alike(Protocol):
    """Neighbouring rows whose slots begin alike: see `ppl.lm.engine.attention.Span`."""

    @property
    def start(self) -> int:
        """The first of them."""

    @property
    def stop(self) -> int:
        """The row after the last."""

    @property
    def shared(self) -> int:
        """So many first keys are the same."""

    @property
    def source(self) -> int:
        """A row that has these."""


@dataclass
class Table:
    """Groups of the rows of a pass.

    Attributes:
        order: `[B]` int64 the rows, those of a group side by side.
        groups: `[G, 4]` int64 for each where it ends in `order`, where its runs end, and which row
            has how many first keys of all their slots.
        bases: `[B]` int64 positions at which the rows' slots begin; None where all begin at 0.
        parts: of the trunks, those of a group side by side; their runs are made of these.
    """

    order: Tensor
    groups: Tensor
    bases: Tensor | None = None
    parts: Sequence[Part] = ()
    _runs: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def shaped(self, place: Place) -> tuple[int, int, int] | None:
        """Heads of keys in the trunks, numbers a key and a value; None if there are no trunks."""
        if not self.parts:
            return None
        kv = self.parts[0].segment.piece.kv  # all are of one layout
        keys, values = kv[place[0][0]], kv[place[1][0]]
        return keys.shape[1], keys.shape[3], values.shape[3]

    def runs(self, keys: int, values: int) -> Tensor:
        """`[P, 8]` int64 of every part: the address of its keys, how many numbers its layers and
        its heads are apart, the same of its values, its first position and its length.

        Args:
            keys, values: of which groups of the layout.
        """
        if (keys, values) not in self._runs:
            kinds = keys, values
            rows = [run_of(p.piece.kv, *kinds, p.start, p.stop - p.start) for p in self.parts]
            self._runs[kinds] = numbers(rows).reshape(-1, 8)
        return self._runs[keys, values]


def table_of(
    rows: int,
    spans: Sequence[Alike],
    trunks: Sequence[Trunk] = (),
    bases: Tensor | None = None,
    pointed: bool = True,
) -> Table:
    """The table of a pass of so many rows.

    Args:
        spans: which of them begin alike in their slots.
        trunks: what each stands on; empty where none does.
        bases: see `Table`.
        pointed: whether trunks are read by pointer.
    """
    if not ((trunks and pointed) or any(span.shared for span in spans)):  # each for itself
        groups_of_one = torch.zeros(rows, 4, dtype=torch.int64, device="cpu")
        groups_of_one[:, 0] = torch.arange(1, rows + 1, device="cpu")
        return Table(torch.arange(rows, device="cpu"), groups_of_one, bases)
    alike = [(row, 0) for row in range(rows)]  # a row that has some first keys, and how many
    for span in spans:
        if span.shared:
            alike[span.start : span.stop] = [(span.source, span.shared)] * (span.stop - span.start)
    groups: dict[tuple[Trunk | int, int, int], list[int]] = {}
    for row, (source, shared) in enumerate(alike):
        stands = trunks[row] if trunks and pointed else ()
        key = (stands or (-1 if shared else row), source if shared else -1, shared)
        groups.setdefault(key, []).append(row)
    order: list[int] = []
    ends: list[tuple[int, int, int, int]] = []
    parts: list[Part] = []
    for (trunk, source, shared), members in groups.items():
        order += members
        if isinstance(trunk, tuple):
            parts += trunk
        ends.append((len(order), len(parts), max(source, 0), shared))
    return Table(numbers(order), numbers(ends).reshape(-1, 4), bases, parts)


def run_of(kv: Sequence[Tensor], keys: int, values: int, start: int, count: int) -> list[int]:
    """A row of `Table.runs`, of memory as of a `Piece`."""
    kinds = [(t.data_ptr(), t.stride(0), t.stride(1)) for t in (kv[keys], kv[values])]
    return [*kinds[0], *kinds[1], start, count]


def numbers(rows: Sequence[object]) -> Tensor:
    """Whole numbers as programs of ours read them, int64."""
    return torch.tensor(rows, dtype=torch.int64, device="cpu")
