"""One pass of a model whose heads give tokens up, without any cache or mask of ours."""

from __future__ import annotations

import math

import torch
import transformers as tf
from engines import DEVICE

from ppl.lm.eviction import DMS

NAME = "evicted_reference"
_kept: dict[str, object] = {}


def eight_bits(x):
    unit = x.abs().amax(-1, keepdim=True) / 127
    return torch.where(unit > 0, (x / unit).round(), 0.0) * unit


def _attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Head by head, as the law says it."""
    heads, size = key.shape[1:3]
    group = query.shape[1] // heads
    delay, keeps = _kept["delay"], _kept["keeps"]
    if _kept["rounds"]:
        key, value = eight_bits(key), eight_bits(value)
    at = torch.arange(size, device=key.device)
    out = torch.zeros(1, size, query.shape[1], value.shape[-1], device=key.device)
    for head in range(heads):
        kept = torch.tensor(keeps(module.layer_idx, head, _kept["inputs"][0], key[0, head]))
        seen = (at <= at[:, None]) & ((at > at[:, None] - delay) | kept.to(key.device))
        for q in range(head * group, (head + 1) * group):
            scores = query[0, q] @ key[0, head].T * (scaling or 1 / math.sqrt(key.shape[-1]))
            weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
            out[0, :, q] = weights @ value[0, head]
    return out, None


tf.AttentionInterface.register(NAME, _attention)


def shortest(rate: int):
    """Of every group the token with the shortest key, where each counts a bit longer than the one
    before; of the last, unfinished one, all."""

    def keeps(layer, head, inputs, keys):
        norms = [x * (1 + j % rate / 1024) for j, x in enumerate(keys.norm(dim=-1).tolist())]
        kept = [True] * len(norms)
        for start in range(0, len(norms) - rate + 1, rate):
            part = norms[start : start + rate]
            for j in range(rate):
                kept[start + j] = j == part.index(min(part))
        return kept

    return keeps


def mapped(dms: DMS):
    """Those whose number is not positive."""

    def keeps(layer, head, inputs, keys):
        weight, bias = dms.weights[layer][head].to(keys.device), dms.biases[layer][head]
        return [bool(torch.sigmoid(weight @ x + bias) <= 0.5) for x in inputs]

    return keeps


@torch.inference_mode()
def evicted(model, delay: int, keeps, text: tuple[int, ...], rounds: bool = False) -> torch.Tensor:
    """Last hidden states `[n, hidden]` of a text.

    Args:
        keeps: from layer, head, what its attention is given `[n, hidden]` and the keys `[n, D]` to
            which tokens the head keeps.
        rounds: keys and values to eight bits.
    """

    def hear(module, args, kwargs):
        _kept["inputs"] = args[0] if args else kwargs["hidden_states"]

    _kept.update(delay=delay, keeps=keeps, rounds=rounds)
    base = model.base_model
    hooks = [
        module.register_forward_pre_hook(hear, with_kwargs=True)
        for name, module in base.named_modules()
        if name.split(".")[-1] in ("self_attn", "attn", "attention")
    ]
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        ids = torch.tensor([text], device=DEVICE)
        return base(input_ids=ids, use_cache=False).last_hidden_state[0]
    finally:
        model.config._attn_implementation = before
        for hook in hooks:
            hook.remove()
