"""Keyed randomness: every draw is a pure function of who draws it.

A key is a 64-bit integer made from (seed, particle, site); a uniform is made from a key and a
position. No generator is shared, so a result cannot depend on what else is in a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

# Uniforms of so many positions are made at once.
_AHEAD = 32


def key(*parts: int | str) -> int:
    """A 64-bit key that depends on every part and on their order (BLAKE2b of their text)."""
    message = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")


def uniforms(keys: NDArray[np.uint64], position: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """One uniform in the open interval (0, 1) per key and position.

    The counter-based generator SplitMix64 (Steele, Lea, Flood 2014): state = key + (position + 1)
    times the golden ratio, then its finaliser. 52 bits and a half step, which float64 holds
    exactly, so that neither 0 nor 1 occurs.

    Args:
        keys: `[B]` keys, or `[B, 1]`.
        position: a position shared by all, or `[B]` positions, or `[B, n]` of them.

    Returns:
        `[B]` uniforms, or `[B, n]`.
    """
    # Arithmetic modulo 2^64 is the point: arrays wrap around silently, where scalars would warn.
    counter = np.atleast_1d(np.asarray(position, dtype=np.uint64)) + 1
    z = keys + counter * _GOLDEN
    z = (z ^ (z >> 30)) * _MIX_1
    z = (z ^ (z >> 27)) * _MIX_2
    z = z ^ (z >> 31)
    return np.asarray(((z >> 12).astype(np.float64) + 0.5) * 2.0**-52)


class Uniforms:
    """The uniforms of several keys, one position after the other.

    They are made for a few positions at once, as the arithmetic on an array of few numbers takes
    as long as that on many.

    Args:
        keys: `B` keys.
        positions: where each of them begins.
    """

    def __init__(self, keys: Sequence[int], positions: Sequence[int]) -> None:
        self._keys = np.array(keys, dtype=np.uint64)[:, None]
        self._positions = np.array(positions, dtype=np.int64)[:, None]
        self._made = np.zeros((len(keys), 0))

    def next(self) -> NDArray[np.float64]:
        """`[B]` uniforms of the next position of each key."""
        if not self._made.shape[1]:
            self._made = uniforms(self._keys, self._positions + np.arange(_AHEAD))
            self._positions += _AHEAD
        now, self._made = self._made[:, 0], self._made[:, 1:]
        return now

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all keys but these, by their numbers."""
        self._keys, self._positions = self._keys[rows], self._positions[rows]
        self._made = self._made[rows]


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator keyed by `parts` (counter-based Philox), for draws of unknown number."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))
