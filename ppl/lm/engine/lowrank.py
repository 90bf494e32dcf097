"""Adapters beside the weights in a pass that is one program (`lowrank.h`): which rows get what.

The program adds to each product of a layer what its rows' adapters add, from the matrices that the
layers themselves would use. Nothing is copied; an adapter that goes takes with it all there was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ppl.lm.engine.beside import Adapters, Thin
from ppl.lm.engine.linear import LaidOutLinear


class Laid(NamedTuple):
    """Where the matrices of an adapter are.

    Attributes:
        each: `[products, 5]`, `struct Thin` of each product.
        shares: those of each, to which it points.
        layers: where there are any.
    """

    each: NDArray[np.int64]
    shares: list[NDArray[np.int64]]
    layers: list[Thin]


class LowRank:
    """What adapters add to the products of a program.

    Args:
        adapters: those that there are.
        products: all of the program, in its order.
        dtype: in which it computes.
    """

    def __init__(
        self, adapters: Adapters, products: Sequence[LaidOutLinear], dtype: torch.dtype
    ) -> None:
        self._adapters, self._products, self._dtype = adapters, products, dtype

    def __call__(self, numbers: Sequence[int] | None, rows: int) -> tuple[int | None, list[Any]]:
        """Of a pass the address of `struct Beside`, None where no row has an adapter; and what must
        be there until it is done.

        Args:
            numbers: of each row its adapter; None where none has one.

        Raises:
            RuntimeError: the pass has another number of rows.
        """
        if numbers is None or not any(numbers):
            return None, []
        if len(numbers) != rows:
            raise RuntimeError(f"adapters of {len(numbers)} rows are known, not of {rows}")
        groups, kept, of_rows = [], [], np.array(numbers)
        for number in set(numbers) - {0}:
            laid, where = self._laid(number), np.flatnonzero(of_rows == number)
            for layer in laid.layers:
                layer.calls += 1
            groups.append((len(where), where.ctypes.data, laid.each.ctypes.data))
            kept += [laid, where]
        table = np.array(groups, dtype=np.int64)
        beside = np.array([len(groups), table.ctypes.data], dtype=np.int64)
        return beside.ctypes.data, [*kept, table, beside]

    def _laid(self, number: int) -> Laid:
        known = self._adapters.laid
        if number not in known:
            laid = Laid(np.zeros((len(self._products), 5), dtype=np.int64), [], [])
            for row, product in zip(laid.each, self._products, strict=True):
                thin = self._adapters.beside(product)
                own = None if thin is None else thin.of(number)
                if thin is None or own is None:
                    continue
                a, b, shares = own
                # From here on nobody looks at bounds.
                sizes = (len(b), product.in_features), (len(a), product.out_features)
                fits = (
                    a.dtype == b.dtype == self._dtype and a.is_cpu and (a.shape, b.shape) == sizes
                )
                if not fits or not (a.is_contiguous() and b.is_contiguous()):
                    raise RuntimeError(f"{thin.name}: its adapters are of another kind")
                laid.shares.append(np.array(shares, dtype=np.int64))
                where = laid.shares[-1].ctypes.data
                row[:] = a.data_ptr(), b.data_ptr(), len(a), len(shares), where
                laid.layers.append(thin)
            known[number] = laid
        laid_out: Laid = known[number]
        return laid_out
