"""Packing: what heads keep of tokens that all of their queries have left behind, without the rest.

Heads keep different tokens, so that a column then has keys and values of another position in each.
Positions are in the keys already, and whoever goes on from there sees all that is kept: only that
matters, not of which token it is. Layers and heads share their columns; where one keeps fewer than
another, its last columns are marked as nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl.lm.eviction import Eviction


def packed(scores: Tensor) -> Tensor:
    """Which columns that were packed heads have something in."""
    return scores > 0.5


def stay(evicts: Eviction, scores: Tensor) -> Tensor:
    """Which tokens stay, from scores of whole groups, `[..., n]`."""
    groups = scores.reshape(*scores.shape[:-1], -1, evicts.group)
    return evicts.stays(groups).flatten(-2)


def pack(kv: Sequence[Tensor], owners: Sequence[Sequence[int]], evicts: Eviction, left: int) -> int:
    """Moves what heads keep to the first columns.

    Args:
        kv: for each shape `[N, H, n, D]`, as those of a `Piece`, scores last; the first `left`
            columns are packed, the others are whole groups, in their order.
        owners: see `ppl.lm.engine.layout`.

    Returns:
        How many columns that are: as many as the head has that keeps most. What is behind them is
        of no use.
    """
    scores = kv[-1].squeeze(-1)
    stays = torch.cat([packed(scores[:, :, :left]), stay(evicts, scores[:, :, left:])], -1)
    count = int(stays.sum(-1).max())
    order = (~stays).to(torch.uint8).argsort(dim=-1, stable=True)[..., :count]  # [layers, H, count]
    for number, group in enumerate(kv[:-1]):
        where = order[list(owners[number % len(owners)]), :, :, None]
        group[:, :, :count] = group.gather(2, where.expand(-1, -1, -1, group.shape[-1]))
    kv[-1][:, :, :count] = stays.gather(2, order).unsqueeze(-1).to(kv[-1])
    return count
