"""Which tokens a head gives up: what an adapter says of them, and when it counts.

An eviction gives every token a score in every key-value head, when the token is computed. Scores of
a group of successive tokens decide which of these a head gives up, but not at once: every query
still sees the last tokens, so many as the delay says, so that what is given up can be merged into
what stays (Dynamic Memory Sparsification, Lancucki et al. 2025, arXiv:2506.05345). What is decided
of a token depends on nothing behind its group, and groups are no longer than the delay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_FILE = "eviction.safetensors"
# So much longer than the one before it a key counts: one token has, at two places, keys of one
# length up to rounding, of which each pass would choose another.
_LONGER = 2.0**-10


@runtime_checkable
class Eviction(Protocol):
    """What a model may be given as `kv=`.

    A query at position `i` sees, in a layer and key-value head, the key at `j <= i` if
    `j > i - delay`, or if the head keeps it.

    Attributes:
        name: says which eviction it is, weights included: what has one name has one law.
        delay: so many last tokens, its own included, every query sees; at least `group`.
        group: so many successive tokens, from position 0 on, are decided together.
        most: so many of a group at most stay.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 (attributes are above)

    @property
    def delay(self) -> int: ...  # noqa: D102

    @property
    def group(self) -> int: ...  # noqa: D102

    @property
    def most(self) -> int: ...  # noqa: D102

    def score(self, layer: int, inputs: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """Scores `[B, H, Q]` of new tokens, each by itself. Passes round differently, so what a
        score decides must not hang on its last digits.

        Args:
            layer: its number.
            inputs: `[B, Q, hidden]` what the layer's attention is given.
            keys: `[B, H, Q, D]` as they are kept, positions in them.
            positions: `[B, Q]` in their texts.
        """

    def stays(self, scores: Tensor) -> Tensor:
        """Which tokens of whole groups stay, from their scores, float32: both `[..., group]`, the
        second boolean."""


@dataclass(frozen=True)
class Delayed:
    """Of so many successive tokens a head keeps the one whose key is shortest, the earlier of keys
    that differ by less than a thousandth.

    Nothing is trained. That keys of small norm are those to which much attention goes is what
    Devoto et al. 2024 found (arXiv:2406.11430), who keep the shortest of a whole cache; that every
    group keeps one, and the delay, are ours.

    Args:
        rate: tokens of a group.
        delay: tokens that every query sees.

    Raises:
        ValueError: the rate is not 1 to 256, or the delay less than the rate.
    """

    rate: int
    delay: int

    def __post_init__(self) -> None:
        if not (1 <= self.rate <= 256 and self.delay >= self.rate):
            raise ValueError(
                f"delayed({self.rate}, {self.delay}): the rate is 1 to 256, and a group of so many "
                "tokens is decided within the delay; give a delay of at least the rate"
            )

    @property
    def name(self) -> str:
        """As `kv=` takes it."""
        return f"delayed({self.rate}, {self.delay})"

    @property
    def group(self) -> int:
        """See `Eviction`."""
        return self.rate

    @property
    def most(self) -> int:
        """See `Eviction`."""
        return 1

    def score(self, layer: int, inputs: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """The norms of keys, of equal ones the first the least."""
        norms: Tensor = torch.linalg.vector_norm(keys, dim=-1, dtype=torch.float32)
        return norms * (1 + _LONGER * (positions % self.rate))[:, None]

    def stays(self, scores: Tensor) -> Tensor:
        """The least; the first of equal ones."""
        at = torch.arange(scores.shape[-1], device=scores.device)
        least = scores == scores.amin(-1, keepdim=True)
        return at == torch.where(least, at, self.rate).amin(-1, keepdim=True)


class DMS:
    """Trained eviction: one linear map a layer from what its attention is given to a number for
    each key-value head, and the head gives the token up where that is positive.

    In the paper the number is a neuron of a projection in the attention, which is such a map. Its
    training makes the model used to it; an adapter for a model that was not trained with it costs
    what it gives up.

    Args:
        weights: of each layer `[H, hidden]`.
        biases: of each layer `[H]`.
        delay: tokens that every query sees.

    Attributes:
        weights, biases, delay: as given.
        name: of weights and delay.

    Raises:
        ValueError: these do not fit together, or the delay is not positive.
    """

    group = most = 1

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], delay: int) -> None:
        shapes = [(weight.dim(), weight.shape[:1]) for weight in weights]
        if not weights or shapes != [(2, bias.shape) for bias in biases]:
            raise ValueError("DMS: give every layer weights [H, hidden] and biases [H]")
        if isinstance(delay, bool) or not isinstance(delay, int) or delay < 1:
            raise ValueError(f"DMS: delay={delay!r}: a whole number of tokens, at least 1")
        self.weights = [weight.detach().float() for weight in weights]
        self.biases = [bias.detach().float() for bias in biases]
        self.delay = delay
        digest = hashlib.blake2b(digest_size=6)
        for tensor in (*self.weights, *self.biases):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        self.name = f"dms({digest.hexdigest()}, {delay})"

    @staticmethod
    def load(path: str | Path, delay: int | None = None) -> DMS:
        """From a safetensors file, or a folder with one called `eviction.safetensors`.

        It has `layers.0.weight` `[H, hidden]`, `layers.0.bias` `[H]` and so on, and as metadata
        `delay`.

        Args:
            path: of either.
            delay: another than the file says.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is of another form, or says no delay and none is given.
        """
        file = Path(path) / _FILE if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file; DMS.load reads safetensors")
        try:
            with safe_open(file, framework="pt") as tensors:  # type: ignore[no-untyped-call]
                names = sorted(tensors.keys())
                layers = range(len(names) // 2)
                kinds = "weight", "bias"
                if names != sorted(f"layers.{i}.{kind}" for i in layers for kind in kinds):
                    raise ValueError(f"{file} has not layers.0.weight, layers.0.bias and so on")
                said = (tensors.metadata() or {}).get("delay")
                weights, biases = (
                    [tensors.get_tensor(f"layers.{i}.{kind}") for i in layers] for kind in kinds
                )
        except SafetensorError as error:
            raise ValueError(f"{file} is no safetensors file: {error}") from error
        if delay is None:
            if not str(said).isdecimal():
                raise ValueError(f"{file} says no delay; give one, as in DMS.load(path, delay=256)")
            delay = int(str(said))
        return DMS(weights, biases, delay)

    def score(self, layer: int, inputs: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """What the map of the layer gives."""
        if layer >= len(self.weights):
            raise ValueError(f"{self.name} has {len(self.weights)} layers, the model has more")
        weight, bias = (each[layer].to(inputs.device) for each in (self.weights, self.biases))
        if weight.shape != (keys.shape[1], inputs.shape[-1]):
            raise ValueError(
                f"{self.name}: the weights of layer {layer} are {tuple(weight.shape)}, the model "
                f"has {keys.shape[1]} key-value heads and hidden states of {inputs.shape[-1]}"
            )
        return torch.nn.functional.linear(inputs.float(), weight, bias).transpose(1, 2)

    def stays(self, scores: Tensor) -> Tensor:
        """Where the number is not positive: its sigmoid is at most a half."""
        return scores <= 0
