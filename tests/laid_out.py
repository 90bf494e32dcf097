"""Small models whose layers are laid out for products of our own, and what they give in float32."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
import transformers as tf
from engines import SMALL, random_model

from ppl.lm.engine.linear import PackedLinear, pack_linears
from ppl.lm.engine.quantised import quantise_linears

KINDS = {
    "Llama": lambda: tf.LlamaConfig(**SMALL),
    "biased": lambda: tf.LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "Mistral": lambda: tf.MistralConfig(**SMALL, sliding_window=6),
    "Qwen2": lambda: tf.Qwen2Config(**SMALL),
    "Qwen3": lambda: tf.Qwen3Config(**SMALL, head_dim=8),
}


def small(config, pack=True, dtype=torch.bfloat16, weights=None):
    model = (config if isinstance(config, torch.nn.Module) else random_model(config)).to(dtype)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():  # ones and zeros would hide much
        if "norm" in name or "bias" in name:
            parameter.data.copy_(torch.rand_like(parameter) + 0.5 * ("norm" in name))
        elif "layers" in name:
            parameter.data.mul_(6)
    few = torch.tensor([[1, 2]])
    if weights:
        quantise_linears(model, weights, lambda: model(input_ids=few, use_cache=False), "small")
    elif pack:
        pack_linears(model, lambda: model(input_ids=few, use_cache=False))
    return model


def has_own(dtype=torch.bfloat16) -> bool:
    linear = torch.nn.Linear(32, 32).to(dtype).requires_grad_(False)
    return PackedLinear(linear).own is not None


needs_own = pytest.mark.skipif(not has_own(), reason="needs a processor with AVX512-BF16")
needs_any = pytest.mark.skipif(not has_own(torch.float32), reason="needs one with AVX512")


def exactly(model) -> torch.nn.Module:
    """The same weights in float32, and nothing of ours."""
    exact = tf.AutoModelForCausalLM.from_config(model.config).eval().float()
    plain = {name: value.float() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if hasattr(module, "in_features"):
            plain[f"{name}.weight"] = module.weight.float()
            if module.bias is not None:
                plain[f"{name}.bias"] = module.bias.float()
    kept = exact.state_dict()
    exact.load_state_dict({name: plain[name] for name in kept})
    return exact


def off(states: Iterable[torch.Tensor], texts: Iterable[tuple[int, ...]], model, first=0) -> float:
    """The largest error from a position on, against float32, as a part of the state."""
    exact, worst = exactly(model), 0.0
    for row, text in zip(states, texts, strict=True):
        ids = torch.tensor([text])
        with torch.inference_mode():
            whole = exact.model(input_ids=ids, use_cache=False).last_hidden_state[0, first:]
        assert row.isfinite().all()  # the larger of a number and NaN is the number
        worst = max(worst, float(((row - whole).norm(dim=1) / whole.norm(dim=1)).max()))
    return worst
