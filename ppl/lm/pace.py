"""When guesses of next tokens are worth computing: what passes cost, how often guesses are right,
and what has come of those that were computed.

What passes cost belongs to the machine and the model, how often guesses are right to what is
written: both are kept from batch to batch. Nothing that is drawn depends on any of it.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

# As if so many guesses of a kind had been made, of which this part was right.
_BEFORE, _RIGHT = 4.0, 0.3
# Counts are halved when there are so many, so that what was long ago counts for less.
_MANY = 64.0
# Seconds of so many passes of a size are kept, and for so many passes in all.
_TIMES, _AGE = 9, 400
# By so much a pass with guesses has to be better: what is chosen is what was estimated too well.
_WORTH = 1.05
# Guesses that are less likely right than this, with all before them, are not considered.
_HOPELESS = 0.05
# As if of so many passes that rows should have been spared all were; what is older counts less.
_SPARED, _OLDER = 2.0, 0.97
# Passes that guesses may cost more than they spare, that are saved up when they spare more, and
# that are allowed anew with each pass.
_DEBT, _SAVED, _ANEW = 0.7, 2.0, 0.005


class Costs:
    """Seconds of passes by how many tokens they compute."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_TIMES))
        self._last: dict[int, int] = {}
        self._passes = 0
        self._curve: list[tuple[int, float]] | None = None

    def timed(self, tokens: int, seconds: float) -> None:
        """A pass of so many tokens took so long."""
        self._passes += 1
        self._curve = None
        size = _size(tokens)
        self._seconds[size].append(seconds)
        self._last[size] = self._passes

    def of(self, tokens: int) -> float | None:
        """Seconds of a pass of so many tokens, None if nothing is known: between sizes that were
        measured a straight line, beyond the largest a guess that lets it be tried where much is to
        be gained."""
        if self._curve is None:
            self._curve = self._measured()
        below, least = 0, 0.0
        for size, seconds in self._curve:
            if tokens <= size:
                part = (tokens - below) / (size - below)
                return least + part * (seconds - least) if below else seconds
            below, least = size, seconds
        return least * math.sqrt(tokens / below) if below else None

    def _measured(self) -> list[tuple[int, float]]:
        """Seconds by size. More tokens take no less: sizes that contradict this, because one of
        them was measured badly, have the mean of their medians."""
        pools: list[tuple[float, int, list[int]]] = []  # seconds, passes, sizes
        for size in sorted(s for s, last in self._last.items() if self._passes - last <= _AGE):
            seconds, count, sizes = median(self._seconds[size]), len(self._seconds[size]), [size]
            while pools and pools[-1][0] > seconds:
                before, more, smaller = pools.pop()
                seconds = (before * more + seconds * count) / (more + count)
                count, sizes = count + more, smaller + sizes
            pools.append((seconds, count, sizes))
        return [(size, seconds) for seconds, _, sizes in pools for size in sizes]


@dataclass
class _Balance:
    """What came of guesses in batches of about so many rows, in passes.

    Attributes:
        hoped: passes that all rows would have been spared, had each gained what they gained on
            average.
        spared: those that they were.
        left: what may be lost.
    """

    hoped: float = 0.0
    spared: float = 0.0
    left: float = 0.0

    @property
    def kept(self) -> float:
        """Which part of what rows gain on average all of them gain: a batch is done when its last
        row is."""
        return min(1.0, (self.spared + _SPARED) / (self.hoped + _SPARED))


