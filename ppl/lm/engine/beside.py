"""Low-rank adapters beside the weights of one model: several of them in one pass.

A layer of weight `W` gives `W x + B A x` for a row with an adapter (Hu et al. 2021,
arXiv:2106.09685; side by side in one batch as in Chen et al. 2023, arXiv:2310.18547). The thin
matrices of all adapters lie side by side: a pass makes one product with all `A`, leaves each row
the numbers of its own adapter, and adds one product with all `B`. Where steps are one program
(`ppl.lm.engine.whole`), that adds to each row what its own adapter gives (`lowrank.h`).

What a model computed for a text depends on the adapter. So a text carries the number of its adapter
in its first token, above the bits of the id: whatever compares texts (prefix tree, snapshots, what
rows have in common) keeps texts of different adapters apart without knowing of adapters.

Symbols: `B` rows of a pass, `Q` tokens of each, `R` the ranks of all adapters together.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from ppl.errors import PromptError, UnsupportedModelError
from ppl.lm.engine.linear import JoinedPart
from ppl.lm.engine.runs import Tokens

_BITS = 32
ID = (1 << _BITS) - 1
"""The bits of a token that are its id."""

Pair = tuple[Tensor, Tensor]
"""`A [r, in]` and `B [out, r]`, the latter scaled."""


def marked(text: Tokens, number: int) -> Tokens:
    """A text as the engine knows it, with the number of its adapter; 0 is the model alone.

    Raises:
        PromptError: its first token is no token id.
    """
    if not text:
        return text
    if text[0] > ID:
        raise PromptError(f"{text[0]} is no token id; make texts with lm.prompt, lm.chat or encode")
    return (text[0] + (number << _BITS), *text[1:]) if number else text


def number_of(text: Tokens) -> int:
    """The number of a text's adapter."""
    return text[0] >> _BITS


@dataclass
class _Running:
    """The rows of the running pass.

    Attributes:
        whose: marks the engine: several may be of one model.
        numbers: `[B]` the adapter of each.
        width: `Q`.
        alone: the number that all have, None if they differ.
        kept: `[B, R]` for each order in which adapters lie: 1 where a number is a row's own.
    """

    whose: object
    numbers: Sequence[int]
    width: int
    alone: int | None
    kept: dict[tuple[tuple[int, int], ...], Tensor] = field(default_factory=dict)


# Each thread has its own.
_running: ContextVar[_Running | None] = ContextVar("_running", default=None)


def running_numbers() -> Sequence[int] | None:
    """Of the rows of the running pass their adapters; None where none has one."""
    running = _running.get()
    return None if running is None else running.numbers


class Share(NamedTuple):
    """A layer's pair in a product of several layers: so many of the adapter's numbers there are for
    so many outputs, from the first on."""

    rank: int
    first: int
    outputs: int


