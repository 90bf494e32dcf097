"""Layers with a state in place of keys: linear attention, state spaces, short convolutions.

What such a layer knows of a text is one state, that of its end; it cannot be cut where a text parts
from another. So states are kept as snapshots, each with the whole text that it is the state of: at
the ends of what was asked for, where texts fork, and every `SPACING` tokens in between. A text goes
on from the longest snapshot that it begins with; what lies between that and its known end is
computed again, and counted. Snapshots have a share of the byte budget; the least recently used go.

Rows of a pass advance by equally many tokens, since a state would take padding for text. The layers
are those of transformers, which are handed the states before a pass and asked for them after it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from ppl.lm.engine.runs import State, Tokens
from ppl.lm.engine.slots import Window, WindowLayer

SPACING = 256


@dataclass(frozen=True)
class Part:
    """One tensor of a state.

    Attributes:
        layer: of which layer.
        kind: `conv_states` or `recurrent_states`, as transformers calls them.
        number: which of these the layer has.
        shape: of one row.
        dtype: of the numbers.
    """

    layer: int
    kind: str
    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Both(WindowLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """A layer with keys and values in the slots, and a state besides."""

    def __init__(self, window: Window, index: int) -> None:
        LinearAttentionAndFullAttentionLayer.__init__(self)
        WindowLayer.__init__(self, window, index)

    def lazy_initialization(self, *args: Any, **states: Any) -> None:
        """Makes room for a state; for keys and values there is."""
        if states:
            LinearAttentionLayer.lazy_initialization(self, **states)


class States:
    """The states of a model's recurrent layers.

    Args:
        layers: those of the model's own cache, after a token.
        device: where states are.

    Attributes:
        nbytes: what a state takes.
    """

    def __init__(self, layers: Sequence[Any], device: torch.device) -> None:
        self._device = device
        self._parts: list[Part] = []
        for i, layer in enumerate(layers):
            for kind in ("conv_states", "recurrent_states"):
                for number, state in getattr(layer, kind, {}).items():
                    if state is not None:
                        shape = tuple(state.shape[1:])
                        self._parts.append(Part(i, kind, number, shape, state.dtype))
        self._with_keys = {i for i, x in enumerate(layers) if getattr(x, "keys", None) is not None}
        self._numbers = {
            part.layer: int(getattr(layers[part.layer], "number_of_states", 1))
            for part in self._parts
        }
        self.nbytes = sum(
            torch.Size(part.shape).numel() * part.dtype.itemsize for part in self._parts
        )

    def __bool__(self) -> bool:
        return bool(self._parts)

    def into(self, cache: Cache, window: Window, rows: Sequence[State | None]) -> None:
        """Gives the layers of a pass the states of its rows; zeros, the state of no text, where
        there is none."""
        for number, part in enumerate(self._parts):
            layer: Any = cache.layers[part.layer]
            if not isinstance(layer, LinearAttentionLayer):
                both = part.layer in self._with_keys
                layer = _Both(window, part.layer) if both else LinearAttentionLayer()
                LinearAttentionLayer.__init__(layer, number_of_states=self._numbers[part.layer])
                layer.dtype, layer.device = part.dtype, self._device
                cache.layers[part.layer] = layer
            if all(row is None for row in rows):
                continue  # as the model begins itself
            zeros = torch.zeros(part.shape, dtype=part.dtype, device=self._device)
            stacked = torch.stack([zeros if row is None else row[number] for row in rows])
            getattr(layer, part.kind)[part.number] = stacked
            getattr(layer, f"is_{part.kind}_initialized")[part.number] = True
            layer.has_previous_state[part.number] = True
            if part.kind == "conv_states":
                layer.conv_kernel_size[part.number] = part.shape[-1]

    def out_of(self, cache: Cache) -> list[State]:
        """The states of the rows after the pass."""
        tensors = [
            getattr(cache.layers[part.layer], part.kind)[part.number].unbind()
            for part in self._parts
        ]
        return [tuple(row) for row in zip(*tensors, strict=True)]


class Snapshots:
    """States of texts under a byte budget.

    Args:
        capacity: bytes.

    Attributes:
        nbytes: what they take.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.nbytes = 0
        self._kept: OrderedDict[Tokens, State] = OrderedDict()
        self._lengths: dict[int, int] = {}  # how many there are of each length

    def keep(self, text: Tokens, state: State | None) -> None:
        """Remembers the state of a text, as a copy."""
        if state is None or not text:
            return
        if text in self._kept:
            self._kept.move_to_end(text)
            return
        size = _nbytes(state)
        if size > self._capacity:
            return
        while self.nbytes + size > self._capacity:
            old, gone = self._kept.popitem(last=False)
            self.nbytes -= _nbytes(gone)
            self._lengths[len(old)] -= 1
            if not self._lengths[len(old)]:
                del self._lengths[len(old)]
        # A row's state is a view of those of its whole pass.
        self._kept[text] = tuple(tensor.clone() for tensor in state)
        self._lengths[len(text)] = self._lengths.get(len(text), 0) + 1
        self.nbytes += size

    def longest(self, text: Tokens, most: int) -> tuple[int, State | None]:
        """The longest beginning of a text, of up to `most` tokens, of which the state is known: its
        length and the state; 0 and None if there is none."""
        for length in sorted(self._lengths, reverse=True):
            if length <= most and (state := self._kept.get(text[:length])) is not None:
                self._kept.move_to_end(text[:length])
                return length, state
        return 0, None

    def clear(self) -> None:
        """Forgets all."""
        self._kept.clear()
        self._lengths.clear()
        self.nbytes = 0


def _nbytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in state)
