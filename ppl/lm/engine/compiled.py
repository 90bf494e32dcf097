"""Decode steps through `torch.compile`.

Of a step of few rows a third is small operations: norms, rotations, activations, and Python between
them. Compiled, these are some generated loops and one flat list of calls. Products with packed
weights (`ppl.lm.engine.linear`) and attention over slots stay what they are, as operators into
which the compiler does not look: it sees neither the cache nor its lengths, so one program serves
texts of all lengths and any number of rows.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.decorators import mark_unbacked
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask

from ppl.errors import UnsupportedModelError
from ppl.lm.engine import native
from ppl.lm.engine.admission import Plan
from ppl.lm.engine.attention import NAME as ATTENDED
from ppl.lm.engine.attention import NOT_OURS, grouped_attention
from ppl.lm.engine.kv import KV, as_kept
from ppl.lm.engine.prefill import Packed
from ppl.lm.engine.reach import Reach
from ppl.lm.engine.setting import Attention
from ppl.lm.engine.slots import Place, Window
from ppl.lm.engine.spans import Span
from ppl.lm.engine.table import Table, table_of
from ppl.lm.engine.trunk import Group, Mean, Standing, as_bias

NAME = "ppl_compiled"
_MODELS = itertools.count()
_ALL = Reach()


@dataclass(slots=True)
class _Looking:
    """How far the rows of a pass look.

    Attributes:
        first: `[B, 1]` the first position from which on they look at all.
        low, few: besides, of the first ones, so many, at those from there on.
        mask: where attention is not our own, `[B, 1, 1, L]` what they look at.
    """

    first: Tensor
    low: Tensor
    few: int
    mask: Tensor | None = None

    def at(self, keys: Tensor, rows: Tensor | None = None) -> Tensor:
        """Which of keys at positions `[L]` some rows (None: all) look at, were they no later than
        themselves: `[B, 1, 1, L]`."""
        some = slice(None) if rows is None else rows
        first, low = (at[some][:, None, None] for at in (self.first, self.low))
        return (keys >= first) | ((keys >= low) & (keys < self.few))


@dataclass(frozen=True, slots=True)
class _Running:
    """What attention needs to know of the running pass.

    Attributes:
        window: where keys and values are.
        positions: `[B, 1]` the last position that each row looks at.
        table: which of them have what in common.
        reaches: how far each layer looks.
        native: whether attention is our own.
        keeps: what is kept of keys.
        looks: for each reach, how far the rows look.
        standing: which rows stand on a trunk; only where attention is our own.
    """

    window: Window
    positions: Tensor
    table: Table
    reaches: Mapping[int, Reach]
    native: bool
    keeps: KV
    looks: dict[Reach, _Looking]
    standing: Standing | None

    def looking(self, layer: int) -> _Looking:
        """How far rows look in a layer; made once for all layers alike."""
        reach = self.reaches.get(layer, _ALL)
        if reach not in self.looks:
            low = reach.first(self.positions)
            first = torch.maximum(low, self.keeps.near(self.positions))
            looking = _Looking(first, low, self.keeps.sinks if self.keeps.window else 0)
            if not self.native:
                keys = torch.arange(self.window.visible, device=low.device)
                looking.mask = looking.at(keys) & (keys <= self.positions[:, None, :, None])
            self.looks[reach] = looking
        return self.looks[reach]


@dataclass(frozen=True, slots=True)
class _Packing:
    """A pass over the tokens of several texts, each of them a row.

    Attributes:
        packed: the texts.
        place: where a layer's keys and values are.
    """

    packed: Packed
    place: Callable[[int], Place]


# Each thread has its own.
_running: ContextVar[_Running | _Packing] = ContextVar("_running")


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    running = _running.get()
    if isinstance(running, _Packing):
        place, scale = running.place(layer), scaling or query.shape[3] ** -0.5
        return running.packed.attend(query, key, value, place, scale, softcap, sinks)
    window, looking = running.window, running.looking(layer)
    if running.native:
        keys, values = window.layer(layer)
        positions, before = running.positions, None
        if running.standing is not None and window.int8:
            before = _before(running, running.standing, query, layer, looking, scaling, softcap)
        columns = window.columns
        if window.int8:
            keys, values = window.write(layer, key, value)
            # Once more, into the copy, in which rows that compute for nobody have no last column.
            key, value = as_kept(key), as_kept(value)
            columns = columns.clamp(max=window.visible - 1)
        new, memory, place = (query, key, value), (keys, values), window.place(layer)
        table, cap = running.table, softcap or 0.0
        early = (looking.low, looking.few) if looking.few else None
        return native.attend(
            *new, *memory, columns, looking.first, positions, table, scaling, cap, sinks, before,
            place, early, window.holes, window.slots,
        )  # fmt: skip
    keys, values = window.write(layer, key, value)
    attended, _ = grouped_attention(
        None, query, keys, values, looking.mask, scaling=scaling, softcap=softcap, s_aux=sinks
    )
    return attended.contiguous()


def _before(
    running: _Running,
    standing: Standing,
    query: Tensor,
    layer: int,
    looking: _Looking,
    scaling: float | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention of one token a row to trunks in eight bits, see `ppl.lm.engine.native.attend`."""
    place = running.window.place(layer)
    batch, query_heads, _, dim = query.shape
    heads, wide = running.window.layer(layer)[1].shape[1::2]
    group = query_heads // heads
    none = query.new_zeros(batch, heads, group, wide, dtype=torch.float32)
    nothing = Mean(none, torch.full_like(none[..., 0], -torch.inf))
    moves = running.reaches.get(layer, _ALL) != _ALL or running.keeps.window

    def biases(some: Group) -> list[Tensor | None]:
        if not moves:
            return [None] * len(some.trunk)
        keys = [torch.arange(part.start, part.stop) for part in some.trunk]
        return [as_bias(looking.at(at, some.rows), group) for at in keys]

    scale = dim**-0.5 if scaling is None else scaling
    queries = query.reshape(batch, heads, group, dim)
    mean = standing.with_trunks(nothing, queries, place, biases, scale, softcap)
    return mean.values.contiguous(), mean.mass.contiguous()


