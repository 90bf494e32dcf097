"""Arms of a bandit: what is known of each one's scores, and draws from the posteriors.

All posteriors depend on an arm's scores through their number, sum and sum of squares alone, so that
these three columns are all that is kept, and a draw for every arm is a few operations on columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Arms:
    """Number, sum and sum of squares of the scores of each of `K` arms: an immutable value.

    Attributes:
        sums: `[3, K]` number, total, squares; read-only.
    """

    sums: Floats

    def __post_init__(self) -> None:
        self.sums.flags.writeable = False

    @classmethod
    def without_scores(cls, arms: int = 0) -> Arms:
        """Arms of which nothing is known."""
        return cls(np.zeros((3, arms)))

    def __len__(self) -> int:
        return int(self.sums.shape[1])

    def append(self) -> Arms:
        """One arm more, without scores."""
        return Arms(np.concatenate([self.sums, _NOTHING], axis=1))

    def add(self, arm: int, score: float) -> Arms:
        """One score more."""
        sums = self.sums.copy()
        sums[:, arm] += (1.0, score, score * score)
        return Arms(sums)

    @property
    def number(self) -> Floats:
        """`[K]`."""
        return np.asarray(self.sums[0])

    @property
    def total(self) -> Floats:
        """`[K]`."""
        return np.asarray(self.sums[1])

    @property
    def squares(self) -> Floats:
        """`[K]`."""
        return np.asarray(self.sums[2])


_NOTHING = np.zeros((3, 1))


def gaussian_posterior(sums: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Normal-inverse-chi-squared posteriors of arms; the prior is (0, 1, 1, 0.1).

    Args:
        sums: `[3, K]`; an arm may have no scores.

    Returns:
        m, kappa, nu, tau^2, `[K]` each.
    """
    n, mean, spread = _moments(sums)
    kappa, nu = 1 + n, 1 + n
    m = n * mean / kappa
    tau2 = (0.1 + spread + n * mean**2 / kappa) / nu
    return m, kappa, nu, tau2


def draw_gaussian(sums: Floats, rng: np.random.Generator) -> Floats:
    """`[K]` means of the arms, from their posteriors."""
    m, kappa, nu, tau2 = gaussian_posterior(sums)
    variance = nu * tau2 / 2 / rng.gamma(nu / 2)
    return m + np.sqrt(variance / kappa) * rng.standard_normal(len(m))


def draw_beta(sums: Floats, rng: np.random.Generator) -> Floats:
    """`[K]` means of the arms, from their posteriors; the prior is Beta(0.5, 0.5)."""
    n, total, _ = sums
    drawn: Floats = rng.beta(0.5 + total, 0.5 + n - total)
    return drawn


# The scales of the mixed model, in equal steps of their logarithm; s_a down, s_y across.
_SCALES = np.geomspace(1e-3, 1.5, 32)
_S_A, _S_Y = (axis.ravel() for axis in np.meshgrid(_SCALES, _SCALES, indexing="ij"))
# Half-normal densities, times the scale: the grid is uniform in the logarithm.
_LOG_PRIOR = -((_S_A / 0.2) ** 2 + (_S_Y / 0.3) ** 2) / 2 + np.log(_S_A * _S_Y)
_LOG_S_Y, _Y_PRECISION = np.log(_S_Y), 1 / _S_Y**2
_MU, _MU_PRECISION = 0.5, 1 / 0.2**2
# Steps being equal, the 1024 pairs have 63 ratios (s_a / s_y)^2 only; which one is each pair's.
_RATIOS = (_SCALES[1] / _SCALES[0]) ** (2.0 * np.arange(-31, 32))
_RATIO = (np.arange(32)[:, None] - np.arange(32) + 31).ravel()


def mixed_posterior(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """The mixed model r = alpha_j + s_y e, alpha_j = mu + s_a e_j, given scores in groups j.

    The mean of a group of n scores varies by s_y^2 (s_a^2 / s_y^2 + 1 / n) around mu. So groups of
    equal size share their terms: three sums over the groups of each size, and a term per ratio of
    the scales, are enough for the whole grid.

    Args:
        sums: `[3, J]`; groups without scores say nothing.

    Returns:
        `[G]` probabilities of the grid's pairs of scales; given each, `[G]` mean and precision
        of mu.
    """
    n, mean, spread = _moments(sums)
    sizes = np.flatnonzero(np.bincount(n.astype(int))[1:]) + 1
    powers = np.stack([np.bincount(n.astype(int), mean**k)[sizes] for k in range(3)], 1)
    share = 1 / (_RATIOS[:, None] + 1 / sizes)  # [ratios, sizes]
    weight, first, second = (share @ powers).T[:, _RATIO]
    precision = _MU_PRECISION + _Y_PRECISION * weight
    centre = (_MU_PRECISION * _MU + _Y_PRECISION * first) / precision
    # Scores around their group's mean, the means around mu, and mu integrated out.
    log_posterior = _LOG_PRIOR + (np.log(share) @ powers[:, 0])[_RATIO] / 2 - n.sum() * _LOG_S_Y
    log_posterior -= _Y_PRECISION * (spread.sum() + second) / 2
    log_posterior += precision * centre**2 / 2 - np.log(precision) / 2
    probabilities = np.exp(log_posterior - log_posterior.max())
    return probabilities / probabilities.sum(), centre, precision


def draw_mixed(sums: Floats, rng: np.random.Generator) -> tuple[Floats, float]:
    """A new score for each group, and one for a group that is new: one joint draw."""
    probabilities, centre, precision = mixed_posterior(sums)
    g = int(rng.choice(len(probabilities), p=probabilities))
    mu = centre[g] + rng.standard_normal() / math.sqrt(precision[g])
    s_a, s_y = float(_S_A[g]), float(_S_Y[g])
    n, total, _ = sums
    own = 1 / s_a**2 + n / s_y**2  # precision of a group's effect given mu
    effects = (mu / s_a**2 + total / s_y**2) / own + rng.standard_normal(len(n)) / np.sqrt(own)
    scores = effects + s_y * rng.standard_normal(len(n))
    return scores, float(mu + math.hypot(s_a, s_y) * rng.standard_normal())


def _moments(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Number, mean (0 if there are none), and sum of squared deviations from it."""
    n, total, squares = sums
    mean = total / np.maximum(n, 1)
    return n, mean, np.maximum(squares - n * mean**2, 0.0)
