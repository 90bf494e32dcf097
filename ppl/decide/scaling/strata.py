"""pass@k where samples of one question differ in their chances, because their prompts do."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked


@checked
def pass_at_k_perturbed(rates: ArrayLike, k: int, *, stratified: bool = True) -> float:
    """The chance that one of k samples is right, each with one of R perturbations of the prompt.

    Independent perturbations: 1 - (1 - mean p)^k. Shared out evenly (`ppl.perturbed`), with
    k = q R + m: all are used q times, and a uniform set of m once more, so that the chance is

        1 - prod_r (1 - p_r)^q * e_m(1 - p) / binomial(R, m)

    with e_m the elementary symmetric polynomial. It is never less (Maclaurin's inequality), and as
    much only if all rates are equal.

    Args:
        rates: `[R]`, the chance of a right sample under each perturbation.
        k: samples.
        stratified: whether perturbations are shared out evenly, or drawn independently.
    """
    checks.count(k=k)
    p = checks.numbers(rates=rates)
    if p.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ArgumentError("rates: one axis, [R], of probabilities in [0, 1], at least one")
    if not stratified:
        return float(1 - (1 - p.mean()) ** k)
    whole, rest = divmod(k, len(p))
    return float(1 - np.prod(1 - p) ** whole * _mean_product(1 - p, rest))


def _mean_product(x: NDArray[np.float64], m: int) -> float:
    """The mean over all sets of m entries of their product, e_m(x) / binomial(R, m)."""
    means = np.zeros(m + 1)
    means[0] = 1.0
    for i, each in enumerate(x, 1):  # of the first i entries; ratios of binomials stay small
        j = np.arange(1, min(i, m) + 1)
        means[j] = means[j] * (i - j) / i + means[j - 1] * each * j / i
    return float(means[m])
