"""One pass of a model of which less is kept, without any cache of ours."""

from __future__ import annotations

import torch
import transformers as tf
from engines import DEVICE

from ppl.lm.engine.kv import KV


class Rounding(tf.DynamicCache):
    """Keys and values to eight bits, each head's of a token by their own largest."""

    def update(self, key_states, value_states, *args, **kwargs):
        def eight_bits(x):
            unit = x.abs().amax(-1, keepdim=True) / 127
            return torch.where(unit > 0, (x / unit).round(), 0.0) * unit

        return super().update(eight_bits(key_states), eight_bits(value_states), *args, **kwargs)


@torch.inference_mode()
def compressed(model, kv: str, text: tuple[int, ...]) -> torch.Tensor:
    """Last hidden states `[n, hidden]` of a text by one pass of the compressed model, without any
    cache of ours."""
    keeps, n = KV.read(kv), len(text)
    at = torch.arange(n)
    seen = at <= at[:, None]
    if keeps.window:
        seen &= (at > at[:, None] - keeps.window) | (at < keeps.sinks)
    mask = torch.zeros(1, 1, n, n).masked_fill_(~seen, torch.finfo(torch.float32).min)
    cache = Rounding() if keeps.int8 else None
    return model.base_model(
        input_ids=torch.tensor([text], device=DEVICE),
        attention_mask=mask.to(DEVICE),
        past_key_values=cache,
        use_cache=keeps.int8,
    ).last_hidden_state[0]
