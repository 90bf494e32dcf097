"""The draw of tokens on a CPU as a program of its own (`draw.cpp`).

A step of many rows leaves a large table of logits. To draw a token from each row the library goes
over it, or over one of float32, some five times; this reads it twice. What is drawn is what
`ppl.lm.sampling` draws; log-probabilities may differ from its own in their last digits.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl.lm import sampling
from ppl.lm.engine.building import built

_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64

Drawn = tuple[list[int], list[float]]


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
    return inverted(logits, uniforms) if _draws_alike(logits.dtype) else None


def inverted(logits: Tensor, uniforms: NDArray[np.float64]) -> Drawn:
    """As `invert`, untried.

    Raises:
        RuntimeError: there is no compiler, or it refuses.
    """
    run = _built(logits.dtype == torch.bfloat16)
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
def _draws_alike(dtype: torch.dtype) -> bool:
    """Whether the program can be built, and draws what the library does."""
    generator = torch.Generator("cpu").manual_seed(0)  # whatever torch's default device is
    logits = 3 * torch.randn(8, 5001, generator=generator, device="cpu")
    logits[0, ::2] = -torch.inf
    logits = logits.to(dtype)
    u = torch.rand(8, generator=generator, dtype=torch.float64, device="cpu").numpy()
    try:
        tokens, log_probs = inverted(logits, u)
    except RuntimeError:
        return False
    plain = sampling.draw(logits, [sampling.warp_of(1.0, 1.0, None, 0.0)] * 8, [None] * 8, u)
    return tokens == plain[0] and np.allclose(log_probs, plain[1], rtol=0, atol=1e-5)


@lru_cache(maxsize=2)
def _built(half: bool) -> Any:
    """The function `draw` of the source."""
    run = built("draw.cpp", HALF=int(half)).draw
    run.argtypes = [ctypes.c_int32, *[_INT64] * 3, *[_POINTER] * 4]
    run.restype = None
    return run
