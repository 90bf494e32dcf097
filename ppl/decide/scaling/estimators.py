"""What a rule would score on k samples, from n samples of one question: exact, without bias.

Every estimate is the mean over all subsets of size k, drawn without replacement. The mean of a
U-statistic (Hoeffding 1948) over questions is unbiased for the accuracy at k; `1 - (1 - c/n)^k`
and resampling with replacement are not. Ties count by their expectation: the share of tied
candidates, or classes, that are right.

    pass_at_k     some sample is right             closed form (Chen et al. 2021)
    random_of_k   a sample drawn blindly           closed form
    best_of_k     the sample of highest score      order statistics
    majority_at_k the most frequent answer         dynamic programming, k^3 steps per answer
    others        see `ppl.decide.scaling.subsets`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.answers import Answer
from ppl.language.arguments import checked
from ppl.language.classes import numbered

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@checked
def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples hold one of the c right ones: 1 - C(n-c, k) / C(n, k).

    Raises:
        ArgumentError: `k` above `n`: more samples than there are say nothing without a model of
            how questions differ.
    """
    check_sizes(n, k)
    checks.count(least=0, c=c)
    if c > n:
        raise ArgumentError(f"c={c}: {n} samples cannot hold {c} right ones")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod((n - c - i) / (n - i) for i in range(k))


@checked
def random_of_k(n: int, answered: int, c: int, k: int) -> float:
    """The chance that a blind choice among the answers in k of n samples is right.

    The floor for every rule: c / answered, times the chance that the k hold any answer at all.
    """
    checks.count(least=0, answered=answered)
    if not c <= answered <= n:
        raise ArgumentError(f"answered={answered}: at least c={c} and at most n={n}")
    return pass_at_k(n, answered, k) * c / answered if answered else 0.0


@checked
def best_of_k(scores: ArrayLike, correct: ArrayLike, k: int, *, n: int | None = None) -> float:
    """The chance that the best scored of k samples is right.

    With ranks r = 0, 1, ... by decreasing score: sum over r of c_r C(n-r-1, k-1) / C(n, k); c is
    replaced by its mean among equal scores.

    Args:
        scores: of the samples that have an answer, `[m]`; minus infinity is a score.
        correct: whether each is right, `[m]`.
        k: size of the subsets.
        n: of all samples, also those without an answer, which are never chosen; by default m.
    """
    values, is_right = checks.numbers(scores=scores).ravel(), checks.truths(correct=correct).ravel()
    _same_length(scores=values, correct=is_right)
    n = len(values) if n is None else n
    check_sizes(n, k)
    if len(values) > n:
        raise ArgumentError(f"n={n}: fewer than the {len(values)} scores")
    order = np.argsort(-values, kind="stable")
    chances = _first_of_k(n, k)[: len(order)]
    _, group = np.unique(-values[order], return_inverse=True)
    size = np.bincount(group)
    right = np.bincount(group, is_right[order].astype(np.float64)) / size
    return float(np.sum(chances * right[group]))


@checked
def majority_at_k(
    answers: Sequence[Any], correct: ArrayLike, k: int, *, n: int | None = None
) -> float:
    """The chance that the most frequent answer of k samples is right (self-consistency).

    Args:
        answers: `[m]`; strings vote by `ppl.equality`, None is no answer and never wins.
        correct: whether each is right, `[m]`; a class of equal answers is what most of it is.
        k: size of the subsets.
        n: of all samples, also those without an answer; by default m.
    """
    is_right = checks.truths(correct=correct).ravel()
    _same_length(answers=answers, correct=is_right)
    classes, right = answer_classes(answers, is_right.tolist())
    counts = np.bincount(classes[classes >= 0], minlength=len(right))
    return vote_at_k(counts, right, k, len(answers) if n is None else n)


