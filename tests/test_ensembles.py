"""Ensembles of verifiers, and how many samples they need."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from calibrated import Words, toy_text
from scipy.special import expit, log_expit, logit

import ppl
from ppl.errors import PRMFormatError
from ppl.verifiers import (
    DawidSkene,
    Ensemble,
    FunctionVerifier,
    ImperfectVerifier,
    Verifier,
    Votes,
    fit_quantiles,
    log_odds,
    pinball,
    quantile_head,
    quantile_head_of,
    samples_needed,
)

# -- ensembles ------------------------------------------------------------------------------------


def said(p: float) -> FunctionVerifier:
    return FunctionVerifier(lambda text: p, name=f"says {p}")


def test_log_odds_add_up_to_the_enumerated_posterior():
    """Three conditionally independent voters and a prior, against Bayes' rule by enumeration."""
    prior, tpr, fpr = 0.3, (0.9, 0.8, 0.6), (0.2, 0.4, 0.1)
    for votes in itertools.product([0, 1], repeat=3):
        like = [
            math.prod(r if v else 1 - r for v, r in zip(votes, rates, strict=True))
            for rates in (tpr, fpr)
        ]
        exact = prior * like[0] / (prior * like[0] + (1 - prior) * like[1])
        assert expit(DawidSkene(prior, tpr, fpr).log_odds([votes]))[0] == pytest.approx(exact)
        # The same from probabilities that each include the prior.
        each = [
            prior
            * (t if v else 1 - t)
            / (prior * (t if v else 1 - t) + (1 - prior) * (f if v else 1 - f))
            for v, t, f in zip(votes, tpr, fpr, strict=True)
        ]
        both = Ensemble([said(p) for p in each], prior=prior)
        assert math.exp(both(toy_text("a")).log_probability) == pytest.approx(exact, abs=1e-6)


def test_two_copies_in_a_group_change_nothing():
    one = Ensemble([said(0.8), said(0.3)], prior=0.4)
    copied = Ensemble([said(0.8), said(0.3), said(0.8)], groups=[(0, 2)], prior=0.4)
    doubled = Ensemble([said(0.8), said(0.3), said(0.8)], prior=0.4)
    text = toy_text("a")
    assert copied(text).log_probability == pytest.approx(one(text).log_probability)
    assert doubled(text).log_probability > one(text).log_probability + 0.1
    with pytest.raises(ValueError, match="at most once"):
        Ensemble([said(0.8), said(0.3)], groups=[(0, 1), (1,)])
    with pytest.raises(ValueError, match="2 weights for 1 groups"):
        Ensemble([said(0.8)], weights=[1.0, 2.0])


def test_members_with_other_steps_speak_with_their_latest_number(tiny):
    lm, prm = tiny
    text = lm.chat("Calculate 4 - 9 + 6.") + lm.continuation("-5+6\n") + lm.continuation("1")
    both = Ensemble([prm, said(0.6)])
    wanted = log_odds(prm(text).log_probability) + logit(0.6)
    got = both.judge_checked([ppl.JudgeRequest(both, text)])
    assert got[0] == pytest.approx((float(log_expit(wanted)),))


def test_voters_that_never_err_are_certain():
    found = DawidSkene(0.5, (1.0, 0.8), (0.0, 0.4)).log_odds([[1, 0], [0, 1], [math.nan, 1]])
    assert found.tolist() == [math.inf, -math.inf, pytest.approx(math.log(2))]
    with pytest.raises(ValueError, match=r"prior=1\.0"):
        Ensemble([said(0.5)], prior=1.0)


MODEL = DawidSkene(0.5, (0.9, 0.8, 0.7), (0.1, 0.1, 0.2))


@pytest.mark.parametrize(
    ("combined", "before_any"),
    [
        (Ensemble([Words(), said(0.6)]), 0.6),
        (Ensemble([Words(), Words()]), 1.0),
        (Votes([Words()] * 3, MODEL), 1.0),
        (Votes([said(0.6), Words(), Words()], MODEL), 0.9),
    ],
)
def test_a_blank_step_takes_no_evidence_back(combined, before_any):
    """It says nothing new: neither does a silent member pass, nor is it forgotten."""
    spaced = ppl.TableLM({"a": 0.5, " ": 0.3, "$": 0.2}, symbols="^a $", end="$")
    text = spaced.prompt("^") + spaced.continuation(" ")
    assert math.exp(combined(text).observe(True)) == pytest.approx(before_any)  # none has spoken
    text = spaced.prompt("^") + spaced.continuation("a")
    combined(text).observe(True)
    before = combined(text).log_probability
    text = text + spaced.continuation(" ")
    assert combined(text).observe(True) == pytest.approx(0.0)
    assert combined(text).log_probability == pytest.approx(before)


