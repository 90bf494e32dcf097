"""Attention over slots: keys and values in place, a common beginning once, short rows apart.

Where several query heads share a key-value head, transformers repeats keys and values for each of
them when a mask is given, for every token and layer. Here the query heads of one key-value head are
taken as so many queries of it: the same numbers, and the cache is read in place.

The rows of one question begin alike. In a pass of few tokens a row, the keys and values that they
have in common are read once, from one of them, in one product for all (as in Hydragen, Juravsky et
al. 2024, arXiv:2402.05099); what is its own each row reads for itself.

A pass covers rows of all lengths. Where a few are much longer than the rest, the rest attend on
their own, so that they do not read as many keys as the longest row has.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "ppl_grouped"

# More calls than this cost more than they save.
_MOST_SPANS = 6


class Span(NamedTuple):
    """Neighbouring rows that attend together.

    Attributes:
        start, stop: the rows.
        keys: as many as the longest of them has.
        shared: so many first keys are the same in all of them.
        source: a row that has these.
    """

    start: int
    stop: int
    keys: int
    shared: int = 0
    source: int = 0


@dataclass
class _Pass:
    """What the layers of a running pass have in common.

    Attributes:
        spans: None if all rows attend together.
        biases: what to add to the scores of each span, by the mask it comes from (kept, so that its
            identity stays its own) and the span's first row.
    """

    spans: list[Span] | None
    biases: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def bias(self, mask: Tensor, span: Span, query: Tensor, heads: int) -> Tensor:
        """`[B, 1, G * Q, L]` in the dtype of the query: 0 where it may look, else minus infinity.

        Made in the first layer and used in all: for few rows, making it costs what attending does.
        """
        key = id(mask), span.start
        if key not in self.biases:
            seen = mask[span.start : span.stop, :, None, :, : span.keys]
            seen = seen.expand(-1, -1, query.shape[1] // heads, -1, -1).flatten(2, 3)
            # Rows of a multiple of 8, or SDPA would pad a copy of its own in every layer.
            width = -(-span.keys // 8) * 8
            bias = query.new_zeros(*seen.shape[:-1], width)[..., : span.keys]
            self.biases[key] = mask, bias.masked_fill_(~seen, -torch.inf)
        return self.biases[key][1]


# Each thread has its own.
_running: ContextVar[_Pass | None] = ContextVar("_running", default=None)


def running_spans() -> Sequence[Span]:
    """How the running pass is divided; empty where it is not."""
    running = _running.get()
    return (running and running.spans) or []


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


def share(
    spans: Sequence[Span], rows: Sequence[int], common: Sequence[int], price: int
) -> list[Span]:
    """Marks, and divides, spans whose rows begin alike.

    Args:
        spans: what a pass is divided into already.
        rows: the rows that matter, in order; others lie among them and compute for nobody.
        common: `[len(rows) - 1]` how many keys each of them shares with the next.
        price: keys that have to be saved, over all rows, for one product more to pay.

    Returns:
        At most `_MOST_SPANS` spans, or the given ones.
    """

    def saved(first: int, last: int) -> int:
        return (last - first) * min(common[first:last], default=0)

    # Runs of `rows`, both ends included; none reaches from one span into another.
    ends = [bisect_left(rows, span.stop) for span in spans]
    runs = [(a, b - 1) for a, b in zip([0, *ends], ends, strict=False) if a < b]
    while len(runs) < _MOST_SPANS:
        splits = []
        for a, b in runs:
            if a < b:
                at = min(range(a, b), key=common.__getitem__)
                splits.append((saved(a, at) + saved(at + 1, b) - saved(a, b), a, at, b))
        more, a, at, b = max(splits, default=(0, 0, 0, 0))
        if more <= price:
            break
        where = runs.index((a, b))
        runs[where : where + 1] = [(a, at), (at + 1, b)]
    if len(runs) > _MOST_SPANS or max((saved(a, b) for a, b in runs), default=0) <= price:
        return list(spans)
    marked = []
    for span in spans:
        inside = [(a, b) for a, b in runs if span.start <= rows[a] < span.stop]
        if not inside:
            marked.append(span)
        starts = [span.start, *(rows[a] for a, _ in inside[1:]), span.stop]
        for (a, b), start, stop in zip(inside, starts, starts[1:], strict=False):
            shared = min(common[a:b]) if saved(a, b) > price else 0
            marked.append(Span(start, stop, span.keys, shared, rows[a]))
    return marked


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention in the form that transformers calls.

    Args:
        query: `[B, G * H, Q, D]`.
        key, value: `[B, H, L, D]`.
        attention_mask: `[B, 1, Q, L]`, True where a query may look, or None for transformers' own.

    Returns:
        `[B, Q, G * H, D]`, and None for the attention weights.
    """
    if attention_mask is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, None, dropout, scaling, **kwargs
        )
        return plain
    parts = []
    running = _running.get() or _Pass(None)
    for span in running.spans or [Span(0, query.shape[0], key.shape[2])]:
        start, stop, keys, shared, source = span
        bias = running.bias(attention_mask, span, query, key.shape[1])
        rows = query[start:stop], key[start:stop, :, :keys], value[start:stop, :, :keys]
        if shared:
            common = key[source, :, :shared], value[source, :, :shared]
            parts.append(_attend_shared(*rows, bias, scaling, *common))
        else:
            parts.append(_attend(*rows, bias, scaling))
    # Models view the result in other shapes, as they may view that of transformers' own attention.
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).contiguous(), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float | None
) -> Tensor:
    batch, query_heads, size, dim = query.shape
    queries = query.reshape(batch, key.shape[1], -1, dim)  # [B, H, G * Q, D]
    if size == 1 and query.device.type == "cpu" and query.dtype == torch.float32:
        # For so little work two plain products take half of the time of the fused kernel.
        scores = queries @ key.transpose(-1, -2)
        scores.mul_(dim**-0.5 if scaling is None else scaling).add_(bias)
        attended = torch.softmax(scores, -1) @ value
    else:
        attended = scaled_dot_product_attention(queries, key, value, bias, scale=scaling)
    return attended.reshape(batch, query_heads, size, -1).transpose(1, 2)


