"""Numbers from outside, checked where they enter: the error names the argument, what it was, and
what it may be.

    checks.count(num_particles=4, width=2)        ints, 1 or more; `least=` for another bound
    checks.probability(threshold=0.5)             in [0, 1]
    checks.positive(temperature=0.7)              above zero, finite
    checks.nonnegative(exploration=0.0)           zero or more, finite
    checks.one_of(("bfs", "dfs"), order="bfs")

`True` is no number, `2.0` is no count, and NaN is nothing: comparisons with NaN are false, so that
a bound written as `if x < 1: raise` lets it through.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any


def count(*, least: int = 1, **numbers: Any) -> None:
    """Raises ValueError for what is no int of at least `least`."""
    for name, number in numbers.items():
        if not _is(Integral, number) or not number >= least:
            raise ValueError(f"{name}={number!r}: a whole number (int), at least {least}")


def probability(**numbers: Any) -> None:
    """Raises ValueError for what is not in [0, 1]."""
    for name, number in numbers.items():
        if not _is(Real, number) or not 0 <= number <= 1:
            raise ValueError(f"{name}={number!r}: a share or probability, in [0, 1]")


def positive(**numbers: Any) -> None:
    """Raises ValueError for what is not above zero and finite."""
    for name, number in numbers.items():
        if not _is(Real, number) or not 0 < number < math.inf:
            raise ValueError(f"{name}={number!r}: a number above zero, and finite")


def nonnegative(**numbers: Any) -> None:
    """Raises ValueError for what is below zero or not finite."""
    for name, number in numbers.items():
        if not _is(Real, number) or not 0 <= number < math.inf:
            raise ValueError(f"{name}={number!r}: a number of zero or more, and finite")


def one_of(known: Collection[str], **words: Any) -> None:
    """Raises ValueError for a word that is not known."""
    for name, word in words.items():
        if not isinstance(word, str) or word not in known:
            raise ValueError(f"{name}={word!r}: one of {', '.join(map(repr, known))}")


# Checked at every site of a program: to ask an abstract class takes a microsecond, this nothing.
_PLAIN: dict[type, tuple[type, ...]] = {Integral: (int,), Real: (float, int)}


def _is(kind: type, number: Any) -> bool:
    if type(number) in _PLAIN[kind]:
        return True
    return isinstance(number, kind) and not isinstance(number, bool)
