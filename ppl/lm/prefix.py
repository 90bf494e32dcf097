"""Prefix tree: which keys and values are known, and where they are.

A radix tree over token sequences. A run of tokens has its keys either in the slot of the row that
computed it (see `ppl.lm.slots`) or, once that slot was needed, in memory of its own. A fork shares
its ancestors' runs; a prompt is stored once however many particles grow from it; a text that goes
on in its slot makes its run longer, so that texts grown token by token stay few runs. Eviction is
least-recently-used, leaves first, under a byte budget.
(The structure is that of SGLang's RadixAttention, Zheng et al. 2024, arXiv:2312.07104.)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ppl.lm.slots import Slot

Tokens = tuple[int, ...]
# Reads `[layers, 2, heads, stop - start, head_dim]` from a slot.
View = Callable[["Slot", int, int], Tensor]


@dataclass(eq=False, slots=True)
class Edge:
    """A run of tokens below a parent.

    Attributes:
        tokens: the run, `T` tokens.
        start: number of tokens before the run.
        kv: `[layers, 2, heads, T, head_dim]` keys and values of the run, None while in a slot.
        slot: where they are instead, at the positions from `start` on.
        states: `[hidden_size]` last hidden states, by the number of the run's tokens up to there;
            only where a text has ended.
    """

    tokens: Tokens
    start: int
    kv: Tensor | None
    slot: Slot | None
    parent: Edge | None
    states: dict[int, Tensor] = field(default_factory=dict)
    children: dict[int, Edge] = field(default_factory=dict)
    used: int = 0

    @property
    def nbytes(self) -> int:
        return 0 if self.kv is None else self.kv.nbytes


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored prefix of a text.

    Attributes:
        length: tokens covered.
        runs: the edges that cover them, in order.
        hidden: last hidden state at the last covered token, if it is stored.
    """

    length: int
    runs: tuple[Edge, ...]
    hidden: Tensor | None

    @property
    def slot(self) -> Slot | None:
        """The slot that holds all of the covered tokens, if one does."""
        return self.runs[-1].slot if self.runs else None


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of leading tokens that `a` and `b` share."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    return next(i for i in range(size) if a[i] != b[i])


