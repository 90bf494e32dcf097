"""Which models the engine admits: those whose batched passes are exact. All others are refused by
name when they are loaded, rather than run wrongly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Never

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from ppl.errors import UnsupportedModelError
from ppl.lm.engine.attention import NAME, Looks, watched
from ppl.lm.engine.evicting import scored_heads
from ppl.lm.engine.kv import KV, as_kept
from ppl.lm.engine.layout import Heads, Layout
from ppl.lm.engine.recurrent import States
from ppl.lm.engine.runs import Tokens


def context_length(config: Any, wanted: int | None, name: str) -> int:
    """Most tokens of a text: what is wanted, or what the configuration says.

    Raises:
        ValueError: the model has fewer positions, or there is no room for a prompt and one token.
    """
    for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        most = getattr(config, key, None)
        if isinstance(most, int) and most > 0:
            break
    else:
        most = 2048 if wanted is None else max(2, int(wanted))
    if wanted is None:
        return most
    whole = isinstance(wanted, Integral) and not isinstance(wanted, bool)
    if not whole or not 2 <= wanted <= most:
        raise ValueError(
            f"context_length={wanted!r}: {name} has the positions 1 to {most}; give a whole number "
            "of them, at least 2 (a prompt and a token)"
        )
    return int(wanted)


def refuse_adapters(model: Any, name: str) -> None:
    """Raises UnsupportedModelError for a model wrapped by peft, which hides the decoder."""
    if hasattr(model, "peft_config") and hasattr(model, "merge_and_unload"):
        raise UnsupportedModelError(
            f"{name}: a {type(model).__name__} wraps the decoder; hand over "
            "model.merge_and_unload(), the decoder with the adapter in its weights"
        )


def without_wrapper(model: Any, name: str) -> Any:
    """The decoder inside a model of peft's, whose layers have the adapter beside their weights.

    Raises:
        UnsupportedModelError: the adapter is none of layers.
    """
    if not (hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")):
        return model
    inner = getattr(model, "get_base_model", None)
    kinds = model.peft_config.values()
    if inner is None or any(getattr(kind, "is_prompt_learning", False) for kind in kinds):
        refuse_adapters(model, name)
    return inner() if inner is not None else model


def base_of(model: Any) -> nn.Module:
    """The decoder without its head."""
    base: nn.Module = model.base_model
    inner = getattr(model, "model", None)
    if base is model and isinstance(inner, nn.Module):  # Llama 4 names another one
        return inner
    return base


def refuse_halves(base: nn.Module, name: str) -> Never:
    """For a model that belongs to an encoder."""
    raise UnsupportedModelError(
        f"{name}: a {type(base).__name__} is half of an encoder-decoder; use a decoder-only model"
    )


def vocabulary(base: nn.Module, config: Any) -> int:
    """How many token ids the model has."""
    try:
        return int(base.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    except (NotImplementedError, AttributeError):  # some hide their embeddings
        return int(config.vocab_size)


@dataclass(frozen=True)
class Plan:
    """How a model runs in batched passes.

    Attributes:
        layout: what it keeps of a token.
        how: in which form of ours it attends, see `ppl.lm.engine.attention.watched`.
        looks: how each layer attends, as far as it was seen.
        windows: whether any layer looks less far than to the beginning of all texts.
        states: of its recurrent layers, empty if it has none.
        cache: what the model calls the argument for its cache.
    """

    layout: Layout
    how: str | None
    looks: Looks
    windows: bool
    states: States
    cache: str

    @property
    def keeps_what_is_read(self) -> bool:
        """Whether all layers attend, in our form, to keys and values as the cache keeps them."""
        layers = self.layout.layers
        return (
            self.how == NAME
            and not self.states
            and all(
                i in self.looks and layer in (None, (self.looks[i].keys, self.looks[i].values))
                for i, layer in enumerate(layers)
            )
        )

    def gives_up(self, keeps: KV, most: int) -> bool:
        """Whether rows may give up what they have left behind in texts of `most` tokens. What heads
        keep of it is of no known position: no layer may ask for one."""
        far = all(
            look.reach is not None and not look.reach.moves(most) for look in self.looks.values()
        )
        return not self.states and keeps.cuts(most) and (keeps.evicts is None or far)


def plan_of(
    base: nn.Module, config: Any, name: str, most: int, device: torch.device, keeps: KV
) -> Plan:
    """Runs a token to see what the model's own cache is made of, and looks at how it attends.

    Args:
        most: the longest text that will be run.
        keeps: what will be kept of keys and values.

    Raises:
        UnsupportedModelError: texts cannot be forked from such a cache.
    """
    kind = type(base).__name__
    if kind.endswith("DecoderWrapper"):
        refuse_halves(base, name)
    ids = torch.zeros((1, 1), dtype=torch.long, device=device)
    try:
        output = base(input_ids=ids, use_cache=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as refusal:  # models that are no plain decoders fail in any way
        raise UnsupportedModelError(
            f"{name}: a {kind} does not run on token ids alone with a cache ({said(refusal)}); "
            "use a plain decoder, or a server that runs this one"
        ) from refusal
    named = "past_key_values" if hasattr(output, "past_key_values") else "cache_params"
    cache = getattr(output, named, None)
    layers = getattr(cache, "layers", None)
    if not hasattr(output, "last_hidden_state"):
        raise UnsupportedModelError(
            f"{name}: a {kind} gives no last hidden states; use a decoder whose base model does"
        )
    if isinstance(cache, EncoderDecoderCache):
        refuse_halves(base, name)
    states = States(layers or (), device)
    if not layers or (not states and all(getattr(x, "keys", None) is None for x in layers)):
        _refuse_without_keys(base, config, name)
    _refuse_long_rope(config, name, most)
    if getattr(config, "model_type", "") == "nemotron_h" and config.time_step_min > 1e-9:
        raise UnsupportedModelError(
            f"{name}: in transformers, single steps of a {kind} do not hold time steps above "
            f"time_step_min={config.time_step_min} as passes over a text do, so that a text has "
            "two probabilities; use a server that runs this one"
        )
    windows = False
    for layer in layers:
        if type(layer) not in _KINDS:
            raise UnsupportedModelError(
                f"{name}: its cache has layers of kind {type(layer).__name__}, which cannot be "
                "forked at a token; use a decoder whose layers keep keys and values, or a server"
            )
        window = getattr(layer, "sliding_window", None)
        windows |= window is not None and window < most
    how, looks = watched(base, config, samples_of(base, config, device), most)
    windows |= any(look.reach is None or look.reach.moves(most) for look in looks.values())
    if windows and how is None:
        window = min(getattr(layer, "sliding_window", None) or most for layer in layers)
        raise UnsupportedModelError(
            f"{name}: a {kind} attends in a way of its own, into which windows of ours do not "
            f"reach; pass context_length={window} (within its window it is full attention), or "
            "use a server"
        )
    if keeps.cuts(most):
        windows = True
        if how is None:
            raise UnsupportedModelError(
                f"{name}: a {kind} attends in a way of its own, into which kv='{keeps}' does not "
                "reach; load it with kv='full' or 'int8'"
            )
    layout = Layout(tuple(map(_kept, layers)), output.last_hidden_state.shape[-1])
    plan = Plan(layout, how if windows or how == NAME else None, looks, windows, states, named)
    if keeps.evicts is None or not keeps.cuts(most):
        return plan
    why = "attends to other keys and values than it keeps" if not states else "is recurrent"
    if not plan.keeps_what_is_read or not layout.alike:
        raise UnsupportedModelError(
            f"{name}: a {kind} {'has unlike layers' if plan.keeps_what_is_read else why}, so that "
            f"its heads cannot do kv='{keeps}'; load it with kv='full', 'int8' or a window"
        )
    return replace(plan, layout=replace(layout, scored=scored_heads(layout, keeps.evicts)))


# What layers of a cache may be: keys and values of all tokens, or of a window, a state, or nothing.
_KINDS = {
    DynamicLayer,
    DynamicSlidingWindowLayer,
    DummyLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
}


def samples_of(base: nn.Module, config: Any, device: torch.device) -> Tensor:
    """`[1, n]` some tokens of the vocabulary."""
    return torch.tensor([samples(vocabulary(base, config), 9)[0]], device=device)


def _kept(layer: Any) -> tuple[Heads, Heads] | None:
    """Heads and sizes of a layer's keys and values."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None:
        return None
    return (keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3])


