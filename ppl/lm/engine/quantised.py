"""Weights of eight bits, for the steps of few rows that are bound by reading them (`int8.cpp`).

Every 64 weights along the inputs of a linear layer have one scale, and are whole numbers from -127
to 127: half the bytes of bfloat16. What the layers are given and give keeps its type. A model with
such weights is another model than the one that it was made of, and its name says so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ppl.errors import UnsupportedModelError
from ppl.lm.engine.building import built, returning
from ppl.lm.engine.linear import LaidOutLinear, PackedLinear, pack_linears, parameter_count
from ppl.lm.engine.pages import Range
from ppl.lm.engine.products import taken

FORMATS = ("int8",)
"""What `weights=` may be; None for weights as they are."""

# As in int8.cpp.
_GROUP, _TILE = 64, 32
_MOST = 127
# Outputs that are quantised at once: bounds what that takes besides.
_AT_ONCE = 4096
_POINTER, _INT64, _INT32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


def name_with(name: str, weights: str | None) -> str:
    """The name of a model with such weights."""
    return name if weights is None else f"{name}@{weights}"


def weights_of(model: nn.Module) -> str | None:
    """What `weights=` was when a model was loaded."""
    return "int8" if any(type(layer) is Int8Linear for layer in model.modules()) else None


class Int8Linear(LaidOutLinear):
    """A linear layer with weights of eight bits and a scale to 64 of them.

    A row's result does not depend on the rows beside it.

    Args:
        linear: the layer, in float32 or bfloat16; its weight is rounded and not kept.

    Raises:
        RuntimeError: there is no compiler, or it refuses.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._run = _program()
        self._dtype = linear.weight.dtype
        self._bias = None if linear.bias is None else linear.bias.detach().float().contiguous()
        groups, tiles = -(-self.in_features // _GROUP), -(-self.out_features // _TILE)
        self._numbers = torch.empty(tiles, groups * _GROUP // 4, _TILE, 4, dtype=torch.uint8)
        self._scales = torch.empty(tiles, groups, _TILE, dtype=torch.float32)
        weight = linear.weight.detach()
        for first in range(0, tiles * _TILE, _AT_ONCE):
            some = weight[first : first + _AT_ONCE].float()
            rows = -(-len(some) // _TILE) * _TILE
            padded = some.new_zeros(rows, groups * _GROUP)
            padded[: len(some), : self.in_features] = some
            numbers, scales = quantised(padded)
            where = slice(first // _TILE, (first + rows) // _TILE)
            numbers = (numbers + 128).to(torch.uint8).view(rows // _TILE, _TILE, -1, 4)
            self._numbers[where] = numbers.transpose(1, 2)
            self._scales[where] = scales.view(rows // _TILE, _TILE, groups).transpose(1, 2)
        # Numbers, not tensors: they are asked for in every product.
        self._where = self._numbers.data_ptr(), self._scales.data_ptr()
        self._where_bias = None if self._bias is None else self._bias.data_ptr()

    def product(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, as wide as `x` is. Raises what `taken`
        does."""
        x = taken(x, self.in_features, self.out_features, self._dtype)
        y = x.new_empty((*x.shape[:-1], self.out_features))
        self._run(
            x.numel() // self.in_features,
            self.in_features,
            self.out_features,
            torch.get_num_threads(),
            x.dtype == torch.bfloat16,
            x.data_ptr(),
            *self._where,
            self._where_bias,
            y.data_ptr(),
        )
        return y

    @property
    def weight(self) -> Tensor:
        """`[out_features, in_features]` float32: the weight that it multiplies with, exactly."""
        tiles, groups, _ = self._scales.shape
        numbers = self._numbers.transpose(1, 2).reshape(tiles * _TILE, groups, _GROUP).float() - 128
        scales = self._scales.transpose(1, 2).reshape(tiles * _TILE, groups, 1)
        whole = (numbers * scales).flatten(1)
        return whole[: self.out_features, : self.in_features]

    @property
    def memory(self) -> list[Range]:
        """Where its numbers and scales lie."""
        return [Range(t.data_ptr(), t.nbytes) for t in (self._numbers, self._scales)]

    @property
    def own_rows(self) -> int:
        """See `LaidOutLinear`."""
        return 1 << 62 if self._dtype == torch.bfloat16 else 0

    @property
    def addresses(self) -> list[int]:
        """See `LaidOutLinear`."""
        run = ctypes.cast(self._run, _POINTER).value or 0
        sizes = [self.in_features, self.out_features, 0, 0]
        return [run, *sizes, *self._where, self._where_bias or 0]


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers `[n, m]` from -127 to 127, scales `[n, m / 64]`, of a float32 weight `[n, m]`.

    The largest of a group becomes 127, so no weight is off by more than 1 / 254 of it.
    """
    parts = weight.reshape(len(weight), -1, _GROUP)
    scales = parts.abs().amax(2) / _MOST
    numbers = (parts / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round()
    return numbers.clamp(-_MOST, _MOST).flatten(1), scales


def quantise_linears(
    model: nn.Module, weights: str, probe: Callable[[], object], name: str
) -> None:
    """Replaces the linear layers of a model on a CPU by such with other weights.

    Layers of few outputs, as heads of reward models are, keep their weights: they cost nothing.

    Args:
        weights: one of `FORMATS`.
        probe: see `ppl.lm.engine.linear.pack_linears`.
        name: shown in messages.

    Raises:
        UnsupportedModelError: there is no compiler, or the model is of another dtype than the
            layers, or most of its weights are in no such layers.
    """
    dtype = next(model.parameters()).dtype
    if dtype not in (torch.float32, torch.bfloat16):
        raise UnsupportedModelError(
            f"{name}: weights={weights!r} is for models that compute in float32 or bfloat16, this "
            f"one is loaded in {str(dtype).removeprefix('torch.')}; give dtype=torch.bfloat16"
        )
    try:
        _program()
    except RuntimeError as refusal:
        raise UnsupportedModelError(
            f"{name}: weights={weights!r} needs a C++ compiler: {refusal}; load it without weights="
        ) from refusal
    before = parameter_count(model)
    pack_linears(model, probe, _laid_out)
    kept = sum(p.numel() for p in _apart_from_embeddings(model))
    made = sum(m.in_features * m.out_features for m in model.modules() if type(m) is Int8Linear)
    if kept > made:
        raise UnsupportedModelError(
            f"{name}: weights={weights!r} is for weights of linear layers, where it has {made:,} "
            f"of {before:,}; load it without weights="
        )


def _laid_out(layer: nn.Linear) -> LaidOutLinear:
    return Int8Linear(layer) if layer.out_features >= _TILE else PackedLinear(layer)


def _apart_from_embeddings(model: nn.Module) -> list[nn.Parameter]:
    of_embeddings = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    return [p for p in model.parameters() if id(p) not in of_embeddings]


@cache
def _program() -> Any:
    run = built("int8.cpp").multiply
    return returning(run, _INT64, _INT64, _INT64, _INT32, _INT32, *[_POINTER] * 5)
