"""What was computed for the tokens of texts, and where it is: the records of the engine's memory.

A slot is the place of one row; an edge is a run of tokens in the prefix tree. They point to each
other: a run lies in the slot of the row that computed it until that slot is needed, or until other
rows go on from there. Then it moves to a segment, which never changes: rows that begin alike stand
on the same segments, their trunk, and have only the rest in their slots. The tree
(`ppl.lm.engine.prefix`) and the slots (`ppl.lm.engine.slots`) are made of these.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

Tokens = tuple[int, ...]

State = tuple[Tensor, ...]
"""What the recurrent layers of a model know of a text (`ppl.lm.engine.recurrent`); not changed."""

NO_HOLE = (0, 0)

# Each part of a trunk is read by a product of its own.
MOST_PARTS = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """What a model computed for `T` neighbouring tokens of a text.

    Attributes:
        kv: for each shape that keys and values have, `[N, heads, T, head_dim]`; more, see `Slots`.
        states: `[T, hidden_size]` last hidden states.
    """

    kv: tuple[Tensor, ...]
    states: Tensor

    @property
    def nbytes(self) -> int:
        """Memory of the tensors, in bytes."""
        return sum(group.nbytes for group in self.kv) + self.states.nbytes

    def __getitem__(self, tokens: slice) -> Piece:
        """A view."""
        return Piece(tuple(group[:, :, tokens] for group in self.kv), self.states[tokens])

    def clone(self) -> Piece:
        """A copy with memory of its own."""
        return Piece(tuple(group.clone() for group in self.kv), self.states.clone())

    def copy_(self, other: Piece) -> None:
        """Writes another piece of the same `T` over this one."""
        for group, others in zip(self.kv, other.kv, strict=True):
            group.copy_(others)
        self.states.copy_(other.states)


@dataclass(slots=True)
class Held:
    """Bytes of all segments that anybody refers to.

    Attributes:
        nbytes: these.
        beside: those of the slots, and of what is set aside while these are made anew.
        most: most of both together.
    """

    nbytes: int = 0
    beside: int = 0
    most: int = 0

    def add(self, nbytes: int) -> None:
        """There is so much more."""
        self.nbytes += nbytes
        self.most = max(self.most, self.nbytes + self.beside)

    def aside(self, nbytes: int) -> None:
        """So much there is besides."""
        self.beside = nbytes
        self.add(0)


class Segment:
    """What was computed for a run of tokens, in memory of its own. It lives as long as an edge or
    a row refers to it, and counts as held so long.

    Args:
        piece: of the tokens.
        start: number of tokens before the run.
        held: where its bytes are counted.
        trunk: whether it was made for several rows, which stand on it; else who goes on from it
            takes a copy.

    Attributes:
        rows: how many slots stand on it.
    """

    __slots__ = ("_held", "piece", "rows", "start", "trunk")

    def __init__(self, piece: Piece, start: int, held: Held, trunk: bool = False) -> None:
        self.piece, self.start, self.trunk, self.rows = piece, start, trunk, 0
        self._held = held
        held.add(piece.nbytes)

    def __del__(self) -> None:
        self._held.nbytes -= self.piece.nbytes

    def view(self, start: int, stop: int) -> Piece:
        """What it holds from one position of the text to another."""
        return self.piece[start - self.start : stop - self.start]


class Part(NamedTuple):
    """A stretch of a trunk, from one position of the text to another."""

    segment: Segment
    start: int
    stop: int

    @property
    def piece(self) -> Piece:
        """A view."""
        return self.segment.view(self.start, self.stop)

    def states(self, start: int) -> Tensor:
        """A view of the last hidden states `[n, hidden_size]` from a position of the text on."""
        first = self.segment.start
        return self.segment.piece.states[max(start, self.start) - first : self.stop - first]


Trunk = tuple[Part, ...]
"""Parts, one after the other, from position 0 on."""


class Stem(NamedTuple):
    """A text that will be a segment from the end of a trunk on, for several rows to stand on.

    Attributes:
        text: up to where.
        trunk: on which the new part stands.
        known: what need not be computed, from the trunk on, each with its position.
    """

    text: Tokens
    trunk: Trunk
    known: Iterable[tuple[int, Piece]]


class Slot:
    """The place of one row.

    Attributes:
        index: where in the tensor; rows that run side by side are moved side by side.
        trunk: what the row has in common with others, and has not here.
        base: tokens of the trunk; the slot begins with the token at this position.
        length: positions, from 0 on, that are filled, those of the trunk and the hole included.
        hole: positions, from one to another, whose content was given up because the row does not
            look there any more; what follows lies where they were.
        left: columns with what heads keep of the hole, each of other positions; before what
            follows.
        edges: runs of the prefix tree that live here and nowhere else.
        busy: True while a row runs here.
        used: when it was last taken or left, for eviction.
        state: of a busy slot, the state of its row's text of `length` tokens; None for a model
            that has none, and for a row that has no tokens yet.
    """

    __slots__ = (
        *("base", "busy", "edges", "hole", "index", "left", "length", "state", "trunk", "used"),
    )

    def __init__(self, index: int) -> None:
        self.index, self.length, self.used = index, 0, 0
        self.busy = False
        self.edges: set[Edge] = set()
        self.state: State | None = None
        self.trunk: Trunk = ()
        self.base = self.left = 0
        self.hole = NO_HOLE

    @property
    def tail(self) -> int:
        """Tokens that are in the slot itself."""
        return self.column(self.length)

    def column(self, position: int) -> int:
        """Where in the slot a position of the text is; what is left of the hole is before its
        end."""
        start, stop = self.hole
        return position - self.base - (stop - start - self.left if position >= stop else 0)

    def stand(self, trunk: Trunk) -> None:
        """Lets the row begin with a trunk."""
        before, base = self.trunk, trunk[-1].stop if trunk else 0
        self.trunk, self.base, self.hole, self.left = trunk, base, NO_HOLE, 0
        # Whoever interrupts leaves too few, with which runs are forgotten too early, not never.
        for part in before:
            part.segment.rows -= 1
        for part in trunk:
            part.segment.rows += 1

    def shorten(self, length: int) -> None:
        """Of the content, only this much counts from now on."""
        self.length = length
        if length <= self.hole[0]:
            self.hole, self.left = NO_HOLE, 0

    def forget(self) -> None:
        """Nothing is here any more."""
        self.stand(())
        self.length, self.state = 0, None


@dataclass(eq=False, slots=True)
class Edge:
    """A run of tokens below a parent.

    Attributes:
        tokens: the run, `T` tokens.
        start: number of tokens before the run.
        segment: has what was computed for them, None while a slot has it.
        slot: where that is instead, at the positions from `start` on. Neither, if it was given up:
            a row had left it behind.
    """

    tokens: Tokens
    start: int
    segment: Segment | None
    slot: Slot | None
    parent: Edge | None
    children: dict[int, Edge] = field(default_factory=dict)
    used: int = 0

    @property
    def stop(self) -> int:
        """Number of tokens up to the end of the run."""
        return self.start + len(self.tokens)

    @property
    def lost(self) -> bool:
        """Whether what was computed for them was given up."""
        return self.segment is None and self.slot is None

    @property
    def needed(self) -> bool:
        """Whether forgetting it frees nothing, because a row has it in any case."""
        return self.segment is None or self.segment.rows > 0


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored prefix of a text.

    Attributes:
        length: tokens covered.
        runs: the edges that cover them, in order.
    """

    length: int
    runs: tuple[Edge, ...]

    @property
    def slot(self) -> Slot | None:
        """The slot that holds all of the covered tokens, if one does."""
        return self.runs[-1].slot if self.runs else None

    def cut(self, length: int) -> Match:
        """The same for the first `length` tokens only."""
        if length >= self.length:
            return self
        return Match(length, tuple(edge for edge in self.runs if edge.start < length))

    def usable(self, reach: int, first: int | None = None) -> Match:
        """The longest beginning from which a text can go on where some runs are lost, sinks never.

        Args:
            reach: so many tokens before its end have to be there.
            first: and all from here on.
        """
        length = self.length
        for edge in reversed(self.runs):
            near = edge.stop > length - reach or (first is not None and edge.stop > first)
            if near and edge.lost and edge.start < length:
                length = edge.start
        return self.cut(length)

    def packed(self, reach: int, first: int | None = None) -> Match:
        """The longest beginning from which a text can go on where runs are lost of which heads kept
        some: only a slot has what they kept.

        Args:
            reach: so many tokens before its end have to be there as they were.
            first: and all from here on.
        """
        lost = [edge for edge in self.runs if edge.lost]
        if not lost:
            return self
        slot = self.slot
        there = slot is not None and (first is None or first >= lost[-1].stop)
        if there and slot is not None and slot.hole != NO_HOLE:
            there = not slot.hole[0] < self.length < slot.hole[1] + reach
        return self if there else self.cut(lost[0].start)

    @property
    def through(self) -> Slot | None:
        """The slot that alone has what heads kept of lost runs; None where no run is lost."""
        return self.slot if any(edge.lost for edge in self.runs) else None

    def trunk(self, least: int) -> Trunk:
        """What rows that go on from here stand on.

        Args:
            least: a last part of fewer tokens is left out.
        """
        parts: list[Part] = []
        for edge in self.runs:
            segment, stop = edge.segment, min(edge.stop, self.length)
            if segment is None or not segment.trunk:
                break
            # A segment still has its beginning where another text has founded that anew: in as few
            # parts as there are, what was long enough to stand on stays so.
            while parts and parts[-1].start >= segment.start:
                parts.pop()
            if parts and parts[-1].stop > segment.start:
                parts[-1] = parts[-1]._replace(stop=segment.start)
            parts.append(Part(segment, segment.start, stop))
        del parts[MOST_PARTS:]
        while parts and parts[-1].stop - parts[-1].start < least:
            parts.pop()
        return tuple(parts)


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of leading tokens that `a` and `b` share."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    return bisect_left(range(size), True, key=lambda i: a[: i + 1] != b[: i + 1])


def independent(known: Mapping[Tokens, int]) -> list[Tokens]:
    """Texts, the shorter ones first, none of which needs what is computed for another of them: it
    does not begin with that one, nor with more of it than is known.

    Args:
        known: of each text, from the shortest on, how many first tokens are.
    """
    chosen: list[Tokens] = []
    for text, length in known.items():
        shared = [(common_prefix(text, other), len(other)) for other in chosen]
        if all(size < whole and size <= length for size, whole in shared):
            chosen.append(text)
    return chosen


def common_keys(a: Slot, text: Tokens, b: Slot, other: Tokens) -> int:
    """How many first keys two slots have in common, of whose texts they hold the beginnings."""
    if a.trunk != b.trunk:
        return 0
    if (a.hole, b.hole) != (NO_HOLE, NO_HOLE):  # what lies at one place is of several positions
        return 0
    return max(0, common_prefix(text[: a.length], other[: b.length]) - a.base)
