"""Values that grow and stay values: what a round makes of them leaves the old ones as they were.

`Log` is a list that is only ever appended to, of which every version stays valid. `IntMap` maps
numbers of nodes to what is known of them; setting an entry copies the path to it, four blocks of 32
at most in a tree of a million nodes (Bagwell 2001, "Ideal hash trees", without the hash). Both cost
the same however large they are, where copying a dictionary would cost its size in every round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")
V = TypeVar("V")

_BITS = 5
_MASK = (1 << _BITS) - 1
_EMPTY: tuple[None, ...] = (None,) * (1 << _BITS)


class Log(Sequence[T]):
    """An immutable sequence with a cheap `append`.

    Versions share one list, of which each knows its own length; only appending to a version that is
    not the newest copies.
    """

    __slots__ = ("_items", "_length")

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = list(items)
        self._length = len(self._items)

    def append(self, *items: T) -> Log[T]:
        """The log with items more."""
        own = self._items if len(self._items) == self._length else self._items[: self._length]
        own.extend(items)
        new: Log[T] = Log.__new__(Log)
        new._items, new._length = own, self._length + len(items)
        return new

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return self._items[: self._length][index]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._items[index % self._length]

    def __iter__(self) -> Iterator[T]:
        return islice(self._items, self._length)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Log({list(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Log, (list(self),)


class IntMap(Mapping[int, V], Generic[V]):
    """An immutable mapping from numbers, zero or more, with a cheap `set`. Values are not None."""

    __slots__ = ("_levels", "_root", "_size")

    def __init__(self, entries: Mapping[int, V] | None = None) -> None:
        self._root: tuple[Any, ...] = _EMPTY
        self._levels, self._size = 1, 0
        for number, value in (entries or {}).items():
            larger = self.set(number, value)
            self._root, self._levels, self._size = larger._root, larger._levels, larger._size

    def set(self, number: int, value: V) -> IntMap[V]:
        """The mapping with one entry more, or another value for it."""
        root, levels = self._root, self._levels
        while number >> (_BITS * levels):  # does not fit: a level more
            root, levels = (root, *_EMPTY[1:]), levels + 1
        new: IntMap[V] = IntMap.__new__(IntMap)
        new._root, fresh = _set(root, _BITS * (levels - 1), number, value)
        new._levels, new._size = levels, self._size + fresh
        return new

    def __getitem__(self, number: int) -> V:
        if number < 0 or number >> (_BITS * self._levels):
            raise KeyError(number)
        block: Any = self._root
        for level in range(self._levels - 1, -1, -1):
            block = block[(number >> (_BITS * level)) & _MASK]
            if block is None:
                raise KeyError(number)
        found: V = block
        return found

    def __iter__(self) -> Iterator[int]:
        return _numbers(self._root, self._levels - 1, 0)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"IntMap({dict(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return IntMap, (dict(self),)


def _set(
    block: tuple[Any, ...] | None, shift: int, number: int, value: Any
) -> tuple[tuple[Any, ...], bool]:
    """A block with a new value somewhere below, and whether there was none before."""
    place = (number >> shift) & _MASK
    block = block or _EMPTY
    if shift:
        value, fresh = _set(block[place], shift - _BITS, number, value)
    else:
        fresh = block[place] is None
    return (*block[:place], value, *block[place + 1 :]), fresh


def _numbers(block: tuple[Any, ...], level: int, start: int) -> Iterator[int]:
    for place, entry in enumerate(block):
        if entry is not None:
            number = start + (place << (_BITS * level))
            if level:
                yield from _numbers(entry, level - 1, number)
            else:
                yield number
