"""Classes of equal results, for votes and marginals.

Tensors and arrays are equal if their elements are, an `Answer` is compared by `equality`, and
everything else by `==`. Equality of answers is not transitive (0.333333 and 0.3333333 both round
1/3), so its classes are made by union-find over all pairs, whatever their order.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from ppl.language.answers import Answer, Equality, equality, normal_form, readable

MOST_COMPARED = 200
"""Different spellings that are compared in pairs: the most frequent ones, at most 19,900 pairs and
some tenths of a second. Rarer ones join a class only by their normal form."""
MOST_SECONDS = 10.0
"""After this time no more pairs are compared: only answers made to be slow take so long."""


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
            return np.ndarray, value.shape, _elements(value.ravel().tolist())
        case tuple() | list():
            return type(value), tuple(identity(item) for item in value)
        case dict():
            return dict, frozenset((identity(k), identity(v)) for k, v in value.items())
        case set():
            return frozenset, frozenset(identity(item) for item in value)
        case _ if hasattr(value, "to_dense"):  # a tensor; torch takes a second to import
            dense = value.detach().to_dense()
            return "tensor", tuple(dense.shape), _elements(dense.flatten().tolist())
        case float() if math.isnan(value):
            return float, "nan"
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"a {type(value).__name__} cannot be counted as a result: it has no hash; return a "
            "value that has one, or give a function (key=, f=) that makes one of it"
        ) from error
    return value  # type: ignore[no-any-return]


def _elements(items: list[Any]) -> tuple[Hashable, ...]:
    return tuple("nan" if item != item else item for item in items)  # noqa: PLR0124 (only NaN)


def _classes(spellings: Sequence[Hashable]) -> dict[Hashable, Hashable]:
    """The class of each spelling, named by one of its members."""
    parent: dict[Hashable, Hashable] = {spelling: spelling for spelling in spellings}

    def root(spelling: Hashable) -> Hashable:
        while parent[spelling] != spelling:
            parent[spelling] = parent[parent[spelling]]
            spelling = parent[spelling]
        return spelling

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