def test_a_silent_member_stays_with_what_it_said_last():
    class Better(Verifier):
        """Says more with every step that is not blank, and nothing about the others."""

        name = "better"

        def judge(self, requests):
            said = []
            for r in requests:
                spoken = [t for t, step in enumerate(r.text.steps) if step.strip()]
                said.append([math.log(0.2 * (t + 1)) for t in spoken if t >= r.since])
            return said

    class Every(Verifier):
        name = "every"

        def judge(self, requests):
            return [[math.log(0.6)] * len(r.text.steps[r.since :]) for r in requests]

    spaced = ppl.TableLM({"a": 0.5, " ": 0.3, "$": 0.2}, symbols="^a $", end="$")
    text = spaced.prompt("^")
    for step in "aa  ":
        text = text + spaced.continuation(step)
    both = Ensemble([Better(), Every()])
    (new,) = both.judge([ppl.JudgeRequest(both, text, since=2)])
    assert new == pytest.approx([log_expit(logit(0.4) + logit(0.6))])


def test_weights_are_learned_from_labels():
    rng = np.random.default_rng(0)
    labels = rng.random(4000) < 0.5
    sharp = np.where(labels, 2.0, -2.0) + rng.normal(size=4000)
    dull = np.where(labels, 0.2, -0.2) + rng.normal(size=4000)
    inverse = -np.where(labels, 1.0, -1.0) + rng.normal(size=4000)
    scores = np.stack([sharp, dull, inverse], 1)
    made = Ensemble.fit([said(0.1), said(0.2), said(0.3)], scores, labels)
    # Gaussian classes of unit variance and mean +-m have log-odds 2 m z.
    assert made.weights[0] == pytest.approx(4.0, rel=0.15)
    assert made.weights[1] == pytest.approx(0.4, abs=0.15)
    assert made.weights[2] == 0.0  # worse than chance is ignored
    with pytest.raises(ValueError, match="3 verifiers"):
        Ensemble.fit([said(0.1)] * 3, scores[:, :2], labels)


def test_error_rates_are_found_without_labels():
    rng = np.random.default_rng(1)
    prior, tpr, fpr = 0.4, np.array([0.9, 0.8, 0.7]), np.array([0.1, 0.3, 0.2])
    truth_ = rng.random(20_000) < prior
    votes = rng.random((20_000, 3)) < np.where(truth_[:, None], tpr, fpr)
    found = DawidSkene.fit(votes)
    assert found.prior == pytest.approx(prior, abs=0.03)
    assert found.tpr == pytest.approx(tpr, abs=0.04)
    assert found.fpr == pytest.approx(fpr, abs=0.04)
    # One accuracy each, balanced classes: agrees with the triplet formula sqrt(m12 m13 / m23).
    signs = np.where(rng.random((40_000, 3)) < (1 + np.array([0.8, 0.6, 0.4])) / 2, 1, -1)
    y = np.where(rng.random(40_000) < 0.5, 1, -1)
    spoken = signs * y[:, None]
    m = spoken.T @ spoken / len(spoken)
    assert math.sqrt(m[0, 1] * m[0, 2] / m[1, 2]) == pytest.approx(0.8, abs=0.02)
    balanced = DawidSkene.fit(spoken > 0)
    assert np.array(balanced.tpr) - balanced.fpr == pytest.approx([0.8, 0.6, 0.4], abs=0.04)
    with pytest.raises(ValueError, match="three voters"):
        DawidSkene.fit(votes[:, :2])


# -- budgets --------------------------------------------------------------------------------------


def test_imperfect_verifier_published_example():
    mixed = ImperfectVerifier((0.87, 0.13), 1.0, 0.75, prior=(0.58, 0.42))
    for wrong, budget, value in ((-0.7, 3, 0.5246), (-1.0, 2, 0.4724), (-2.0, 1, 0.3388)):
        assert mixed.best_budget(right=1.0, wrong=wrong) == budget
        assert mixed.value(budget, right=1.0, wrong=wrong) == pytest.approx(value, abs=5e-5)
    one = ImperfectVerifier((0.3,), 1.0, 0.75)
    assert one.precision(1000) == pytest.approx(0.6316, abs=1e-4)
    assert one.precision(1) == pytest.approx(one.precision(1000))  # of one type, it stays
    assert math.isnan(one.precision(0))
    # For one type the best number is none or all.
    assert one.best_budget(right=1.0, wrong=-1.0, most=50) == 50
    assert one.best_budget(right=1.0, wrong=-3.0, most=50) == 0


