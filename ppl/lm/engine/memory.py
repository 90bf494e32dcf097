"""Slots and prefix tree under one byte budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ppl.lm.engine.layout import Layout
from ppl.lm.engine.prefix import PrefixPool
from ppl.lm.engine.runs import Match, Slot, Tokens
from ppl.lm.engine.slots import Slots, bucket


class Memory:
    """What one model computed, and the room to compute more.

    Args:
        layout: what is kept of a token.
        capacity: bytes for keys, values and last hidden states. Up to half of it is for slots, the
            rest for what the prefix tree keeps besides.
        context_length: most tokens of a text; slots do not grow ahead beyond it.
        state_nbytes: what a row takes besides, however long it is.

    Attributes:
        slots, pool: where rows run, and the tree of what they computed.
        bytes_per_token: what a token takes in either.
        peak_nbytes: most bytes that these took, slots and tree together.
    """

    def __init__(
        self,
        layout: Layout,
        dtype: torch.dtype,
        device: torch.device,
        *,
        capacity: int,
        context_length: int,
        state_nbytes: int = 0,
    ) -> None:
        self._state_nbytes = state_nbytes
        self.capacity, self._context_length = capacity, context_length
        self.bytes_per_token: int = layout.numbers * dtype.itemsize
        self.pool = PrefixPool(capacity)
        self.slots = Slots(layout, self.pool, dtype, device)
        self.pool.view = self.slots.view
        self.peak_nbytes = 0

    def batch_rows(self, length: int) -> int:
        """Most rows of `length` tokens that fit the byte budget, at least one."""
        return max(1, self.capacity // 2 // self._slot_nbytes(length))

    def reserve(self, rows: int, length: int) -> None:
        """Makes sure of `rows` free slots of `length` tokens, within the byte budget."""
        slots, pool = self.slots, self.pool
        count = len(slots.busy) + rows
        if length > slots.length or count > len(slots.all):
            count, length = self._shape_for(count, length)
            kept = self.bytes_per_token * sum(slot.length for slot in slots.busy)
            largest = max(slots.nbytes, count * self._slot_nbytes(length)) + kept
            pool.capacity = max(0, self.capacity - largest)
            pool.trim()
            slots.rebuild(count, length)
            self.peak_nbytes = max(self.peak_nbytes, largest + pool.nbytes)
            pool.capacity = max(0, self.capacity - slots.nbytes)
        pool.trim(self._in_idle_slots(rows))
        self.peak_nbytes = max(self.peak_nbytes, slots.nbytes + pool.nbytes)

    def place(self, matches: dict[Tokens, Match]) -> dict[Tokens, Slot]:
        """A slot for each text with what is known of it: taken over, or copied to."""
        own: dict[Tokens, Slot] = {}
        claimed: set[Slot] = set()
        for text, match in matches.items():
            if match.slot is not None and not match.slot.busy and match.slot not in claimed:
                own[text] = match.slot
                claimed.add(match.slot)
        spare = iter(self.slots.idle(claimed))
        slots = {text: own[text] if text in own else next(spare) for text in matches}
        # All are taken before anything is written: taking a slot saves what others still need.
        for text, slot in slots.items():
            self.slots.take(slot, matches[text].length if text in own else 0)
        for text, slot in slots.items():
            for at, piece in () if text in own else self.pool.pieces(matches[text]):
                self.slots.view(slot, at, at + len(piece.states)).copy_(piece)
            slot.length = matches[text].length
        return slots

    def fork(self, slots: Sequence[Slot]) -> list[Slot]:
        """A new row for each of the given ones, which stands where that one stands."""
        self.reserve(len(slots), max(slot.length for slot in slots))
        copies = self.slots.idle(set())[: len(slots)]
        for copy, slot in zip(copies, slots, strict=True):
            self.slots.take(copy)
            self.slots.view(copy, 0, slot.length).copy_(self.slots.view(slot, 0, slot.length))
            copy.length, copy.state = slot.length, slot.state
        return copies

    def _shape_for(self, count: int, length: int) -> tuple[int, int]:
        """How many slots of which length to have where at least these are needed.

        Grows ahead where memory allows, so that growing stays rare; gives up what it must.
        """
        slots = self.slots
        needed = max([length, *(slot.length for slot in slots.busy)])
        ahead = min(slots.length * 3 // 2, self._context_length) if needed > slots.length else 0
        for wanted in (max(ahead, slots.length), slots.length, needed):
            if wanted >= needed and count <= self.batch_rows(wanted):
                needed = wanted
                break
        more = 2 * len(slots.all) if count > len(slots.all) else len(slots.all)
        return max(count, min(more, self.batch_rows(needed))), needed

    def _slot_nbytes(self, length: int) -> int:
        return self.bytes_per_token * (bucket(length) + 1) + self._state_nbytes

    def _in_idle_slots(self, rows: int) -> int:
        """Bytes that the tree would have to take over if so many idle slots were needed."""
        idle = self.slots.idle(set())[:rows]
        return self.bytes_per_token * sum(len(e.tokens) for slot in idle for e in slot.edges)