def _attend_shared(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scaling: float | None,
    first_key: Tensor,
    first_value: Tensor,
) -> Tensor:
    """Attention where the first keys and values `[H, S, D]` are the same for all rows."""
    batch, query_heads, size, dim = query.shape
    heads, shared, _ = first_key.shape
    queries = query.reshape(batch, heads, -1, dim)

    def together(x: Tensor) -> Tensor:  # [B, H, G * Q, n] to [H, B * G * Q, n]
        return x.transpose(0, 1).reshape(heads, -1, x.shape[-1])

    def apart(x: Tensor) -> Tensor:  # and back
        return x.reshape(heads, batch, -1, x.shape[-1]).transpose(0, 1)

    first = apart(together(queries) @ first_key.transpose(-1, -2))
    # This way round, because oneDNN copies keys that lie apart, and transposed ones slowly.
    own = (key[:, :, shared:] @ queries.transpose(-1, -2)).transpose(-1, -2)
    scores = torch.cat([first, own], -1)
    scores = scores.float() if scores.dtype.itemsize < 4 else scores
    scores.mul_(dim**-0.5 if scaling is None else scaling).add_(bias)
    probs = torch.softmax(scores, -1).to(query.dtype)
    attended = probs[..., shared:] @ value[:, :, shared:]
    attended += apart(together(probs[..., :shared]) @ first_value)
    return attended.reshape(batch, query_heads, size, -1).transpose(1, 2)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextlib.contextmanager
def grouped(config: Any, spans: list[Span] | None, exchangeable: bool = True) -> Iterator[None]:
    """Lets a model that runs `sdpa` attention run the grouped form, and only meanwhile.

    Args:
        exchangeable: whether the model calls what its configuration names; others, such as Falcon,
            have attention of their own, which has to run as it is.
    """
    before = config._attn_implementation
    if before != "sdpa" or not exchangeable:
        yield
        return
    config._attn_implementation = NAME
    token = _running.set(_Pass(spans))
    try:
        yield
    finally:
        _running.reset(token)
        config._attn_implementation = before
