"""Which earlier tokens a token looks at: all of them, a window, or its chunk.

A model says so itself: transformers builds each layer's mask from a function of two positions, and
asks whoever attends to evaluate it. Here it is evaluated at the positions that the rows of a pass
really have, so that rows of different lengths share a pass, whatever the function is. Slots keep
the keys of all tokens; a window only cuts what is seen of them.

Attention that has no masks (`ppl.lm.engine.native`) needs the first position that a token looks at
instead: it is fitted to the function once, at loading, and the fit is checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, eager_mask, sdpa_mask

from ppl.lm.engine.kv import KV


class Reach(NamedTuple):
    """How far back a layer looks.

    Attributes:
        window: at so many last tokens, its own included; 0 for all.
        chunk: only at tokens of the same chunk, these being so long; 0 for all.
    """

    window: int = 0
    chunk: int = 0

    def first(self, positions: Tensor) -> Tensor:
        """The first positions that tokens at the given ones look at."""
        if self.window:
            return (positions - self.window + 1).clamp(min=0)
        if self.chunk:
            return positions - positions % self.chunk
        return torch.zeros_like(positions)

    def moves(self, most: int) -> bool:
        """Whether a text of `most` tokens has any that look at less than all before them."""
        return bool((self.window and self.window < most) or (self.chunk and self.chunk < most))


@dataclass
class Asked:
    """The masks of a running pass.

    Attributes:
        positions: `[B, Q]` of its tokens.
        bases: `[B]` the positions of the first keys of the rows; None where all begin at 0.
        keeps: what is kept of keys, where that is less than the model looks at.
        holes: `[B, 2]` behind so many keys of each row, so many tokens have none.
        made: by identity, each mask that was made (kept, so that its identity stays its own) and
            the function it was made from.
    """

    positions: Tensor
    bases: Tensor | None = None
    keeps: KV | None = None
    holes: Tensor | None = None
    made: dict[int, tuple[Tensor, Callable[..., Tensor]]] = field(default_factory=dict)

    def within(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A mask function of the model's, where what it looks at is kept."""
        keeps = self.keeps
        if keeps is None or not keeps.window:
            return function
        return lambda row, head, at, key: function(row, head, at, key) & keeps.sees(at, key)

    def keys(self, count: int, offset: int = 0) -> Tensor:
        """Positions of so many keys, `[..., count]`, of all rows or each, `[B, 1, 1, count]`."""
        keys = torch.arange(count, device=self.positions.device) + offset
        if self.holes is not None:
            at, lost = self.holes[:, :, None, None, None].unbind(1)
            keys = keys + lost * (keys >= at)
        return keys if self.bases is None else keys + self.bases[:, None, None, None]


# Each thread has its own.
_asked: ContextVar[Asked | None] = ContextVar("_asked", default=None)


@contextlib.contextmanager
def reaching(
    positions: Tensor,
    bases: Tensor | None = None,
    keeps: KV | None = None,
    holes: Tensor | None = None,
) -> Iterator[Asked]:
    """Masks made meanwhile are those of tokens at these positions, over keys that begin at the
    position 0, or at those of `bases`, as far as they are kept; shapes as in `Asked`."""
    asked = Asked(positions, bases, keeps, holes)
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


def ragged_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = causal_mask_function,
    **kwargs: Any,
) -> Tensor | None:
    """A mask `[B, 1, Q, L]`, True where a query may look, in the form that transformers calls.
    Outside `reaching`, transformers' own."""
    asked = _asked.get()
    if asked is None:
        own: Tensor | None = sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, **kwargs
        )
        return own
    function = asked.within(mask_function)
    mask = evaluated(function, asked.positions, asked.keys(kv_length, kv_offset))
    asked.made[id(mask)] = mask, function
    return mask


def evaluated(
    function: Callable[..., Tensor],
    positions: Tensor,
    keys: Tensor,
    rows: Tensor | None = None,
    heads: int = 1,
) -> Tensor:
    """A mask `[B, heads, Q, L]` of tokens at `[B, Q]` positions over keys at others, `[..., L]`;
    of these rows of a pass, None for all."""
    at = positions.device
    numbers = torch.arange(len(positions), device=at) if rows is None else rows
    of_heads = torch.arange(heads, device=at)[:, None, None]
    seen = function(numbers[:, None, None, None], of_heads, positions[:, None, :, None], keys)
    return seen.expand(len(positions), heads, positions.shape[1], keys.shape[-1])


def asked() -> Asked:
    """The masks of the running pass.

    Raises:
        RuntimeError: there are none of ours.
    """
    if (running := _asked.get()) is None:
        raise RuntimeError("the masks of this pass are not made here")
    return running


def seen_of(mask: Tensor, rows: Tensor | None, start: int, stop: int) -> Tensor | None:
    """What a mask that was made for the running pass would say of some rows (None: all) about keys
    at these positions; None if it was not made here."""
    asked = _asked.get()
    if asked is None or id(mask) not in asked.made:
        return None
    positions = asked.positions if rows is None else asked.positions[rows]
    keys = torch.arange(start, stop, device=positions.device)
    return evaluated(asked.made[id(mask)][1], positions, keys, rows, mask.shape[1])


def ragged_bias(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """The same as what attention of the `eager` kind adds: 0, or the least number there is."""
    asked = _asked.get()
    if asked is None:
        own: Tensor | None = eager_mask(*args, dtype=dtype, **kwargs)
        return own
    mask = ragged_mask(*args, **kwargs)
    assert mask is not None
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    bias.masked_fill_(~mask, torch.finfo(dtype).min)
    asked.made[id(bias)] = bias, asked.made[id(mask)][1]
    return bias


def fitted(function: Callable[..., Tensor], most: int, chunk: int) -> Reach | None:
    """The reach that says the same as a mask function does, for texts of up to `most` tokens; None
    if there is none.

    Args:
        chunk: how long chunks are if the function has any; 0 if unknown.
    """

    def seen(position: int) -> Tensor:
        keys = torch.arange(position + 1)
        at, none = torch.tensor([[[[position]]]]), torch.zeros(1, 1, 1, 1, dtype=torch.long)
        return function(none, none, at, keys).reshape(-1).expand(position + 1)

    last = most - 1
    window = int(seen(last).sum())
    # Positions at which the candidates differ from one another, and some in between.
    probes = {0, 1, 2, last, last // 2, last // 3}
    probes |= {near for size in (window, chunk) for near in range(size - 1, size + 2)}
    probes = {probe for probe in probes if 0 <= probe < most}
    candidates = [Reach(), *([Reach(chunk=chunk)] if chunk else []), Reach(window=window)]
    for reach in candidates:
        if all(
            bool((seen(p) == (torch.arange(p + 1) >= reach.first(torch.tensor(p)))).all())
            for p in probes
        ):
            return reach
    return None
