"""The draw of tokens on a CPU as programs of our own.

A step of many rows leaves a large table of logits. To draw a token from each row the library goes
over it, or over one of float32, some five times; `draw.cpp` reads it twice. What is drawn is what
`ppl.lm.sampling` draws; log-probabilities may differ from its own in their last digits.

Of a small table all time goes into the library's dozen operations. `cumulate.cpp` is what comes
after the softmax, as one, with the same digits: nobody can tell whether there is a compiler.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl.lm import sampling
from ppl.lm.engine.building import built, returning

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64

Drawn = tuple[list[int], list[float]]
Invert = Callable[[Tensor, NDArray[np.float64]], Drawn]


def invert(logits: Tensor, uniforms: NDArray[np.float64]) -> Drawn | None:
    """A token for each row, and its log-probability: NaN where there is no distribution.

    Args:
        logits: `[B, V]`.
        uniforms: `[B]` in (0, 1).

    Returns:
        None where the program does not serve: other numbers than float32 and bfloat16, no CPU, no
        compiler.
    """
    if logits.device.type != "cpu" or logits.dtype not in (torch.float32, torch.bfloat16):
        return None
    return inverted(logits, uniforms) if draws_alike(logits.dtype) else None


def invert_alike(logits: Tensor, uniforms: NDArray[np.float64]) -> Drawn | None:
    """As `invert`, of small vocabularies, and to the last digit what `ppl.lm.sampling` gives.

    Returns:
        None where the program does not serve: other numbers than float32, more than `ONE_LEVEL`
        tokens, no CPU, no compiler.
    """
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        return None
    if logits.shape[1] > sampling.ONE_LEVEL or not _same_digits():
        return None
    return inverted_alike(logits, uniforms)


def inverted_alike(logits: Tensor, uniforms: NDArray[np.float64]) -> Drawn:
    """As `invert_alike`, untried.

    Raises:
        RuntimeError: there is no compiler, or it refuses.
    """
    run = _built_alike()
    probs = torch.softmax(logits, -1).contiguous()
    rows, size = probs.shape
    # One table, as NumPy takes longer to say where an array is than the program for a row.
    table = np.empty((4, rows))
    np.minimum(uniforms, 1 - 2.0**-52, out=table[0])
    run(rows, size, probs.data_ptr(), table.ctypes.data)
    # The library's logarithm, as NumPy's differs in the last digit.
    torch.from_numpy(table[2:]).log_()
    _, tokens, drawn, total = table.tolist()
    return list(map(int, tokens)), [a - b for a, b in zip(drawn, total, strict=True)]


def inverted(logits: Tensor, uniforms: NDArray[np.float64]) -> Drawn:
    """As `invert`, untried.

    Raises:
        RuntimeError: there is no compiler, or it refuses.
    """
    run = program(logits.dtype == torch.bfloat16)
    rows, size = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    # Times any total, this stays below the total: never beyond the last token with any mass.
    u = np.minimum(uniforms, 1 - 2.0**-52).astype(np.float64)
    tokens, log_probs = np.empty(rows, dtype=np.int64), np.empty(rows)
    run(
        torch.get_num_threads(),
        rows,
        size,
        logits.stride(0),
        logits.data_ptr(),
        *(array.ctypes.data for array in (u, tokens, log_probs)),
    )
    return tokens.tolist(), log_probs.tolist()


@lru_cache(maxsize=2)
def draws_alike(dtype: torch.dtype) -> bool:
    """Whether the program can be built, and draws what the library does."""
    found = _both(inverted, 5001, dtype)
    if found is None:
        return False
    (tokens, log_probs), plain = found
    return tokens == plain[0] and np.allclose(log_probs, plain[1], rtol=0, atol=1e-5)


@cache
def _same_digits() -> bool:
    """Whether the program can be built, and its numbers are the library's."""
    found = _both(inverted_alike, 509, torch.float32)
    return found is not None and found[0] == found[1]


def _both(own: Invert, size: int, dtype: torch.dtype) -> tuple[Drawn, Drawn] | None:
    """What a program draws, and what the library does; None where the program cannot be built."""
    rows = 37
    generator = torch.Generator("cpu").manual_seed(0)  # whatever torch's default device is
    logits = 3 * torch.randn(rows, size, generator=generator, device="cpu")
    logits[0, ::2] = -torch.inf
    logits = logits.to(dtype)
    u = torch.rand(rows, generator=generator, dtype=torch.float64, device="cpu").numpy()
    try:
        drawn = own(logits, u)
    except RuntimeError:
        return None
    plain = [sampling.warp_of(1.0, 1.0, None, 0.0)] * rows
    return drawn, sampling.draw(logits, plain, [None] * rows, u)


@lru_cache(maxsize=2)
def program(half: bool) -> Any:
    """The function `draw` of the source."""
    run = built("draw.cpp", HALF=int(half)).draw
    return returning(run, ctypes.c_int32, *[_INT64] * 3, *[_POINTER] * 4)


@cache
def _built_alike() -> Any:
    """The function `cumulate` of its source."""
    return returning(built("cumulate.cpp").cumulate, _INT64, _INT64, _POINTER, _POINTER)
