"""Running batches of one model beside each other, in one memory.

Searches in threads, and whoever asks a model while a batch of it runs, have a running batch each,
of one engine. Of all their rows together no more have memory than fit its byte budget.

None waits forever. A batch of which no row runs may always run one, also where the others are not
stepped: if there is no room, one of theirs is parked, and takes memory again when it goes on. Where
several want more than fits, each may have an equal share: who has more takes no new rows as long as
others wait, so that a row waits no longer than until those that run are drawn.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from ppl.lm.base import Tokens

M = TypeVar("M", bound="Member")
R = TypeVar("R")


class Held(Protocol):
    """A row, see `ppl.lm.decode.Row`."""

    @property
    def text(self) -> Tokens:
        """Its tokens so far, as the decoder knows them."""

    @property
    def length(self) -> int:
        """How many."""

    @property
    def expected_length(self) -> int:
        """How many it is expected to have in the end."""


class Model(Protocol):
    """What says how many rows fit, see `ppl.lm.decode.LogitsModel`."""

    def batch_rows(self, length: int) -> int:
        """Most rows of so many tokens."""

    def most_rows(self, texts: Sequence[Tokens], lengths: Sequence[int]) -> int:
        """Most rows that go on from such texts to such lengths."""


class Member:
    """A running batch, as others see it that share its memory.

    Attributes:
        held: its rows that have memory, in the decoder's order.
    """

    held: Sequence[Held] = ()
    _waiting: Collection[Held]
    _decoder: Any
    _company: Company

    def park(self, count: int) -> None:
        """Gives up the memory of the last so many rows that have any. What they computed is known
        as long as there is room; they take memory again when they go on."""
        self.held = self.held[: len(self.held) - count]
        self._decoder.park(len(self.held))


def gives_back(step: Callable[[M], R]) -> Callable[[M], R]:
    """Decorates a step of a batch that is lost if it raises: it then neither holds nor wants."""

    @functools.wraps(step)
    def run(self: M) -> R:
        try:
            return step(self)
        except BaseException:
            self.held = ()
            self._company.remove(self)
            raise

    return run


class Company:
    """The running batches of one model.

    Args:
        lock: held while memory is divided, and taken; that of the model's engine.
    """

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self._members: WeakSet[Member] = WeakSet()

    def add(self, member: Member) -> None:
        """A batch begins. It is forgotten when nobody holds it any more."""
        with self.lock:
            self._members.add(member)

    def remove(self, member: Member) -> None:
        """A batch is lost."""
        with self.lock:
            self._members.discard(member)

    def joining(self, member: Member, model: Model, waiting: Sequence[Held]) -> int:
        """How many of the first waiting rows may join; one at least if none of the batch runs."""
        working = self._working(member)
        others = [row for other in working for row in other.held]
        running, rows = len(member.held), [*member.held, *waiting]
        texts = [row.text for row in (*others, *rows)]
        lengths = [row.expected_length for row in (*others, *rows)]

        def exceeds(count: int) -> bool:
            count += len(others)
            return count > model.most_rows(texts[:count], lengths[:count])

        least = max(running, 1)
        counts = range(least + 1, len(rows) + 1)
        if (not counts and not others) or not exceeds(len(rows)):
            return len(waiting)
        most = least + bisect_left(counts, True, key=exceeds)
        if any(other._waiting for other in working):
            most = max(least, min(most, (len(others) + most) // (len(working) + 1)))
        if not running:
            count = len(others) + most
            self.give_way(count - model.most_rows(texts[:count], lengths[:count]), member)
        return most - running

    def room(self, model: Model, length: int, to: Member | None = None) -> int:
        """How many rows of so many tokens have room beside those of all other batches than one."""
        others = [row for other in self._working(to) for row in other.held]
        longest = max([length, *(row.length for row in others)])
        return max(0, model.batch_rows(longest) - len(others))

    def staying(self, member: Member, model: Model, rows: Sequence[Held]) -> int:
        """How many of the first of these rows, which have run, may go on."""
        working = self._working(member)
        together = [*(row for other in working for row in other.held), *rows]
        lengths, others = [row.length for row in together], len(together) - len(rows)
        most = model.batch_rows(max(lengths, default=0))
        if len(together) > most:
            most = model.most_rows([row.text for row in together], lengths)
        own = min(len(rows), max(1, most - others, most // (len(working) + 1)))
        if own:
            self.give_way(own + others - most, member)
        return own

    def give_way(self, count: int, to: Member | None = None) -> None:
        """Parks so many rows of batches that have most, if there are any, but none of this one."""
        for _ in range(count):
            holding = [other for other in self._working(to) if other.held]
            if holding:
                max(holding, key=lambda other: len(other.held)).park(1)

    def _working(self, but: Member | None) -> list[Member]:
        """Other batches that have rows, or rows that wait."""
        if len(self._members) == 1 and but in self._members:  # asked at every token
            return []
        return [m for m in self._members if m is not but and (m.held or m._waiting)]
