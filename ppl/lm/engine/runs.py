"""What was computed for the tokens of texts, and where it is: the records of the engine's memory.

A slot is the place of one row; an edge is a run of tokens in the prefix tree. They point to each
other: a run lies in the slot of the row that computed it until that slot is needed. The tree
(`ppl.lm.engine.prefix`) and the slots (`ppl.lm.engine.slots`) are made of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

Tokens = tuple[int, ...]

State = tuple[Tensor, ...]
"""What the recurrent layers of a model know of a text (`ppl.lm.engine.recurrent`); not changed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a model computed for `T` neighbouring tokens of a text.

    Attributes:
        kv: for each shape that keys and values have, `[N, heads, T, head_dim]`.
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


class Slot:
    """The place of one row.

    Attributes:
        index: where in the tensor; rows that run side by side are moved side by side.
        length: positions, from 0 on, that are filled.
        edges: runs of the prefix tree that live here and nowhere else.
        busy: True while a row runs here.
        used: when it was last taken or left, for eviction.
        state: of a busy slot, the state of its row's text of `length` tokens; None for a model
            that has none, and for a row that has no tokens yet.
    """

    __slots__ = ("busy", "edges", "index", "length", "state", "used")

    def __init__(self, index: int) -> None:
        self.index, self.length, self.used = index, 0, 0
        self.busy = False
        self.edges: set[Edge] = set()
        self.state: State | None = None


@dataclass(eq=False, slots=True)
class Edge:
    """A run of tokens below a parent.

    Attributes:
        tokens: the run, `T` tokens.
        start: number of tokens before the run.
        piece: what was computed for them, None while in a slot.
        slot: where that is instead, at the positions from `start` on.
    """

    tokens: Tokens
    start: int
    piece: Piece | None
    slot: Slot | None
    parent: Edge | None
    children: dict[int, Edge] = field(default_factory=dict)
    used: int = 0

    @property
    def nbytes(self) -> int:
        """Memory of what the tree itself holds, in bytes; 0 if a slot holds it."""
        return 0 if self.piece is None else self.piece.nbytes


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


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Number of leading tokens that `a` and `b` share."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    return next(i for i in range(size) if a[i] != b[i])
