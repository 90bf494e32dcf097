"""Random LoRA weights for the layers of a model."""

from __future__ import annotations

import torch
from transformers.pytorch_utils import Conv1D


def layers_of(model) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every layer that an adapter may change."""
    sizes = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Conv1D):
            sizes[name] = tuple(layer.weight.shape[::-1])
        elif type(layer) is torch.nn.Linear:
            sizes[name] = tuple(layer.weight.shape)
    return sizes


def random_pairs(sizes, rank: int, seed: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    weights = {}
    for place, (outputs, inputs) in sizes.items():
        a = torch.randn(rank, inputs, generator=draws) / inputs**0.5
        b = 0.3 * torch.randn(outputs, rank, generator=draws)
        weights[f"base_model.model.{place}.lora_A.weight"] = a
        weights[f"base_model.model.{place}.lora_B.weight"] = b
    return weights