class Switch:
    """How far to guess.

    Args:
        kinds: of guesses.
        always: whether to guess as far as one can.
    """

    def __init__(self, kinds: int, always: bool) -> None:
        self._always = always
        self._made, self._right = [_BEFORE] * kinds, [_BEFORE * _RIGHT] * kinds
        self._balances: dict[int, _Balance] = defaultdict(_Balance)
        self.costs = Costs()

    def rate(self, kind: int) -> float:
        """How often guesses of a kind are right."""
        return self._right[kind] / self._made[kind]

    @property
    def mean(self) -> float:
        """How often guesses of all kinds are right."""
        return sum(self._right) / sum(self._made)

    def tell(self, kind: int, right: bool) -> None:
        """A guess was right or wrong, whether it was computed or not."""
        self._made[kind] += 1
        self._right[kind] += right
        if self._made[kind] > _MANY:
            self._made[kind] /= 2
            self._right[kind] /= 2

    def could(self, rows: int, packs: Callable[[int], bool]) -> bool:
        """Whether a pass of so many rows has room for a guess: if its step is one program, one for
        as many tokens; to leave it costs more than any guess gains."""
        return self._always or packs(rows + 1) or not packs(rows)

    def least(self, rows: int) -> float:
        """Guesses that are less likely right than this are not worth a look."""
        base, more = self.costs.of(rows), self.costs.of(rows + 1)
        if self._always or base is None or more is None:
            return 0.0 if self._always else _HOPELESS
        return min(0.9, max(_HOPELESS, 0.5 * rows * (more / base - 1)))

    def depths(
        self,
        chains: Sequence[Sequence[float]],
        rows: int,
        packs: Callable[[int], bool],
        waiting: bool = False,
    ) -> list[int]:
        """How many guesses of some rows to compute.

        Args:
            chains: for each of them the chance of each guess that it and all before it are right.
            rows: of the pass, with those that guess nothing.
            packs: whether a pass of so many tokens computes these and no more, or all rows are
                padded to the one that has most.
            waiting: whether others wait for their places: then each row is done for itself.
        """
        if self._always:
            return [len(chain) for chain in chains]
        best = [0] * len(chains)
        base = self.costs.of(rows)
        if base is None or not any(chains):
            return best
        balance, most, stays = self._balances[_about(rows)], _WORTH, packs(rows)
        kept = 1.0 if waiting else balance.kept
        chances = sorted({round(chance, 2) for chance in itertools.chain(*chains)}, reverse=True)
        for least in chances[:: max(1, len(chances) // 12)]:
            depths = [sum(round(chance, 2) >= least for chance in chain) for chain in chains]
            tokens = rows + sum(depths)
            if not packs(tokens):
                if stays:
                    break
                tokens = rows * (1 + max(depths))
            cost = (self.costs.of(tokens) or base) / base
            gained = sum(sum(chain[:d]) for chain, d in zip(chains, depths, strict=True))
            speed = (1 + kept * gained / len(chains)) / cost
            if speed > most and balance.left - (cost - 1) > -_DEBT:
                best, most = depths, speed
        return best

    def guessed(self, rows: int, tokens: int, gained: float, waiting: bool = False) -> None:
        """A pass computed guesses.

        Args:
            rows: of the pass.
            tokens: that it computed.
            gained: how far its rows came on average, beyond one token, of those that may guess.
            waiting: see `depths`.
        """
        base, cost = self.costs.of(rows), self.costs.of(tokens)
        balance = self._balances[_about(rows)]
        kept = 1.0 if waiting else balance.kept
        if not waiting:
            balance.spared, balance.hoped = _OLDER * balance.spared, _OLDER * balance.hoped + gained
        if base is not None and cost is not None:
            balance.left = min(_SAVED, balance.left + kept * gained - (cost / base - 1))

    def showed(self, rows: int, running: int, passed: bool) -> None:
        """All rows of a batch for whose places nobody waits showed a token.

        Args:
            rows: that did.
            running: those that have not drawn all of theirs yet.
            passed: whether that took a pass of these. Without guesses it would have taken one of
                all.
        """
        balance = self._balances[_about(rows)]
        if not passed:
            balance.spared += 1
            return
        balance.left = max(balance.left, min(0.0, balance.left + _ANEW))
        if rows > running:
            of_all, of_some = self.costs.of(rows), self.costs.of(running)
            if of_all is not None and of_some is not None:
                balance.spared += 1 - of_some / of_all


def _about(rows: int) -> int:
    """Batches of about so many rows are taken together."""
    return (rows - 1).bit_length()


def _size(tokens: int) -> int:
    """Passes of about so many tokens are taken together: up to 4 each apart, then by quarters."""
    if tokens <= 4:
        return tokens
    step = 1 << (tokens.bit_length() - 3)
    return -(-tokens // step) * step
