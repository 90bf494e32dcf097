"""How the rows of a pass attend: which apart, and which read a common beginning only once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from ppl.lm.engine.runs import Slot, Tokens, common_keys

# Tokens a row up to which rows read a common beginning together.
MOST_TOGETHER = 16

# More calls than this cost more than they save.
_MOST_SPANS = 6


class Span(NamedTuple):
    """Neighbouring rows that attend together.

    Attributes:
        start, stop: the rows.
        keys: as many as the longest of them has.
        shared: so many first keys are the same in all of them.
        source: a row that has these.
    """

    start: int
    stop: int
    keys: int
    shared: int = 0
    source: int = 0


def split(reach: Sequence[int]) -> list[Span] | None:
    """Rows apart that need fewer than half of the keys of the longest; None if it does not pay.

    Args:
        reach: how many keys each row of a pass needs, in order.
    """
    longest = max(reach)
    if 2 * sum(reach) > longest * len(reach):  # little is wasted on short rows
        return None
    spans, start = [], 0
    for _, group in groupby(reach, lambda keys: 2 * keys > longest):
        needed = list(group)
        spans.append(Span(start, start + len(needed), max(needed)))
        start += len(needed)
    return spans if len(spans) <= _MOST_SPANS else None


def share(
    spans: Sequence[Span], rows: Sequence[int], common: Sequence[int], price: int
) -> list[Span]:
    """Marks, and divides, spans whose rows begin alike.

    Args:
        spans: what a pass is divided into already.
        rows: the rows that matter, in order; others lie among them and compute for nobody.
        common: `[len(rows) - 1]` how many keys each of them shares with the next.
        price: keys that have to be saved, over all rows, for one product more to pay.

    Returns:
        At most `_MOST_SPANS` spans, or the given ones.
    """

    def saved(first: int, last: int) -> int:
        return (last - first) * min(common[first:last], default=0)

    # Runs of `rows`, both ends included; none reaches from one span into another.
    ends = [bisect_left(rows, span.stop) for span in spans]
    runs = [(a, b - 1) for a, b in zip([0, *ends], ends, strict=False) if a < b]
    while len(runs) < _MOST_SPANS:
        splits = []
        for a, b in runs:
            if a < b:
                at = min(range(a, b), key=common.__getitem__)
                splits.append((saved(a, at) + saved(at + 1, b) - saved(a, b), a, at, b))
        more, a, at, b = max(splits, default=(0, 0, 0, 0))
        if more <= price:
            break
        where = runs.index((a, b))
        runs[where : where + 1] = [(a, at), (at + 1, b)]
    if len(runs) > _MOST_SPANS or max((saved(a, b) for a, b in runs), default=0) <= price:
        return list(spans)
    marked = []
    for span in spans:
        inside = [(a, b) for a, b in runs if span.start <= rows[a] < span.stop]
        if not inside:
            marked.append(span)
        starts = [span.start, *(rows[a] for a, _ in inside[1:]), span.stop]
        for (a, b), start, stop in zip(inside, starts, starts[1:], strict=False):
            shared = min(common[a:b]) if saved(a, b) > price else 0
            marked.append(Span(start, stop, span.keys, shared, rows[a]))
    return marked


class Common:
    """What the rows of a pass have in common, known as long as the same rows run.

    Args:
        least: keys that have to be saved, over all rows, for short rows to attend apart.
    """

    def __init__(self, least: int = 0) -> None:
        self._least = least
        self._running: list[tuple[int, int, tuple[int, int]]] = []
        self._keys: list[int] = []

    def spans(
        self,
        slots: Sequence[Slot],
        texts: Sequence[Tokens],
        where: Sequence[int],
        positions: Sequence[int],
        width: int,
        price: int,
    ) -> list[Span] | None:
        """How the rows of a pass attend: which apart, and which read a beginning only once.

        Args:
            slots, texts: of the rows that matter; of each text its slot holds the first tokens.
            where: at which rows of the pass they are.
            positions: the last of each row of the pass, counted from the end of its trunk.
            width: tokens a row.
            price: as of `ppl.lm.engine.passes.Passes`.
        """
        spans = split([position + 1 for position in positions])
        if spans is not None and self._least:
            read = sum((span.stop - span.start) * span.keys for span in spans)
            if (max(positions) + 1) * len(positions) - read <= self._least:
                spans = None
        if width > MOST_TOGETHER or (len(slots) - 1) * max(positions) <= price:
            return spans
        order = sorted(range(len(slots)), key=where.__getitem__)
        # Unique to the row, not to the slot; a row may move to another trunk.
        running = [(slots[i].used, slots[i].base, slots[i].hole) for i in order]
        if running != self._running:
            # Rows that go on keep what they have in common: known until others run.
            self._running = running
            self._keys = [
                common_keys(slots[i], texts[i], slots[j], texts[j]) for i, j in pairwise(order)
            ]
        if (len(slots) - 1) * max(self._keys, default=0) <= price:
            return spans  # no run of rows has more in common
        whole = spans or [Span(0, len(positions), max(positions) + 1)]
        marked = share(whole, [where[i] for i in order], self._keys, price)
        # One span of rows that share nothing is a pass like any other, and can be captured.
        return marked if len(marked) > 1 or marked[0].shared else None
