"""Attention on a CPU as programs of its own: of decode steps (`attention.cpp`), and of many tokens
of some texts (`prefill.cpp`).

The library's kernels for a few queries a row copy keys out of the slots or pad them to the longest
row, and take four times as long as reading the memory does; of many tokens a row, in bfloat16, they
take four times as long as ours. What is left of a compiled step is little besides products;
this makes attention little too. Built for one kind of model in a second, with the compiler that
`torch.compile` uses.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ppl.lm.engine.building import built, returning
from ppl.lm.engine.slots import Place
from ppl.lm.engine.table import Table

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    columns: Tensor,
    firsts: Tensor,
    positions: Tensor,
    table: Table,
    scaling: float | None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    before: tuple[Tensor, Tensor] | None = None,
    place: Place = ((0, 0), (0, 0)),
    early: tuple[Tensor, int] | None = None,
    holes: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """Writes the keys and values of one new token a row, and attends.

    Args:
        query: `[B, G * H, 1, D]`, float32 or bfloat16, on a CPU.
        key, value: `[B, H, 1, D]`; values may have another `D`.
        keys, values: `[B, H, L, D]`, written at `columns`.
        columns: `[B]` int64 positions to which the rows write.
        firsts, positions: `[B]` int64 first and last positions that they look at.
        table: what they have in common.
        softcap: scores `s` become `softcap * tanh(s / softcap)`; 0 for scores as they are.
        sinks: `[G * H]` for each query head the score of a key that has no value.
        before: what attention to other keys gave, `[B, H, G, D]` means and `[B, H, G]` logarithms
            of the sums of their weights, float32.
        place: where, in the trunks of the table, the layer's keys and values are.
        early: `[B]` int64, and a number: of the first tokens of the text, so many, a row looks at
            those from there on, too.
        holes: `[B, 2]` int64: behind so many keys of its slot, so many tokens have none there.
        slots: `[B]` int64 in which of the memory's rows each is, where several rows may be in one,
            at positions of their own, those behind it unseen; None where each has its own.

    Returns:
        `[B, 1, G * H, D]`, as wide as values are.

    Raises:
        RuntimeError: there is no compiler, or it refuses, or the model attends to other keys and
            values than its cache holds.
    """
    batch, query_heads, _, dim = query.shape
    heads, wide = key.shape[1], values.shape[3]
    # From here on nobody looks at bounds: what does not fit would be written over what lies behind.
    fits = key.shape == (batch, keys.shape[1], 1, dim) and dim == keys.shape[3]
    fits &= value.shape == (batch, heads, 1, wide) and keys.shape[:3] == values.shape[:3]
    fits &= sinks is None or sinks.numel() == query_heads
    sizes = batch * query_heads * wide, batch * query_heads
    bases, runs = table.bases, table.runs(place[0][0], place[1][0])
    fits &= len(table.order) == batch and table.shaped(place) in (None, (heads, dim, wide))
    fits &= slots is None or len(slots) == batch
    fits &= before is None or (before[0].numel(), before[1].numel()) == sizes
    if not (fits and query.dtype == key.dtype == value.dtype == keys.dtype == values.dtype):
        found = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in (query, key, value, keys))
        raise RuntimeError(f"queries, keys and values are not of one kind with the cache: {found}")
    run = program(heads, query_heads // heads, dim, wide, query.dtype == torch.bfloat16)
    # Kept in names: a pointer alone keeps nothing alive.
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    sinks = None if sinks is None else sinks.detach().float().contiguous()
    out = query.new_empty(batch, 1, query_heads, wide)
    run(
        batch,
        torch.get_num_threads(),
        *(t.data_ptr() for t in (columns, firsts, positions)),
        None if bases is None else bases.data_ptr(),
        table.order.data_ptr(),
        table.groups.data_ptr(),
        len(table.groups),
        runs.data_ptr(),
        place[0][1],
        place[1][1],
        *(t.data_ptr() for t in (query, key, value, keys, values)),
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        dim**-0.5 if scaling is None else scaling,
        softcap,
        None if sinks is None else sinks.data_ptr(),
        *((None, None) if before is None else (t.data_ptr() for t in before)),
        *((None, 0) if early is None else (early[0].data_ptr(), early[1])),
        None if holes is None else holes.data_ptr(),
        None if slots is None else slots.data_ptr(),
        out.data_ptr(),
    )
    return out


def fill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    jobs: Tensor,
    runs: Tensor,
    scaling: float,
    softcap: float,
    sinks: Tensor | None,
    place: Place,
) -> Tensor:
    """Writes the keys and values of many tokens of some texts, and attends: each of `T` tokens to
    all of its text before it, and to itself.

    Args:
        query: `[T, G * H, 1, D]`, float32 or bfloat16, on a CPU.
        key, value: `[T, H, 1, D]`; values may have another `D`.
        jobs: `[J, 5]` int64 for each text its first token of these and the one after its last, its
            first run and the one after its last, and the column of its last run to which its first
            token goes.
        runs: `[P, 8]` int64, see `Table.runs`; what a text's last one points to is written.
        softcap, sinks, place: as of `attend`.

    Returns:
        `[T, 1, G * H, D]`, as wide as values are.

    Raises:
        RuntimeError: there is no compiler, or it refuses, or queries, keys and values are not of
            one kind.
    """
    tokens, query_heads, _, dim = query.shape
    heads, wide = key.shape[1], value.shape[3]
    # From here on nobody looks at bounds.
    fits = query.dtype == key.dtype == value.dtype and query_heads % heads == 0
    fits &= key.shape == (tokens, heads, 1, dim) and value.shape == (tokens, heads, 1, wide)
    fits &= sinks is None or sinks.numel() == query_heads
    if not (fits and int(jobs[-1, 1]) == tokens):
        found = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in (query, key, value))
        raise RuntimeError(f"queries, keys and values are not of one kind: {found}")
    run = filling(heads, query_heads // heads, dim, wide, query.dtype == torch.bfloat16)
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    sinks = None if sinks is None else sinks.detach().float().contiguous()
    out = query.new_empty(tokens, 1, query_heads, wide)
    run(
        torch.get_num_threads(),
        jobs.data_ptr(),
        len(jobs),
        runs.data_ptr(),
        place[0][1],
        place[1][1],
        *(t.data_ptr() for t in (query, key, value)),
        scaling,
        softcap,
        None if sinks is None else sinks.data_ptr(),
        None,
        out.data_ptr(),
    )
    return out


def _program(source: str, heads: int, group: int, dim: int, wide: int, half: int) -> ctypes.CDLL:
    return built(source, HEADS=heads, GROUP=group, DIM=dim, WIDE=wide, HALF=int(half))


@lru_cache(maxsize=64)
def filling(*kind: int) -> Any:
    """The function `fill` of its source, for one kind of model."""
    takes: list[Any] = [ctypes.c_int32, _POINTER, _INT64, _POINTER, _INT64, _INT64]
    takes += [*[_POINTER] * 3, ctypes.c_float, ctypes.c_float, *[_POINTER] * 3]
    return returning(_program("prefill.cpp", *kind).fill, *takes)


@lru_cache(maxsize=64)
def program(*kind: int) -> Any:
    """The function `attend` of its source, for one kind of model."""
    takes: list[Any] = [_INT64, ctypes.c_int32, *[_POINTER] * 6, _INT64, _POINTER, _INT64, _INT64]
    takes += [*[_POINTER] * 5, *[_INT64] * 4]
    takes += [ctypes.c_float, ctypes.c_float, *[_POINTER] * 4, _INT64, *[_POINTER] * 3]
    return returning(_program("attention.cpp", *kind).attend, *takes)
