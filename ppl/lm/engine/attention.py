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
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ppl.lm.engine.evicting import Evicting
from ppl.lm.engine.layout import Heads
from ppl.lm.engine.prefill import Filling
from ppl.lm.engine.reach import Reach, fitted, ragged_bias, ragged_mask, reaching
from ppl.lm.engine.setting import Attention
from ppl.lm.engine.spans import Span
from ppl.lm.engine.trunk import Mean, Standing, attended, together

NAME = "ppl_grouped"
OWN = "ppl_own"


class Look(NamedTuple):
    """How a layer attends.

    Attributes:
        reach: how far back; None if that is not known.
        keys, values: their heads, and numbers a head.
    """

    reach: Reach | None
    keys: Heads
    values: Heads


Looks = dict[int, Look]
"""By the number of the layer, as far as it was seen."""

# Arguments of attention that are left to transformers.
NOT_OURS = ("position_bias", "indices", "sinks", "block_indices")


@dataclass
class _Pass:
    """What the layers of a running pass have in common.

    Attributes:
        spans: None if all rows attend together.
        before: which attention the model has without us.
        seen: for a model that is looked at, the mask of each layer, and the heads and sizes of the
            keys and values to which it attends.
        alike: whether the grouped form gave what the model's own gives, as far as was compared.
        biases: what to add to the scores of each span, by the mask it comes from (kept, so that its
            identity stays its own), the span's first row, and how many query heads share keys.
        standing: which rows stand on a trunk, None if none does.
        filling: of a pass of many tokens a row, which rows get how many.
        evicting: what heads give up.
    """

    spans: list[Span] | None
    before: str = "sdpa"
    seen: dict[int, tuple[Tensor, Heads, Heads]] | None = None
    alike: bool = True
    biases: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    standing: Standing | None = None
    filling: Filling | None = None
    evicting: Evicting | None = None

    def of_heads(self, module: Any, key: Tensor, mask: Tensor) -> Tensor:
        """The mask, where heads give tokens up one for each head, of this layer alone."""
        if self.evicting is None:
            return mask
        self.biases.clear()
        if self.standing is not None:
            self.standing.forget()
        return self.evicting.mask(module, key, mask)

    def see(self, module: Any, mask: Tensor, key: Tensor, value: Tensor) -> None:
        """Notes how a layer attends, if the model is looked at."""
        if self.seen is not None:
            shapes = (key.shape[1], key.shape[3]), (value.shape[1], value.shape[3])
            self.seen[getattr(module, "layer_idx", -1)] = mask, *shapes

    def library(self, module: Any) -> Any:
        """What the model would have called."""
        if self.before == "sdpa":
            return sdpa_attention_forward
        return vars(sys.modules[type(module).__module__])["eager_attention_forward"]

    def bias(self, mask: Tensor, span: Span, query: Tensor, heads: int) -> Tensor:
        """`[B, 1, G * Q, L]` in the dtype of the query: 0 where it may look, else minus infinity.

        Made in the first layer and used in all: for few rows, making it costs what attending does.
        """
        group = query.shape[1] // heads
        key = id(mask), span.start, group
        if key not in self.biases:
            seen = mask[span.start : span.stop, :, None, :, : span.keys]
            seen = seen.expand(-1, -1, group, -1, -1).flatten(2, 3)
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


def running_filling() -> Filling | None:
    """Which rows of the running pass get how many tokens, if they attend apart."""
    return running.filling if (running := _running.get()) else None


_Attends = Callable[..., tuple[Tensor, Tensor | None]]


