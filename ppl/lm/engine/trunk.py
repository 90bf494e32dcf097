"""Attention of rows that stand on a trunk: what they have in common apart from what is their own.

The keys and values of a trunk are there once. All queries of all rows that stand on it are taken
together, in one product (as in Hydragen, Juravsky et al. 2024, arXiv:2402.05099); each row's own
keys, in its slot, are another. Either gives a mean of values and the logarithm of the sum of the
weights that it was taken with, from which the mean over all keys follows exactly.

Symbols: `B` rows, `H` key-value heads, `G` query heads to each, `Q` queries of each of these, `D`
head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ppl.lm.engine.kv import stored
from ppl.lm.engine.reach import seen_of
from ppl.lm.engine.runs import Trunk
from ppl.lm.engine.slots import Place, Window

# Scores of one product, so that those of a long prompt are not all there at once.
_MOST_SCORES = 1 << 24
_MANY = 48


class Mean(NamedTuple):
    """What attention to some keys gives.

    Attributes:
        values: `[B, H, n, D]` means of their values, float32.
        mass: `[B, H, n]` logarithms of the sums of their weights; minus infinity if there are none.
    """

    values: Tensor
    mass: Tensor

    def __add__(self, other: Mean) -> Mean:  # type: ignore[override]
        """Attention to the keys of both."""
        mass = torch.logaddexp(self.mass, other.mass)
        # Where neither has any, the difference is none: 0 is as good as anything.
        first = (self.mass - mass).nan_to_num_(0.0).exp_().unsqueeze(-1)
        second = (other.mass - mass).nan_to_num_(0.0).exp_().unsqueeze(-1)
        return Mean(self.values * first + other.values * second, mass)


@dataclass
class Group:
    """Rows of a pass that stand on one trunk.

    Attributes:
        rows: which; None for all of them.
        trunk: on which.
    """

    rows: Tensor | None
    trunk: Trunk


@dataclass
class Standing:
    """Which rows of a pass stand on what.

    Attributes:
        groups: those that stand on anything.
        bases: `[B]` tokens of each row's trunk.
        trunks: of each row.
        window: the memory of the pass; set when it is there.
    """

    groups: Sequence[Group]
    bases: Tensor
    trunks: Sequence[Trunk] = ()
    window: Window | None = None
    _biases: dict[tuple[int, int, int], list[Tensor | None]] = field(default_factory=dict)

    def with_trunks(
        self,
        own: Mean,
        queries: Tensor,
        place: Place,
        biases: Callable[[Group], Sequence[Tensor | None]],
        scaling: float,
        softcap: float | None,
    ) -> Mean:
        """Attention to trunks besides own keys.

        Args:
            own: to own keys, of all rows; overwritten.
            queries: `[B, H, n, D]`.
            place: where the layer's keys and values are.
            biases: for a group, see `trunk_means`.
        """
        for group in self.groups:
            rows = group.rows
            asked = queries if rows is None else queries[rows]
            mean = trunk_means(asked, place, group, biases(group), scaling, softcap)
            if rows is None:
                return own + mean
            mean = Mean(own.values[rows], own.mass[rows]) + mean
            own.values[rows], own.mass[rows] = mean.values, mean.mass
        return own

    def forget(self) -> None:
        """What masks say that are gone."""
        self._biases.clear()

    def biases(self, mask: Tensor, group: Group, heads: int) -> list[Tensor | None]:
        """What a mask that was made for the running pass says of a trunk.

        Args:
            heads: query heads to a key-value head.
        """
        key = id(mask), id(group), heads
        if key not in self._biases:
            seen = [seen_of(mask, group.rows, part.start, part.stop) for part in group.trunk]
            self._biases[key] = [as_bias(some, heads) for some in seen]
        return self._biases[key]


def as_bias(seen: Tensor | None, heads: int) -> Tensor | None:
    """From `[B, 1 or H, Q, L]`, True where a query may look, to what is added to the scores of so
    many heads each, `[B, 1 or H, heads * Q, L]`; None where it may look everywhere."""
    if seen is None or bool(seen.all()):
        return None
    bias = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)
    return bias[:, :, None].expand(-1, -1, heads, -1, -1).flatten(2, 3)


def groups_of(trunks: Sequence[Trunk], device: torch.device) -> list[Group]:
    """Rows by trunk; those without one are left out."""
    rows: dict[Trunk, list[int]] = {}
    for row, trunk in enumerate(trunks):
        if trunk:
            rows.setdefault(trunk, []).append(row)
    return [
        Group(None if len(which) == len(trunks) else torch.tensor(which, device=device), trunk)
        for trunk, which in rows.items()
    ]


def attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    sure: bool = True,
) -> Mean:
    """Attention of `[B, H, n, D]` queries, those of a head in the order `[G, Q]`.

    Args:
        key, value: `[B, H, L, D]`; values may have another `D`.
        bias: what is added to the scores, `[B, 1 or H, n, L]`.
        softcap: scores `s` become `softcap * tanh(s / softcap)`.
        sinks: `[G * H]` for each head the score of a key without a value.
        sure: whether every query that matters sees any of the keys.
    """
    fused = sure and softcap is None and sinks is None and key.shape[-1] == value.shape[-1]
    # Of many queries in half precision, products alone are quicker than the fused kernel.
    many = query.dtype.itemsize < 4 and bias is None and query.shape[2] >= _MANY
    if fused and not many and query.device.type == "cpu":
        values, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scaling
        )
        return Mean(values.float(), mass)
    size = max(1, _MOST_SCORES // max(1, query.shape[0] * query.shape[1] * key.shape[2]))
    if query.shape[2] > size and sinks is None:
        parts = [
            attended(part, key, value, some, scaling, softcap, sure=sure)
            for part, some in zip(
                torch.split(query, size, 2),
                [None] * query.shape[2] if bias is None else torch.split(bias, size, 2),
                strict=False,
            )
        ]
        return Mean(torch.cat([p.values for p in parts], 2), torch.cat([p.mass for p in parts], 2))
    scores = (query @ key.transpose(-1, -2)).float().mul_(scaling)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if bias is not None:
        scores.add_(bias)
    top = scores.amax(-1, keepdim=True)
    if sinks is not None:
        heads, count = query.shape[1], query.shape[2]
        group = sinks.numel() // heads
        sink = sinks.float().view(1, heads, group, 1).expand(-1, -1, -1, count // group)
        sink = sink.reshape(1, heads, count, 1)
        top = torch.maximum(top, sink)
    top.clamp_(min=torch.finfo(torch.float32).min)  # a row may see none of these keys
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sink - top).exp_()
    means = (weights.to(value.dtype) @ value).float().div_(total.clamp(min=1e-37))
    return Mean(means, (top + total.log()).squeeze(-1))


def together(
    queries: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Mean:
    """Attention of rows to keys and values `[H, L, D]` that are the same for all of them.

    Args:
        queries: `[B, H, n, D]`.
        bias: None where all look at all keys, else `[B, 1 or H, n, L]`.
    """
    rows, heads, count, dim = queries.shape
    stacked = queries.transpose(0, 1).reshape(1, heads, -1, dim)
    if bias is not None:
        bias = bias.transpose(0, 1).reshape(1, bias.shape[1], rows * count, -1)
    mean = attended(stacked, key[None], value[None], bias, scaling, softcap, sure=bias is None)
    values = mean.values.reshape(heads, rows, count, -1).transpose(0, 1)
    return Mean(values, mean.mass.reshape(heads, rows, count).transpose(0, 1))


def trunk_means(
    queries: Tensor,
    place: Place,
    group: Group,
    biases: Sequence[Tensor | None],
    scaling: float,
    softcap: float | None,
) -> Mean:
    """Attention of a group's rows to its trunk.

    Args:
        queries: `[b, H, n, D]` of these rows.
        place: where the layer's keys and values are.
        biases: for each part of the trunk, None where all look at all of it, else
            `[b, 1 or H, n, L]`.
    """
    means = []
    for part, bias in zip(group.trunk, biases, strict=True):
        keys, values = (stored(part.piece.kv, *where) for where in place)
        means.append(together(queries, keys, values, bias, scaling, softcap))
    return sum(means[1:], means[0])


def standing_on(trunks: Sequence[Trunk], device: torch.device) -> Standing | None:
    """On what rows with these trunks stand; None if all have none."""
    if not any(trunks):
        return None
    ends = [trunk[-1].stop if trunk else 0 for trunk in trunks]
    return Standing(groups_of(trunks, device), torch.tensor(ends, device=device), trunks)