def test_every_draw_has_its_price():
    one = ImperfectVerifier((0.3,), 1.0, 0.75)
    # Of 0.3 right, 0.175 wrong and 0.525 rejected draws, the second follows a rejected one.
    paid = one.value(2, right=1.0, wrong=-1.0, price=0.1)
    assert paid == pytest.approx((0.3 - 0.175 - 0.1) * (1 + 0.525))
    assert one.best_budget(right=1.0, wrong=-1.0, price=0.12, most=50) == 50
    assert one.best_budget(right=1.0, wrong=-1.0, price=0.13, most=50) == 0


def test_imperfect_verifier_matches_a_simulation():
    rng = np.random.default_rng(0)
    made = ImperfectVerifier((0.5, 0.1), 0.8, 0.7, prior=(0.3, 0.7))
    n, counts = 40_000, np.zeros(3)
    kind = np.where(rng.random(n) < 0.3, 0.5, 0.1)
    open_ = np.ones(n, dtype=bool)
    for _ in range(4):
        right = rng.random(n) < kind
        accepted = open_ & (rng.random(n) < np.where(right, 0.8, 0.3))
        counts += [(accepted & right).sum(), (accepted & ~right).sum(), 0]
        open_ &= ~accepted
    counts[2] = open_.sum()
    exact = np.array(made.outcome(4))
    assert exact.sum() == pytest.approx(1)
    assert (np.abs(counts / n - exact) < 4 * np.sqrt(exact * (1 - exact) / n)).all()
    perfect = ImperfectVerifier((0.3,), 1.0, 1.0)
    assert perfect.outcome(5)[0] == pytest.approx(1 - 0.7**5)  # pass@K
    with pytest.raises(ValueError, match="sum to one"):
        ImperfectVerifier((0.3, 0.2), 1.0, 1.0, prior=(0.5, 0.4))


def test_attempts_are_not_negative():
    made = ImperfectVerifier((0.5, 0.1), 0.8, 0.7, prior=(0.3, 0.7))
    assert made.outcome(0) == (0.0, 0.0, 1.0)
    assert made.value(0, right=1.0, wrong=-1.0) == 0.0
    assert made.best_budget(right=1.0, wrong=-1.0, most=0) == 0
    for ask in (
        made.outcome,
        made.precision,
        lambda n: made.value(n, right=1.0, wrong=-1.0),
        lambda n: made.best_budget(right=1.0, wrong=-1.0, most=n),
    ):
        with pytest.raises(ValueError, match=r"(attempts|most)=-1"):
            ask(-1)


def test_quantile_head_starts_as_the_softmax():
    torch.manual_seed(0)
    weight, bias, hidden = torch.randn(2, 8), torch.randn(2), torch.randn(5, 8)
    head = quantile_head(weight, bias, (0.1, 0.5, 0.9))
    old = (hidden @ weight.T + bias).softmax(-1)[:, 1]
    for column in head(hidden).sigmoid().T:
        assert torch.allclose(column, old, atol=1e-6)
    with pytest.raises(ValueError, match="increasing"):
        quantile_head(weight, bias, (0.9, 0.1))


def test_pinball_finds_quantiles():
    torch.manual_seed(0)
    success = torch.rand(2000)
    hidden = torch.ones(2000, 1)
    head = quantile_head(torch.zeros(2, 1), None, (0.1, 0.5, 0.9))
    with torch.no_grad():
        before = float(pinball(head(hidden).sigmoid(), success, (0.1, 0.5, 0.9)))
    after = fit_quantiles(head, hidden, success, (0.1, 0.5, 0.9), weight_decay=0.0)
    assert after < before
    assert head(hidden[:1]).sigmoid()[0].tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.05)


def test_samples_needed():
    assert [samples_needed(p) for p in (0.9, 0.5, 0.1)] == [2, 7, 44]
    assert samples_needed(1.0) == 1
    assert samples_needed(0.0, most=64) == 64
    with pytest.raises(ValueError, match="confidence="):
        samples_needed(0.5, confidence=1.0)


def test_states_feed_a_quantile_head(tiny):
    lm, prm = tiny
    text = lm.chat("Calculate 4 - 9 + 6.") + lm.continuation("-5+6\n") + lm.continuation("1")
    (states,) = prm.states([ppl.JudgeRequest(prm, text)])
    judged = prm.judge_checked([ppl.JudgeRequest(prm, text)])[0]
    head = quantile_head_of(prm.log_odds, states, (0.5, 0.9))
    for column in head(states.clone()).sigmoid().T.tolist():
        assert column == pytest.approx(np.exp(judged), abs=1e-4)
    assert fit_quantiles(head, states, torch.tensor([0.2, 0.9]), (0.5, 0.9), rounds=2) > 0
    with pytest.raises(PRMFormatError, match="not linear"):
        quantile_head_of(lambda h: prm.log_odds(h.relu()), states, (0.5,))
