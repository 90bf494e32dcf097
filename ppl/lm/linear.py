"""Linear layers whose weights are laid out once for the processor's matrix kernels.

A decode step multiplies a few rows with every weight of the model. With weights as they are stored,
oneDNN rearranges them in each call; laid out beforehand the same product takes half the time or
less (`docs/performance.md`). The operators are those that `torch.compile` emits for frozen weights.
They are not a public interface, so each kind of layer is compared with the plain product once, and
left plain where the operators are missing or disagree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Rows that the layout is chosen for; measured to serve 1 to 64 rows well.
_ROWS = 16


class PackedLinear(nn.Module):
    """A linear layer for inference on a CPU, in place of an `nn.Linear`.

    Args:
        linear: the layer; its weight is copied into another layout and not kept.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        # A plain attribute: a layout of its own is nothing to save, move or cast.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`; not differentiable."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def pack_linears(model: nn.Module) -> int:
    """Replaces the linear layers of a model on a CPU by packed ones; how many were replaced.

    The model can then no longer be trained, saved, moved or cast. Layers that cannot be packed
    exactly stay as they are.
    """
    trusted: dict[tuple[object, ...], bool] = {}
    count = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear:
                continue
            kind = (layer.weight.shape, layer.weight.dtype, layer.bias is None)
            if kind not in trusted:
                trusted[kind] = _packs_exactly(layer)
            if trusted[kind]:
                setattr(parent, name, PackedLinear(layer))
                count += 1
    return count


@torch.inference_mode()
def _packs_exactly(layer: nn.Linear) -> bool:
    """Whether a packed copy of the layer exists and gives what the layer gives."""
    weight = layer.weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, layer.in_features, generator=generator).to(weight.dtype)
    try:
        packed = PackedLinear(layer)(x)
    except (AttributeError, RuntimeError):  # an operator this build or processor does not have
        return False
    plain = layer(x)
    tolerance = 1e-4 if weight.dtype == torch.float32 else 2e-2
    return bool((packed - plain).abs().max() <= tolerance * plain.abs().max().clamp(min=1.0))
