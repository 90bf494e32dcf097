"""Calibration, noise, ensembles and the arithmetic of imperfect verifiers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import programs
import pyro
import pytest
import torch
from scipy.special import expit, log_expit, logit

import ppl
from ppl.errors import PRMFormatError, VerifierError
from ppl.searchers import BestOfN
from ppl.verifiers import (
    Calibrated,
    Channel,
    DawidSkene,
    Ensemble,
    Flipped,
    FunctionVerifier,
    ImperfectVerifier,
    Isotonic,
    LogitNoise,
    Platt,
    Potential,
    QuestionBias,
    Temperature,
    Verifier,
    Votes,
    check_verifier,
    fit_quantiles,
    log_odds,
    pinball,
    quantile_head,
    quantile_head_of,
    ranker,
    reliability,
    samples_needed,
    step_scores,
)

TOY = programs.TOY
PROD = programs.VERIFIERS["prod"]


def toy_text(*steps: str) -> ppl.Text:
    text = TOY.prompt("^")
    for step in steps:
        text = text + TOY.continuation(step)
    return text


TEXTS = [toy_text("a", "b", "a"), toy_text("b"), toy_text("a", "a"), toy_text("b", "b")]


def labelled(n: int, law):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=n)
    return scores, rng.random(n) < law(scores)


# -- calibration ----------------------------------------------------------------------------------


def test_platt_recovers_the_law_of_the_labels():
    fitted = Platt.fit(*labelled(40_000, lambda z: expit(2 * z - 1)))
    assert fitted.slope == pytest.approx(2, abs=0.06)
    assert fitted.intercept == pytest.approx(-1, abs=0.06)
    assert Platt(2.0, -1.0)([0.5]) == pytest.approx(log_expit(0.0))


def test_temperature_recovers_the_law_of_the_labels():
    fitted = Temperature.fit(*labelled(40_000, lambda z: expit(z / 2.5)))
    assert fitted.temperature == pytest.approx(2.5, rel=0.06)


def test_isotonic_is_monotone_and_never_certain():
    scores, labels = labelled(4000, lambda z: expit(4 * np.sign(z)))
    fitted = Isotonic.fit(scores, labels)
    probs = np.exp(fitted(np.linspace(-3, 3, 50)))
    assert (np.diff(probs) >= 0).all()
    assert probs[:20] == pytest.approx(expit(-4), abs=0.03)
    assert probs[-20:] == pytest.approx(expit(4), abs=0.03)
    assert 0 < probs.min() < probs.max() < 1
    small = Isotonic.fit([0.0, 1.0, 1.0], [False, True, False])
    assert np.exp(small([0.0, 1.0, 9.0])) == pytest.approx([0.2, 0.5, 0.5])
    # One right below three wrong ones of equal score: pooled, each text counts once.
    pooled = Isotonic.fit([0.0, 1.0, 1.0, 1.0, 2.0], [True, False, False, False, True])
    assert np.exp(pooled([0.0, 1.0, 2.0])) == pytest.approx([1 / 4, 1 / 4, 1 - 1 / 7])


@pytest.mark.parametrize("kind", [Platt, Temperature, Isotonic])
def test_calibration_improves_what_it_was_made_for_and_keeps_the_order(kind):
    # Overconfident: log-odds three times too large.
    scores, labels = labelled(6000, expit)
    fitted = kind.fit(3 * scores[:3000], labels[:3000])
    raw = reliability(log_expit(3 * scores[3000:]), labels[3000:])
    mended = reliability(fitted(3 * scores[3000:]), labels[3000:])
    assert mended.ece < 0.5 * raw.ece
    assert mended.brier < raw.brier
    assert mended.log_loss < raw.log_loss
    order = np.argsort(scores)
    assert (np.diff(fitted(3 * scores[order])) >= -1e-12).all()


def test_separable_and_senseless_labels():
    scores = np.array([-2.0, -1.0, 1.0, 2.0])
    # Hard targets would run to infinity. Platt's are 3/4 and 1/4; the optimum solves
    # 1 s(1/T) + 2 s(2/T) = 3 * 3/4, s the sigmoid, and by symmetry both have it.
    temperature = Temperature.fit(scores, scores > 0).temperature
    assert expit(1 / temperature) + 2 * expit(2 / temperature) == pytest.approx(9 / 4, abs=1e-4)
    assert Platt.fit(scores, scores > 0).slope == pytest.approx(1 / temperature, abs=1e-4)
    with pytest.raises(ValueError, match="order round"):
        Temperature.fit(scores, scores < 0)
    with pytest.raises(ValueError, match="order round"):
        Platt.fit(scores, scores < 0)
    with pytest.raises(ValueError, match="all 4 labels are True"):
        Isotonic.fit(scores, np.ones(4))
    with pytest.raises(ValueError, match="one finite score"):
        Platt.fit(scores[:3], scores > 0)
    with pytest.raises(ValueError, match=r"scores=.*NaN"):
        Platt.fit([math.nan, 0.0], [True, False])


def test_calibrated_verifiers_keep_the_laws():
    odds = log_odds(math.log(0.9))
    made = Calibrated(PROD, Platt(0.5, 0.1))
    assert math.exp(made(toy_text("a")).log_probability) == pytest.approx(
        float(expit(0.5 * odds + 0.1))
    )
    assert (made.meaning, made.aggregate) == (PROD.meaning, "prod")
    assert "batch" in check_verifier(made, TEXTS)
    assert log_odds([0.0, -math.inf]).tolist() == [40.0, -40.0]
    tiny_p = math.log1p(-1e-12)  # precise next to one, where p itself is rounded
    assert log_odds(tiny_p) == pytest.approx(math.log(1e12), rel=1e-3)


@pytest.mark.parametrize("declared", [True, False])
def test_calibration_does_not_change_how_a_verifier_is_asked(declared):
    class Estimates(Words):
        pseudo_marginal = asks_models = declared

    made = Calibrated(Estimates(), Platt(1.0, 0.0))
    assert (made.pseudo_marginal, made.asks_models) == (declared, declared)


def test_a_ranker_becomes_a_likelihood_by_calibration():
    @ranker
    def count(text):
        return text.text.count("a")

    with pytest.raises(ValueError, match="Ranker"):
        Calibrated(count, Platt(1.0, 0.0))  # its meaning must be stated
    made = Calibrated(count, Platt(1.0, -1.0), meaning="outcome")
    assert math.exp(made(toy_text("a", "a")).log_probability) == pytest.approx(expit(1.0))


def test_a_calibrated_reward_is_a_probability_of_something():
    reward = Potential(ranker(lambda text: 2.0), 1.0)
    with pytest.raises(ValueError, match=r"no longer a reward.*meaning='outcome'"):
        Calibrated(reward, Platt(1.0, 0.0))
    made = Calibrated(reward, Platt(1.0, 0.0), meaning="outcome")
    assert math.exp(made(toy_text("a")).log_probability) == pytest.approx(expit(2.0))


def test_step_scores_ask_whole_text_verifiers_at_every_prefix(tiny):
    ours = step_scores(PROD, TEXTS)
    assert [len(s) for s in ours] == [3, 1, 2, 2]
    assert expit(ours[0]) == pytest.approx([0.9, 0.6, 0.9])
    lm, prm = tiny
    text = lm.chat("Calculate 4 - 9 + 6.") + lm.continuation("-5+6\n") + lm.continuation("1")
    judged = prm.judge_checked([ppl.JudgeRequest(prm, text)])[0]
    assert step_scores(prm, [text])[0] == pytest.approx(log_odds(judged))


SPACED = ppl.TableLM({"a": 0.5, " ": 0.3, "$": 0.2}, symbols="^a $", end="$")


def spaced(steps: str) -> ppl.Text:
    text = SPACED.prompt("^")
    for step in steps:
        text = text + SPACED.continuation(step)
    return text


class Speaker(Verifier):
    """What it says depends on the words so far; gives a number for the text, for every step that
    is not blank (as formatted PRMs do), or for every step."""

    def __init__(self, numbers: str) -> None:
        self.name = self.numbers = numbers

    def judge(self, requests):
        return [self.scores(r.text, r.since) for r in requests]

    def scores(self, text, since):
        if self.numbers == "one for the text":
            return [math.log(0.1 * text.text.count("a") + 0.1)]
        words = list(itertools.accumulate(step == "a" for step in text.steps))
        steps = zip(words[since:], text.steps[since:], strict=True)
        blank_too = self.numbers == "one per step"
        return [math.log(0.1 * n + 0.1) for n, step in steps if step.strip() or blank_too]


SPEAKERS = [Speaker("one for the text"), Speaker("one per word"), Speaker("one per step")]


@pytest.mark.parametrize("speaker", SPEAKERS, ids=lambda s: s.name)
def test_a_blank_step_has_no_score(speaker):
    for steps in ("a", "a ", " a", "aa ", "a a", "a  a ", "   "):
        (scores,) = step_scores(speaker, [spaced(steps)])
        words = np.arange(steps.count("a"))
        assert scores.tolist() == pytest.approx(logit(0.1 * words + 0.2).tolist()), steps


@pytest.mark.parametrize("speaker", SPEAKERS, ids=lambda s: s.name)
def test_a_blank_step_changes_no_noise(speaker):
    # Fair inside, so that a flip shows.
    for noisy in (LogitNoise(speaker, sd=1.0), Flipped(speaker, tpr=0.5, fpr=0.5)):
        texts = [spaced(steps) for steps in ("a", "a ", " a", "aa ", "a a", "a  a ")]
        check_verifier(noisy, texts)
        for steps in ("a", "aa", "aaa"):
            text, longer = spaced(steps), spaced(steps + " ")
            last = noisy.judge_checked([ppl.JudgeRequest(noisy, text)])[0][-1]
            for since in range(len(steps)):
                again = noisy.judge_checked([ppl.JudgeRequest(noisy, longer, since)])[0][-1]
                assert again == pytest.approx(last)


# -- reliability ----------------------------------------------------------------------------------


def test_reliability_by_hand():
    p = np.array([0.2, 0.2, 0.8, 0.8])
    r = reliability(np.log(p), [0, 1, 1, 1], steps=[0, 1, 0, 1], bins=2)
    assert r.brier == pytest.approx((0.04 + 0.64 + 0.04 + 0.04) / 4)
    assert r.ece == pytest.approx((2 * 0.3 + 2 * 0.2) / 4)
    assert r.log_loss == pytest.approx(-(3 * math.log(0.8) + math.log(0.2)) / 4)
    assert [(b.count, b.predicted, b.observed) for b in r.bins] == [
        (2, pytest.approx(0.2), 0.5),
        (2, pytest.approx(0.8), 1.0),
    ]
    assert {t: b.observed for t, b in r.by_step.items()} == {0: 0.5, 1: 1.0}
    assert "ECE 0.2500" in str(r)
    assert "step 2" in str(r)


def test_an_edge_belongs_to_the_bin_below_it():
    r = reliability(np.log([0.1, 0.2, 0.2, 0.3]), [0, 0, 1, 1], bins=2)
    assert [(b.count, b.observed) for b in r.bins] == [(3, pytest.approx(1 / 3)), (1, 1.0)]


def test_bins_have_equal_mass_and_calibrated_predictions_no_error():
    scores, labels = labelled(20_000, expit)
    r = reliability(log_expit(scores), labels)
    assert {b.count for b in r.bins} == {2000}
    assert r.ece < 0.015
    with pytest.raises(ValueError, match="one log-probability"):
        reliability([0.5], [True])


def test_reliability_draws_itself():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    r = reliability(np.log([0.2, 0.8]), [0, 1], bins=2)
    r.plot(axes, label="raw")
    assert axes.lines[1].get_xydata().tolist() == pytest.approx(np.array([[0.2, 0], [0.8, 1]]))
    assert axes.lines[1].get_label() == "raw (ECE 0.200)"


# -- noise ----------------------------------------------------------------------------------------


def truth(text: ppl.Text) -> bool:
    return text.text.count("a") > text.text.count("b")


TRUTH = FunctionVerifier(truth, name="truth")


def test_the_channel_is_the_likelihood_of_a_pass():
    made = Channel(TRUTH, tpr=0.9, fpr=0.2)
    assert math.exp(made(toy_text("a")).log_probability) == pytest.approx(0.9)
    assert math.exp(made(toy_text("b")).log_probability) == pytest.approx(0.2)

    def program():
        text = TOY.prompt("^")
        text = text + pyro.sample("s", TOY(text, max_tokens=1))
        pyro.sample("ok", made(text), obs=True)
        return text.text

    exact = ppl.enumerate_program(program).marginal()
    assert exact["a"] == pytest.approx(0.5 * 0.9 / (0.5 * 0.9 + 0.5 * 0.2))
    assert BestOfN(400).run(program, seed=0).marginal()["a"] == pytest.approx(exact["a"], abs=0.05)
    with pytest.raises(ValueError, match="fpr <= tpr"):
        Channel(TRUTH, tpr=0.2, fpr=0.9)


WORDS = ["".join(w) for w in itertools.product("ab", repeat=9)]


def test_simulated_noise_has_its_rates():
    flipped = Flipped(TRUTH, tpr=0.9, fpr=0.3, seed=1)
    passes: dict[bool, list[bool]] = {True: [], False: []}
    for word in WORDS:
        text = toy_text(word)
        passes[truth(text)].append(flipped(text).log_probability == 0)
    for right, rate in ((True, 0.9), (False, 0.3)):
        error = math.sqrt(rate * (1 - rate) / len(passes[right]))
        assert abs(np.mean(passes[right]) - rate) < 4 * error
    noisy = LogitNoise(FunctionVerifier(lambda t: 0.7, name="flat"), sd=1.5, seed=1)
    odds = np.concatenate(step_scores(noisy, [toy_text(word) for word in WORDS])) - logit(0.7)
    assert abs(odds.mean()) < 4 * 1.5 / len(WORDS) ** 0.5
    assert odds.std() == pytest.approx(1.5, rel=0.15)


@pytest.mark.parametrize("persistence", [0.0, 0.8, 1.0])
def test_noise_may_last_along_the_steps(persistence):
    flat = FunctionVerifier(lambda t: 0.7, name="flat")
    noisy = LogitNoise(flat, sd=1.5, persistence=persistence, seed=1)
    whole = [toy_text(word, "a", "b") for word in WORDS]
    odds = np.array(step_scores(noisy, whole)) - logit(0.7)  # [texts, steps]
    assert odds[:, -1].std() == pytest.approx(1.5, rel=0.15)
    assert np.corrcoef(odds[:, -2], odds[:, -1])[0, 1] == pytest.approx(persistence, abs=0.12)
    assert np.corrcoef(odds[:, -3], odds[:, -1])[0, 1] == pytest.approx(persistence**2, abs=0.12)
    check_verifier(noisy, whole[:5])  # a step keeps its number when others follow


@pytest.mark.parametrize("sd", [-1.0, math.nan, math.inf])
def test_noise_needs_a_standard_deviation(sd):
    for kind in (LogitNoise, QuestionBias):
        with pytest.raises(ValueError, match=f"sd={sd}"):
            kind(TRUTH, sd=sd)


def test_a_questions_bias_is_shared_by_all_its_texts():
    biased = QuestionBias(FunctionVerifier(lambda t: 0.7, name="flat"), sd=1.0, seed=2)
    same = {round(float(s[0]), 9) for s in step_scores(biased, [toy_text(w) for w in WORDS[:20]])}
    assert len(same) == 1
    others = [TOY.prompt("^" + w) + TOY.continuation("a") for w in WORDS]
    shifts = np.concatenate(step_scores(biased, others)) - logit(0.7)
    assert shifts.std() == pytest.approx(1.0, rel=0.15)


def test_noise_that_looked_ahead_would_be_caught(monkeypatch, tiny):
    lm, prm = tiny
    text = lm.chat("Calculate 4 - 9 + 6.") + lm.continuation("-5+6\n") + lm.continuation("1")
    import ppl.verifiers.combine.noise as noise

    monkeypatch.setattr(noise, "_ends", lambda request, n: [len(request.text.tokens)] * n)
    with pytest.raises(VerifierError, match="prefix"):
        check_verifier(noise.LogitNoise(prm, sd=1.0), [text])


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


class Words(Verifier):
    """A number for every step that is not blank, as formatted PRMs give."""

    name = "words"

    def judge(self, requests):
        return [
            [math.log(0.1) for step in r.text.steps[r.since :] if step.strip()] for r in requests
        ]


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
