"""What a model keeps of keys and values: all of them, in eight bits, or those of a window.

Each of these is another model, with laws of its own. Its keys and values are those of the given one
to eight bits, or its tokens look at the last tokens and the first ones only; of that model every
pass is exact, however it is cut, and so is every log-probability. It is named wherever its numbers
go, so that they are not taken for those of the model as it was trained.

In eight bits, the numbers that a head keeps of a token are multiples of their largest magnitude
divided by 127, which is kept beside them in the dtype of the model. Every query sees keys and
values as they are kept, those of its own token included.

A window has the last tokens, its own included, and the first ones of the text, the sinks (Xiao et
al. 2024, arXiv:2309.17453). Tokens have their positions in the text, which that paper counts anew
within the window: what is kept then depends on nothing that comes later, and a text that is no
longer than the window is computed as without one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

_SINKS = 4
_WINDOW = re.compile(r"window\(\s*(?:window\s*=\s*)?(\d+)\s*(?:,\s*(?:sinks\s*=\s*)?(\d+)\s*)?\)")


@dataclass(frozen=True)
class KV:
    """What is kept.

    Attributes:
        int8: in eight bits.
        window: only so many last tokens; 0 for all.
        sinks: and so many first ones.
    """

    int8: bool = False
    window: int = 0
    sinks: int = 0

    def __str__(self) -> str:
        """As `read` reads it."""
        parts = ["int8"] if self.int8 else []
        if self.window:
            parts.append(f"window({self.window}, {self.sinks})")
        return "+".join(parts) or "full"

    def __bool__(self) -> bool:
        return self.int8 or bool(self.window)

    @staticmethod
    def read(text: object) -> KV:
        """From `"full"`, `"int8"`, `"window(512)"`, `"window(512, 4)"` or `"int8+window(512, 4)"`.

        Raises:
            ValueError: it is none of these.
        """
        kept = {"int8": False, "window": 0, "sinks": 0}
        parts = str(text).strip().split("+") if isinstance(text, str) else [""]
        for part in map(str.strip, parts):
            window = _WINDOW.fullmatch(part)
            if part == "int8" and not kept["int8"]:
                kept["int8"] = True
            elif window and not kept["window"] and int(window[1]) > 1:
                kept["window"], kept["sinks"] = int(window[1]), int(window[2] or _SINKS)
            elif part != "full" or len(parts) > 1:
                raise ValueError(
                    f"kv={text!r}: give 'full', 'int8', 'window(512, 4)' for the last 512 tokens "
                    "(at least 2) and the first 4, or 'int8+window(512, 4)'"
                )
        return KV(bool(kept["int8"]), kept["window"], kept["sinks"])

    def named(self, name: str) -> str:
        """The name of a model of which this is kept."""
        return f"{name} kv={self}" if self else name

    def cuts(self, most: int) -> bool:
        """Whether a text of `most` tokens has any that are not seen from its end."""
        return bool(self.window) and self.window + self.sinks < most

    @property
    def reach(self) -> int:
        """How many of the tokens before it a token looks at, besides sinks."""
        return self.window - 1

    def near(self, positions: Tensor) -> Tensor:
        """The first of the last tokens that are kept, at each of the given positions."""
        return (positions - self.reach).clamp(min=0) if self.window else torch.zeros_like(positions)

    def sees(self, positions: Tensor, keys: Tensor) -> Tensor:
        """Which keys are near or first, by positions that fit together."""
        return (keys > positions - self.window) | (keys < self.sinks)


def rounded(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """`[..., D]` in eight bits: int8 `[..., D]`, and `[..., 1]` what a unit of these is."""
    most = numbers.abs().amax(-1, keepdim=True)
    scales = (most.float() / 127).to(numbers.dtype)
    # Divided by what is kept, not by what it was before it was rounded, and never by nothing.
    units = scales.float().clamp_(min=torch.finfo(numbers.dtype).tiny)
    codes = (numbers.float() / units).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scales


def restored(codes: Tensor, scales: Tensor) -> Tensor:
    """From eight bits, in the dtype of the scales."""
    return codes.to(scales.dtype).mul_(scales)


def as_kept(numbers: Tensor) -> Tensor:
    """`[..., D]` as they come back from eight bits."""
    return restored(*rounded(numbers))


def stored(kv: tuple[Tensor, ...], group: int, at: int, seen: slice = slice(None)) -> Tensor:
    """Keys or values `[..., L, D]` of one layer, where they lie, or from eight bits.

    Args:
        kv: of each shape all layers; in eight bits, then the scales of each.
        group, at: see `ppl.lm.engine.layout`.
        seen: which tokens.
    """
    numbers = kv[group][at][..., seen, :]
    if numbers.dtype != torch.int8:
        return numbers
    return restored(numbers, kv[group + len(kv) // 2][at][..., seen, :])
