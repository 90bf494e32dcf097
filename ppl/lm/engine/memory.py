"""Slots and prefix tree under one byte budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ppl.lm.engine.kv import KV
from ppl.lm.engine.layout import Layout
from ppl.lm.engine.prefix import PrefixPool
from ppl.lm.engine.runs import (
    MOST_PARTS,
    NO_HOLE,
    Match,
    Piece,
    Slot,
    Stem,
    Tokens,
    Trunk,
    independent,
)
from ppl.lm.engine.slots import Slots, bucket

# Tokens; slots that are longer than twice what is needed are kept up to here.
_LONG = 256
# Tokens that a row computes at least before it gives up what is outside of its window.
_SLACK = 32


@dataclass
class Sharing:
    """When rows that begin alike stand on one copy of it.

    Attributes:
        able: whether the model's attention can be taken in parts.
        price: tokens that have to be saved, over all rows, for one product more to pay.
        block: a trunk is longer by so many tokens or not at all; less is copied.
    """

    able: bool = False
    price: int = 0
    block: int = 64


class Memory:
    """What one model computed, and the room to compute more.

    Args:
        layout: what is kept of a token.
        capacity: bytes for keys, values and last hidden states. Up to half of it is for slots, the
            rest for what the prefix tree keeps besides.
        context_length: most tokens of a text; slots do not grow ahead beyond it.
        state_nbytes: what a row takes besides, however long it is.
        keeps: what is kept of keys and values.

    Attributes:
        slots, pool: where rows run, and the tree of what they computed.
        bytes_per_token: what a token takes in either.
        sharing: when rows stand on one copy.
        slides: whether rows give up what they do not look at any more.
        most: tokens that a slot then has, besides what its heads keep of others, as long as nothing
            longer is put into it at once.
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
        keeps: KV = KV(),  # noqa: B008 (a frozen value)
    ) -> None:
        self._state_nbytes = state_nbytes
        self.capacity, self._context_length = capacity, context_length
        self.bytes_per_token: int = layout.nbytes(dtype, keeps.int8)
        self.pool = PrefixPool(capacity, keeps)
        self.slots = Slots(layout, self.pool, dtype, device, keeps)
        self.pool.view = self.slots.view
        self.sharing = Sharing()
        self.slides = False
        group = 1 if keeps.evicts is None else keeps.evicts.group
        self.most = bucket(keeps.sinks + keeps.reach + 2 * group - 1 + _SLACK)

    @property
    def least(self) -> int:
        """Bytes of the shortest slot: with less, every row is beyond the budget."""
        return self._slot_nbytes(1)

    @property
    def peak_nbytes(self) -> int:
        """Most bytes that slots and tree took together."""
        return self.pool.held.most

    def batch_rows(self, length: int) -> int:
        """Most rows of `length` tokens that fit the byte budget, at least one."""
        return max(1, self.capacity // 2 // self._slot_nbytes(length))

    def free_rows(self, length: int, wanted: int = 1) -> int:
        """Most rows of `length` tokens that fit beside those that run, one at least. For those that
        are wanted, up to half of all that fit, others give way if they can."""
        most = self.batch_rows(length)
        missing = max(1, min(wanted, most // 2)) - (most - len(self.slots.busy))
        if missing > 0:
            self.slots.give_way(missing)
        return max(1, most - len(self.slots.busy))

    def pays(self, rows: int, tokens: int) -> bool:
        """Whether so many tokens with which so many rows begin should be one copy."""
        sharing = self.sharing
        few = tokens < sharing.block or self.bytes_per_token * tokens > self.capacity // 4
        return sharing.able and not few and (rows - 1) * tokens > sharing.price

    def crowded(self, tokens: int) -> bool:
        """Whether so long a text should be a copy to stand on, because the slots of all rows that
        run would be too long with it."""
        return tokens > self.slots.length and len(self.slots.busy) >= self.batch_rows(tokens)

    def fits(self, tokens: int) -> bool:
        """Whether so many tokens more can be where rows stand on them, which nobody can evict as
        long as these run: that may be as much as the slots may be."""
        segments = {part.segment for slot in self.slots.busy for part in slot.trunk}
        pinned = sum(segment.piece.nbytes for segment in segments)
        room = min(self.capacity // 2, self.capacity - self.slots.nbytes)
        return pinned + self.bytes_per_token * tokens <= room

    def trunk(self, match: Match) -> Trunk:
        """What rows that go on from there stand on."""
        return match.trunk(self.sharing.block)

    def reserve(self, rows: int, length: int, tokens: int = 0) -> None:
        """Makes sure of `rows` free slots of `length` tokens, within the byte budget, and of room
        for so many `tokens` outside of slots."""
        slots, pool = self.slots, self.pool
        count = len(slots.busy) + rows
        if length > slots.length or count > len(slots.all):
            count, length = self._shape_for(count, length)
            kept = self.bytes_per_token * sum(slot.tail for slot in slots.busy)
            largest = max(slots.nbytes, count * self._slot_nbytes(length)) + kept
            pool.capacity = max(0, self.capacity - largest)
            pool.trim()
            slots.rebuild(count, length)
            pool.capacity = max(0, self.capacity - slots.nbytes)
        pool.trim(self.bytes_per_token * tokens)

    def rest(
        self, text: Tokens, match: Match, weights: Mapping[Tokens, int], base: int = 0
    ) -> tuple[int, int]:
        """Tokens of a text that will be in its slot, and of what will be made for several rows.

        Args:
            match: what is known of it.
            weights: how many rows go on from a text; 1 where nothing is said.
            base: so many tokens will be in a trunk in any case.
        """
        trunk, rows = self.trunk(match), weights.get(text, 1)
        rest = len(text) - max(base, trunk[-1].stop if trunk else 0)
        few = len(trunk) < MOST_PARTS
        if not self.slides:
            return (1, rest) if few and self.pays(rows, rest) else (rest, 0)
        missing = len(text) - match.length
        if few and not any(edge.lost for edge in match.runs):
            # What does not fit in a slot of the window has memory of its own, also for one row.
            evicts = self.slots.keeps.evicts is not None
            alone = rest > self.most and (missing > _SLACK or evicts)
            if self.pays(1 << 30 if alone else rows, rest):
                return 1, rest
        keeps, slot = self.slots.keeps, match.through
        if keeps.evicts is not None:
            return (rest if slot is None else slot.column(match.length) + missing), 0
        return min(rest, max(self.most, keeps.sinks + keeps.reach + missing)), 0

    def slide(self, slots: Sequence[Slot], more: Sequence[int]) -> None:
        """Makes room in the slots of rows that would have more than a window, with so many tokens
        more."""
        if self.slides:
            for slot, count in zip(slots, more, strict=True):
                if slot.tail - slot.left + count > self.most:
                    self.slots.slide(slot, self.slots.keeps.reach)

    def _hole(self, base: int, length: int) -> tuple[int, int]:
        """What a row that goes on from there need not have in its slot."""
        keeps = self.slots.keeps
        start, stop = max(base, keeps.sinks), length - keeps.reach
        whole = not self.slides or keeps.evicts is not None
        return NO_HOLE if whole or stop <= start else (start, stop)

    def room(self, matches: Mapping[Tokens, Match], tokens: int, apart: Collection[Tokens]) -> bool:
        """Makes room outside of slots for what `place` moves there, and so many tokens besides;
        whether there was. If not, something was forgotten.

        Args:
            apart: texts to be made one copy before; who begins with one stands on it then.
        """
        own = self._own(
            {t: m for t, m in matches.items() if all(t[: len(text)] != text for text in apart)}
        )
        spare = self.slots.idle(set(own.values()))[: len(matches) - len(own)]
        moving = [edge for slot in spare for edge in slot.edges]
        for text, slot in own.items():
            moving += [edge for edge in slot.edges if edge.stop > matches[text].length]
        nbytes = self.pool.nbytes_of(moving) + self.bytes_per_token * tokens
        if self.pool.nbytes + nbytes <= self.pool.capacity:
            return True
        self.pool.trim(nbytes, {*spare, *own.values()})
        return False

    def _own(self, matches: Mapping[Tokens, Match]) -> dict[Tokens, Slot]:
        """Slots that texts take over, because what is known of them is there; but not where the
        slot has what the row could stand on, too, and would be longer than it need be."""
        own: dict[Tokens, Slot] = {}
        claimed: set[Slot] = set()
        for text, match in matches.items():
            slot = match.slot
            if slot is None or slot.busy or slot in claimed:
                continue
            trunk = self.trunk(match)
            short = slot.base >= (trunk[-1].stop if trunk else 0) or match.through is slot
            if short and self._goes_on(match, len(text) - match.length):
                own[text] = slot
                claimed.add(slot)
        return own

    def place(self, matches: dict[Tokens, Match]) -> dict[Tokens, Slot]:
        """A slot for each text with what is known of it: taken over, or copied to."""
        own = self._own(matches)
        spare = iter(self.slots.idle(set(own.values())))
        slots = {text: own[text] if text in own else next(spare) for text in matches}
        held = {
            text: _Held.of(slot, match.length)
            for text, match in matches.items()
            if text not in own and (slot := match.through) is not None
        }
        # All are taken before anything is written: taking a slot saves what others still need.
        for text, slot in slots.items():
            self.slots.take(slot, matches[text].length if text in own else 0)
        for text, slot in slots.items():
            if text in held:
                slot.stand(held[text].trunk)
                slot.hole, slot.left = held[text].hole, held[text].left
                self.slots.columns(slot, 0, held[text].count).copy_(
                    self.slots.columns(held[text].slot, 0, held[text].count)
                )
            elif text not in own:
                slot.stand(self.trunk(matches[text]))
                slot.hole = self._hole(slot.base, matches[text].length)
                for at, piece in self.beyond(matches[text], slot.base):
                    for start, part in _beside(slot.hole, at, piece):
                        self.slots.view(slot, start, start + len(part.states)).copy_(part)
            slot.length = matches[text].length
        return slots

    def _goes_on(self, match: Match, more: int) -> bool:
        """Whether its slot has all that a row looks at that goes on from there, and room for so
        many tokens more."""
        slot, length = match.slot, match.length
        if slot is None or not self.slides:
            return True
        start, stop = slot.hole
        keeps = self.slots.keeps
        there = length <= start or length - keeps.reach >= stop
        fits = keeps.evicts is not None or slot.column(length) + more <= self.most
        return there and fits

    def beyond(self, match: Match, base: int) -> Iterator[tuple[int, Piece]]:
        """Views of what was matched from a position on, each with the position it begins at."""
        for at, piece in self.pool.pieces(match):
            if at + len(piece.states) > base:
                yield max(at, base), piece[max(base - at, 0) :]

    def stems(self, matches: Mapping[Tokens, Match]) -> list[Stem]:
        """Of texts that are to be one copy each, the shorter ones first, those that need not wait
        for another of them."""
        now = independent({text: match.length for text, match in matches.items()})
        trunks = {text: self.trunk(matches[text]) for text in now}
        ends = {text: trunk[-1].stop if trunk else 0 for text, trunk in trunks.items()}
        return [Stem(t, trunks[t], self.beyond(matches[t], ends[t])) for t in now]

    def fork(self, slots: Sequence[Slot]) -> list[Slot]:
        """A new row for each of the given ones, which stands where that one stands.

        What they have in common is moved once to where all of them can stand on it; what is less
        than a block, or would cost more to read apart, is copied.
        """
        for slot, copies in Counter(slots).items():
            whole = slot.hole == NO_HOLE and len(slot.trunk) < MOST_PARTS
            if whole and self.pays(copies + 1, slot.tail) and self.fits(slot.tail):
                self.pool.trim(self.bytes_per_token * slot.tail)
                self.slots.seal(slot)
        self.reserve(len(slots), max(slot.tail for slot in slots))
        forks = self.slots.idle(set())[: len(slots)]
        moving = self.pool.nbytes_of(edge for fork in forks for edge in fork.edges)
        self.pool.trim(moving, set(forks))
        for fork, slot in zip(forks, slots, strict=True):
            self.slots.take(fork)
            fork.stand(slot.trunk)
            fork.length, fork.state = slot.length, slot.state
            fork.hole, fork.left = slot.hole, slot.left
            self.slots.content(fork).copy_(self.slots.content(slot))
        return forks

    def _shape_for(self, count: int, length: int) -> tuple[int, int]:
        """How many slots of which length to have where at least these are needed.

        Grows ahead where memory allows, so that growing stays rare; gives up what it must.
        """
        slots = self.slots
        needed = max([length, *(slot.tail for slot in slots.busy)])
        # Where a few long texts ran, the tails of many rows need no slots as long as theirs.
        most = slots.length if slots.length <= max(_LONG, 2 * needed) else needed
        ahead = min(slots.length * 3 // 2, self._context_length) if needed > slots.length else 0
        ahead = self.bounded(ahead) if needed <= self.most else ahead
        for wanted in (max(ahead, most), most, needed):
            if wanted >= needed and count <= self.batch_rows(wanted):
                needed = wanted
                break
        more = 2 * len(slots.all) if count > len(slots.all) else len(slots.all)
        return max(count, min(more, self.batch_rows(needed))), needed

    def bounded(self, tokens: int) -> int:
        """How many of so many tokens a row has in its slot at most."""
        evicts = self.slots.keeps.evicts
        kept = 0 if evicts is None else -(-tokens // evicts.group) * evicts.most
        return min(tokens, self.most + kept) if self.slides else tokens

    def _slot_nbytes(self, length: int) -> int:
        return self.bytes_per_token * (bucket(length) + 1) + self._state_nbytes


@dataclass(frozen=True)
class _Held:
    """What a slot holds, of which heads keep some, as long as nothing is written there.

    Attributes:
        slot: where.
        trunk, hole, left: of the slot.
        count: columns.
    """

    slot: Slot
    trunk: Trunk
    hole: tuple[int, int]
    left: int
    count: int

    @staticmethod
    def of(slot: Slot, length: int) -> _Held:
        """Up to a position of its text."""
        hole, left = (slot.hole, slot.left) if length > slot.hole[0] else (NO_HOLE, 0)
        return _Held(slot, slot.trunk, hole, left, slot.column(length))


def _beside(hole: tuple[int, int], at: int, piece: Piece) -> Iterator[tuple[int, Piece]]:
    """What of a piece at a position is before a hole, and what is behind it."""
    start, stop = hole
    for low, high in ((at, start), (max(at, stop), at + len(piece.states))):
        high = min(high, at + len(piece.states))
        if low < high:
            yield low, piece[low - at : high - at]
