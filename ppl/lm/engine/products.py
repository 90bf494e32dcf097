"""Products with weights in bfloat16 or float32 by a program of our own (`products.cpp`), on a CPU
that has instructions for them.

The weights stay where oneDNN has put them, in its layout: there is one copy, which both can read.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ppl.lm.engine.building import built, returning

# Outputs of a tile, most likely first.
_WIDTHS = (64, 48, 32, 16)
# Inputs are filled up to a multiple of so many, and so many of them lie side by side.
_LIES = {torch.bfloat16: (32, 2), torch.float32: (16, 1)}
# So many rows, or more than there are.
_ANY = 1 << 62
_POINTER, _INT64, _INT32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class Own:
    """Our own products with a weight that oneDNN has laid out.

    A row's result does not depend on the rows beside it, nor on the number of threads.

    Args:
        packed: the weight as it is laid out.
        weight: `[outputs, inputs]`, what was laid out; not kept.
        bias: `[outputs]`, or None.

    Raises:
        RuntimeError: there is no compiler, or the processor has no such instructions, or the weight
            is of another type or lies otherwise.

    Attributes:
        dtype: of the weight, and of what it is given and gives.
        most: up to so many rows it is quicker than oneDNN; any number where inputs have to be
            filled up, because there oneDNN lets what is not finite in one row reach others.
    """

    def __init__(self, packed: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        if self.dtype not in _LIES or self.inputs % _LIES[self.dtype][1]:
            raise RuntimeError("no products of our own")
        program = _program(self.dtype == torch.bfloat16)
        self.most = int(program.most())
        if self.most < 1:
            raise RuntimeError("no products of our own on this processor")
        if self.inputs % _LIES[self.dtype][0]:
            self.most = _ANY
        self._run, self._packed, self._where = program.multiply, packed, _where(packed)
        # Which it is depends on sizes and threads.
        self._width = next((w for w in _WIDTHS if self._lies(w, weight)), 0)
        if not self._width:
            raise RuntimeError("oneDNN has laid the weight out in another way")
        self._tile = self._tiles(self._width)[0].numel()
        self._bias = None if bias is None else bias.detach().float().contiguous()
        self._where_bias = None if self._bias is None else self._bias.data_ptr()

    def _tiles(self, width: int) -> Tensor:
        """The weight as bits, `[tiles, inputs / beside, width, beside]` if it lies so."""
        filled, beside = _LIES[self.dtype]
        kept = (ctypes.c_char * _nbytes(self._packed)).from_address(self._where)
        inputs = -(-self.inputs // filled) * filled
        bits = torch.frombuffer(kept, dtype=self._bits)
        return bits.view(-1, inputs // beside, width, beside)

    @property
    def _bits(self) -> torch.dtype:
        return torch.int16 if self.dtype.itemsize == 2 else torch.int32

    def _lies(self, width: int, weight: Tensor) -> bool:
        """Whether it lies so, by the first and the last outputs: they are few bytes to look at."""
        filled, _ = _LIES[self.dtype]
        size = -(-self.inputs // filled) * filled * width * self.dtype.itemsize
        if _nbytes(self._packed) % size or _nbytes(self._packed) // size * width < self.outputs:
            return False
        tiles, last = self._tiles(width), (self.outputs - 1) // width
        for tile in {0, last}:
            found = tiles[tile].transpose(0, 1).flatten(1)  # [width, inputs]
            some = weight[tile * width : (tile + 1) * width].contiguous().view(self._bits)
            if not torch.equal(found[: len(some), : self.inputs], some):
                return False
        return True

    @property
    def addresses(self) -> list[int]:
        """As `ppl.lm.engine.linear.LaidOutLinear.addresses`."""
        run = ctypes.cast(self._run, _POINTER).value or 0
        sizes = [self.inputs, self.outputs, self._width, self._tile]
        return [run, *sizes, self._where, 0, self._where_bias or 0]

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`. Raises what `taken` does."""
        x = taken(x, self.inputs, self.outputs, self.dtype)
        y = x.new_empty((*x.shape[:-1], self.outputs))
        self._run(
            x.numel() // self.inputs,
            self.inputs,
            self.outputs,
            self._width,
            self._tile,
            torch.get_num_threads(),
            x.data_ptr(),
            self._where,
            self._where_bias,
            y.data_ptr(),
        )
        return y


def taken(x: Tensor, inputs: int, outputs: int, dtype: torch.dtype) -> Tensor:
    """What a layer is given, side by side in memory: from here on nobody looks at bounds.

    Raises:
        RuntimeError: `x` is of another type than the layer, or another size, or not on a CPU.
    """
    if x.dtype != dtype or x.shape[-1] != inputs or not x.is_cpu:
        raise RuntimeError(
            f"a layer of [{outputs}, {inputs}] in {dtype} on a CPU was given "
            f"{tuple(x.shape)} in {x.dtype} on {x.device}"
        )
    return x.contiguous()


def _where(packed: Tensor) -> int:
    return int(torch.ops.mkldnn.data_ptr(packed))


def _nbytes(packed: Tensor) -> int:
    return int(torch.ops.mkldnn._nbytes(packed))


@cache
def _program(half: bool) -> Any:
    program = built("products.cpp", HALF=int(half))
    returning(program.multiply, *[_INT64] * 5, _INT32, *[_POINTER] * 4)
    program.most.restype = _INT64
    return program
