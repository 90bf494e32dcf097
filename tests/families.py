"""Small random models of every family that the installed transformers can make a decoder of.

Configurations are small, but of the kind: two layers or a whole period of unlike ones, windows and
chunks of a few tokens, few experts, narrow latent attention.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers as tf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 97
# Their parts besides the decoder cannot be made small, or one of them takes a minute.
LARGE = {"blt", "dots3_note", "dots3_note_text", "git", "phi4_multimodal"}
NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_WIDTHS = dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32)
_DEPTHS = dict.fromkeys(
    ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers"),
    2,
)
_HEADS = dict.fromkeys(
    ("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads"), 4
)
_INNER = dict.fromkeys(
    ("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "ffn_hidden_size"), 48
)
_PLACES = dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128)
_EXPERTS = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4)
_INNER_EXPERTS = dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24)
_WINDOWS = {"sliding_window": 8, "attention_chunk_size": 8, "use_sliding_window": True}
SMALL: Mapping[str, Any] = {
    **_WIDTHS, **_DEPTHS, **_HEADS, **_INNER, **_PLACES, **_EXPERTS, **_INNER_EXPERTS, **_WINDOWS,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "rotary_dim": 4,
    "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "state_size": 8,
    "mamba_chunk_size": 8, "chunk_size": 8, "mamba_expand": 2, "mamba_dt_rank": 4,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 6, "qk_head_dim": 12, "head_dim": 4, "num_key_value_heads": 4,
    "index_head_dim": 8, "index_n_heads": 2, "index_topk": 8,
}  # fmt: skip
_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_MIXED = {"layer_types": [_SLIDING, _FULL]}
_RECURRENT = {"layer_types": [_LINEAR, _FULL]}
_OF_RECURRENT = (
    "bailing_hybrid", "kimi_linear", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text",
    "qwen3_next", "qwen4_exp", "qwen4_exp_text",
)  # fmt: skip
_OF_LATENT = (
    "axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash",
    "minicpm3", "youtu",
)  # fmt: skip

OTHERWISE: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(_OF_LATENT, _LATENT),
    "deepseek_v2": {**_LATENT, "topk_method": "greedy"},
    "gemma3n_text": {"num_kv_shared_layers": 0, **_MIXED},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "lfm2_moe": {"layer_types": ["conv", _FULL], "num_dense_layers": 1},
    "nemotron_h": {"layers_block_type": ["linear_attention", "mlp", _FULL]},
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": _RECURRENT,
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(_OF_RECURRENT, _RECURRENT),
    "falcon": {"alibi": False, "head_dim": None},
    "cohere2": _MIXED, "gemma2": _MIXED, "gemma3_text": _MIXED, "gpt_oss": _MIXED,
    "exaone4": _MIXED, "olmo3": _MIXED, "smollm3": _MIXED, "cwm": _MIXED, "afmoe": _MIXED,
    "modernbert-decoder": {"local_attention": 8},
    "lfm2": {"layer_types": ["conv", _FULL]}, "lfm3": {"layer_types": ["conv", _FULL]},
    "recurrent_gemma": {"layers_block_type": [_LINEAR, _SLIDING]},
}  # fmt: skip
"""What a family needs besides, by model type."""


class NotMade(Exception):
    """The settings above make no model of this family."""


def config_of(name: str, **others: Any) -> Any:
    """A small configuration of a model type."""
    try:
        text = CONFIG_MAPPING[name]().get_text_config(decoder=True)
    except Exception as error:
        raise NotMade(f"{name}: {error}") from error
    wanted = {**SMALL, **OTHERWISE.get(name, {}), **others}
    has = {key: value for key, value in wanted.items() if _has(text, key)}
    has |= {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    for key in ("layer_types", "layers_block_type", "mlp_layer_types"):
        made = isinstance(getattr(type(text), key, None), property) or key in text.attribute_map
        if key not in wanted and not made and getattr(text, key, None) is not None:
            has[key] = None  # made anew for the layers that there are
    try:
        return type(text)(**has)
    except Exception as error:
        raise NotMade(f"{name}: {error}") from error


# None where it is not used, and to be set nevertheless.
_OFTEN_NONE = (
    "sliding_window", "head_dim", "layer_types", "num_experts_per_tok", "num_key_value_heads",
    "attn_layer_indices",
)  # fmt: skip


def _has(config: Any, key: str) -> bool:
    if isinstance(getattr(type(config), key, None), property):
        return False
    try:
        return hasattr(config, key) and (getattr(config, key) is not None or key in _OFTEN_NONE)
    except Exception:  # an attribute that differs from layer to layer
        return True


def random_model(config: Any, seed: int = 0) -> Any:
    """A model in evaluation mode with weights large enough for its texts to matter."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except Exception as error:
            raise NotMade(f"{type(config).__name__}: {error}") from error
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                noise = torch.randn(weight.shape, generator=draws)
                weight.copy_(1.3 * noise / weight.shape[-1] ** 0.5)
            else:
                weight.add_(0.2 * torch.randn(weight.shape, generator=draws))
    return model.eval()
