"""What rules would do with fewer samples, or more: unbiased estimates, fits and forecasts."""

from ppl.decide.scaling.coverage import (
    BetaBinomial,
    PowerLaw,
    coverage_curve,
    fit_beta_binomial,
    fit_power_law,
)
from ppl.decide.scaling.estimators import best_of_k, majority_at_k, pass_at_k, random_of_k
from ppl.decide.scaling.strata import pass_at_k_perturbed
from ppl.decide.scaling.ttspm import TTSPM, fit_ttspm, saturation

__all__ = [
    "TTSPM",
    "BetaBinomial",
    "PowerLaw",
    "best_of_k",
    "coverage_curve",
    "fit_beta_binomial",
    "fit_power_law",
    "fit_ttspm",
    "majority_at_k",
    "pass_at_k",
    "pass_at_k_perturbed",
    "random_of_k",
    "saturation",
]
