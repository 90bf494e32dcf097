"""Models of published shapes with random weights, and a tokenizer for them; no downloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import Qwen2Config

# From the config.json of Qwen/Qwen2.5-1.5B-Instruct and Qwen/Qwen2.5-7B-Instruct.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18_944,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 1024,
        "tie_word_embeddings": True,
    },
}


class Numbers:
    """A tokenizer whose tokens are numbers; it ends with one that the model does not have."""

    chat_template = None

    def __init__(self, vocabulary: int) -> None:
        self.eos_token_id = self._size = vocabulary

    def __len__(self) -> int:
        return self._size

    def encode(self, string: str, **_: Any) -> list[int]:
        return [int(word) for word in string.split()]

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, tokens))


def random_model(shape: str, device: torch.device) -> Any:
    """A model of this shape with random weights, in bfloat16."""
    config = Qwen2Config(
        **SHAPES[shape],
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.to(device).eval().requires_grad_(False)


def kv_bytes_per_token(model: Any) -> int:
    """Keys and values of one token, over all layers."""
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    elements = 2 * config.num_hidden_layers * config.num_key_value_heads * size
    return int(elements * model.dtype.itemsize)
