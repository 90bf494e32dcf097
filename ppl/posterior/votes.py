"""The vote: equal answers pool their weights, and the heaviest class wins; and their average.

Every rule that ends in a vote ends here, on one set of answers or on many at once. Weights are
logarithms, and only their differences matter: a common factor is taken out before `exp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ppl.errors import ArgumentError
from ppl.language.arguments import shown
from ppl.language.classes import identity, numbered

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Combine = Literal["sum", "max", "mean"]
"""What a class makes of the weights of its members."""

_ALIKE = 1e-12  # sums of equal weights in another order differ in their last digits


def pooled(
    classes: Ints, log_weights: Floats, count: int, combine: Combine = "sum"
) -> tuple[Floats, NDArray[np.bool_]]:
    """What each class has of the weights, for every set of answers by itself.

    Where all of a set's answers have weight zero, they count alike.

    Args:
        classes: of each answer, `[S, N]`, from 0; -1 for none, which is no class.
        log_weights: `[S, N]`, not normalised.
        count: C, the number of classes.
        combine: of the weights within a class.

    Returns:
        `[S, C]`, in units of the set's largest weight, and which classes are there, `[S, C]`.
    """
    there = classes >= 0
    logs = np.where(there, log_weights, -np.inf)
    top = logs.max(axis=1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore"):  # -inf - -inf, where the flat weights are taken
        weights = np.where(np.isneginf(top), there, np.exp(logs - top))
    width = count + 1  # column 0: no answer
    cells = np.arange(len(classes))[:, None] * width + classes + 1
    size = len(classes) * width
    members = np.bincount(cells.ravel(), minlength=size)
    totals: Floats = np.zeros(size)
    if combine == "max":
        np.maximum.at(totals, cells.ravel(), weights.ravel())
    else:
        totals += np.bincount(cells.ravel(), weights.ravel(), size)
        if combine == "mean":
            totals = totals / np.maximum(members, 1)
    shape = len(classes), width
    return totals.reshape(shape)[:, 1:], members.reshape(shape)[:, 1:] > 0


def leading(totals: Floats, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`[S, C]`: which classes of `pooled` are the heaviest; several where they are tied."""
    if not totals.shape[1]:
        return seen
    return np.asarray(seen & (totals >= totals.max(axis=1, keepdims=True) * (1 - _ALIKE)))


def ranked(weights: Sequence[float]) -> list[int]:
    """Indices by falling weight; those that are alike stand as they were seen, as in `leading`."""
    falling = sorted(range(len(weights)), key=lambda i: -weights[i])
    order: list[int] = []
    while falling:
        least = weights[falling[0]] * (1 - _ALIKE)
        tied = sum(weights[i] >= least for i in falling)
        order += sorted(falling[:tied])
        falling = falling[tied:]
    return order


def heaviest_of(things: Sequence[Hashable | None], log_weights: Floats) -> list[int]:
    """Indices that stay where each thing counts once: the first of its largest weight."""
    kept: dict[Hashable, int] = {}
    for i, thing in enumerate(things):
        if thing not in kept or log_weights[i] > log_weights[kept[thing]]:
            kept[thing] = i
    return sorted(kept.values())


def winner(
    answers: Sequence[Any], log_weights: Floats, combine: Combine = "sum"
) -> tuple[int, float] | None:
    """The answer that stands for the heaviest class.

    Args:
        answers: `[N]`, what votes; None is no answer, and never wins.
        log_weights: `[N]`.
        combine: of the weights within a class.

    Returns:
        The index of an answer, and the share of its class among all classes. Of tied classes the
        first seen wins. It is spelled as most of its class (the first of the heaviest spelling);
        under `"max"` it is the heaviest itself. None if there is no answer.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    there = [i for i, answer in enumerate(answers) if answer is not None]
    if not there:
        return None
    mine = [answers[i] for i in there]
    numbers = np.array(numbered(mine), dtype=np.int64)
    logs = np.asarray(log_weights, dtype=np.float64)[there]
    if np.isnan(logs).any() or np.isposinf(logs).any():
        raise ValueError("a log-weight is NaN or plus infinity")
    totals, seen = pooled(numbers[None], logs[None], int(numbers.max()) + 1, combine)
    first = int(np.argmax(leading(totals, seen)[0]))
    members = np.flatnonzero(numbers == first)
    chosen = members[speaker([mine[i] for i in members.tolist()], logs[members], combine)]
    return there[int(chosen)], float(totals[0, first] / totals[0].sum())


def speaker(members: Sequence[Any], log_weights: Floats, combine: Combine = "sum") -> int:
    """The index of the answer that stands for a class: see `winner`."""
    if combine == "max":
        return int(np.argmax(log_weights))
    spellings: dict[Hashable, int] = {}
    spelled = [spellings.setdefault(identity(each), len(spellings)) for each in members]
    if len(spellings) == 1:
        return 0
    numbers = np.array(spelled, dtype=np.int64)
    totals, seen = pooled(numbers[None], log_weights[None], len(spellings))
    return spelled.index(int(np.argmax(leading(totals, seen)[0])))


def keyed(values: Sequence[Any], key: Callable[[Any], Hashable] | None) -> list[Any]:
    """What votes for each value: itself, or what `key` makes of it; None stays None."""
    if key is None:
        return list(values)
    return [None if value is None else key(value) for value in values]


def average(weighted: Sequence[tuple[float, Any]], f: Callable[[Any], Any]) -> float:
    """The weighted mean of `f(value)` over pairs of weights (not logarithms) and values.

    Raises:
        ArgumentError: f gives what is no number.
    """
    terms: list[float] = []
    for p, value in weighted:
        number = f(value)
        if isinstance(number, str) or not hasattr(number, "__float__"):
            raise ArgumentError(
                f"f: it gives {shown(number)} for {shown(value)}, no number; answers are often "
                "strings: lambda answer: float(answer)"
            )
        terms.append(p * float(number))
    return math.fsum(terms) / math.fsum(p for p, _ in weighted)
