"""Numbers from outside, checked where they enter: the error names the argument, what it was, and
what it may be.

    checks.count(num_particles=4, width=2)        ints, 1 or more; `least=` for another bound
    checks.probability(threshold=0.5)             in [0, 1]
    checks.positive(temperature=0.7)              above zero, finite
    checks.nonnegative(exploration=0.0)           zero or more, finite
    checks.floor(floor=1e-6)                      in [0, 0.5)
    checks.one_of(("bfs", "dfs"), order="bfs")
    checks.flag(greedy=True)                      True or False
    checks.nbytes(kv_bytes="2GiB")                2147483648
    checks.numbers(scores=[0.5, 2])               an array of floats, without NaN
    checks.truths(labels=[1, 0, 1])               of bools, or of 0 and 1

What is of a wrong type altogether is met by `ppl.language.arguments`.

`True` is no number, `2.0` is no count, and NaN is nothing: comparisons with NaN are false, so that
a bound written as `if x < 1: raise` lets it through.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl.errors import ArgumentError
from ppl.language.arguments import shown


def count(*, least: int = 1, **numbers: Any) -> None:
    """Raises ValueError for what is no int of at least `least`."""
    for name, number in numbers.items():
        if not _is(Integral, number) or not number >= least:
            raise ValueError(f"{name}={number!r}: a whole number (int), at least {least}")


def seed(**numbers: Any) -> None:
    """Raises ValueError for what is no whole number; any is a seed."""
    for name, number in numbers.items():
        if not _is(Integral, number):
            raise ValueError(f"{name}={shown(number)}: a whole number (int)")


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


def floor(**numbers: Any) -> None:
    """Raises ValueError for what is not in [0, 0.5): probabilities are kept between it and 1 - it,
    and at one half nothing would be left of them."""
    for name, number in numbers.items():
        if not _is(Real, number) or not 0 <= number < 0.5:
            raise ValueError(f"{name}={number!r}: a floor of probabilities, in [0, 0.5)")


def number(**numbers: Any) -> None:
    """Raises ValueError for what is no number; infinities are."""
    for name, value in numbers.items():
        if not _is(Real, value) or math.isnan(value):
            raise ValueError(f"{name}={shown(value)}: a number")


def flag(**flags: Any) -> None:
    """Raises ArgumentError for what is not True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise ArgumentError(f"{name}={shown(value)}: True or False")


_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}
_UNITS |= {f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?i?B|)\s*", re.ASCII)


def nbytes(*, least: int = 1, **sizes: Any) -> int:
    """The one argument as a number of bytes: a whole number (`2 << 30`, `2e9`), or a string of one
    and a unit, such as `"2GB"` (10^9 each) or `"2 GiB"` (2^30 each).

    Raises ArgumentError for anything else, and for less than `least`.
    """
    ((name, value),) = sizes.items()
    found: Any = value
    if isinstance(value, str):
        said = _SIZE.fullmatch(value)
        known = said is not None and said[2] in _UNITS
        found = math.floor(Fraction(said[1]) * _UNITS[said[2]]) if said and known else None
    if not _is(Real, found) or not least <= found < math.inf or found != int(found):
        raise ArgumentError(
            f"{name}={shown(value)}: bytes, at least {least}: a whole number such as 2 * 1024**3, "
            "or a string such as '2GiB' (1024**3 bytes each) or '2GB' (1000**3); "
            f"units are {', '.join(list(_UNITS)[1:])}"
        )
    return int(found)


def numbers(*, nan: bool = False, **values: Any) -> NDArray[np.float64]:
    """The one argument as an array of floats.

    Raises ValueError for what is no array of numbers, and for NaN unless it has a meaning.
    """
    ((name, value),) = values.items()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}={shown(value)}: numbers")
    if not nan and np.isnan(array).any():
        raise ValueError(f"{name}={shown(value)}: holds NaN")
    return array.astype(np.float64)


def truths(**labels: Any) -> NDArray[np.bool_]:
    """The one argument as an array of bools. Raises ValueError for other values than 0 and 1."""
    ((name, values),) = labels.items()
    array = numbers(**labels)
    if not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name}: truth values, True and False or 1 and 0, got {shown(values)}")
    return array.astype(bool)


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
