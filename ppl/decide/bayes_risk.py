"""Minimum Bayes risk: the answer of largest expected utility against all answers.

Bickel and Doksum 1977; for machine translation Kumar and Byrne 2004 and Eikema and Aziz 2020. With
the utility 1 for equal answers and 0 for others, it is the vote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ppl.decide.candidates import Candidates
from ppl.decide.columns import Floats
from ppl.decide.voting import weigh
from ppl.errors import ArgumentError
from ppl.language.arguments import checked
from ppl.language.classes import identity
from ppl.posterior.posterior import Posterior
from ppl.posterior.votes import leading, pooled


@checked
def minimum_bayes_risk(
    candidates: Posterior | Candidates | Sequence[Any],
    utility: Callable[[Any, Any], float],
    weights: Any = "posterior",
    *,
    references: Mapping[str, Posterior | Candidates | Sequence[Any]] | None = None,
) -> Any:
    """argmax over answers y of the weighted mean of u(y, y') over all answers y'.

    Args:
        candidates: whose answers are both choices and references.
        utility: u(chosen, reference), larger is better, on any scale; asked once for each ordered
            pair of answers that differ, and once for each with itself.
        weights: of the references, as of `vote`.
        references: more sets of answers that are references only, by any names. A set's weights
            are scaled to a mean of one, so that it counts as many answers as it has.

    Returns:
        The first seen among equals; None if there is no answer.

    Raises:
        ArgumentError: a utility that is no finite number.
    """
    values, logs = _there(candidates, weights)
    if not values:
        return None
    choices = len({identity(value) for value in values})
    if references:
        sets = [(values, logs), *(_there(each, weights) for each in references.values())]
        values = [value for own, _ in sets for value in own]
        logs = np.concatenate([_of_mean_one(own) for _, own in sets])
    numbers: dict[Any, int] = {}
    spelled = np.array([numbers.setdefault(identity(v), len(numbers)) for v in values])
    totals, _ = pooled(spelled[None], logs[None], len(numbers))
    firsts = [values[int(np.argmax(spelled == number))] for number in range(len(numbers))]
    gains = np.array([[_asked(utility, y, other) for other in firsts] for y in firsts[:choices]])
    # From the smallest up, so that equal sums are told as such whatever the utility's zero is.
    expected = (gains - gains.min()) @ totals[0]
    tied = leading(expected[None], np.ones((1, choices), dtype=np.bool_))[0]
    return firsts[int(np.argmax(tied))]


def _there(
    source: Posterior | Candidates | Sequence[Any], weights: Any
) -> tuple[list[Any], Floats]:
    """The answers that count, and their log-weights."""
    found = Candidates.of(source)
    there = np.flatnonzero(found.columns.there)
    return [found.values[i] for i in there.tolist()], weigh(found, weights)[there]


def _of_mean_one(logs: Floats) -> Floats:
    """Where all are minus infinity they count alike, as in a vote."""
    if not len(logs) or np.isneginf(logs).all():
        return np.zeros(len(logs))
    logs = logs - logs.max()
    return logs - math.log(np.exp(logs).mean())


def _asked(utility: Callable[[Any, Any], float], chosen: Any, reference: Any) -> float:
    gain = float(utility(chosen, reference))
    if not math.isfinite(gain):
        raise ArgumentError(
            f"utility: {gain} for {chosen!r} against {reference!r}; a finite number"
        )
    return gain