class PrefixPool:
    """The tree and the memory that its runs own.

    Args:
        capacity: bytes of keys and values to keep outside slots.

    Attributes:
        view: reads a run out of a slot; set by whoever owns the slots.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.nbytes = 0
        self.view: View | None = None
        self._clock = 0
        self._root = _root()

    def match(self, tokens: Tokens) -> Match:
        """The longest stored prefix of `tokens`."""
        runs: list[Edge] = []
        length, hidden = 0, None
        for edge, shared in self._walk(tokens):
            runs.append(edge)
            length, hidden = length + shared, edge.states.get(shared)
        return Match(length, tuple(runs), hidden)

    def read(self, edge: Edge, size: int) -> Tensor:
        """Keys and values of the first `size` tokens of a run, wherever they are."""
        if edge.kv is not None:
            return edge.kv[:, :, :, :size]
        assert edge.slot is not None
        assert self.view is not None
        return self.view(edge.slot, edge.start, edge.start + size)

    def insert(self, tokens: Tokens, hidden: Tensor | None, *, slot: Slot) -> None:
        """Makes known what a slot holds.

        Args:
            tokens: the text whose keys and values are in the slot, from position 0 on.
            hidden: `[hidden_size]` last hidden state at the last token, or None.
            slot: where they are.
        """
        parent, length = self._root, 0
        for edge, shared in self._walk(tokens):
            parent = edge if shared == len(edge.tokens) else self._split(edge, shared)
            length += shared
        if length < len(tokens):
            if parent.slot is slot and not parent.children:
                parent.tokens += tokens[length:]
            else:
                edge = Edge(tokens[length:], length, None, slot, parent, used=self._clock)
                parent.children[edge.tokens[0]] = edge
                slot.edges.add(edge)
                parent = edge
        if hidden is not None and len(parent.tokens) not in parent.states:
            parent.states[len(parent.tokens)] = hidden.clone()

    def cut(self, tokens: Tokens) -> None:
        """Lets a run end where the longest stored prefix of `tokens` ends.

        What goes on from there may take the slot over; then only the rest need be copied out of it.
        """
        for edge, shared in self._walk(tokens):
            if shared < len(edge.tokens):
                self._split(edge, shared)

    def settle(self, edge: Edge) -> None:
        """Copies a run out of its slot into memory of its own."""
        assert edge.slot is not None
        kv = self.read(edge, len(edge.tokens)).clone()
        edge.slot.edges.discard(edge)
        edge.kv, edge.slot = kv, None
        self.nbytes += kv.nbytes

    def _walk(self, tokens: Tokens) -> Iterator[tuple[Edge, int]]:
        """Edges along `tokens` with the number of their tokens that agree; touches them."""
        self._clock += 1
        edge, position = self._root, 0
        while position < len(tokens):
            child = edge.children.get(tokens[position])
            if child is None:
                return
            child.used = self._clock
            end = position + len(child.tokens)
            shared = common_prefix(child.tokens, tokens[position:end])
            whole = shared == len(child.tokens)  # asked now: the caller may split the edge
            yield child, shared
            if not whole:
                return
            edge, position = child, end

    def _split(self, edge: Edge, at: int) -> Edge:
        """Cuts `edge` after `at` tokens; returns the new upper half."""
        assert edge.parent is not None
        upper = Edge(edge.tokens[:at], edge.start, None, edge.slot, edge.parent)
        upper.states = {n: state for n, state in edge.states.items() if n <= at}
        edge.states = {n - at: state for n, state in edge.states.items() if n > at}
        upper.used = edge.used
        if edge.kv is not None:
            # Cloned, not sliced: a view would keep the whole run's memory alive.
            upper.kv, edge.kv = edge.kv[:, :, :, :at].clone(), edge.kv[:, :, :, at:].clone()
        elif edge.slot is not None:
            edge.slot.edges.add(upper)
        edge.parent.children[upper.tokens[0]] = upper
        edge.tokens, edge.start, edge.parent = edge.tokens[at:], edge.start + at, upper
        upper.children[edge.tokens[0]] = edge
        return upper

    def trim(self, spare: int = 0) -> None:
        """Evicts least recently used leaves until the runs' own memory fits the capacity.

        A leaf in a slot takes no memory here; it goes only where its parents must.

        Args:
            spare: bytes of the capacity to leave free.
        """
        limit = max(0, self.capacity - spare)
        if self.nbytes <= limit:
            return
        queue = [(leaf.slot is not None, leaf.used, id(leaf), leaf) for leaf in self._leaves()]
        heapq.heapify(queue)
        while self.nbytes > limit and queue:
            *_, leaf = heapq.heappop(queue)
            parent = leaf.parent
            assert parent is not None
            del parent.children[leaf.tokens[0]]
            self.nbytes -= leaf.nbytes
            if leaf.slot is not None:
                leaf.slot.edges.discard(leaf)
            if not parent.children and parent.parent is not None:
                heapq.heappush(queue, (parent.slot is not None, parent.used, id(parent), parent))

    def _leaves(self) -> Iterator[Edge]:
        for edge in self._edges():
            if not edge.children:
                yield edge

    def _edges(self) -> Iterator[Edge]:
        stack = list(self._root.children.values())
        while stack:
            edge = stack.pop()
            yield edge
            stack.extend(edge.children.values())

    def clear(self) -> None:
        """Forgets everything, also what is in slots."""
        for edge in self._edges():
            if edge.slot is not None:
                edge.slot.edges.discard(edge)
        self._root = _root()
        self.nbytes = 0


def _root() -> Edge:
    return Edge((), 0, None, None, None)
