"""ConSol's sequential test (Lee, Qi, Neeley, Liu, Jeong 2025, arXiv:2503.17587): stop as soon as a
likelihood ratio says that the leading answer is more frequent than the runner-up, or that it is
not.

    among samples of the two: H0: p = 1/2        H1: p = p1 (simple), or p ~ Beta(a, a) above 1/2
    stop if log(LR) >= log((1 - beta) / alpha) or log(LR) <= log(beta / (1 - alpha))

Wald's bounds (1945) hold for two hypotheses stated beforehand, here the pair is chosen by the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy.special import betainc, betaln

from ppl.decide.seen import Seen
from ppl.decide.stopping import StoppingRule, leaders
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields

# The paper's bounds, tuned so that the smallest lead that means anything is enough.
_PUBLISHED = {"simple": 1 - 0.05 - 0.000024, "mixture": 1 - 0.05 - 0.00006}

_PRIORS, _MOST_VOTES = (1e-9, 1e9), 2.0**53


@dataclass(frozen=True)
class SequentialTest(StoppingRule):
    """Wald's test of the two leading answers. With the published settings either form stops at a
    lead of three, whatever the number of samples, and practically never for H0.

    Attributes:
        form: `"simple"`: against one value of p; `"mixture"`: against a law of values.
        alpha: chance to stop for H1 where H0 holds.
        beta: chance to stop for H0 where H1 holds; by default the published value, .949976 or
            .94994, which is far from what one would otherwise choose.
        p1: the simple alternative.
        prior: a of the mixture; the larger, the closer to 1/2.
    """

    form: Literal["simple", "mixture"] = "mixture"
    alpha: float = 0.05
    beta: float | None = None
    p1: float = 0.5001
    prior: float = 1e6

    def __post_init__(self) -> None:
        check_fields(self)
        checks.one_of(tuple(_PUBLISHED), form=self.form)
        checks.positive(prior=self.prior)
        if not _PRIORS[0] <= self.prior <= _PRIORS[1]:  # logs of Beta functions would be rounding
            raise ArgumentError(f"prior={self.prior!r}: between {_PRIORS[0]:g} and {_PRIORS[1]:g}")
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ArgumentError(
                    f"{name}={value!r}: the chance of an error, above 0 and below 1"
                )
        beta = _PUBLISHED[self.form] if self.beta is None else self.beta
        if self.alpha + beta >= 1:
            raise ArgumentError(
                f"alpha={self.alpha!r}: with beta={beta!r} they add up to 1 or more"
            )
        if not 0.5 < self.p1 < 1:
            raise ArgumentError(f"p1={self.p1!r}: above 1/2 and below 1")

    def stops(self, seen: Seen) -> bool:
        """True once one of the two bounds is crossed."""
        first, second = leaders(seen.votes)
        if first == 0:
            return False
        beta = _PUBLISHED[self.form] if self.beta is None else self.beta
        upper, lower = math.log((1 - beta) / self.alpha), math.log(beta / (1 - self.alpha))
        return not lower < self.log_ratio(first, second) < upper

    def log_ratio(self, first: float, second: float) -> float:
        """log P(counts | H1) - log P(counts | H0).

        Args:
            first: votes for the leader; a number of zero or more, as weights are.
            second: those for the other.
        """
        checks.nonnegative(first=first, second=second)
        if first + second > _MOST_VOTES:
            votes = "one of the two" if max(first, second) > _MOST_VOTES else "their sum"
            raise ArgumentError(
                f"first={first!r}, second={second!r}: {votes} is above {_MOST_VOTES:g}, where a "
                "vote more is lost in rounding; scale the weights down"
            )
        null = (first + second) * math.log(0.5)
        if self.form == "simple":
            return first * math.log(self.p1) + second * math.log1p(-self.p1) - null
        a, b = first + self.prior, second + self.prior
        # Mass above 1/2, of the Beta law after and before the counts.
        mass = float(betainc(b, a, 0.5))
        after = math.log(mass) if mass > 0 else _log_tail(b, a)
        before = math.log(0.5)
        return float(betaln(a, b) + after - betaln(self.prior, self.prior) - before - null)


def _log_tail(a: float, b: float) -> float:
    """log I_1/2(a, b) where it is too small for a float: by its continued fraction (Numerical
    Recipes, 6.4; Lentz), which is quick there."""
    c, d = 1.0, 1.0 / (1.0 - 0.5 * (a + b) / (a + 1.0))
    fraction = d
    for m in range(1, 1000):
        even = 0.5 * m * (b - m) / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1.0 / (1.0 + even * d), 1.0 + even / c
        fraction *= d * c
        odd = -0.5 * (a + m) * (a + b + m) / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1.0 / (1.0 + odd * d), 1.0 + odd / c
        fraction *= d * c
        if abs(d * c - 1.0) < 1e-14:
            break
    front = (a + b) * math.log(0.5) - math.log(a) - float(betaln(a, b))
    return front + math.log(fraction)
