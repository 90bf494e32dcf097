"""Answer or abstain: a wrong answer may cost more than none (see `ppl.decide.risk`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ppl.decide.candidates import Candidates
from ppl.decide.risk import answering_threshold
from ppl.decide.voting import shares
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.posterior.posterior import Posterior


@dataclass(frozen=True)
class Abstained:
    """No answer is given; it is false in a condition.

    Attributes:
        confidence: the share of all weight that the winning answer had; 0 without any.
        answer: the answer that was not given, None if there was none.
    """

    confidence: float
    answer: Any = None

    def __bool__(self) -> bool:
        return False


@checked
def answer_or_abstain(
    candidates: Posterior | Candidates | Sequence[Any],
    threshold: float | None = None,
    *,
    wrong: float = -1.0,
    weights: Any = "posterior",
    key: Callable[[Any], Hashable] | None = None,
) -> Any:
    """The vote's answer, or `Abstained` where its share of all weight is below the threshold.

    Args:
        candidates, weights, key: as of `vote`.
        threshold: by default what `wrong` implies for a calibrated confidence.
        wrong: what a wrong answer is worth, if a right one is worth 1.
    """
    implied = answering_threshold(wrong)
    if threshold is not None:
        checks.probability(threshold=threshold)
    bar = implied if threshold is None else threshold
    found = shares(candidates, weights, key=key)
    if not found:
        return Abstained(0.0)
    answer, confidence = found[0]
    return answer if confidence >= bar - 1e-12 else Abstained(confidence, answer)
