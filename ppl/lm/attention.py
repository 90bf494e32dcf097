"""Attention over slots without repeating keys and values.

Where several query heads share a key-value head, transformers repeats keys and values for each of
them when a mask is given, for every token and layer. Here the query heads of one key-value head are
taken as so many queries of it: the same numbers, and the cache is read in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "ppl_grouped"


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
    batch, query_heads, queries, dim = query.shape
    heads = key.shape[1]
    if attention_mask is None or query_heads == heads:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
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
    return attended.reshape(batch, query_heads, queries, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextlib.contextmanager
def grouped(config: Any) -> Iterator[None]:
    """Lets a model that runs `sdpa` attention run the grouped form, and only meanwhile."""
    before = config._attn_implementation
    if before != "sdpa":
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
