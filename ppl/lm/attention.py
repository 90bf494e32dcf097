"""Attention over slots: keys and values in place, and short rows apart from long ones.

Where several query heads share a key-value head, transformers repeats keys and values for each of
them when a mask is given, for every token and layer. Here the query heads of one key-value head are
taken as so many queries of it: the same numbers, and the cache is read in place.

A pass covers rows of all lengths. Where a few are much longer than the rest, the rest attend on
their own, so that they do not read as many keys as the longest row has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "ppl_grouped"

# More calls than this cost more than they save.
_MOST_SPANS = 6


class Span(NamedTuple):
    """Neighbouring rows that attend together, to as many keys as the longest of them has."""

    start: int
    stop: int
    keys: int


# Of the pass that is running; None: all rows together.
_spans: list[Span] | None = None


def split(reach: Sequence[int]) -> list[Span] | None:
    """Rows apart that need fewer than half of the keys of the longest; None if it does not pay.

    Args:
        reach: how many keys each row of a pass needs, in order.
    """
    longest = max(reach)
    if 2 * sum(reach) > longest * len(reach):  # little is wasted on short rows
        return None
    spans, start = [], 0
    for _, group in groupby(reach, lambda keys: 2 * keys > longest):
        needed = list(group)
        spans.append(Span(start, start + len(needed), max(needed)))
        start += len(needed)
    return spans if len(spans) <= _MOST_SPANS else None


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in the form that transformers calls.

    Args:
        query: `[B, G * H, Q, D]`.
        key, value: `[B, H, L, D]`.
        attention_mask: `[B, 1, Q, L]`, True where a query may look, or None for transformers' own.

    Returns:
        `[B, Q, G * H, D]`, and None for the attention weights.
    """
    if attention_mask is None or _spans is None:
        return _attend(module, query, key, value, attention_mask, dropout, scaling, **kwargs), None
    parts = [
        _attend(
            module,
            query[start:stop],
            key[start:stop, :, :keys],
            value[start:stop, :, :keys],
            attention_mask[start:stop, ..., :keys],
            dropout,
            scaling,
            **kwargs,
        )
        for start, stop, keys in _spans
    ]
    return torch.cat(parts), None


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    **kwargs: Any,
) -> Tensor:
    batch, query_heads, queries, dim = query.shape
    heads = key.shape[1]
    slow = query.device.type == "cpu" and query.dtype == torch.float32  # the fused kernel is
    if slow and queries == 1 and attention_mask is not None:
        return _attend_once(query, key, value, attention_mask, scaling)
    if attention_mask is None or query_heads == heads:
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )[0]
        return output
    groups = query_heads // heads
    mask = attention_mask[:, :, None].expand(-1, -1, groups, -1, -1)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, heads, groups * queries, dim),
        key,
        value,
        attn_mask=mask.reshape(batch, 1, groups * queries, key.shape[2]),
        dropout_p=dropout,
        scale=scaling,
    )
    return attended.reshape(batch, query_heads, queries, -1).transpose(1, 2).contiguous()


def _attend_once(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
) -> Tensor:
    """One query per row as two plain products: for so little work on a CPU and in float32, half of
    the time of the fused kernel."""
    batch, query_heads, _, dim = query.shape
    scores = query.reshape(batch, key.shape[1], -1, dim) @ key.transpose(-1, -2)  # [B, H, G, L]
    scores.mul_(dim**-0.5 if scaling is None else scaling).masked_fill_(~mask, -torch.inf)
    attended = torch.softmax(scores, -1) @ value
    return attended.reshape(batch, 1, query_heads, dim)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextlib.contextmanager
def grouped(config: Any, spans: list[Span] | None) -> Iterator[None]:
    """Lets a model that runs `sdpa` attention run the grouped form, and only meanwhile."""
    global _spans
    before = config._attn_implementation
    if before != "sdpa":
        yield
        return
    config._attn_implementation, _spans = NAME, spans
    try:
        yield
    finally:
        config._attn_implementation, _spans = before, None
