"""Prefix tree: which tokens are computed, and where what was computed is.

A radix tree over token sequences. A run of tokens has its keys, values and last hidden states
either in the slot of the row that computed it (see `ppl.lm.engine.slots`) or, once that slot was
needed or several rows went on from there, in a segment (see `ppl.lm.engine.runs`). A fork shares
its ancestors' runs; a prompt is stored once however many particles grow from it; a text that goes
on in its slot makes its run longer, so that texts grown token by token stay few runs. Eviction is
least-recently-used, leaves first, under a byte budget.
(The structure is that of SGLang's RadixAttention, Zheng et al. 2024, arXiv:2312.07104.)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor

from ppl.lm.engine.kv import KV
from ppl.lm.engine.runs import Edge, Held, Match, Piece, Segment, Slot, Tokens, common_prefix

# What a slot holds from one position to another.
View = Callable[[Slot, int, int], Piece]


class PrefixPool:
    """The tree and the segments that its runs, and running rows, refer to.

    Args:
        capacity: bytes to keep outside slots.

    Attributes:
        held: the bytes of all segments.
        keeps: what rows keep of keys and values: some runs may be lost.
        view: reads a run out of a slot; set by whoever owns the slots.
    """

    def __init__(self, capacity: int, keeps: KV = KV()) -> None:  # noqa: B008 (a frozen value)
        self.capacity, self.keeps = capacity, keeps
        self.held = Held()
        self.view: View | None = None
        self._clock = 0
        self._root = _root()

    @property
    def nbytes(self) -> int:
        """Memory outside of slots, in bytes; that of running rows included."""
        return self.held.nbytes

    def segment(self, piece: Piece, start: int, trunk: bool = False) -> Segment:
        """A segment whose bytes are counted here."""
        return Segment(piece, start, self.held, trunk)

    def match(self, tokens: Tokens, first: int | None = None) -> Match:
        """The longest stored prefix of `tokens` from which a row can go on.

        Args:
            first: what follows this position is wanted, too, not only that row.
        """
        match = self.known(tokens)
        if self.keeps.evicts is not None:
            return match.packed(self.keeps.reach, first)
        return match.usable(self.keeps.reach, first) if self.keeps.window else match

    def known(self, tokens: Tokens) -> Match:
        """The longest stored prefix of `tokens`, whether or not a row can go on from there."""
        runs: list[Edge] = []
        length = 0
        for edge, shared in self._walk(tokens):
            runs.append(edge)
            length += shared
        return Match(length, tuple(runs))

    def after(self, tokens: Tokens, most: int) -> tuple[Tokens, Tensor] | None:
        """The tokens, up to `most`, that always followed a text, and last hidden states
        `[1 + n, hidden]` of the text and of each of them; None where nothing is known of the text,
        or it went on in several ways."""
        runs = list(self._walk(tokens))
        if self.keeps.gives_up or not runs or runs[-1][0].stop < len(tokens):
            return None
        if sum(shared for _, shared in runs) < len(tokens):
            return None
        edges = [edge for edge, _ in runs]
        while edges[-1].stop < len(tokens) + most and len(edges[-1].children) == 1:
            edges.extend(edges[-1].children.values())
            edges[-1].used = self._clock
        length = min(edges[-1].stop, len(tokens) + most)
        if length == len(tokens):
            return None
        found = [token for edge in edges for token in edge.tokens][len(tokens) : length]
        return tuple(found), self.states(Match(length, tuple(edges)), len(tokens) - 1)

    def read(self, edge: Edge, size: int) -> Piece:
        """A view of the first `size` tokens of a run, wherever they are."""
        if edge.segment is not None:
            return edge.segment.view(edge.start, edge.start + size)
        assert edge.slot is not None
        assert self.view is not None
        return self.view(edge.slot, edge.start, edge.start + size)

    def pieces(self, match: Match) -> Iterator[tuple[int, Piece]]:
        """Views that together hold all that was matched, each with the position it begins at.

        Whatever slot holds a run holds everything before it, too, or stands on it: few large pieces
        instead of one for every run.
        """
        in_slots = [i for i, edge in enumerate(match.runs) if edge.slot is not None]
        at = 0
        if in_slots and not self.keeps.gives_up:
            edge = match.runs[in_slots[-1]]
            at = min(edge.stop, match.length)
            assert edge.slot is not None
            assert self.view is not None
            for part in edge.slot.trunk:
                yield part.start, part.piece
            yield edge.slot.base, self.view(edge.slot, edge.slot.base, at)
        for edge in match.runs:
            if edge.start >= at and not edge.lost:
                yield edge.start, self.read(edge, min(len(edge.tokens), match.length - edge.start))

    def states(self, match: Match, start: int) -> Tensor:
        """A copy of the last hidden states `[n, hidden_size]` from position `start` to the end of
        what was matched."""
        parts = []
        for edge in match.runs:
            size = min(len(edge.tokens), match.length - edge.start)
            if edge.start + size > start:
                parts.append(self.read(edge, size).states[max(start - edge.start, 0) :])
        return torch.cat(parts)

    def insert(self, tokens: Tokens, slot: Slot) -> None:
        """Makes known what a slot holds: everything about `tokens`, from position 0 on, but what is
        in its hole."""
        start, stop = slot.hole
        if self.keeps.gives_up:
            for end in slot.hole:
                self.cut(tokens[:end])
        parent, length = self._end_of(tokens)
        if self.keeps.gives_up:
            for edge, _ in self._walk(tokens):
                there = edge.stop <= start or edge.start >= stop
                if edge.lost and there and edge.start >= slot.base:
                    edge.slot = slot
                    slot.edges.add(edge)
        for part in slot.trunk:
            if length < part.stop:
                parent = self._grow(parent, tokens[length : part.stop], part.segment)
                length = part.stop
        for end, whose in (start, slot), (stop, None), (len(tokens), slot):
            if length >= end:
                continue
            if parent.slot is not None and parent.slot is whose and not parent.children:
                parent.tokens += tokens[length:end]
            else:
                parent = self._grow(parent, tokens[length:end], None)
                if whose is not None:
                    parent.slot = whose
                    whose.edges.add(parent)
            length = end

    def found(self, tokens: Tokens, segment: Segment) -> None:
        """Makes known what a segment holds: all of `tokens` from its start on, where one of the
        runs ends. What was elsewhere until now is there from now on."""
        edge, length = self._end_of(tokens)
        if length < len(tokens):
            self._grow(edge, tokens[length:], segment)
        while edge.parent is not None and edge.start >= segment.start:
            if edge.slot is not None:
                _leave(edge)
            edge.segment, edge.slot, edge = segment, None, edge.parent

    def _end_of(self, tokens: Tokens) -> tuple[Edge, int]:
        """The edge that ends where the longest stored prefix of `tokens` does, and its length."""
        parent, length = self._root, 0
        for edge, shared in self._walk(tokens):
            parent = edge if shared == len(edge.tokens) else self._split(edge, shared)
            length += shared
        return parent, length

    def _grow(self, parent: Edge, tokens: Tokens, segment: Segment | None) -> Edge:
        edge = Edge(tokens, parent.stop, segment, None, parent, used=self._clock)
        parent.children[tokens[0]] = edge
        return edge

    def cut(self, tokens: Tokens) -> int:
        """Lets a run end where the longest stored prefix of `tokens` ends; returns its length.

        What goes on from there may take the slot over; then only the rest need be copied out of it.
        """
        return self._end_of(tokens)[1]

    def settle(self, edge: Edge) -> None:
        """Copies a run out of its slot into memory of its own."""
        slot = edge.slot
        assert slot is not None
        piece = self.read(edge, len(edge.tokens)).clone()
        # Whoever interrupts leaves a run where its slot knows of it, or nowhere in a slot.
        edge.segment, edge.slot = self.segment(piece, edge.start), None
        slot.edges.discard(edge)

    def lose(self, edge: Edge, start: int, stop: int) -> None:
        """Its slot gives up what is between two positions."""
        if edge.start < start:
            self._split(edge, start - edge.start)
        if edge.stop > stop:
            edge = self._split(edge, stop - edge.start)
        _leave(edge)
        edge.slot = None

    def _walk(self, tokens: Tokens) -> Iterator[tuple[Edge, int]]:
        """Edges along `tokens` with the number of their tokens that agree; touches them."""
        self._clock += 1
        edge, position = self._root, 0
        while position < len(tokens):
            child = edge.children.get(tokens[position])
            if child is None:
                return
            child.used = self._clock
            run, end = child.tokens, position + len(child.tokens)  # the caller may split the edge
            there = tokens[position:end]
            if there != run:
                yield child, common_prefix(run, there)
                return
            yield child, len(run)
            edge, position = child, end

    def _split(self, edge: Edge, at: int) -> Edge:
        """Cuts `edge` after `at` tokens; returns the new upper half."""
        assert edge.parent is not None
        upper = Edge(edge.tokens[:at], edge.start, edge.segment, edge.slot, edge.parent)
        upper.used = edge.used
        if edge.slot is not None:
            edge.slot.edges.add(upper)
        edge.parent.children[upper.tokens[0]] = upper
        edge.tokens, edge.start, edge.parent = edge.tokens[at:], edge.start + at, upper
        upper.children[edge.tokens[0]] = edge
        return upper

    def nbytes_of(self, edges: Iterable[Edge]) -> int:
        """What runs take, wherever they are."""
        return sum(self.read(edge, len(edge.tokens)).nbytes for edge in edges)

    def trim(self, spare: int = 0, leaving: Collection[Slot] = ()) -> None:
        """Evicts least recently used leaves until the runs' own memory fits the capacity.

        A leaf in a slot takes no memory here; it goes only where its parents must, or where there
        is no room to move it.

        Args:
            spare: bytes of the capacity to leave free.
            leaving: slots that are needed, out of which their runs would move to here; `spare` has
                them. What is evicted of these needs no room.
        """
        limit = self.capacity - spare
        if self.nbytes <= limit:
            return
        queue = [(leaf.needed, leaf.used, id(leaf), leaf) for leaf in self._leaves()]
        heapq.heapify(queue)
        while self.nbytes > limit and queue:
            *_, leaf = heapq.heappop(queue)
            parent = leaf.parent
            assert parent is not None
            del parent.children[leaf.tokens[0]]
            if leaf.slot is not None:
                limit += self.nbytes_of([leaf]) if leaf.slot in leaving else 0
                _leave(leaf)
            elif leaf.segment is parent.segment and not leaf.needed:
                self._shorten(parent)
            del leaf  # and with it its segment
            if not parent.children and parent.parent is not None:
                heapq.heappush(queue, (parent.needed, parent.used, id(parent), parent))

    def _shorten(self, last: Edge) -> None:
        """Gives back the end of a segment, of which the tree has no more than up to this edge."""
        whole, edges = last.segment, [last]
        while (above := edges[-1].parent) is not None and above.segment is whole:
            edges.append(above)
        assert whole is not None
        start = edges[-1].start
        if self.nbytes + whole.view(start, last.stop).nbytes > self.capacity:
            return  # there is no room for both; its bytes go with the last of its runs
        kept = self.segment(whole.view(start, last.stop).clone(), start, whole.trunk)
        for edge in edges:
            edge.segment = kept

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
                _leave(edge)
            edge.segment = None  # edges refer to each other, and would keep it alive
        self._root = _root()


def _leave(edge: Edge) -> None:
    """Takes a run out of its slot; a slot that nobody needs any more has nothing."""
    slot = edge.slot
    assert slot is not None
    slot.edges.discard(edge)
    if not slot.busy and not slot.edges:
        slot.forget()


def _root() -> Edge:
    return Edge((), 0, None, None, None)