def answer_classes(
    answers: Sequence[Any], correct: Sequence[bool | None]
) -> tuple[Ints, NDArray[np.bool_]]:
    """The class of every answer, `[m]`, -1 for None, and whether each class is right, `[C]`.

    Classes are made without a look at what is right. Spellings of one class may have been judged
    differently: it is right if most of it is.
    """
    there = [i for i, answer in enumerate(answers) if answer is not None]
    wrapped = [Answer(a) if isinstance(a, str) else a for a in (answers[i] for i in there)]
    numbers = numbered(wrapped)
    classes = np.full(len(answers), -1, dtype=np.int64)
    classes[there] = numbers
    right = np.zeros(max(numbers, default=-1) + 1, dtype=np.bool_)
    for number in range(len(right)):
        judged = [bool(correct[i]) for i, c in zip(there, numbers, strict=True) if c == number]
        right[number] = 2 * sum(judged) > len(judged)
    return classes, right


def vote_at_k(counts: Ints, right: NDArray[np.bool_], k: int, n: int) -> float:
    """`majority_at_k` from the size of each class, `[C]`, and whether it is right, `[C]`.

    A subset's class sizes are multivariate hypergeometric, which is the law of independent binomial
    sizes (any p; here k/n) given that they add up to k. For each possible largest size t, the
    chance of every pair (right classes of size t, wrong classes of size t) is summed up class by
    class; all terms are positive, so nothing cancels.
    """
    check_sizes(n, k)
    if counts.sum() > n:
        raise ArgumentError(f"n={n}: fewer than the {int(counts.sum())} answers")
    largest = int(counts.max(initial=0))
    if largest == 0:
        return 0.0
    if k == n:
        return float(right[counts == largest].mean())
    p = k / n
    laws = [binom.pmf(np.arange(min(m, k) + 1), m, p) for m in counts.tolist()]
    nothing = n - int(counts.sum())
    start = np.zeros(k + 1)
    size = min(nothing, k)
    start[: size + 1] = binom.pmf(np.arange(size + 1), nothing, p)
    return min(1.0, modal(start, laws, right) / float(binom.pmf(k, n, p)))


def modal(start: Floats, laws: Sequence[Floats], right: NDArray[np.bool_]) -> float:
    """The chance that independent sizes add up to k and that the choice among the largest is right.

    Args:
        start: `[k + 1]`, the law of how many have no answer.
        laws: of each class, the law of its size, from 0 up.
        right: of each class, `[C]`.
    """
    k, largest = len(start) - 1, max((len(law) - 1 for law in laws), default=0)
    return sum(_largest(t, start, laws, right) for t in range(1, min(k, largest) + 1))


def _largest(t: int, start: Floats, laws: Sequence[Floats], right: NDArray[np.bool_]) -> float:
    """Joint chance that sizes sum to k, the largest is t, and the choice among those is right."""
    k = len(start) - 1
    large = [len(law) > t for law in laws]
    most = k // t
    a_most = min(most, sum(b and bool(r) for b, r in zip(large, right, strict=True)))
    b_most = min(most, sum(b and not r for b, r in zip(large, right, strict=True)))
    if a_most == 0:
        return 0.0
    table = np.zeros((a_most + 1, b_most + 1, k + 1))  # right of size t, wrong of size t, sum
    table[0, 0] = start
    for law, is_right in zip(laws, right, strict=True):
        after = np.zeros_like(table)
        for s, chance in enumerate(law[:t].tolist()):
            after[:, :, s:] += chance * table[:, :, : k + 1 - s]
        if len(law) > t:
            if is_right:
                after[1:, :, t:] += law[t] * table[:-1, :, : k + 1 - t]
            else:
                after[:, 1:, t:] += law[t] * table[:, :-1, : k + 1 - t]
        table = after
    a, b = np.indices(table.shape[:2])
    share = a / np.maximum(a + b, 1)
    return float(np.sum(share * table[:, :, k]))


def _first_of_k(n: int, k: int) -> Floats:
    """`[n]`: the chance that rank r is in a subset of size k, and nothing before it."""
    chances = np.zeros(n)
    chances[0] = k / n
    for r in range(n - k):
        chances[r + 1] = chances[r] * (n - r - k) / (n - r - 1)
    return chances


def check_sizes(n: int, k: int) -> None:
    """Raises ArgumentError for more than there are."""
    checks.count(n=n, k=k)
    if k > n:
        raise ArgumentError(f"k={k}: there are only n={n} samples to choose from")


def _same_length(**sequences: Any) -> None:
    (first, a), (second, b) = sequences.items()
    if len(a) != len(b):
        raise ArgumentError(f"{second}: {len(b)} of them for {len(a)} {first}")
