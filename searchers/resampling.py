"""Resampling: from normalised weights to ancestors, without bias.

Every scheme satisfies E[number of offspring of i] = N W_i; none ever chooses a weight of zero.
Douc, Cappe, Moulines 2005 (arXiv:cs/0507025) compare them; Chopin and Papaspiliopoulos 2020, ch. 9.
`optimal` and `chopthin` are of another kind: what they give has unequal weights, and it is the
weight that is kept in expectation, E[new weight of i] = W_i. `optimal` thins more atoms than N to
N, without copies; `chopthin` also splits what is heavy, so that no two weights are far apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ppl.language import checks

Floats = NDArray[np.float64]
Ancestors = NDArray[np.int64]
Scheme = Literal["multinomial", "stratified", "systematic", "residual", "ssp"]


def _invert(points: Floats, probabilities: Floats) -> Ancestors:
    """For sorted or unsorted points in [0, 1), the index whose share of [0, 1) holds each."""
    edges = np.cumsum(probabilities)
    # Dividing by the last edge undoes rounding; weights of zero own no share, also at the end.
    edges /= edges[-1]
    indices = np.searchsorted(edges, points, side="right")
    last = int(np.flatnonzero(probabilities)[-1])
    return np.asarray(np.minimum(indices, last), dtype=np.int64)


def multinomial(probabilities: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """N independent draws. The only scheme valid unchanged in conditional SMC."""
    return _invert(np.sort(rng.random(n)), probabilities)


def stratified(probabilities: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """One uniform in each of N equal strata; variance never above multinomial."""
    return _invert((np.arange(n) + rng.random(n)) / n, probabilities)


def systematic(probabilities: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """One uniform for all strata: floor(N W_i) or ceil(N W_i) offspring each."""
    return _invert((np.arange(n) + rng.random()) / n, probabilities)


def residual(probabilities: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """floor(N W_i) offspring for sure, the rest multinomially by the fractional parts."""
    scaled = n * probabilities / probabilities.sum()
    # N W_i that is an integer up to rounding is meant to be one.
    copies = np.floor(scaled + 1e-12).astype(np.int64)
    sure = np.repeat(np.arange(len(probabilities)), copies)
    rest = n - len(sure)
    if rest == 0:
        return sure
    fractions = np.clip(scaled - copies, 0.0, None)
    return np.sort(np.concatenate([sure, multinomial(fractions / fractions.sum(), rest, rng)]))


def ssp(probabilities: Floats, n: int, rng: np.random.Generator) -> Ancestors:
    """Srinivasan sampling process: floor(N W_i) or ceil(N W_i) offspring each, as systematic, and
    negatively associated, so consistent in any order of the particles (Gerber, Chopin, Whiteley
    2019, Annals of Statistics 47(4))."""
    scaled = n * probabilities / probabilities.sum()
    copies = np.floor(scaled + 1e-12).astype(np.int64)
    fractions = np.clip(scaled - copies, 0.0, None)
    up, _ = _settled(fractions, rng)
    return np.repeat(np.arange(len(copies)), copies + up)


def _settled(fractions: Floats, rng: np.random.Generator) -> tuple[NDArray[np.bool_], int | None]:
    """Rounds fractions that add up to a whole number, each up with its own probability.

    Returns:
        Which were rounded up; and with whom the last of them was settled, None if with nobody.
    """
    fractions = fractions.copy()
    up = np.zeros(len(fractions), dtype=bool)
    undecided = np.flatnonzero(fractions > 0)
    # Two fractions trade until one of them is 0 or 1; in expectation neither moves.
    i, partner = int(undecided[0]) if len(undecided) else 0, None
    for j in map(int, undecided[1:]):
        partner = i
        rise = min(1 - fractions[i], fractions[j])
        fall = min(fractions[i], 1 - fractions[j])
        change = rise if rng.random() * (rise + fall) < fall else -fall
        fractions[i] += change
        fractions[j] -= change
        if fractions[i] > 1 - 1e-12:
            up[i] = True
            i = j
        elif fractions[i] < 1e-12:
            i = j
        elif fractions[j] > 1 - 1e-12:
            up[j] = True
    if len(undecided) and fractions[i] > 0.5:  # the last: 0 or 1 up to rounding
        up[i] = True
    return up, partner


def optimal(probabilities: Floats, n: int, rng: np.random.Generator) -> tuple[Ancestors, Floats]:
    """Thins M weighted atoms to at most n (Fearnhead and Clifford 2003, JRSS-B 65(4)).

    With the c that solves sum_i min(1, c W_i) = n, atoms with c W_i >= 1 are kept as they are; the
    others are kept with probability c W_i and then weigh 1 / c. Among all unbiased ways to do this
    it has the least expected squared error.

    Args:
        probabilities: `[M]` normalised weights.
        n: atoms to keep.

    Returns:
        Sorted indices of the survivors and their weights; where no more than n have weight, those,
        unchanged.
    """
    survivors = np.flatnonzero(probabilities)
    if len(survivors) <= n:
        return survivors, probabilities[survivors]
    order = survivors[np.argsort(-probabilities[survivors], kind="stable")]
    weights = probabilities[order]
    tails = np.cumsum(weights[::-1])[::-1]  # the k-th: mass left once the k heaviest are kept
    # Keep the fewest for which c W <= 1 holds for all others, with c = (n - k) / tail.
    kept = int(np.argmax((n - np.arange(n)) * weights[:n] <= tails[:n]))
    drawn = kept + systematic(weights[kept:] / tails[kept], n - kept, rng)
    weights[kept:] = tails[kept] / (n - kept)
    chosen = np.concatenate([np.arange(kept), drawn])
    chosen = chosen[np.argsort(order[chosen], kind="stable")]
    return order[chosen], weights[chosen]


ETA = 3 + math.sqrt(8)
"""The ratio of weights that chopthin allows by default."""


def chopthin(
    probabilities: Floats, n: int, rng: np.random.Generator, eta: float = ETA
) -> tuple[Ancestors, Floats]:
    """Thins what is light and chops what is heavy (Gandy and Lau 2016, arXiv:1502.07532).

    With the threshold a that makes the expected number n, an atom of weight w has w / a offspring
    below a (one with that probability, of weight a), itself up to eta a / 2, and above that
    2 w / (eta a) in expectation, which share its weight. The total weight stays exactly what it
    was: where one more of the light is kept than expected, one of the heavy pays for it.

    Args:
        probabilities: `[M]` normalised weights; M may differ from n.
        n: atoms to give.
        eta: the largest ratio between weights of the result, 4 at least.

    Returns:
        Sorted indices `[n]` of the atoms' origins, and their weights, whose sum is 1.
    """
    if not eta >= 4:
        raise ValueError(f"eta={eta}: a ratio of 4 at least, or chopped atoms would be too light")
    alive = np.flatnonzero(probabilities)
    w = probabilities[alive] / probabilities[alive].sum()
    a = _threshold(w, n, eta)
    expected = np.where(w < a, w / a, np.maximum(1.0, 2 * w / (eta * a)))
    copies = np.floor(expected + 1e-12).astype(np.int64)
    light = np.flatnonzero(copies == 0)
    fractions = np.clip(expected - copies, 0.0, None)
    fractions[light] = 0.0
    edges = np.cumsum(w[light] / a)
    kept = float(edges[-1]) if len(light) else 0.0
    sure = math.floor(kept + 1e-12)
    spare = max(kept - sure, 0.0)
    up, partner = _settled(np.append(fractions, spare), rng)
    copies += up[:-1]
    shares = w.copy()
    if up[-1] != (spare > 0.5) and partner is None:  # a whole number but for rounding
        up[-1] = spare > 0.5
    if partner is not None and spare > 0:  # whoever was settled with the light pays, or is paid
        shares[partner] -= a * (sure + up[-1] - kept)
    shares /= np.maximum(copies, 1)
    # One uniform for all the light, given how many are kept.
    start = rng.random() * spare if up[-1] else spare + rng.random() * (1 - spare)
    points = start + np.arange(sure + up[-1])
    chosen = light[np.minimum(np.searchsorted(edges, points, side="right"), len(light) - 1)]
    copies[chosen] = 1
    shares[chosen] = a
    return np.repeat(alive, copies), np.repeat(shares, copies)


def _threshold(w: Floats, n: int, eta: float) -> float:
    """The a for which chopthin's expected number of atoms, which falls with a, is n."""
    ordered = np.sort(w)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    bends = np.sort(np.concatenate([ordered, 2 * ordered / eta]))

    def parts(a: Floats) -> tuple[Floats, Floats]:
        """The number is `first / a + second`."""
        light = np.searchsorted(ordered, a, side="left")
        heavy = np.searchsorted(ordered, eta * a / 2, side="left")
        return sums[light] + 2 * (sums[-1] - sums[heavy]) / eta, (heavy - light).astype(np.float64)

    first, second = parts(bends)
    after = int(np.searchsorted(-(first / bends + second), -n))
    if after == 0:  # all are chopped
        return 2 / (eta * n)
    if after == len(bends):  # all are thinned
        return 1 / n
    middle = np.sqrt(bends[after - 1 : after] * bends[after])
    (share,), (ones,) = parts(middle)
    if share <= 1e-15:  # as many as there are stay as they are
        return float(middle[0])
    return float(np.clip(share / (n - ones), bends[after - 1], bends[after]))


