"""Weights: an immutable value in log space."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppl.runtime.weights import Weights


def test_the_numbers_of_three_weights():
    weights = Weights(np.log([1.0, 2.0, 5.0]) - 1000)
    assert weights.probabilities == pytest.approx([0.125, 0.25, 0.625])
    assert weights.ess == pytest.approx(64 / 30)
    assert weights.log_sum == pytest.approx(math.log(8) - 1000)
    assert weights.log_mean == pytest.approx(math.log(8 / 3) - 1000)
    assert weights.flatten(2.0).probabilities == pytest.approx(
        np.sqrt([1, 2, 5]) / np.sqrt([1, 2, 5]).sum()
    )


def test_resampling_carries_the_evidence():
    weights = Weights(np.log([1.0, 3.0])).resample([1, 1]).add(np.log([2.0, 4.0]))
    assert weights.log_carried == pytest.approx(math.log(2))
    assert weights.log_evidence == pytest.approx(math.log(2 * 3))
    # Drawn evenly although they are not: a copy keeps w / (mean w * offspring).
    kept = Weights(np.log([1.0, 3.0])).resample([0, 1], np.log([1.0, 1.0]))
    assert np.exp(kept.log_weights) == pytest.approx([0.5, 1.5])
    assert kept.log_evidence == pytest.approx(math.log(2))


def test_every_resampling_adds_to_what_is_carried():
    weights = Weights(np.log([1.0, 3.0])).resample([1, 1]).add(np.log([2.0, 4.0])).resample([0, 1])
    assert weights.log_carried == pytest.approx(math.log(2 * 3))
    assert weights.add(np.log([5.0, 5.0])).log_evidence == pytest.approx(math.log(2 * 3 * 5))


def test_nothing_in_it_can_be_changed():
    given = np.zeros(3)
    weights = Weights(given)
    given[0] = 5.0
    assert weights == Weights.equal(3)
    assert hash(weights) == hash(Weights.equal(3))
    with pytest.raises(ValueError, match="read-only"):
        weights.log_weights[0] = 1.0
    with pytest.raises(AttributeError):
        weights.log_carried = 1.0
    assert weights.add([0.0, 0.0, 1.0]) != weights == Weights.equal(3)
    assert Weights(np.zeros(3), 1.0) != weights


def test_the_dead_and_the_impossible():
    assert Weights.equal(2, -math.inf).dead
    assert Weights(np.zeros(0)).dead
    assert not Weights([0.0, -math.inf]).dead
    assert Weights([0.0, -math.inf]).ess == 1.0
    with pytest.raises(ValueError, match="all weights are zero"):
        Weights.equal(2, -math.inf).probabilities  # noqa: B018
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN"):
            Weights([0.0, bad]).probabilities  # noqa: B018
