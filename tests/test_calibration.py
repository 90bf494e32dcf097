"""Calibration, reliability, noise and the arithmetic of imperfect verifiers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pytest
from calibrated import PROD, TEXTS, TOY, Words, labelled, toy_text
from scipy.special import expit, log_expit, logit

import ppl
from ppl.errors import VerifierError
from ppl.searchers import BestOfN
from ppl.verifiers import (
    Calibrated,
    Channel,
    Flipped,
    FunctionVerifier,
    Isotonic,
    LogitNoise,
    Platt,
    Potential,
    QuestionBias,
    Temperature,
    Verifier,
    check_verifier,
    log_odds,
    ranker,
    reliability,
    step_scores,
)

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