def _refuse_without_keys(base: nn.Module, config: Any, name: str) -> Never:
    if getattr(type(config), "is_encoder_decoder", False):
        refuse_halves(base, name)
    kind = type(base).__name__
    if getattr(config, "is_decoder", None) is False:
        raise UnsupportedModelError(
            f"{name}: a {kind} is an encoder, whose words look at what follows them; use a "
            "decoder-only model"
        )
    raise UnsupportedModelError(
        f"{name}: a {kind} keeps no keys and values per token, its state cannot be forked at a "
        "token; use a decoder with attention, or a server that runs this one"
    )


def _refuse_long_rope(config: Any, name: str, longest: int) -> None:
    """LongRoPE turns all keys differently as soon as one text of a pass is long."""
    settings = getattr(config, "rope_parameters", None) or {}
    for rope in settings, *(v for v in settings.values() if isinstance(v, dict)):
        most = rope.get("original_max_position_embeddings") or longest
        if rope.get("rope_type") == "longrope" and longest > most:
            raise UnsupportedModelError(
                f"{name}: its positions (LongRoPE) change with the length of the text, so "
                f"that its state cannot be forked; pass context_length={most}, up to which "
                "they do not"
            )


def samples(size: int, most: int) -> list[Tokens]:
    """Two texts of unequal length, from all over a vocabulary of so many ids: after texts of
    nothing but special tokens, which come first, half precision can be off by as much as the states
    themselves."""
    lengths = (min(9, most), min(5, most))
    return [
        tuple((1009 * i + 7919 * j) % size for j in range(1, n + 1)) for i, n in enumerate(lengths)
    ]