def _hiding(attends: _Attends) -> _Attends:
    """What a mask hides weighs nothing, and nothing times what is not finite is not nothing: on a
    CPU, where it can be looked at, such keys and values are then taken out, and put back for the
    queries that see them. So they reach no token before them, and no row that has their memory
    later."""

    @functools.wraps(attends)
    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        asked = functools.partial(attends, module, query)
        found = asked(key, value, attention_mask, **kwargs)
        looks = attention_mask is not None and query.device.type == "cpu"
        if not looks or math.isfinite(found[0].sum()):
            return found
        assert attention_mask is not None
        sound = [part.isfinite().all(-1) for part in (key, value)]
        clean = [
            part.masked_fill(~whole[..., None], 0.0)
            for part, whole in zip((key, value), sound, strict=True)
        ]
        running = _running.get()
        if running is not None and running.standing is not None:
            assert running.standing.window is not None
            for copy, part in zip(clean, (key, value), strict=True):
                running.standing.window.stands_for(copy, part)
        attended, weights = asked(*clean, attention_mask, **kwargs)
        seen, spoilt = attention_mask[..., : key.shape[2]], ~(sound[0] & sound[1])
        if seen.dtype != torch.bool:
            seen = seen > torch.finfo(seen.dtype).min / 2
        spoilt = spoilt.repeat_interleave(query.shape[1] // key.shape[1], 1)
        meets = (seen & spoilt[:, :, None]).any(-1).transpose(1, 2)  # [B, Q, G * H]
        return attended.masked_fill(meets[..., None], torch.nan), weights

    return attend


@_hiding
def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention in the form that transformers calls.

    Args:
        query: `[B, G * H, Q, D]`.
        key, value: `[B, H, L, D]`, the values perhaps with another `D`.
        attention_mask: `[B, 1, Q, L]`, True where a query may look. Attention with another mask, or
            with more to it than is said here, is left to transformers.
        softcap: scores `s` become `softcap * tanh(s / softcap)`.
        s_aux: `[G * H]` for each head the score of a sink, a key without a value.

    Returns:
        `[B, Q, G * H, D]`, and None for the attention weights.
    """
    running = _running.get() or _Pass(None)
    if running.before == "sdpa":
        s_aux = None  # which transformers' own knows nothing of
    elsewhere = attention_mask is None or attention_mask.dtype != torch.bool
    if elsewhere or any(kwargs.get(name) is not None for name in NOT_OURS):
        if softcap is not None or s_aux is not None:
            kwargs |= {"softcap": softcap, "s_aux": s_aux}
        plain: tuple[Tensor, Tensor | None] = running.library(module)(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return plain
    assert attention_mask is not None
    running.see(module, attention_mask, key, value)
    attention_mask = running.of_heads(module, key, attention_mask)
    filling = running.filling
    if filling is not None and not filling.takes(attention_mask, key, value, softcap, s_aux):
        filling = None
    if running.standing is not None:
        asked = running, filling, query, key, value, attention_mask
        return _attend_standing(*asked, scaling, softcap, s_aux)
    if filling is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        means = filling.own_means(query, key, value, scale).values.to(query.dtype)
        return means.reshape(query.shape).transpose(1, 2).contiguous(), None
    parts = []
    for span in running.spans or [Span(0, query.shape[0], key.shape[2])]:
        start, stop, keys, shared, source = span
        bias = running.bias(attention_mask, span, query, key.shape[1])
        rows = query[start:stop], key[start:stop, :, :keys], value[start:stop, :, :keys]
        if shared:
            common = key[source, :, :shared], value[source, :, :shared]
            parts.append(_attend_shared(*rows, bias, scaling, *common, softcap, s_aux))
        else:
            parts.append(_attend(*rows, bias, scaling, softcap, s_aux))
    # Models view the result in other shapes, as they may view that of transformers' own attention.
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).contiguous(), None


@_hiding
def own_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What the model's file calls `eager` attention, with masks of rows of different lengths.

    While a model is looked at (`watched`), the grouped form is computed beside it, from larger
    queries that show what small scores would hide, and a difference noted.
    """
    eager: Any = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    running = _running.get() or _Pass(None)
    if running.seen is not None and attention_mask is not None:
        running.see(module, attention_mask, key, value)
        sharp = 8 * query
        own, _ = eager(module, sharp, key, value, attention_mask, **kwargs)
        aside = _Pass(None, before="eager")
        token = _running.set(aside)
        try:
            ours, _ = grouped_attention(module, sharp, key, value, attention_mask == 0, **kwargs)
        finally:
            _running.reset(token)
        close = 1e-4 if query.dtype == torch.float32 else 0.03
        running.alike &= ours.shape == own.shape and bool(
            (ours - own).abs().max() <= close * max(1.0, float(own.abs().max()))
        )
    attended: tuple[Tensor, Tensor | None] = eager(
        module, query, key, value, attention_mask, **kwargs
    )
    return attended


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scaling: float | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    batch, query_heads, size, dim = query.shape
    queries = query.reshape(batch, key.shape[1], -1, dim)  # [B, H, G * Q, D]
    few = size == 1 and query.device.type == "cpu" and query.dtype == torch.float32
    if few or softcap is not None or sinks is not None:
        # For so little work two plain products take half of the time of the fused kernel.
        scores = queries @ key.transpose(-1, -2)
        attended = _probs(scores, bias, scaling or dim**-0.5, softcap, sinks) @ value
    else:
        attended = scaled_dot_product_attention(queries, key, value, bias, scale=scaling)
    return attended.reshape(batch, query_heads, size, -1).transpose(1, 2)


def _probs(
    scores: Tensor, bias: Tensor, scaling: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """From products of queries and keys `[B, H, G * Q, L]`, which are overwritten, to weights."""
    dtype = scores.dtype
    scores = (scores.float() if dtype.itemsize < 4 else scores).mul_(scaling)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores.add_(bias)
    if sinks is None:
        return torch.softmax(scores, -1).to(dtype)
    batch, heads, queries, _ = scores.shape
    group = sinks.numel() // heads
    sink = sinks.to(scores.dtype).view(heads, group, 1).expand(-1, -1, queries // group)
    sink = sink.reshape(1, heads, queries, 1).expand(batch, -1, -1, -1)
    return torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1].to(dtype)


def _attend_shared(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scaling: float | None,
    first_key: Tensor,
    first_value: Tensor,
    softcap: float | None = None,
    sinks: Tensor | None = None,
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
    probs = _probs(scores, bias, scaling or dim**-0.5, softcap, sinks)
    attended = probs[..., shared:] @ value[:, :, shared:]
    attended += apart(together(probs[..., :shared]) @ first_value)
    return attended.reshape(batch, query_heads, size, -1).transpose(1, 2)


def _attend_standing(
    running: _Pass,
    filling: Filling | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, None]:
    """Attention of rows some of which stand on trunks: to own keys, and to those of trunks."""
    standing = running.standing
    assert standing is not None
    assert standing.window is not None
    batch, query_heads, size, dim = query.shape
    heads = key.shape[1]
    scale = dim**-0.5 if scaling is None else scaling
    queries = query.reshape(batch, heads, -1, dim)  # [B, H, G * Q, D]
    means = [] if filling is None else [filling.own_means(query, key, value, scale)]
    for span in [] if filling is not None else running.spans or [Span(0, batch, key.shape[2])]:
        start, stop, keys, shared, source = span
        bias = running.bias(mask, span, query, heads)
        asked = queries[start:stop]
        own = key[start:stop, :, shared:keys], value[start:stop, :, shared:keys]
        mean = attended(asked, *own, bias[..., shared:], scale, softcap, sinks)
        if shared:
            common = key[source, :, :shared], value[source, :, :shared]
            mean += together(asked, *common, bias[..., :shared], scale, softcap)
        means.append(mean)
    own_mean = Mean(
        torch.cat([mean.values for mean in means]), torch.cat([mean.mass for mean in means])
    )
    found = standing.with_trunks(
        own_mean,
        queries,
        (standing.window.holder(key), standing.window.holder(value)),
        lambda group: standing.biases(mask, group, query_heads // heads),
        scale,
        softcap,
    )
    values = found.values.to(query.dtype).reshape(batch, query_heads, size, -1)
    return values.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, ragged_mask)
AttentionInterface.register(OWN, own_attention)
AttentionMaskInterface.register(OWN, ragged_bias)


def grouped(
    attention: Attention,
    spans: list[Span] | None,
    how: str | None = NAME,
    standing: Standing | None = None,
    filling: Filling | None = None,
    evicting: Evicting | None = None,
) -> AbstractContextManager[None]:
    """Lets a model attend in a form of ours, and only meanwhile.

    Args:
        how: the form, `NAME` or `OWN`; None for models that have to run as they are.
        standing: which rows stand on a trunk; only in the form `NAME`.
        filling: which rows get how many tokens.
        evicting: what heads give up; only in the form `NAME`.
    """
    if how is None:
        return contextlib.nullcontext()
    before = attention.name
    running = _Pass(spans, before, standing=standing, filling=filling, evicting=evicting)
    return _attending(attention, how, running)


@contextlib.contextmanager
def _attending(attention: Attention, how: str, running: _Pass) -> Iterator[None]:
    token, attention.name = _running.set(running), how
    try:
        with running.evicting or contextlib.nullcontext():
            yield
    finally:
        attention.name = running.before
        _running.reset(token)


def watched(base: nn.Module, config: Any, ids: Tensor, most: int) -> tuple[str | None, Looks]:
    """Looks once at how a model attends.

    Args:
        ids: `[1, n]` of a text.
        most: the longest text that will be run.

    Returns:
        In which form of ours it does (`NAME`, or `OWN` where more is to it; None for a model that
        does not call what its configuration names, and has to run as it is), and how each layer
        attends.
    """
    before = config._attn_implementation
    if before not in ("sdpa", "eager") or not getattr(base, "_supports_attention_backend", False):
        return None, {}
    how = NAME if before == "sdpa" else OWN
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    running = _Pass(None, before=before, seen={})
    try:
        with _attending(Attention(config), how, running), reaching(positions) as asked:
            base(input_ids=ids, position_ids=positions, use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # models that attend otherwise fail in any way
        return (NAME if how == NAME else None), {}
    assert running.seen is not None
    if how == OWN and running.alike and running.seen:
        how = NAME
    chunk = int(getattr(config, "attention_chunk_size", None) or 0)
    known: dict[int, Reach | None] = {}
    looks: Looks = {}
    for layer, (mask, keys, values) in running.seen.items():
        if id(mask) in asked.made and id(mask) not in known:
            known[id(mask)] = fitted(asked.made[id(mask)][1], most, chunk)
        looks[layer] = Look(known.get(id(mask)), keys, values)
    return how, looks
