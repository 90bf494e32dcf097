"""Self-calibration: what a model should say of its own answers (Huang et al. 2025, 2503.00031).

Votes with confidences are `vote(candidates, "confidence")`; what confidences are trained towards is
the share of all confidence that agrees with an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ppl.decide.candidates import Candidates, answer_numbers
from ppl.decide.columns import Floats
from ppl.language.arguments import checked


@checked
def soft_self_consistency(
    answers: Sequence[Any],
    confidences: ArrayLike,
    *,
    key: Callable[[Any], Hashable] | None = None,
) -> Floats:
    """The target of each answer's confidence: SSC(a) = sum of c_i over a_i = a, over the sum of c.

    With equal confidences it is the share of the votes. No answer has the target 0, and its
    confidence counts below the line.

    Args:
        answers: `[N]`; None for no answer.
        confidences: `[N]`, in [0, 1]; normalise P(Yes) over Yes and No.
        key: maps an answer to what it is compared by.

    Returns:
        `[N]`; all zero if no confidence is above zero.
    """
    found = Candidates(answers, confidences=confidences)
    numbers = answer_numbers(found.answers(key))
    sure = found.columns["confidences"]
    sums = np.bincount(numbers + 1, sure, minlength=1)
    sums[0] = 0.0
    total = sure.sum()
    return np.asarray(sums[numbers + 1] / total if total > 0 else np.zeros(len(sure)))
