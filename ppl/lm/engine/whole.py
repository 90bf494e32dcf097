"""Passes of models of the Llama kind as one program of our own (`whole.cpp`): decode steps, and
passes over many tokens of some texts.

A step of one row is bound by what lies between its products: small operations, and the Python that
calls them; and so is a pass of many tokens, in which each of these reads and writes memory. Where
all layers are of a kind that is known by name, in bfloat16 or float32 on a CPU, with products of
our own, one call makes the pass. It is compared with the model's own when the engine is made, and
left out where they disagree.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl.lm.engine import native
from ppl.lm.engine.admission import Plan
from ppl.lm.engine.beside import Adapters, running_numbers
from ppl.lm.engine.building import built, returning
from ppl.lm.engine.compiled import CompiledStep
from ppl.lm.engine.linear import JoinedPart, LaidOutLinear, PackedLinear
from ppl.lm.engine.lowrank import LowRank
from ppl.lm.engine.prefill import Packed, kept
from ppl.lm.engine.reach import Reach
from ppl.lm.engine.slots import Window
from ppl.lm.engine.spans import Span
from ppl.lm.engine.table import table_of
from ppl.lm.engine.trunk import Standing
from ppl.lm.engine.unaltered import Unaltered

# Their layers are the same operations; Qwen3 also norms the heads of queries and keys.
_KINDS = ("Llama", "Mistral", "Qwen2", "Qwen3")
_DTYPES = torch.bfloat16, torch.float32
_POINTER, _INT64, _INT32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class WholeStep:
    """Passes of one model: of one token a row, and of many tokens of some texts.

    Args:
        base: the decoder without its head.
        config: its configuration.
        plan: how it attends.
        adapters: what rows may have beside its weights.

    Raises:
        RuntimeError: it is not of a kind that is known, or its layers are not laid out for products
            of our own, or there is no compiler.

    Attributes:
        fills: whether it makes passes of many tokens, too.
    """

    def __init__(self, base: nn.Module, config: Any, plan: Plan, adapters: Adapters) -> None:
        blocks = _blocks(base, config)
        self.fills = True
        self._base, self._places = base, [_whole(place) for place in plan.layout.places]
        first = blocks[0].self_attn
        self._dtype = next(base.parameters()).dtype
        self.dim, self._scaling = int(first.head_dim), float(first.scaling)
        queries, heads = (
            int(layer.out_features) // self.dim for layer in (first.q_proj, first.k_proj)
        )
        self._heads, self._wide = heads, queries * self.dim
        self._reaches = [_whole(plan.looks[i].reach) for i in range(len(blocks))]
        shapes = set(plan.layout.layers)
        if shapes != {((heads, self.dim), (heads, self.dim))} or not plan.keeps_what_is_read:
            raise RuntimeError("its layers keep other keys and values than they attend to")
        self._hidden, inner = int(config.hidden_size), int(config.intermediate_size)
        self._tiny = float(blocks[0].input_layernorm.variance_epsilon)
        # Kept: the program has only addresses.
        self._products: list[LaidOutLinear] = []
        rows = [_row(block, self._products, self._dtype) for block in blocks]
        self._unaltered = Unaltered(base, set(self._products))
        self._adapters, self._beside = adapters, LowRank(adapters, self._products, self._dtype)
        # Layers may have been cut after they were made, each by itself.
        sizes = [(self._hidden, self._wide + 2 * heads * self.dim), (self._wide, self._hidden)]
        sizes += [(self._hidden, 2 * inner), (inner, self._hidden)]
        found = [(layer.in_features, layer.out_features) for layer in self._products]
        scales = {(block.self_attn.head_dim, block.self_attn.scaling) for block in blocks}
        if found != len(blocks) * sizes or len(scales) > 1:
            raise RuntimeError("its layers are not all of the sizes that it says")
        self._most = min(layer.own_rows for layer in self._products)
        self._layers = np.array(rows, dtype=np.int64)
        half = self._dtype == torch.bfloat16
        kind = heads, queries // heads, self.dim, self.dim, half
        attention = native.program(*kind), native.filling(*kind)
        model = [len(blocks), self._hidden, heads, queries // heads, self.dim, inner]
        addresses = [self._layers.ctypes.data, _norm(base.norm, self._tiny, self._dtype)]
        self._model = np.array(
            [*model, *addresses, *(ctypes.cast(run, _POINTER).value for run in attention)],
            dtype=np.int64,
        )
        self.program, self._fill = _program(half)

    def takes(self, rows: int) -> bool:
        """Whether it makes the step of so many rows: the library's products of more are quicker."""
        return rows <= self._most and self.stands

    @property
    def stands(self) -> bool:
        """Whether layers are what they were; where one was altered since, they have to run."""
        return self._unaltered() and (self._adapters.agrees or not self._adapters.there)

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        window: Window,
        spans: Sequence[Span],
        standing: Standing | None = None,
    ) -> Tensor:
        """Last hidden states `[B, 1, hidden]` of one pass, see `CompiledStep`."""
        x, cosines, sines = self.begun(ids, positions)
        call, kept = self.asked(x, positions, window, spans, standing)
        slots, out = window.slots, torch.empty_like(x)
        where = None if slots is None else slots.data_ptr()
        self.program(*call, where, *(part.data_ptr() for part in (cosines, sines, x, out)))
        del kept
        return out

    def asked(
        self,
        x: Tensor,
        positions: Tensor,
        window: Window,
        spans: Sequence[Span],
        standing: Standing | None,
    ) -> tuple[list[Any], list[Any]]:
        """What the program is given before `slots`; and what must be there until it is done.

        Args:
            x: as `begun` gives it.

        Raises:
            RuntimeError: what is kept is of another kind than the layers.
        """
        rows = len(x)
        trunks, bases = (standing.trunks, standing.bases) if standing is not None else ((), None)
        table = table_of(rows, spans, trunks, bases)
        firsts: dict[Reach, Tensor] = {}
        for reach in self._reaches:
            if reach not in firsts:
                firsts[reach] = reach.first(positions).contiguous()
        of_layers = []
        for place, reach in zip(self._places, self._reaches, strict=True):
            (group, at), (other, there) = place
            keys, values = window.kv[group], window.kv[other]
            runs = table.runs(group, other)
            where = keys.data_ptr() + at * keys.stride(0) * keys.itemsize
            also = values.data_ptr() + there * values.stride(0) * values.itemsize
            of_layers.append((where, also, at, there, runs.data_ptr(), firsts[reach].data_ptr()))
        kept = np.array(of_layers, dtype=np.int64)
        # From here on nobody looks at bounds.
        shape = self._heads, self.dim, self.dim
        fits = keys.dtype == self._dtype and len(table.order) == rows
        fits &= table.shaped(place) in (None, shape) and window.columns.is_cpu
        fits &= window.columns.numel() == rows and (window.slots is None or window.slots.is_cpu)
        if not fits or (keys.shape[1] if window.slots is None else len(window.slots)) != rows:
            raise RuntimeError("slots are of another kind than the layers")
        columns, positions = window.columns.contiguous(), positions.contiguous()
        call = [
            self._model.ctypes.data,
            self._tiny,
            self._scaling,
            rows,
            torch.get_num_threads(),
            columns.data_ptr(),
            positions.data_ptr(),
            None if bases is None else bases.data_ptr(),
            table.order.data_ptr(),
            table.groups.data_ptr(),
            len(table.groups),
            kept.ctypes.data,
            keys.stride(1),
            keys.stride(2),
            values.stride(1),
            values.stride(2),
        ]
        beside, tables = self._beside(running_numbers(), rows)
        return [*call, beside], [table, firsts, kept, columns, positions, bases, tables]

    def fill(self, packed: Packed) -> Tensor:
        """Last hidden states `[T, 1, hidden]` of all tokens of texts, as `CompiledStep.fill`."""
        ids, positions = packed.inputs
        rows = len(ids)
        x, cosines, sines = self.begun(ids, positions)
        firsts: dict[Reach, Tensor | None] = {}
        for reach in self._reaches:
            if reach not in firsts:
                # Texts begin where they begin: most layers need not be told.
                moves = reach.moves(int(positions.max()) + 1)
                firsts[reach] = reach.first(positions).contiguous() if moves else None
        kept, shape = [], (self._heads, self.dim)
        for ((group, at), (other, there)), reach in zip(self._places, self._reaches, strict=True):
            jobs, runs = packed.tables(group, other)
            first = firsts[reach]
            kept.append(
                (0, 0, at, there, runs.data_ptr(), 0 if first is None else first.data_ptr())
            )
            packed.check(group, shape, self._dtype)
            packed.check(other, shape, self._dtype)
        of_layers = np.array(kept, dtype=np.int64)
        beside, tables = self._beside(packed.adapters if self._adapters.there else None, rows)
        out = torch.empty_like(x)
        self._fill(
            self._model.ctypes.data,
            self._tiny,
            self._scaling,
            rows,
            torch.get_num_threads(),
            jobs.data_ptr(),
            len(jobs),
            of_layers.ctypes.data,
            beside,
            cosines.data_ptr(),
            sines.data_ptr(),
            x.data_ptr(),
            out.data_ptr(),
        )
        del tables
        return out

    def begun(self, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings `[B, 1, hidden]` of ids `[B, 1]`, and cosines and sines `[n, B, dim]` of
        positions `[B, n]`.

        Raises:
            RuntimeError: they are of another kind than the layers are.
        """
        x = self._base.embed_tokens(ids)  # type: ignore[operator]
        turns = self._base.rotary_emb(x, positions)  # type: ignore[operator]
        cosines, sines = (part.transpose(0, 1).contiguous() for part in turns)
        # From here on nobody looks at bounds.
        fits = x.dtype == cosines.dtype == sines.dtype == self._dtype and x.is_cpu
        fits &= cosines.shape == sines.shape == (positions.shape[1], len(ids), self.dim)
        fits &= x.is_contiguous() and x.numel() == len(ids) * self._hidden
        if not fits or not positions.is_cpu:
            raise RuntimeError("embeddings or positions are of another kind than the layers")
        return x, cosines, sines


def whole_step(base: nn.Module, config: Any, plan: Plan, adapters: Adapters) -> WholeStep | None:
    """The program of a model, if it can have one."""
    weight = next(base.parameters())
    if weight.device.type != "cpu" or weight.dtype not in _DTYPES:
        return None
    try:
        return WholeStep(base, config, plan, adapters)
    # Of another kind, in one way or another.
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return None


def packer_of(
    whole: WholeStep | None, compiled: CompiledStep | None, plan: Plan, *, beside: bool
) -> Callable[[Packed], Tensor] | None:
    """What computes many tokens of texts in one pass, if anything does: their last hidden states
    `[T, 1, hidden]`. Compiled steps do not know which token has which adapter `beside` it."""
    if whole is not None and whole.fills and whole.stands:
        return whole.fill
    if beside or compiled is None or not compiled.native:
        return None
    if plan.windows:  # there each looks at all before it
        return None
    return lambda run: compiled.fill(run, lambda layer: kept(plan.layout.places[layer]))


def _whole(part: Any) -> Any:
    if part is None:
        raise RuntimeError("a layer keeps nothing, or it is not known how far it looks")
    return part


def _blocks(base: nn.Module, config: Any) -> list[Any]:
    """The layers of a model of a kind that is known.

    Raises:
        RuntimeError: it is of none, or something else is to be run with it.
    """
    kind = type(base).__name__.removesuffix("Model")
    blocks = list(getattr(base, "layers", []))
    homes = {type(part).__module__.split(".")[0] for part in base.modules()}
    of_library = homes <= {"transformers", "torch", "ppl"}  # nobody's own part among them
    named = {f"{kind}DecoderLayer"} == {type(block).__name__ for block in blocks}
    if kind not in _KINDS or not of_library or not named or config.hidden_act != "silu":
        raise RuntimeError("it is of no kind that is known")
    if len(blocks) != config.num_hidden_layers:
        raise RuntimeError("it runs less than all of its layers")
    if any("forward" in vars(module) for module in base.modules()):
        raise RuntimeError("a layer of it does something else")
    return blocks


def _row(block: Any, products: list[LaidOutLinear], dtype: torch.dtype) -> list[int]:
    """What the program has to know of a layer, `struct Layer`."""
    attention, mlp, tiny = block.self_attn, block.mlp, block.input_layernorm.variance_epsilon

    def together(*parts: Any) -> list[int]:
        joined = {id(part.joined) for part in parts if type(part) is JoinedPart}
        of_all = sum(part.out_features for part in parts)
        if len(joined) != 1 or parts[0].layer.out_features != of_all:
            raise RuntimeError("layers that are given the same input are not one product")
        if [part.number for part in parts] != list(range(len(parts))):
            raise RuntimeError("layers are joined in another order")
        return alone(parts[0].layer)

    def alone(layer: Any) -> list[int]:
        if not isinstance(layer, LaidOutLinear) or not layer.own_rows:
            raise RuntimeError("a layer has no products of our own")
        if isinstance(layer, PackedLinear) and layer.own is not None and layer.own.dtype != dtype:
            raise RuntimeError("a layer is of another type than the others")
        products.append(layer)
        return layer.addresses

    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return [
        _norm(block.input_layernorm, tiny, dtype),
        *(0 if norm is None else _norm(norm, tiny, dtype) for norm in norms),
        *together(attention.q_proj, attention.k_proj, attention.v_proj),
        *alone(attention.o_proj),
        _norm(block.post_attention_layernorm, tiny, dtype),
        *together(mlp.gate_proj, mlp.up_proj),
        *alone(mlp.down_proj),
    ]


def _norm(norm: Any, tiny: float, dtype: torch.dtype) -> int:
    """The address of its weight, of the type that all are of."""
    weight, alike = norm.weight, norm.variance_epsilon == tiny
    if not alike or weight.dtype != dtype or not weight.is_contiguous():
        raise RuntimeError("norms are not all alike")
    return int(weight.data_ptr())


@cache
def _program(half: bool) -> Any:
    program = built("whole.cpp", HALF=int(half))
    both: list[Any] = [_POINTER, ctypes.c_float, ctypes.c_float, _INT64, _INT32]
    of_step = [*[_POINTER] * 5, _INT64, _POINTER, *[_INT64] * 4, *[_POINTER] * 6]
    step = returning(program.step, *both, *of_step)
    return step, returning(program.texts, *both, _POINTER, _INT64, *[_POINTER] * 6)
