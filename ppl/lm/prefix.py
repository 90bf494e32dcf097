"""Prefix pool: a radix tree over token sequences whose edges own their keys and values.

A fork shares its ancestors' edges, so it costs nothing; a prompt is stored once however many
particles grow from it. Eviction is least-recently-used, leaves first, under a byte budget.
(The structure is that of SGLang's RadixAttention, Zheng et al. 2024, arXiv:2312.07104.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

Tokens = tuple[int, ...]


@dataclass(eq=False, slots=True)
class Edge:
    """A run of tokens below a parent.

    Attributes:
        tokens: the run, `T` tokens.
        kv: `[layers, 2, heads, T, head_dim]` keys and values of the run.
        hidden: `[hidden_size]` last hidden state at the run's last token, or None if unknown.
    """

    tokens: Tokens
    kv: Tensor | None
    hidden: Tensor | None
    parent: Edge | None
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
        pieces: `[layers, 2, heads, t, head_dim]` tensors whose `t` add up to `length`.
        hidden: last hidden state at the last covered token, if it is stored.
    """

    length: int
    pieces: tuple[Tensor, ...]
    hidden: Tensor | None


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of leading tokens that `a` and `b` share."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    return next(i for i in range(size) if a[i] != b[i])


class PrefixPool:
    """Keys and values of recently computed texts, shared by prefix.

    Args:
        capacity: bytes of keys and values to keep.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.nbytes = 0
        self.peak_nbytes = 0
        self._clock = 0
        self._root = Edge((), None, None, None)

    def match(self, tokens: Tokens) -> Match:
        """The longest stored prefix of `tokens`."""
        pieces: list[Tensor] = []
        length, hidden = 0, None
        for edge, shared in self._walk(tokens):
            assert edge.kv is not None
            whole = shared == len(edge.tokens)
            pieces.append(edge.kv if whole else edge.kv[:, :, :, :shared])
            length, hidden = length + shared, edge.hidden if whole else None
        return Match(length, tuple(pieces), hidden)

    def insert(self, tokens: Tokens, start: int, kv: Tensor, hidden: Tensor | None) -> None:
        """Stores what was computed for `tokens[start:]`.

        Args:
            tokens: the whole text.
            start: where `kv` begins.
            kv: `[layers, 2, heads, len(tokens) - start, head_dim]`; copied.
            hidden: `[hidden_size]` last hidden state at the last token, or None.
        """
        parent, length = self._root, 0
        for edge, shared in self._walk(tokens):
            parent = edge if shared == len(edge.tokens) else self._split(edge, shared)
            length += shared
        if length == len(tokens):
            if hidden is not None and parent.hidden is None:
                parent.hidden = hidden.clone()
            return
        if length < start:
            return  # the prefix was evicted meanwhile: nothing to hang this on
        edge = Edge(
            tokens[length:],
            kv[:, :, :, length - start :].clone(),
            None if hidden is None else hidden.clone(),
            parent,
            used=self._clock,
        )
        parent.children[edge.tokens[0]] = edge
        self.nbytes += edge.nbytes
        self.peak_nbytes = max(self.peak_nbytes, self.nbytes)

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
        assert edge.kv is not None
        assert edge.parent is not None
        before = edge.nbytes
        upper = Edge(edge.tokens[:at], edge.kv[:, :, :, :at].clone(), None, edge.parent)
        upper.used = edge.used
        edge.parent.children[upper.tokens[0]] = upper
        # Cloned, not sliced: a view would keep the whole run's memory alive.
        edge.tokens, edge.kv, edge.parent = edge.tokens[at:], edge.kv[:, :, :, at:].clone(), upper
        upper.children[edge.tokens[0]] = edge
        self.nbytes += upper.nbytes + edge.nbytes - before
        return upper

    def trim(self) -> None:
        """Evicts least recently used leaves until the pool fits its capacity."""
        while self.nbytes > self.capacity:
            leaves = sorted(self._leaves(), key=lambda e: e.used)
            if not leaves:
                return
            for leaf in leaves:
                if self.nbytes <= self.capacity:
                    return
                assert leaf.parent is not None
                del leaf.parent.children[leaf.tokens[0]]
                self.nbytes -= leaf.nbytes

    def _leaves(self) -> Iterator[Edge]:
        stack = list(self._root.children.values())
        while stack:
            edge = stack.pop()
            if edge.children:
                stack.extend(edge.children.values())
            else:
                yield edge

    def clear(self) -> None:
        """Forgets everything."""
        self._root = Edge((), None, None, None)
        self.nbytes = 0