def refuse_batches(base: nn.Module, name: str, refusal: Exception) -> Never:
    """For a model that fails in any way where masks are not its own."""
    raise UnsupportedModelError(
        f"{name}: a {type(base).__name__} takes no mask and positions of ours ({said(refusal)}); "
        "use a plain decoder"
    ) from refusal


def refuse_steps(name: str, how: str, flag: str, refusal: Exception) -> Never:
    """For a model whose steps cannot be captured or compiled."""
    raise UnsupportedModelError(
        f"{name}: its steps cannot be {how} ({said(refusal)}); load it with {flag}=False"
    ) from refusal


def rounds(cache: Any) -> Any:
    """A cache of the model's own whose keys and values come back from eight bits."""

    def rounding(layer: Any) -> None:
        update = layer.update

        def rounded(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
            return update(as_kept(keys), as_kept(values), *args, **kwargs)

        layer.update = rounded

    for layer in cache.layers:
        if hasattr(layer, "keys"):
            rounding(layer)
    return cache


def compare(
    plainly: Callable[[Tensor], Tensor],
    base: nn.Module,
    name: str,
    texts: Sequence[Tokens],
    ours: Sequence[Tensor],
    strict: bool = False,
    rounds: bool = False,
) -> None:
    """Compares last hidden states of the ends of texts, `[n, hidden]` each, with the model's own.

    Args:
        plainly: the model's own pass over a text `[1, n]`, from nothing: `[1, n, hidden]`.
        rounds: allows for numbers that are rounded on the way, some of them to the other side.
        strict: allows a tenth of the difference, for models that compute a step in another way than
            a text: there an error of theirs is small at first, and grows.

    Raises:
        UnsupportedModelError: they differ by more than rounding, or are not finite.
    """
    parameter = next(base.parameters())
    for text, mine in zip(texts, ours, strict=True):
        ids = torch.tensor([text], device=parameter.device)
        plain = plainly(ids)[0, -len(mine) :]
        if not plain.isfinite().all():
            raise UnsupportedModelError(f"{name}: {not_finite(base, 'last hidden states')}")
        scale = float(plain.abs().max())
        error = float((mine - plain).abs().max())
        exact = 3e-2 if rounds else 1e-4 if strict else 1e-3
        allowed = 0.1 if parameter.dtype.itemsize < 4 else exact
        if not error <= allowed * max(scale, 1.0):
            raise UnsupportedModelError(
                f"{name}: batched passes differ from the model's own by {error:.2g}; "
                "its attention or positions are not those of a plain decoder"
            )


def not_finite(model: nn.Module, what: str) -> str:
    """Why numbers of a model are not finite, and what to do about it."""
    for weight, tensor in model.named_parameters():
        if not tensor.isfinite().all():
            return (
                f"its {what} are not finite, because its weights are not ({weight}); load whole "
                "files, in the dtype in which they were saved"
            )
    dtype = next(model.parameters()).dtype
    return (
        f"its {what} are not finite, though its weights are: they leave the range of {dtype}; "
        "load it with dtype=torch.bfloat16 or dtype=torch.float32"
    )


def said(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