class Thin:
    """The adapters that one engine has of a layer.

    Args:
        name, sizes: of the layer, inputs and outputs.
        whose: marks the engine.

    Attributes:
        calls: how often the layer was computed for rows with adapters.
        hook: with which the layer asks.
    """

    hook: RemovableHandle

    def __init__(self, name: str, sizes: tuple[int, int], whose: object) -> None:
        self.name, self._whose = name, whose
        self._inputs, self._outputs = sizes
        self._order: tuple[tuple[int, int], ...] = ()  # (number, rank) as they lie
        self._shares: dict[int, Sequence[Share]] = {}
        self._a, self._b = torch.zeros(0, sizes[0]), torch.zeros(0, sizes[1])
        self.calls = 0

    @property
    def numbers(self) -> set[int]:
        """Those that change the layer."""
        return {number for number, _ in self._order}

    def put(self, number: int, a: Tensor, b: Tensor, shares: Sequence[Share]) -> None:
        """Adds `[r, in]` and `[r, out]` for an adapter."""
        if not self._order:
            self._a, self._b = a, b
        else:
            self._a, self._b = torch.cat([self._a, a]), torch.cat([self._b, b])
        self._order += ((number, len(a)),)
        self._shares[number] = shares

    def drop(self, numbers: set[int]) -> None:
        """Forgets adapters."""
        kept = [i for i, (number, _) in enumerate(self._order) if number not in numbers]
        if len(kept) < len(self._order):
            ranks = [rank for _, rank in self._order]
            for name in ("_a", "_b"):
                whole: Tensor = getattr(self, name)
                parts = torch.split(whole, ranks)
                setattr(self, name, torch.cat([whole[:0], *(parts[i] for i in kept)]))
            self._order = tuple(self._order[i] for i in kept)
            self._shares = {number: self._shares[number] for number, _ in self._order}

    def of(self, number: int) -> tuple[Tensor, Tensor, Sequence[Share]] | None:
        """An adapter's `[r, in]` and `[r, out]`, and which of these are for which outputs; None
        where it leaves the layer alone."""
        at = 0
        for other, rank in self._order:
            if other == number:
                return self._a[at : at + rank], self._b[at : at + rank], self._shares[number]
            at += rank
        return None

    def __call__(self, layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A hook: the layer's output `[..., out]` and what the rows' adapters add to it."""
        if torch.compiler.is_compiling():  # the layer is run by an operator, and asks then
            return output
        running = _running.get()
        if running is None or running.whose is not self._whose:
            return output
        self.calls += 1
        rows, x = len(running.numbers), given[0]
        of_rows = x.dim() > 2 and len(x) == rows  # some read all that is kept of a row
        if not of_rows and x.numel() != rows * running.width * self._inputs:
            raise UnsupportedModelError(
                f"{self.name} is given {tuple(x.shape)} where a pass has {rows} rows of "
                f"{running.width} tokens, so that each row's adapter is not known; put the adapter "
                "into the weights, as ppl.load(model, adapter=folder) does"
            )
        a, b, kept = self._a, self._b, None
        if running.alone is not None:
            own = self.of(running.alone)
            if own is None:
                return output
            a, b, _ = own
        elif not self._order or self.numbers.isdisjoint(running.numbers):
            return output
        else:
            kept = self._kept(running, a)
        low = x.reshape(-1, self._inputs) @ a.T
        if kept is not None:
            low = (low.view(rows, -1, low.shape[-1]) * kept[:, None]).flatten(0, 1)
        flat = output.reshape(-1, self._outputs)
        return flat.addmm_(low, b).view(output.shape)

    def _kept(self, running: _Running, like: Tensor) -> Tensor:
        if self._order not in running.kept:
            owners = [number for number, rank in self._order for _ in range(rank)]
            own = torch.tensor(running.numbers)[:, None] == torch.tensor(owners)
            running.kept[self._order] = own.to(like)
        return running.kept[self._order]


class Adapters:
    """The adapters that texts of one engine may have.

    Attributes:
        agrees: whether passes that are one program give what the layers give.
        laid: of each adapter what such a program has made of where its matrices are; forgotten when
            they move.
    """

    def __init__(self) -> None:
        self._last, self._mark = 0, object()
        self._thin: dict[nn.Module, Thin] = {}
        self._rows: list[int] | None = None  # of the pass that comes next
        self._gone: deque[int] = deque()
        self.agrees = True
        self.laid: dict[int, Any] = {}

    @property
    def there(self) -> bool:
        """Whether any layer has one."""
        return bool(self._thin)

    def plain(self, ids: NDArray[Any]) -> NDArray[Any]:
        """The ids of a text, of which the first may have the mark of an adapter, without it."""
        if 0 < ids[0] >> _BITS <= self._last:
            ids[0] &= ID
        return ids

    def add(self, model: nn.Module, pairs: Mapping[str, Pair], usual: Tensor) -> int:
        """Adds an adapter and returns its number.

        Args:
            model: whose layers are named.
            pairs: by the name of the layer.
            usual: a tensor of the model's dtype, on its device.
        """
        self._sweep()
        hosts: dict[nn.Module, list[tuple[str, Pair, int]]] = {}
        for place, pair in pairs.items():
            layer, at = model.get_submodule(place), 0
            if isinstance(layer, JoinedPart):
                sizes = layer.joined.sizes
                at, layer = sum(sizes[: layer.number]), layer.layer
            hosts.setdefault(layer, []).append((place, pair, at))
        self._last += 1
        try:
            self._put(hosts, usual)
        except BaseException:
            self.drop({self._last})
            raise
        return self._last

    def _put(self, hosts: Mapping[nn.Module, list[tuple[str, Pair, int]]], usual: Tensor) -> None:
        """Gives each layer its thin matrices; their columns begin where it is said."""
        for host, entries in hosts.items():
            if host not in self._thin:
                self._thin[host] = thin = Thin(entries[0][0], _sizes(host), self._mark)
                thin.hook = host.register_forward_hook(thin)
            like = _like(host, usual)
            shares = [Share(len(low), column, len(wide)) for _, (low, wide), column in entries]
            a = torch.cat([low for _, (low, _), _ in entries]).to(like)
            b, at = like.new_zeros(len(a), _sizes(host)[1]), 0
            for (_, (_, wide), _), (rank, first, outputs) in zip(entries, shares, strict=True):
                b[at : at + rank, first : first + outputs] = wide.T.to(like)
                at += rank
            self._thin[host].put(self._last, a, b, shares)
        self.laid.clear()

    def beside(self, layer: nn.Module) -> Thin | None:
        """Those of one layer."""
        return self._thin.get(layer)

    def belongs(self, number: int, holder: object) -> None:
        """Lets an adapter go when its holder goes: nobody asks for it then."""
        weakref.finalize(holder, self._gone.append, number).atexit = False

    def drop(self, numbers: set[int]) -> None:
        """Forgets adapters. A layer that has none is what it was."""
        self.laid.clear()
        for host, thin in list(self._thin.items()):
            thin.drop(numbers)
            if not thin.numbers:
                thin.hook.remove()
                del self._thin[host]
        if not self._thin:
            self.agrees = True  # what was not alike is gone

    def _sweep(self) -> None:
        """Forgets those of which the holder is gone."""
        gone = set()
        while self._gone:
            gone.add(self._gone.popleft())
        if gone:
            self.drop(gone)

    def calls(self, model: nn.Module, number: int) -> dict[str, int]:
        """How often each layer of a model that an adapter changes was computed for rows with
        adapters."""
        layers = set(model.modules())
        return {
            thin.name: thin.calls
            for layer, thin in self._thin.items()
            if layer in layers and number in thin.numbers
        }

    def seat(self, texts: Sequence[Tokens], where: Sequence[int], rows: int) -> None:
        """Says which row of the pass that comes next has which text."""
        self._sweep()
        self._rows = None  # of a pass that failed before it began, if there is any left
        if self._thin:
            self._rows = [0] * rows
            for row, text in zip(where, texts, strict=True):
                self._rows[row] = number_of(text)
            idle = set(range(rows)) - set(where)
            for row in idle:  # they compute for nobody: as the others, if these are alike
                self._rows[row] = self._rows[where[0]]

    def seated(self, width: int) -> AbstractContextManager[None]:
        """Around the pass of the rows that were seated."""
        numbers, self._rows = self._rows, None
        return self.running(numbers or [], width)

    def running(self, numbers: Sequence[int], width: int = 1) -> AbstractContextManager[None]:
        """Around what is computed for rows with these adapters."""
        alone = numbers[0] if numbers and len(set(numbers)) == 1 else None
        if alone == 0 or not numbers:
            return contextlib.nullcontext()
        return _while(_Running(self._mark, numbers, width, alone))


@contextlib.contextmanager
def _while(running: _Running) -> Iterator[None]:
    token = _running.set(running)
    try:
        yield
    finally:
        _running.reset(token)


def _sizes(layer: Any) -> tuple[int, int]:
    """Inputs and outputs of a layer."""
    if hasattr(layer, "in_features"):
        return int(layer.in_features), int(layer.out_features)
    inputs, outputs = layer.weight.shape  # Conv1D
    return int(inputs), int(outputs)


def _like(layer: nn.Module, usual: Tensor) -> Tensor:
    """A tensor of the dtype and on the device in which the layer computes."""
    plain = isinstance(layer, nn.Linear | Conv1D)  # packed weights are slow to look at
    weight: Any = layer.weight if plain else usual
    like: Tensor = weight.detach()
    return like
