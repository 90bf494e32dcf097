"""Linear layers whose weights are laid out once for the processor's matrix kernels.

A decode step multiplies a few rows with every weight of the model. With weights as they are stored,
oneDNN rearranges them in each call; laid out beforehand the same product takes half the time or
less (`docs/performance.md`). The operators are those that `torch.compile` emits for frozen weights.
They are not a public interface, so each kind of layer is compared with the plain product once, and
left plain where the operators are missing or disagree. Of few rows they read at half the speed of
the memory; where the processor can, a program of our own multiplies with what they have laid out
(`ppl.lm.engine.products`).

Layers that are given the same input (queries, keys and values; gate and up) are computed as one
product: of few rows the small ones cost more than their weights.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ppl.lm.engine.pages import Range, enlarge
from ppl.lm.engine.products import Own

# Rows that the layout is chosen for; measured to serve 1 to 64 rows well.
_ROWS = 16


class LaidOutLinear(nn.Module):
    """A linear layer for inference on a CPU, in place of an `nn.Linear`, its weight laid out once.

    What it has is plain attributes: a layout of its own is nothing to save, move or cast.

    Args:
        linear: the layer.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), False)
        self._number = next(_numbers)
        _layers[self._number] = self

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`.

        Raises:
            RuntimeError: a gradient is wanted of what it gives.
        """
        y: Tensor
        if x.requires_grad and torch.is_grad_enabled():  # or it would silently be without this part
            raise RuntimeError(
                "a layer whose weight is laid out for inference has no gradient; load the model "
                "with pack=False and without weights=, or call it in torch.no_grad()"
            )
        if torch.compiler.is_compiling():  # the compiler knows no layouts of others
            y = torch.ops.ppl_linear.packed(x, self._number, self.out_features)
        else:
            y = self.product(x)
        return y

    def product(self, x: Tensor) -> Tensor:
        """What `forward` gives."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """`[out_features, in_features]`: the weight it multiplies with, laid out back; slow."""
        raise NotImplementedError

    @property
    def memory(self) -> list[Range]:
        """Where its weight lies."""
        raise NotImplementedError

    @property
    def own_rows(self) -> int:
        """Up to how many rows it is a product of our own; 0 for none."""
        return 0

    @property
    def addresses(self) -> list[int]:
        """What such a product is called with, see `struct Product` in `whole.cpp`."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Sizes, as PyTorch prints them for a linear layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class PackedLinear(LaidOutLinear):
    """A layer with its own weight, copied into another layout.

    Args:
        linear: the layer; its weight is not kept.

    Attributes:
        own: our own products, of up to `own.most` rows; None for none.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        self.own = self._own_products(weight)

    def _own_products(self, weight: Tensor) -> Own | None:
        try:
            own = Own(self._packed, weight, self.bias)
        except (AttributeError, RuntimeError):  # oneDNN does not say where, or it is not for us
            return None
        kind = weight.shape, weight.dtype
        if kind not in _trusted:
            generator = torch.Generator("cpu").manual_seed(0)
            x = torch.randn(3, self.in_features, generator=generator, device="cpu").to(weight.dtype)
            _trusted[kind] = _alike(own(x), self.by_library(x), _TOLERANCE[weight.dtype])
        return own if _trusted[kind] else None

    def product(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if self.own is not None and x.numel() <= self.own.most * self.in_features:
            return self.own(x)
        return self.by_library(x)

    def by_library(self, x: Tensor) -> Tensor:
        """The same, by oneDNN."""
        y: Tensor
        y = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y

    @property
    def weight(self) -> Tensor:
        """`[out_features, in_features]`: the plain weight, laid out back; slow, but right."""
        plain: Tensor = self._packed.to_dense()
        return plain

    @property
    def memory(self) -> list[Range]:
        """Where its weight lies, if that is said."""
        try:
            where, size = torch.ops.mkldnn.data_ptr, torch.ops.mkldnn._nbytes
        except AttributeError:
            return []
        return [Range(where(self._packed), size(self._packed))]

    @property
    def own_rows(self) -> int:
        """See `LaidOutLinear`."""
        return 0 if self.own is None else self.own.most

    @property
    def addresses(self) -> list[int]:
        """See `LaidOutLinear`."""
        assert self.own is not None
        return self.own.addresses


# By the shape and type of the weight, whether our own products agree with oneDNN's.
_trusted: dict[tuple[torch.Size, torch.dtype], bool] = {}
# Of the largest number, by which two products with a weight may differ.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}

_numbers = itertools.count()
_layers: WeakValueDictionary[int, LaidOutLinear] = WeakValueDictionary()


def _packed_shape(x: Tensor, layer: int, out_features: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


_library: Any = torch.library.Library("ppl_linear", "DEF")  # type: ignore[no-untyped-call]
_library.define("packed(Tensor x, int layer, int out_features) -> Tensor")
_library.impl("packed", lambda x, layer, _: _layers[layer](x), "CPU")
torch.library.register_fake("ppl_linear::packed", _packed_shape, lib=_library)


class Joined:
    """Several linear layers in one, for as long as they are asked about the same input.

    Args:
        layer: their weights one below the other.
        sizes: the outputs of each.
    """

    def __init__(self, layer: LaidOutLinear, sizes: list[int]) -> None:
        self.layer, self.sizes = layer, sizes
        self._given: tuple[Tensor, list[Tensor | None]] | None = None  # an input, and what is left

    def apart(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows of each layer, views."""
        return tuple(rows.split_with_sizes(self.sizes))

    def part(self, number: int, x: Tensor) -> Tensor:
        """`[..., in_features]` to the outputs of one of the layers."""
        given = self._given  # one look: another thread may be asking about another input
        output = None if given is None or given[0] is not x else given[1][number]
        if given is None or output is None:
            outputs: list[Tensor | None] = list(self.layer(x).split(self.sizes, -1))
            self._given = given = x, outputs
            output = outputs[number]
            assert output is not None
        given[1][number] = None
        if self._given is given and not any(o is not None for o in given[1]):
            self._given = None  # nothing is kept alive longer than it is needed
        return output


class JoinedPart(nn.Module):
    """One of the layers of a `Joined`, in the place of an `nn.Linear`."""

    def __init__(self, joined: Joined, number: int) -> None:
        super().__init__()
        self.joined, self.number = joined, number
        self.layer = joined.layer
        self.in_features = joined.layer.in_features
        self.out_features = joined.sizes[number]

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return self.joined.part(self.number, x)

    @property
    def weight(self) -> Tensor:
        """`[out_features, in_features]`: the plain weight, laid out back; slow, but right."""
        part: Tensor = self.joined.apart(self.layer.weight)[self.number]
        return part

    @property
    def bias(self) -> Tensor | None:
        """`[out_features]`, or None."""
        bias = self.layer.bias
        return None if bias is None else self.joined.apart(bias)[self.number]


def parameter_count(model: nn.Module) -> int:
    """Parameters of a model, shared ones once; of a packed one those that it had before."""
    packed: int | None = getattr(model, "parameters_before_packing", None)
    return sum(p.numel() for p in model.parameters()) if packed is None else packed


def pack_linears(
    model: nn.Module,
    probe: Callable[[], object],
    laid_out: Callable[[nn.Linear], LaidOutLinear] = PackedLinear,
) -> int:
    """Replaces the linear layers of a model on a CPU by laid out ones; how many were replaced.

    The model can then no longer be trained, saved, moved or cast. Layers that cannot be packed
    exactly stay as they are, and so do those whose weights the model reads by itself. What was laid
    out is moved to large pages.

    Args:
        probe: runs the model once, to see which layers are given the same input.
        laid_out: makes the layer that takes another's place.
    """
    trusted: dict[tuple[object, ...], bool] = {}
    model.parameters_before_packing = parameter_count(model)  # type: ignore[assignment]

    groups, read = _looked_at(model, probe)

    def packed(layer: nn.Linear) -> LaidOutLinear | None:
        kind = (layer.weight.shape, layer.weight.dtype, layer.bias is None)
        if kind not in trusted:
            trusted[kind] = _computes_alike(layer, laid_out)
        return laid_out(layer) if trusted[kind] else None

    count = 0
    for parent, names in groups:
        layers = [getattr(parent, name) for name in names]
        together = packed(_concatenated(layers))
        if together is not None:
            joined = Joined(together, [layer.out_features for layer in layers])
            for number, name in enumerate(names):
                setattr(parent, name, JoinedPart(joined, number))
            count += len(names)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear or layer in read:
                continue
            if (alone := packed(layer)) is not None:
                setattr(parent, name, alone)
                count += 1
    enlarge(part for m in model.modules() if isinstance(m, LaidOutLinear) for part in m.memory)
    return count


@torch.inference_mode()
def _looked_at(
    model: nn.Module, probe: Callable[[], object]
) -> tuple[list[tuple[nn.Module, list[str]]], set[nn.Module]]:
    """What one run of a model does with its linear layers.

    Returns:
        Parents and the names of those of their layers that are given the same tensor; and the
        layers whose weights it reads elsewhere than in the layer.
    """
    seen: dict[tuple[nn.Module, int, torch.dtype, bool], list[str]] = {}
    # Kept, so that no two inputs have one identity; and as they were, because a model that changes
    # an input in place gives its layers different ones.
    inputs: dict[int, tuple[Tensor, Tensor]] = {}
    read: set[nn.Module] = set()

    class Watched(nn.Linear):
        def __getattr__(self, name: str) -> Any:
            if name == "weight":
                read.add(self)
            return super().__getattr__(name)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self._parameters["weight"], self.bias)  # type: ignore[arg-type]

    def watch(parent: nn.Module, name: str, layer: nn.Linear) -> Callable[..., None]:
        dtype, plain = layer.weight.dtype, layer.bias is None

        def hook(_: nn.Module, given: tuple[Tensor]) -> None:
            inputs.setdefault(id(given[0]), (given[0], given[0].clone()))
            seen.setdefault((parent, id(given[0]), dtype, plain), []).append(name)

        return hook

    layers = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear
    ]
    hooks = [
        layer.register_forward_pre_hook(watch(parent, name, layer))
        for parent, name, layer in layers
    ]
    for *_, layer in layers:
        layer.__class__ = Watched
    try:
        probe()
    finally:
        for *_, layer in layers:
            layer.__class__ = nn.Linear
        for hook in hooks:
            hook.remove()
    asked = Counter((parent, name) for (parent, *_), names in seen.items() for name in names)
    groups = [
        (parent, [n for n in names if asked[parent, n] == 1 and getattr(parent, n) not in read])
        for (parent, which, *_), names in seen.items()
        if torch.equal(*inputs[which])
    ]
    return [(parent, names) for parent, names in groups if len(names) > 1], read


def _concatenated(layers: list[nn.Linear]) -> nn.Linear:
    joined = nn.Linear(layers[0].in_features, 1, bias=False)
    joined.out_features = sum(layer.out_features for layer in layers)
    joined.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), False)
    if layers[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), False)
    return joined


@torch.inference_mode()
def _computes_alike(layer: nn.Linear, laid_out: Callable[[nn.Linear], LaidOutLinear]) -> bool:
    """Whether what is laid out exists and gives what its weight gives in a plain layer."""
    weight = layer.weight
    if weight.device.type != "cpu" or weight.dtype not in _TOLERANCE:
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(3, layer.in_features, generator=generator, device="cpu").to(weight.dtype)
    try:
        ours = laid_out(layer)
        found = ours(x)
    except (AttributeError, RuntimeError):  # an operator this build or processor does not have
        return False
    if isinstance(ours, PackedLinear):
        plain = layer(x)
    else:  # a weight of its own
        bias = None if layer.bias is None else layer.bias.float()
        plain = nn.functional.linear(x.float(), ours.weight.float(), bias)
    return _alike(found, plain, _TOLERANCE[weight.dtype])


def _alike(found: Tensor, plain: Tensor, tolerance: float) -> bool:
    return bool((found - plain).abs().max() <= tolerance * plain.abs().max().clamp(min=1.0))
