"""Calibration by groups: planted errors that overall calibration hides, and what has to stay."""

from __future__ import annotations

import math

import numpy as np
import pytest
from calibrated import PROD, TEXTS, Words, toy_text
from scipy.special import expit, log_expit

from ppl.verifiers import (
    Calibrated,
    GroupPlatt,
    Platt,
    Refit,
    check_verifier,
    log_odds,
    reliability_by_group,
    step_groups,
    step_scores,
)


def planted(n: int, seed: int = 0):
    """Scores that are too high by 1.5 nats in one half and too low by as much in the other, and
    twice as sharp as they should be where `narrow` (a group across both) holds."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n) * 1.5
    hard, narrow = rng.random(n) < 0.5, rng.random(n) < 0.3
    truth = np.where(narrow, 0.4, 1.0) * scores + np.where(hard, -1.5, 1.5)
    labels = rng.random(n) < expit(truth)
    groups = {"hard": hard, "easy": ~hard, "narrow": narrow, "noise": rng.random(n) < 0.5}
    return scores, labels, groups, truth


def test_overall_calibration_hides_what_groups_show():
    fitted_on, shown_on = planted(6000), planted(40_000, 1)
    scores, labels, groups, truth = shown_on
    overall = Platt.fit(*fitted_on[:2])
    whole = reliability_by_group(overall(scores), labels, {"all": np.ones(40_000, bool)})["all"]
    assert whole.ece < 0.02  # nothing to see
    before = reliability_by_group(overall(scores), labels, groups)
    assert before["hard"].ece > 0.15
    assert before["easy"].ece > 0.15
    fitted = GroupPlatt.fit(*fitted_on[:3])
    after = reliability_by_group(fitted(scores, groups), labels, groups)
    assert max(r.ece for r in after.values()) < 0.03
    # Where groups meet nobody has asked; as a group of its own it is mended too.
    meeting = "hard and narrow"

    def met(groups):
        return {**groups, meeting: groups["hard"] & groups["narrow"]}

    def error(calibrator):
        log_p = calibrator(scores, met(groups))
        return reliability_by_group(log_p, labels, {meeting: met(groups)[meeting]})[meeting].ece

    asked = GroupPlatt.fit(fitted_on[0], fitted_on[1], met(fitted_on[2]))
    assert error(asked) < 0.05 < error(fitted)
    probs = np.exp(asked(scores, met(groups)))
    assert np.abs(probs - expit(truth)).mean() < 0.03


def test_no_group_has_an_error_that_a_shift_or_a_stretch_would_mend():
    scores, labels, groups, _ = planted(4000, 2)
    fitted = GroupPlatt.fit(scores, labels, groups, least_gain=0.01)
    log_p = fitted(scores, groups)
    error = labels - np.exp(log_p)
    odds = log_odds(log_p)
    for inside in groups.values():
        spread = math.sqrt(inside.sum()) / 2
        assert abs(error[inside].sum()) < 0.1 * spread
        assert abs((error * odds)[inside].sum()) < 0.4 * spread
    # Of Platt alone this holds for the whole only.
    error = labels - np.exp(Platt.fit(scores, labels)(scores))
    assert abs(error.sum()) < 2
    assert abs(error[groups["hard"]].sum()) > 10 * math.sqrt(2000) / 2


def test_groups_that_mean_nothing_are_left_alone():
    refits = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scores = rng.normal(size=400)
        labels = rng.random(400) < expit(scores)
        groups = {"noise": rng.random(400) < 0.5}
        refits += len(GroupPlatt.fit(scores, labels, groups).refits)
    assert refits <= 3  # one in a hundred each
    loose = GroupPlatt.fit(scores, labels, groups, least_gain=0.0, rounds=2)
    assert 1 <= len(loose.refits) <= 2
    assert GroupPlatt.fit(scores, labels, {}).refits == ()


def test_the_gain_is_that_of_the_likelihood():
    scores, labels, groups, _ = planted(800, 3)

    def likelihood(log_p):
        return np.where(labels, log_p, np.log1p(-np.exp(log_p))).sum()

    one = GroupPlatt.fit(scores, labels, groups, rounds=1)
    gain = likelihood(one(scores, groups)) - likelihood(one.overall(scores))
    assert len(GroupPlatt.fit(scores, labels, groups, least_gain=gain - 0.01).refits) >= 1
    assert GroupPlatt.fit(scores, labels, groups, least_gain=gain + 0.01).refits == ()
    likelihoods = [
        likelihood(GroupPlatt.fit(scores, labels, groups, rounds=k)(scores, groups))
        for k in range(4)
    ]
    assert likelihoods == sorted(likelihoods)


def test_texts_of_the_same_groups_keep_their_order():
    scores, labels, groups, _ = planted(500, 4)
    fitted = GroupPlatt.fit(scores, labels, groups)
    ordered = np.sort(scores)
    for own in ({"hard": True}, {"hard": False, "narrow": True}, {}):
        masks = {name: np.full(500, own.get(name, False)) for name in groups}
        assert (np.diff(fitted(ordered, masks)) > 0).all()
    reversed_group = np.where(groups["narrow"], ~(scores > 0), labels)
    fitted = GroupPlatt.fit(scores, reversed_group, groups)
    assert all(refit.slope > 0 for refit in fitted.refits)
    one_kind = {"all good": np.asarray(labels)}
    assert GroupPlatt.fit(scores, labels, one_kind).refits == ()


def long(text):
    return len(text.steps) > 1


def of_b(text):
    return text.text.startswith("b")


GROUPS = {"long": long, "of b": of_b}
FITTED = GroupPlatt(Platt(0.5, 0.0), (Refit("long", 2.0, -1.0), Refit("of b", 1.0, 0.5)))


def test_a_calibrated_verifier_asks_groups_of_the_text_so_far():
    made = Calibrated(PROD, FITTED, groups=GROUPS)
    text = toy_text("b", "a", "a")
    raw = step_scores(PROD, [text])[0]
    scores = [0.5 * raw[0] + 0.5, raw[1] - 1 + 0.5, raw[2] - 1 + 0.5]  # the first step is not long
    assert step_scores(made, [text])[0] == pytest.approx(scores)
    assert made(text).log_scores == pytest.approx([log_expit(scores[-1])])
    assert "batch" in check_verifier(made, TEXTS)
    masks = step_groups(GROUPS, [text, toy_text("a")])
    assert masks["long"].tolist() == [False, True, True, False]
    assert masks["of b"].tolist() == [True, True, True, False]
    both = np.concatenate(step_scores(PROD, [text, toy_text("a")]))
    assert FITTED(both, masks)[:3] == pytest.approx(log_expit(np.array(scores)))


def test_blank_steps_and_whole_texts_have_groups_too():
    from programs import TOY

    spoken = ["a\n", "\n", "b\n"]
    lm = type(TOY)({"a": 0.4, "b": 0.4, "\n": 0.1, "$": 0.1}, symbols="^ab\n$", end="$")
    text = lm.prompt("^")
    for step in spoken:
        text = text + lm.continuation(step)
    made = Calibrated(Words(), FITTED, groups=GROUPS)
    odds = log_odds(math.log(0.1))
    assert made(text).log_scores == pytest.approx(log_expit([0.5 * odds, odds - 1.0]))
    assert step_groups(GROUPS, [text])["long"].tolist() == [False, True]
    assert step_groups(GROUPS, [lm.prompt("^")])["long"].tolist() == [False]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"fitted on \['of b'\] too"):
        Calibrated(PROD, FITTED, groups={"long": long})
    with pytest.raises(ValueError, match="Platt knows no groups"):
        Calibrated(PROD, Platt(1.0, 0.0), groups=GROUPS)
    with pytest.raises(ValueError, match=r"'of b' is missing"):
        FITTED([0.0], {"long": [True]})
    scores, labels, groups, _ = planted(50)
    with pytest.raises(ValueError, match=r"groups\['short'\]"):
        GroupPlatt.fit(scores, labels, {"short": groups["hard"][:3]})