def without_replacement(
    log_weights: Sequence[float], count: int, rng: np.random.Generator
) -> list[int]:
    """Indices drawn one after the other in proportion to their weights, none twice.

    By the largest of log-weight plus Gumbel noise, which is the same in one go (Vieira 2014).
    """
    keys = np.asarray(log_weights) + rng.gumbel(size=len(log_weights))
    chosen: list[int] = np.argsort(-keys, kind="stable")[:count].tolist()
    return chosen


SCHEMES: dict[Scheme, Callable[[Floats, int, np.random.Generator], Ancestors]] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
    "ssp": ssp,
}


Uneven = Literal["chopthin"]
UNEVEN: dict[Uneven, Callable[[Floats, int, np.random.Generator], tuple[Ancestors, Floats]]] = {
    "chopthin": chopthin,
}


def resampled(
    scheme: Scheme | Uneven, probabilities: Floats, n: int, rng: np.random.Generator
) -> tuple[Ancestors, Floats | None]:
    """`[n]` ancestors by any scheme, and their shares of the weight, None where they are equal."""
    if scheme == "chopthin":
        return UNEVEN[scheme](probabilities, n, rng)
    return SCHEMES[scheme](probabilities, n, rng), None


def check_scheme(resampling: str, *, uneven: bool = False) -> None:
    """Raises ValueError for a scheme that is not known; `uneven` ones only where they are too."""
    checks.one_of([*SCHEMES, *(UNEVEN if uneven else ())], resampling=resampling)
