"""Classes of equal results, for votes and marginals.

Tensors and arrays are equal if their elements are, an `Answer` is compared by `equality`, and
everything else by `==`; what is not a number (NaN) is one class. Equality of answers is not
transitive (0.333333 and 0.3333333 both round 1/3), so its classes are made by union-find over all
pairs, whatever their order.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from numbers import Number
from typing import Any

import numpy as np

from ppl.language.answers import Answer, Equality, equality, normal_form, readable

MOST_COMPARED = 200
"""Different spellings that are compared in pairs: the most frequent ones, at most 19,900 pairs and
some tenths of a second. Rarer ones join a class only by their normal form."""
MOST_SECONDS = 10.0
"""After this time no more pairs are compared: only answers made to be slow take so long."""
_NAN = (float, "nan")


def tally(values: Sequence[Any], weights: Sequence[float]) -> list[tuple[float, int]]:
    """The total weight of each class of equal values.

    Args:
        values: results, or what stands for them.
        weights: of each, not logarithms.

    Returns:
        Weight and representative of each class, in order of first appearance. The representative
        is the index of the first value among the spellings of largest weight.
    """
    spellings = [identity(value) for value in values]
    roots = _classes(spellings)
    totals: dict[Hashable, list[float]] = {}
    spelled: dict[Hashable, list[float]] = {}
    first: dict[Hashable, int] = {}
    for i, (spelling, weight) in enumerate(zip(spellings, weights, strict=True)):
        totals.setdefault(roots[spelling], []).append(weight)
        spelled.setdefault(spelling, []).append(weight)
        first.setdefault(spelling, i)
    heaviest: dict[Hashable, tuple[float, int]] = {}
    for spelling, i in first.items():
        weight = math.fsum(spelled[spelling])
        if weight > heaviest.get(roots[spelling], (-math.inf, 0))[0]:
            heaviest[roots[spelling]] = (weight, i)
    return [(math.fsum(parts), heaviest[root][1]) for root, parts in totals.items()]


def numbered(values: Sequence[Any]) -> list[int]:
    """The class of each value, classes numbered in order of first appearance."""
    spellings = [identity(value) for value in values]
    roots = _classes(spellings)
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(roots[spelling], len(numbers)) for spelling in spellings]


def identity(value: Any) -> Hashable:
    """Something hashable that is the same for values that are spelled alike.

    Raises:
        TypeError: the value can be neither compared nor hashed.
    """
    match value:
        case Answer():
            return Answer, normal_form(value)
        case np.ndarray():
            items, plain = value.ravel().tolist(), value.dtype.kind not in "OV"
            return np.ndarray, value.shape, (_elements if plain else _identities)(items)
        case tuple() | list():
            return type(value), _identities(value)
        case dict():
            return dict, frozenset((identity(k), identity(v)) for k, v in value.items())
        case set():
            return frozenset, frozenset(identity(item) for item in value)
        case Number() if value != value:  # type: ignore[comparison-overlap]  # noqa: PLR0124
            return _NAN
        case _ if isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ())):
            return _tensor(value)
    try:
        hash(value)
    except TypeError as error:
        raise _uncounted(value, "it has no hash") from error
    return value  # type: ignore[no-any-return]


def by_value(counted: Iterable[tuple[Any, float]]) -> dict[Any, float]:
    """Values with their probabilities, as a dictionary.

    Raises:
        TypeError: a value is no key, as lists are none.
    """
    found: dict[Any, float] = {}
    for value, probability in counted:
        try:
            found[value] = probability
        except TypeError as error:
            raise TypeError(
                f"a {type(value).__name__} is no key of a dictionary: give a function that makes "
                "one of it, such as marginal(str)"
            ) from error
    return found


def _tensor(value: Any) -> Hashable:
    try:
        dense = value.detach().to_dense()
        return "tensor", tuple(dense.shape), _elements(dense.flatten().tolist())
    except (RuntimeError, NotImplementedError) as error:  # nested, quantised, without content
        raise _uncounted(value, f"its elements cannot be read ({error})") from error


def _elements(items: Iterable[Any]) -> tuple[Hashable, ...]:
    """As `_identities`, of numbers and strings."""
    return tuple(_NAN if item != item else item for item in items)  # noqa: PLR0124 (only NaN)


def _identities(items: Iterable[Any]) -> tuple[Hashable, ...]:
    return tuple(map(identity, items))


def _uncounted(value: Any, why: str) -> TypeError:
    return TypeError(
        f"a {type(value).__name__} cannot be counted as a result: {why}; return a value that can, "
        "or give a function (key=, f=) that makes one of it"
    )


def _classes(spellings: Sequence[Hashable]) -> dict[Hashable, Hashable]:
    """The class of each spelling, named by one of its members."""
    parent: dict[Hashable, Hashable] = {spelling: spelling for spelling in spellings}

    def root(spelling: Hashable) -> Hashable:
        while (above := parent[spelling]) is not parent[above]:
            parent[spelling] = parent[above]
            spelling = above
        return above

    answers = Counter(s for s in spellings if isinstance(s, tuple) and s[:1] == (Answer,))
    # What cannot be read equals nothing that is spelled otherwise, and is slow to find that out.
    common: list[Any] = [s for s, _ in answers.most_common(MOST_COMPARED)]
    compared = [s for s in common if readable(s[1])] if len(common) > 1 else []
    end = time.monotonic() + MOST_SECONDS
    for i, a in enumerate(compared):
        for b in compared[:i]:
            if time.monotonic() > end:
                break
            if root(a) != root(b) and equality(a[1], b[1]) is Equality.EQUAL:
                parent[root(a)] = root(b)
    return {spelling: root(spelling) for spelling in parent}