def _attend_shape(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


_library: Any = torch.library.Library("ppl_attention", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    "attend(Tensor query, Tensor key, Tensor value, int layer, float? scaling, float? softcap, "
    "Tensor? sinks) -> Tensor"
)
_library.impl("attend", _attend, "CompositeExplicitAutograd")
torch.library.register_fake("ppl_attention::attend", _attend_shape, lib=_library)


def compiled_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that transformers calls; writes keys and values to the window first."""
    if any(kwargs.get(name) is not None for name in NOT_OURS):
        raise RuntimeError(f"its attention takes more than {', '.join(kwargs)}")
    attended: Tensor = torch.ops.ppl_attention.attend(
        query, key, value, module.layer_idx, scaling, softcap, s_aux
    )
    return attended, None


AttentionInterface.register(NAME, compiled_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Through(CacheLayerMixin):
    """A cache layer that keeps nothing: the operator of attention does."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class CompiledStep:
    """Passes of one token a row, compiled when the first of them runs.

    Args:
        base: the decoder without its head. In float32 or bfloat16 on a CPU its attention is
            replaced by our own (`ppl.lm.engine.native`).
        config: its configuration.
        plan: how it attends.
        keeps: what is kept of keys and values.

    Attributes:
        native: whether its attention is.

    Raises:
        UnsupportedModelError: the model runs another kind of attention, or it is not known how far
            its layers look.
    """

    def __init__(self, base: nn.Module, config: Any, plan: Plan, keeps: KV, name: str) -> None:
        if plan.how != ATTENDED:
            raise UnsupportedModelError(
                f"{name}: compile=True needs a model with attn_implementation='sdpa' and no "
                f"attention of its own, it has {config._attn_implementation!r}; load it with "
                "compile=False"
            )
        layers = len(plan.layout.layers)
        seen = {i: plan.looks[i] for i in range(layers) if i in plan.looks}
        self._reaches = {i: look.reach for i, look in seen.items() if look.reach is not None}
        if plan.windows and len(self._reaches) < layers:
            raise UnsupportedModelError(
                f"{name}: compile=True needs layers that look at all tokens, a window or a chunk; "
                "load it with compile=False"
            )
        for i, look in seen.items():
            if plan.layout.layers[i] not in (None, (look.keys, look.values)):
                raise UnsupportedModelError(
                    f"{name}: compile=True needs layers that keep the keys and values to which "
                    f"they attend; layer {i} keeps {plan.layout.layers[i]} heads and numbers a "
                    f"head, and attends to {(look.keys, look.values)}; load it with compile=False"
                )
        cache = Cache(layers=[_Through() for _ in range(layers)])

        def step(ids: Tensor, positions: Tensor) -> Tensor:
            states: Tensor = base(
                input_ids=ids,
                attention_mask=positions[:, None, :, None] >= 0,  # the operator has the real one
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            return states

        # The model does not change, and checking that it has not costs half of what is gained.
        # Without these checks the programs of different models must be kept apart: torch keeps them
        # with the code of the function, so each model gets a code of its own.
        code = step.__code__.replace(co_name=f"step_of_model_{next(_MODELS)}")
        own = FunctionType(code, step.__globals__, code.co_name, None, step.__closure__)
        # Each number of threads has a program of its own; before torch 2.13, eight of them.
        compile: Any = torch.compile
        many = "recompile_limit" in inspect.signature(compile).parameters
        self._step = compile(
            own,
            fullgraph=True,
            options={"guard_filter_fn": _of_the_process},
            **({"recompile_limit": 1 << 20} if many else {}),
        )
        self._attention, self._keeps = Attention(config), keeps
        weight = next(base.parameters())
        kinds = torch.float32, torch.bfloat16
        self.native = weight.device.type == "cpu" and weight.dtype in kinds

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        window: Window,
        spans: Sequence[Span],
        standing: Standing | None = None,
    ) -> Tensor:
        """Last hidden states `[B, 1, hidden]` of one pass.

        Args:
            ids, positions: `[B, 1]`.
            window: where keys and values are read and written.
            spans: which rows begin alike.
            standing: which rows stand on a trunk; only where attention is `native`.
        """
        return self._run(ids, positions, self._about(positions, window, spans, standing))

    def fill(self, packed: Packed, place: Callable[[int], Place]) -> Tensor:
        """Last hidden states `[T, 1, hidden]` of all tokens of some texts, which see those before
        them; only where attention is `native`."""
        return self._run(*packed.inputs, _Packing(packed, place))

    def _run(self, ids: Tensor, positions: Tensor, running: _Running | _Packing) -> Tensor:
        given = ids.clone(), positions.clone()  # no views: the compiler would look at their bases
        for tensor in given:
            mark_unbacked(tensor, 0)  # any number of rows, one included
        token = _running.set(running)
        try:
            with self._attention.named(NAME):
                states: Tensor = self._step(*given)
        finally:
            _running.reset(token)
        return states

    def _about(
        self, positions: Tensor, window: Window, spans: Sequence[Span], standing: Standing | None
    ) -> _Running:
        trunks, bases = (standing.trunks, standing.bases) if standing is not None else ((), None)
        table = table_of(len(positions), spans, trunks, bases, not window.int8)
        kept = self._reaches, self.native, self._keeps
        return _Running(window, positions, table, *kept, {}, standing)


def _of_the_process(guards: Any) -> list[bool]:
    """Keeps the checks of numbers of rows, threads and the like."""
    return [guard.guard_type in ("SHAPE_ENV", "GLOBAL_STATE") for guard in guards]
