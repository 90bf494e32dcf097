"""TTSPM: where more compute stops paying, if one chance stands for all (arXiv 2505.20522).

With a chance p for each sample (in parallel) or each round of rethinking (in sequence), accuracy is
F(N) = F_max (1 - (1-p)^N), and step N + 1 adds F_max p (1-p)^N. One p for many problems is wrong as
soon as they differ: gains then fall as a power of N, and this stops too early. Use p of a single
problem, or `BetaBinomial.saturation`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked


@checked
def saturation(p: float, f_max: float = 1.0, eps: float = 0.01) -> int:
    """The fewest samples after which one more adds `eps` at most.

    ceil(log(eps / (f_max p)) / log(1 - p)), and 0 where the first adds no more.

    Args:
        p: the chance of a sample, in [0, 1].
        f_max: what accuracy tends to, in (0, 1].
        eps: above zero.
    """
    checks.probability(p=p, f_max=f_max)
    checks.positive(eps=eps)
    if eps >= f_max * p:
        return 0
    if p == 1:
        return 1
    return math.ceil(math.log(eps / (f_max * p)) / math.log1p(-p) - 1e-9)


@dataclass(frozen=True)
class TTSPM:
    """A fitted curve F(N) = f_max (1 - (1-p)^N).

    Attributes:
        p: the chance of a step.
        f_max: what accuracy tends to.
        error: root of the mean squared residual.
    """

    p: float
    f_max: float
    error: float

    @checked
    def accuracy(self, n: int) -> float:
        """F(n)."""
        checks.count(least=0, n=n)
        return -self.f_max * math.expm1(n * math.log1p(-self.p)) if self.p < 1 else self.f_max

    @checked
    def saturation(self, eps: float) -> int:
        """See `ppl.decide.scaling.saturation`."""
        return saturation(self.p, self.f_max, eps)


@checked
def fit_ttspm(n: ArrayLike, accuracy: ArrayLike) -> TTSPM:
    """The curve of least squares through accuracies.

    Args:
        n: `[M]`, samples, or rounds.
        accuracy: `[M]`, in [0, 1].

    Raises:
        ArgumentError: fewer than two different sizes.
    """
    sizes, values = checks.numbers(n=n), checks.numbers(accuracy=accuracy)
    if sizes.ndim != 1 or (sizes < 1).any() or len(np.unique(sizes)) < 2:
        raise ArgumentError("n: one axis, two different sizes at least, from 1 up")
    if values.shape != sizes.shape or ((values < 0) | (values > 1)).any():
        raise ArgumentError("accuracy: in [0, 1], one for each of n")

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.asarray(x[1] * -np.expm1(sizes * np.log1p(-x[0])) - values)

    bounds = ([1e-9, 1e-9], [1 - 1e-9, 1.0])
    tries = [
        least_squares(residuals, (p, 0.9), bounds=bounds, ftol=1e-14, xtol=1e-14, gtol=1e-14)
        for p in (0.02, 0.2, 0.7)
    ]
    found = min(tries, key=lambda fit: float(fit.cost))
    p, f_max = found.x.tolist()
    return TTSPM(p, f_max, math.sqrt(2 * float(found.cost) / len(sizes)))
