"""Where a model runs, and in which numbers."""

from __future__ import annotations

import torch

from ppl.lm.engine.quantised import FORMATS


def device_here(device: str | int | torch.device | None) -> torch.device:
    """A device that torch has here; a GPU if there is one unless given."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
        torch.empty(1, device=found).tolist()  # of the device "meta" there are no numbers
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"device={device!r}: torch has no such device here, but {', '.join(there)}"
        ) from error
    return found


def dtype_of(dtype: torch.dtype | str) -> torch.dtype | str:
    """A floating-point type of torch, by itself or by name; `"auto"` is that of the files."""
    if dtype == "auto":
        return "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype={dtype!r}: give torch.float32, torch.bfloat16 or torch.float16, their names, "
            "or 'auto' for that of the files"
        )
    return found


def check_weights(weights: str | None, device: torch.device, pack: bool) -> None:
    """Raises ValueError for a format that there is not, or not on this device."""
    if weights is None:
        return
    if weights not in FORMATS:
        raise ValueError(
            f"weights={weights!r}: {' or '.join(map(repr, FORMATS))}, or None for the weights as "
            "they are"
            + "; a model in four bits is one behind a server (docs/servers.md)"
            * ("4" in weights)
        )
    if device.type != "cpu":
        raise ValueError(f"weights={weights!r} is for models on a CPU, this one runs on {device}")
    if not pack:
        raise ValueError(f"weights={weights!r} lays weights out anew: it needs pack=True")
