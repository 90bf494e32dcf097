"""Confidence heads: what they read, what they are fitted to, and what the example makes of them."""

from __future__ import annotations

import math

import confidence
import numpy as np
import pyro
import pytest
import torch
from programs import TOY
from scipy.special import expit, log_expit

from ppl.searchers import BestOfN
from ppl.verifiers import ConfidenceHead, JudgeRequest, check_verifier
from ppl.verifiers.models.confidence import hidden_states


@pytest.fixture(scope="module")
def written(tiny):
    """The model, and 24 texts of different lengths."""
    lm, _ = tiny
    text = lm.chat("Calculate 4 - 9 + 6.")
    steps = ["5\n", "-5+6\n", "1", "4+6\n", "10-9\n", "7", "4-3\n", "-9\n"]
    texts = [text + lm.continuation(a) + lm.continuation(b) for a in steps[:4] for b in steps[2:]]
    return lm, texts


def test_a_head_reads_the_state_of_the_last_token(written):
    lm, texts = written
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=lm.model.config.hidden_size) / 10, 0.3
    head = ConfidenceHead(lm, weight, bias)
    for text in texts[:4]:
        with torch.inference_mode():
            tokens = torch.tensor([text.tokens])
            states = lm.model(input_ids=tokens, output_hidden_states=True).hidden_states[-1][0]
        exact = float(log_expit(states[-1].double().numpy() @ weight + bias))
        assert head(text).log_scores == pytest.approx([exact], abs=1e-4)
        before = float(log_expit(states[-2].double().numpy() @ weight + bias))
        assert abs(before - exact) > 1e-3
    assert "batch" in check_verifier(head, texts[:3])
    assert (head.meaning, head.aggregate) == ("outcome", "last")


def test_a_fit_finds_a_planted_direction_and_ridge_holds_it_back(written):
    lm, texts = written
    states = hidden_states(lm, [JudgeRequest(ConfidenceHead(lm, np.zeros(192)), t) for t in texts])
    z = (states - states.mean(0)) @ np.random.default_rng(1).normal(size=192)
    targets = expit(2 * z / z.std())
    loose = ConfidenceHead.fit(lm, texts, targets, ridge=1e-4)
    said = [math.exp(loose(text).log_probability) for text in texts]
    assert said == pytest.approx(targets, abs=0.02)
    held = ConfidenceHead.fit(lm, texts, targets, ridge=1e6)
    said = [math.exp(held(text).log_probability) for text in texts]
    assert said == pytest.approx([targets.mean()] * len(texts), abs=0.02)
    # Truth values are targets too.
    hard = ConfidenceHead.fit(lm, texts, targets > 0.5, ridge=0.1)
    sure = np.array([hard(text).log_probability for text in texts]) > math.log(0.5)
    assert (sure == (targets > 0.5)).all()


def test_a_verdict_costs_about_a_token(written):
    lm, _ = written
    head = ConfidenceHead(lm, np.zeros(192))

    def program():
        text = lm.chat("Calculate 4 - 9 + 6.")
        text = text + pyro.sample("s", lm(text, max_tokens=12))
        pyro.sample("right", head(text), obs=True)
        return text.answer

    posterior = BestOfN(6).run(program, seed=0)
    assert posterior.cost.verifier_calls == 6
    assert posterior.cost.verifier_tokens <= 2 * 6
    assert posterior.cost.verifier_reused_tokens > 10 * 6
    assert all(s.log_weight == pytest.approx(math.log(0.5)) for s in posterior.samples)


def test_what_cannot_be_is_named(written):
    lm, texts = written
    with pytest.raises(ValueError, match="reads hidden states"):
        ConfidenceHead(TOY, [0.0])
    with pytest.raises(ValueError, match=r"weight of shape \(3,\): \[192\]"):
        ConfidenceHead(lm, [0.0] * 3)
    for wrong in ([0.5], [2.0] * 24, [0.5] * 24):
        with pytest.raises(ValueError, match="targets="):
            ConfidenceHead.fit(lm, texts, wrong)
    with pytest.raises(ValueError, match="ridge=0"):
        ConfidenceHead.fit(lm, texts, np.linspace(0, 1, 24), ridge=0.0)


def test_the_example_prints_what_calibration_gives(capsys):
    found = confidence.main(["--problems", "6", "--samples", "8"])
    printed = capsys.readouterr().out
    assert list(found) == [line.split("  ")[1] for line in printed.splitlines() if "%" in line][1:]
    assert found["own probability"].ece > found["own probability, Platt"].ece
    assert found["reward model"].brier < found["own probability, Platt"].brier
    assert len({r.count for r in found.values()}) == 1


def test_aucs_and_targets_of_the_example():
    right = np.array([True, False, True, False])
    assert confidence.auc(np.array([0.9, 0.1, 0.8, 0.2]), right) == 1.0
    assert confidence.auc(np.array([0.9, 0.9, 0.1, 0.1]), right) == 0.5
    drawn = confidence.Drawn(
        [None] * 4,  # type: ignore[list-item]
        ["a", "b", "a", "a"],
        right,
        np.array([0, 0, 0, 1]),
        np.log([0.5, 0.25, 0.25, 0.3]),
        np.zeros(4),
    )
    assert confidence.soft_targets(drawn) == pytest.approx([0.75, 0.25, 0.75, 1.0])
