"""What a model keeps of keys and values: all of them, in eight bits, those of a window, or those
that its heads do not give up.

Each of these is another model, with laws of its own. Its keys and values are those of the given one
to eight bits, or its tokens look at the last tokens and at some of the others only; of that model
every pass is exact, however it is cut, and so is every log-probability. It is named wherever its
numbers go, so that they are not taken for those of the model as it was trained.

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

from ppl.lm.eviction import Delayed, Eviction

_SINKS = 4
_WINDOW = re.compile(r"window\(\s*(?:window\s*=\s*)?(\d+)\s*(?:,\s*(?:sinks\s*=\s*)?(\d+)\s*)?\)")
_DELAYED = re.compile(r"delayed\(\s*(?:rate\s*=\s*)?(\d+)\s*,\s*(?:delay\s*=\s*)?(\d+)\s*\)")


@dataclass(frozen=True)
class KV:
    """What is kept.

    Attributes:
        int8: in eight bits.
        window: only so many last tokens; 0 for all.
        sinks: and so many first ones.
        evicts: what heads give up; None for nothing. Not beside a window.
    """

    int8: bool = False
    window: int = 0
    sinks: int = 0
    evicts: Eviction | None = None

    def __str__(self) -> str:
        """As `read` reads it, but for evictions of one's own, which are only named."""
        parts = ["int8"] if self.int8 else []
        if self.evicts is not None:
            parts.append(self.evicts.name)
        if self.window:
            parts.append(f"window({self.window}, {self.sinks})")
        return "+".join(parts) or "full"

    def __bool__(self) -> bool:
        return self.int8 or self.gives_up

    @property
    def gives_up(self) -> bool:
        """Whether rows may give up what they have left behind."""
        return bool(self.window) or self.evicts is not None

    @staticmethod
    def read(text: object) -> KV:
        """From `"full"`, `"int8"`, `"window(512)"`, `"window(512, 4)"`, `"delayed(4, 256)"`, these
        behind `"int8+"`, or an eviction.

        Raises:
            ValueError: it is none of these.
        """
        if isinstance(text, Eviction):
            return KV(evicts=_sound(text))
        kept = {"int8": False, "window": 0, "sinks": 0}
        evicts: Eviction | None = None
        parts = str(text).strip().split("+") if isinstance(text, str) else [""]
        for part in map(str.strip, parts):
            window, delayed = _WINDOW.fullmatch(part), _DELAYED.fullmatch(part)
            if part == "int8" and not kept["int8"]:
                kept["int8"] = True
            elif delayed and evicts is None and not kept["window"]:
                evicts = Delayed(int(delayed[1]), int(delayed[2]))
            elif window and not kept["window"] and evicts is None and int(window[1]) > 1:
                kept["window"], kept["sinks"] = int(window[1]), int(window[2] or _SINKS)
            elif part != "full" or len(parts) > 1:
                raise ValueError(
                    f"kv={text!r}: give 'full', 'int8', 'window(512, 4)' for the last 512 tokens "
                    "(at least 2) and the first 4, 'delayed(4, 256)' for one of four behind the "
                    "last 256, either behind 'int8+', or an eviction (ppl.lm.eviction)"
                )
        return KV(bool(kept["int8"]), kept["window"], kept["sinks"], evicts)

    def named(self, name: str) -> str:
        """The name of a model of which this is kept."""
        return f"{name} kv={self}" if self else name

    def cuts(self, most: int) -> bool:
        """Whether a text of `most` tokens may have any that are not seen from its end."""
        if self.evicts is not None:
            return self.evicts.delay < most and self.evicts != Delayed(1, self.evicts.delay)
        return bool(self.window) and self.window + self.sinks < most

    @property
    def reach(self) -> int:
        """How many of the tokens before it a token looks at, besides what it keeps of others."""
        return (self.window if self.evicts is None else self.evicts.delay) - 1

    def kept(self, length: int, base: int = 0) -> int:
        """How many tokens are kept of a text of so many, and looked at from its end: what heads
        give up goes by whole groups, and counts as kept where nobody knows how many stay.

        Args:
            base: so many first ones are elsewhere; they are not counted, and stay whole there.
        """
        if not self.gives_up:
            return length - base
        group, most = (1, 0) if self.evicts is None else (self.evicts.group, self.evicts.most)
        start = -(-max(base, self.sinks) // group)
        behind = max(0, (length - self.reach - 1) // group - start)
        return length - base - behind * (group - most)

    def near(self, positions: Tensor) -> Tensor:
        """The first of the last tokens that are kept, at each of the given positions."""
        return (positions - self.reach).clamp(min=0) if self.window else torch.zeros_like(positions)

    def sees(self, positions: Tensor, keys: Tensor) -> Tensor:
        """Which keys are near or first, by positions that fit together."""
        return (keys > positions - self.window) | (keys < self.sinks)


def _sound(evicts: Eviction) -> Eviction:
    """Raises ValueError for numbers that no eviction can have."""
    numbers = evicts.delay, evicts.group, evicts.most
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
    if not (whole and 1 <= evicts.most <= evicts.group <= evicts.delay):
        raise ValueError(
            f"kv={evicts.name}: delay={evicts.delay!r}, group={evicts.group!r} and "
            f"most={evicts.most!r} are whole numbers, most of a group at most all of it, and a "
            "group no longer than the delay, within which it is decided"
        )
    return evicts


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
