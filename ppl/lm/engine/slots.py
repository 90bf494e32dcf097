"""Slots: the memory in which rows keep what was computed for them while, and after, they run.

One tensor holds all slots; a row writes each token at its own place in its own slot, so rows of
different lengths need neither padding nor concatenation. A slot whose row has stopped keeps its
content: the prefix tree points to it, and a text that goes on from there takes the slot over
without copying anything. What several rows begin with is in no slot, but in segments on which they
stand (`ppl.lm.engine.runs`); a slot has the rest. Besides keys and values a slot keeps last hidden
states (some tenth of the memory), from which logits and scores are read again without a pass.

Symbols: `R` slots, `L` positions of a slot, `H` key-value heads, `D` head size, `N` keys or values
of one shape, over all layers (`ppl.lm.engine.layout`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from ppl.lm.engine.kv import KV, rounded, stored
from ppl.lm.engine.layout import Layout
from ppl.lm.engine.packing import pack
from ppl.lm.engine.prefix import PrefixPool
from ppl.lm.engine.runs import NO_HOLE, Part, Piece, Slot

Place = tuple[tuple[int, int], tuple[int, int]]
"""In which group of the layout keys and values are, and as the how manieth there."""

# Slot lengths are multiples of this.
_BUCKET = 64


def bucket(length: int) -> int:
    """The slot length that a text of so many tokens gets."""
    return -(-max(length, 1) // _BUCKET) * _BUCKET


class Slots:
    """All slots of one engine.

    Args:
        layout: what is kept of a token.
        pool: the prefix tree; what it has in a slot is moved out before the slot is written over.

        keeps: what is kept of keys and values.

    Attributes:
        layout, keeps: as given.
        kv: for each shape that keys and values have, `[N, R, H, L + 1, D]`; padding writes to the
            last position, which nobody reads. In eight bits, then as many with their scales, of
            which `D` is 1. Where heads give tokens up, then scores of all layers, in float32, of
            which `D` is 1, too.
        states: `[R, L + 1, hidden_size]` last hidden states.
        swaps: slots exchanged so far, for tests and profiles.
        generation: how often the memory was allocated.
        clock: counts slots taken and left; of a busy slot, `used` says when it was taken.
        give_way: called with how many slots too few there are for what is to be scored: rows of
            running batches may leave theirs.
    """

    def __init__(
        self,
        layout: Layout,
        pool: PrefixPool,
        dtype: torch.dtype,
        device: torch.device,
        keeps: KV = KV(),  # noqa: B008 (a frozen value)
    ) -> None:
        self.layout, self.dtype, self.device = layout, dtype, device
        self.keeps = keeps
        self.kv, self.states = self._zeros(0, 1)
        self.all: list[Slot] = []
        self.pool = pool
        self.swaps = self.generation = 0
        self.clock = 0
        self.give_way: Callable[[int], None] = lambda rows: None

    @property
    def length(self) -> int:
        """Tokens that every slot can hold."""
        return self.states.shape[1] - 1

    @property
    def nbytes(self) -> int:
        """Memory of all slots, in bytes."""
        return sum(group.nbytes for group in self.kv) + self.states.nbytes

    def _zeros(self, rows: int, length: int) -> tuple[tuple[Tensor, ...], Tensor]:
        like = torch.zeros(0, dtype=self.dtype, device=self.device)
        shapes = [(count, rows, heads, length, dim) for count, (heads, dim) in self.layout.groups]
        kept = torch.int8 if self.keeps.int8 else self.dtype
        kv = tuple(like.new_zeros(*shape, dtype=kept) for shape in shapes)
        if self.keeps.int8:
            kv += tuple(like.new_zeros(*shape[:-1], 1) for shape in shapes)
        if self.layout.scored:
            shape = len(self.layout.layers), rows, self.layout.scored, length, 1
            kv += (like.new_zeros(*shape, dtype=torch.float32),)
        return kv, like.new_zeros(rows, length, self.layout.hidden)

    def piece(self, length: int) -> Piece:
        """Memory of its own for so many tokens."""
        kv, states = self._zeros(1, length)
        return Piece(tuple(group[:, 0] for group in kv), states[0])

    @property
    def busy(self) -> list[Slot]:
        """Slots in which a row runs, in their order."""
        return [s for s in self.all if s.busy]

    def view(self, slot: Slot, start: int, stop: int) -> Piece:
        """What the slot itself holds from one position of its text to another, both on one side of
        its hole."""
        at = slot.column(start)
        return self.columns(slot, at, at + stop - start)

    def columns(self, slot: Slot, start: int, stop: int) -> Piece:
        """What is in some of its columns."""
        own = slice(start, stop)
        kv = tuple(group[:, slot.index, :, own] for group in self.kv)
        return Piece(kv, self.states[slot.index, own])

    def content(self, slot: Slot) -> Piece:
        """All that the slot itself holds."""
        return self.columns(slot, 0, slot.tail)

    def states_of(self, slot: Slot, start: int) -> Tensor:
        """A copy of the last hidden states `[n, hidden]` of its row from a position on."""
        parts = [part.states(start) for part in slot.trunk if part.stop > start]
        own = self.states[slot.index, max(start - slot.base, 0) : slot.tail]
        return torch.cat([*parts, own])

    def rebuild(self, rows: int, length: int) -> None:
        """Allocates anew: `rows` slots of `length` tokens.

        Old and new memory never exist side by side: what running rows hold is set aside, what
        others have left goes to the tree, which forgets what exceeds its capacity.
        """
        for slot in sorted(self.all, key=lambda s: s.used):
            if not slot.busy:
                self.pool.trim(self.pool.nbytes_of(slot.edges), {slot})
                self.empty(slot)
        self.generation += 1
        busy = self.busy
        contents = [self.content(slot).clone() for slot in busy]
        kept = sum(content.nbytes for content in contents)
        self.pool.held.aside(self.nbytes + kept)
        self.kv, self.states = (), self.states.new_zeros(0)  # freed before the next line allocates
        try:
            self.kv, self.states = self._zeros(rows, bucket(length) + 1)
        except BaseException:  # out of memory: nothing is known any more, and nothing runs
            self.kv, self.states = self._zeros(0, 1)
            self.pool.held.aside(0)
            self.pool.clear()
            for slot in self.all:
                slot.busy = False
                slot.forget()
            self.all = []
            raise
        self.pool.held.aside(self.nbytes + kept)
        for index, (slot, content) in enumerate(zip(busy, contents, strict=True)):
            slot.index = index
            self.content(slot).copy_(content)
        self.all = busy + [Slot(i) for i in range(len(busy), rows)]
        self.pool.held.aside(self.nbytes)

    def empty(self, slot: Slot, keep: int = 0) -> None:
        """Frees a slot from position `keep` on; what the tree has only there is copied out."""
        for edge in [e for e in slot.edges if e.stop > keep]:
            if edge.slot is slot:
                self.pool.settle(edge)
            slot.edges.discard(edge)  # which whoever interrupted its move had not done
        slot.shorten(min(slot.length, keep))
        if slot.length <= slot.base:
            slot.forget()

    def seal(self, slot: Slot) -> None:
        """Moves what a row has in its slot to where other rows can stand on it, too."""
        piece = self.view(slot, slot.base, slot.length).clone()
        segment = self.pool.segment(piece, slot.base, trunk=True)
        trunk = (*slot.trunk, Part(segment, slot.base, slot.length))
        # Whoever interrupts leaves each run in the slot or in the segment, which hold the same.
        for edge in tuple(slot.edges):
            edge.segment, edge.slot = segment, None
            slot.edges.discard(edge)
        slot.stand(trunk)

    def slide(self, slot: Slot, keep: int) -> None:
        """Gives up what a row does not look at any more: all but its last tokens, so many, and the
        sinks, or what its heads keep. The tree still knows the text, but not what was computed
        there."""
        evicts = self.keeps.evicts
        group = 1 if evicts is None else evicts.group
        first = -(-max(slot.base, self.keeps.sinks) // group) * group
        start, behind = (first, first) if slot.hole == NO_HOLE else slot.hole
        stop = (slot.length - keep) // group * group
        if stop <= behind:
            return
        for edge in [e for e in slot.edges if e.stop > start and e.start < stop]:
            self.pool.lose(edge, start, stop)
        rest = self.view(slot, stop, slot.length).clone()
        if evicts is not None:
            low, high = start - slot.base, slot.column(stop)
            whole = self.columns(slot, low, high)
            slot.left = pack(whole.kv, self.layout.owners, evicts, slot.left)
        slot.hole = start, stop
        self.view(slot, stop, slot.length).copy_(rest)

    def take(self, slot: Slot, keep: int = 0) -> Slot:
        """Gives a slot to a row that goes on after the first `keep` tokens of its content."""
        self.empty(slot, keep)
        self.clock += 1
        slot.busy, slot.used = True, self.clock
        return slot

    def leave(self, slot: Slot) -> None:
        """The row is over; its content stays until the slot is needed."""
        self.clock += 1
        slot.busy, slot.used, slot.state = False, self.clock, None
        if not slot.edges:
            slot.forget()

    def drop(self, slot: Slot) -> None:
        """The row has failed: of its content only what the tree has there counts."""
        self.leave(slot)
        slot.shorten(max((e.stop for e in slot.edges), default=0))

    def drop_since(self, clock: int) -> None:
        """All rows have failed that took a slot since the clock stood there."""
        for slot in self.busy:
            if slot.used > clock:
                self.drop(slot)

    def idle(self, but: set[Slot]) -> list[Slot]:
        """Slots that can be taken: empty ones first, then the least recently used."""
        free = [s for s in self.all if not s.busy and s not in but]
        return sorted(free, key=lambda s: (s.length > 0, s.used))

    def window(self, low: int, columns: Tensor, visible: int) -> Window:
        """What a pass over the slots from `low` on sees."""
        rows = slice(low, low + len(columns))
        kv = tuple(group[:, rows] for group in self.kv)
        where = None
        if self.keeps.gives_up and any(slot.hole != NO_HOLE for slot in self.all[rows]):
            ends = [(s.hole[0] - s.base + s.left, s.hole, s.left) for s in self.all[rows]]
            holes = [(at, hole[1] - hole[0] - left, left) for at, hole, left in ends]
            where = torch.tensor(holes, device=self.device)
        window = Window(self.layout, kv, self.states[rows], columns, visible)
        if where is not None:
            window.holes, window.left = where[:, :2].contiguous(), where[:, 2]
        return window

    def addressed(self, slots: Sequence[Slot], columns: Tensor, visible: int) -> Window:
        """What a pass sees of which each row has the number of its slot: slots may be anywhere, and
        several rows in one."""
        where = torch.tensor([slot.index for slot in slots], device="cpu")
        return Window(self.layout, self.kv, self.states, columns, visible, where)

    def gather(self, slots: Sequence[Slot], spread: float) -> tuple[int, int]:
        """The range `[low, high)` of indices that a pass over the given slots covers.

        Slots inside the range that are not asked for compute along, unseen by anyone; where they
        would be more than `spread` times as many as the others, slots are exchanged first.
        """
        low, high = min(s.index for s in slots), max(s.index for s in slots) + 1
        if high - low <= (1 + spread) * len(slots):
            return low, high
        wanted = set(slots)
        # Behind the rows that run on but take no part: they need not move again afterwards. And
        # from there on where most of the rows are already: they stay.
        others = sum(s.busy for s in self.all if s not in wanted)
        before = [0, *itertools.accumulate(s in wanted for s in self.all)]
        starts = range(min(others, len(self.all) - len(slots)), len(self.all) - len(slots) + 1)
        low = max(starts, key=lambda start: before[start + len(slots)] - before[start])
        high = low + len(slots)
        inside = [s for s in self.all[low:high] if s not in wanted]
        outside = [s for s in slots if not low <= s.index < high]
        for a, b in zip(inside, outside, strict=True):
            self._swap(a, b)
        return low, high

    def _swap(self, a: Slot, b: Slot) -> None:
        i, j, size, other = a.index, b.index, a.tail, b.tail
        moves: list[Callable[[], None]] = []  # nothing is moved of an empty one
        if other:
            moves.append(partial(self.columns(a, 0, other).copy_, self.content(b)))
        if size:
            moves.append(partial(self.columns(b, 0, size).copy_, self.content(a).clone()))

        def exchange() -> None:
            self.all[i], self.all[j], a.index, b.index = b, a, j, i

        moves.append(exchange)
        at = 0
        try:
            for at, move in enumerate(moves):  # noqa: B007
                move()
        except BaseException:
            # Either may be a row of others. Each move may be made twice until the next is begun.
            for move in moves[at:]:
                move()
            raise
        self.swaps += 1


class Window:
    """What one forward pass sees of the memory, in the form in which transformers asks for it.

    Args:
        layout: what is kept of a token.
        kv, states: the memory of the `B` rows that the pass covers, as those of `Slots`.
        columns: `[B, Q]` places, in this memory, to which the pass writes.
        visible: places that its queries may look at.
        slots: `[B]` in which of the memory's rows each row of the pass is, where several may be in
            one; None where each has its own.

    Attributes:
        kv, states, columns, visible, slots: as given.
        holes: `[B, 2]` where, in places, each row's hole is, and how many tokens have no place
            there; None where no row has one.
        left: `[B]` how many places before it have what heads keep of the hole.
        int8: whether keys and values are in eight bits, and handed out as copies.
    """

    def __init__(
        self,
        layout: Layout,
        kv: tuple[Tensor, ...],
        states: Tensor,
        columns: Tensor,
        visible: int,
        slots: Tensor | None = None,
    ) -> None:
        self.kv, self.states, self._places = kv, states, layout.places
        rows = torch.arange(len(columns), device=columns.device) if slots is None else slots
        self._rows = rows[:, None]
        self.columns, self.slots = columns, slots
        self.visible = visible
        self.holes: Tensor | None = None
        self.left: Tensor | None = None
        self.int8 = bool(kv) and kv[0].dtype == torch.int8
        self._handed: dict[int, tuple[int, int]] = {}

    def cache(self) -> Cache:
        """What is handed to the model. Not kept here: in a cycle of references the memory would
        outlive its pass, and old slots their successors, until Python's collector comes by."""
        return Cache(layers=[WindowLayer(self, i) for i in range(len(self._places))])

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, H, L + 1, D]` of all positions of a layer, as they lie."""
        (group, at), (other, there) = self.place(number)
        return self.kv[group][at], self.kv[other][there]

    def place(self, number: int) -> Place:
        """Where a layer's keys and values are, see `ppl.lm.engine.layout`."""
        place = self._places[number]
        if place is None:
            raise RuntimeError(f"layer {number} writes keys and values, and kept none before")
        return place

    def holder(self, tensor: Tensor) -> tuple[int, int]:
        """Of which group, and which of it, keys or values are that a pass hands to attention."""
        address, shape = tensor.data_ptr(), (tensor.shape[1], tensor.shape[3])
        if address in self._handed:
            return self._handed[address]
        for number, group in enumerate(self.kv):
            step = group.stride(0) * group.element_size()
            at, beside = divmod(address - group.data_ptr(), step)
            if not beside and at in range(len(group)) and group.shape[2::2] == shape:
                return number, at
        raise RuntimeError("attention is handed other keys and values than the cache holds")

    def stands_for(self, copy: Tensor, tensor: Tensor) -> None:
        """Lets a copy be handed to attention in the place of keys or values."""
        self._handed[copy.data_ptr()] = self.holder(tensor)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes new keys and values `[B, H, Q, D]` at each row's columns; returns those of the
        layer, `[B, H, visible, D]`: views, or copies from eight bits."""
        one, two = self.place(layer)
        return self._write(one, keys), self._write(two, values)

    def _write(self, place: tuple[int, int], new: Tensor) -> Tensor:
        group, at = place
        parts = rounded(new) if self.int8 else (new,)
        for i, part in enumerate(parts):
            own = self.kv[group + i * (len(self.kv) // 2)][at]
            # Advanced indices around a slice put the row and position axes first: [B, Q, H, D].
            own[self._rows, :, self.columns] = part.transpose(1, 2)
        numbers = stored(self.kv, group, at, slice(self.visible))
        if self.int8:  # the address of a copy that is gone may be that of another by now
            self._handed[numbers.data_ptr()] = place
        return numbers

    def scores(self, layer: int) -> Tensor:
        """Scores `[B, H, L + 1]` of all positions of a layer, as they lie."""
        return self.kv[-1][layer].squeeze(-1)

    def rate(self, layer: int, scores: Tensor) -> None:
        """Writes scores `[B, H, Q]` at each row's columns."""
        self.scores(layer)[self._rows, :, self.columns] = scores.transpose(1, 2).to(self.kv[-1])

    def keep(self, states: Tensor) -> None:
        """Writes the pass's last hidden states `[B, Q, hidden]`."""
        self.states[self._rows, self.columns] = states


class WindowLayer(CacheLayerMixin):
    """One layer of a `Window`."""

    def __init__(self, window: Window, index: int) -> None:
        super().__init__()
        self._window, self._index = window, index
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes `[B, H, Q, D]` at each row's columns; returns `[B, H, visible, D]` views."""
        return self._window.write(self._index, key_states, value_states)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the memory is there before the first pass."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask speaks about."""
        return self._window.visible, 0

    def get_seq_length(self) -> int:
        """Positions that the pass sees."""
        return self._window.visible

    def get_max_length(self) -> int:
        """As many: the memory does not grow within a pass."""
        return self._window.visible
