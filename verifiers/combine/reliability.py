"""Are a verifier's probabilities true? Brier score, calibration error, and the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlogy

from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.printed import Printed


@dataclass(frozen=True)
class Bin:
    """Predictions that belong together.

    Attributes:
        count: how many.
        predicted: their mean probability.
        observed: the share that was right.
    """

    count: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class Reliability(Printed):
    """A verifier's probabilities against the truth; print it, or plot it.

    Attributes:
        count: labelled predictions.
        base_rate: share of right ones; always predicting it has a Brier score of b (1 - b).
        brier: mean squared error of the probability.
        log_loss: mean negative log-probability of the truth, in nats.
        ece: expected calibration error over bins of equal mass: mean |predicted - observed|. Even
            a perfectly calibrated verifier has about sqrt(b (1 - b) * bins / count).
        bins: from low to high probability.
        by_step: the same by index of the step, if steps were given.
    """

    count: int
    base_rate: float
    brier: float
    log_loss: float
    ece: float
    bins: tuple[Bin, ...]
    by_step: Mapping[int, Bin] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.count} predictions, {self.base_rate:.1%} right: Brier {self.brier:.4f}, "
            f"log-loss {self.log_loss:.4f}, ECE {self.ece:.4f}",
            "  predicted  observed   count",
        ]
        rows = [("", b) for b in self.bins]
        rows += [(f"  step {t + 1}", b) for t, b in self.by_step.items()]
        lines += [f"  {b.predicted:9.3f} {b.observed:9.3f} {b.count:7d}{w}" for w, b in rows]
        return "\n".join(lines)

    def plot(self, axes: Any, *, label: str = "") -> None:
        """Draws observed against predicted, with the diagonal of perfect calibration.

        Args:
            axes: matplotlib axes (the extra `ppl-search[plots]` brings matplotlib).
            label: name of the curve; its ECE is added.
        """
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
        axes.plot(
            [b.predicted for b in self.bins],
            [b.observed for b in self.bins],
            marker="o",
            label=f"{label} (ECE {self.ece:.3f})".strip(),
        )
        axes.set(xlabel="verifier's probability", ylabel="share that is right", aspect="equal")
        axes.set(xlim=(0, 1), ylim=(0, 1))


@checked
def reliability(
    log_probs: ArrayLike, labels: ArrayLike, *, steps: ArrayLike | None = None, bins: int = 10
) -> Reliability:
    """Compares probabilities with labels.

    Args:
        log_probs: `[n]` log-probabilities that a verifier gave.
        labels: `[n]` truth values of what it speaks about.
        steps: `[n]` index of the step from 0, for the reliability by step.
        bins: number of bins of equal mass (fewer where probabilities repeat).

    Raises:
        ValueError: shapes differ, nothing is given, or a number is no log-probability.
    """
    checks.count(bins=bins)
    log_p, y = checks.numbers(log_probs=log_probs), checks.truths(labels=labels)
    if log_p.ndim != 1 or log_p.shape != y.shape or not len(y) or not (log_p <= 1e-9).all():
        raise ValueError(
            f"log_probs {log_p.shape} and labels {y.shape}: give one log-probability per label"
        )
    p = np.exp(np.minimum(log_p, 0.0))
    # Equal probabilities stay in one bin: a step function would otherwise look miscalibrated.
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1]))
    where = np.searchsorted(edges, p, side="left")
    groups = [_bin(p[where == i], y[where == i]) for i in np.unique(where)]
    at = None if steps is None else checks.numbers(steps=steps)
    if at is not None and (at.shape != y.shape or (at < 0).any() or (at % 1 != 0).any()):
        raise ValueError(f"steps={shown(steps)}: the index of the step, from 0, for every label")
    loss = -(xlogy(y, p) + xlogy(~y, np.maximum(1 - p, 1e-300)))
    return Reliability(
        count=len(y),
        base_rate=float(y.mean()),
        brier=float(np.mean((p - y) ** 2)),
        log_loss=float(loss.mean()),
        ece=sum(b.count * abs(b.predicted - b.observed) for b in groups) / len(y),
        bins=tuple(groups),
        by_step={} if at is None else {int(t): _bin(p[at == t], y[at == t]) for t in np.unique(at)},
    )


def _bin(p: Any, y: Any) -> Bin:
    return Bin(len(y), float(p.mean()), float(y.mean()))
