"""Torch's default device has no say in where a model is: `device=` has."""

from __future__ import annotations

import pytest
import torch
from engines import request

import ppl
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, ScoreRequest, Spec
from ppl.lm.engine import inversion, linear
from ppl.lm.sampling import Warp
from ppl.verifiers import PRM, step_scores

META = torch.device("meta")  # what is made there has no numbers


def asked(lm):
    mask = torch.zeros(lm.token_count, dtype=torch.bool, device="cpu")
    mask[40:50] = True
    text = lm.chat("2 + 3 =").tokens
    for i, allowed in enumerate((None, (40, 41), mask, mask.numpy())):
        yield ContinueRequest(lm, Spec(text, StepRule(), 6, Warp(top_p=0.9), allowed), 7 + i)
    yield request(lm, text, 3)


def answers(lm):
    drawn = lm.sample_batch(list(asked(lm)))
    spec = Spec(lm.chat("4 - 1 =").tokens, StepRule(), 9, Warp(), None)
    (score,) = lm.score_batch([ScoreRequest(lm, spec, lm.continuation("3"))])
    law = lm(lm.chat("4 - 1 ="), max_tokens=9)
    lm(lm.chat("2 + 3 ="), max_tokens=2).sample()
    assert float(law.log_prob(lm.continuation("3"))) == pytest.approx(score)
    return [d.value.tokens for d in drawn], score


@pytest.mark.parametrize(
    "settings", [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"pack": False}], ids=str
)
def test_a_model_on_the_cpu_is_loaded_and_asked_under_any_default(settings, monkeypatch):
    monkeypatch.setattr(linear, "_trusted", {})
    inversion.draws_alike.cache_clear()
    there = answers(ppl.load("tiny", device="cpu", **settings))
    trusted = dict(linear._trusted)
    linear._trusted.clear()
    inversion.draws_alike.cache_clear()
    with META:
        lm = ppl.load("tiny", device="cpu", **settings)
        here = answers(lm)
    assert lm.model.device.type == "cpu"
    assert here == there
    assert linear._trusted == trusted


def test_draws_are_compared_where_they_are_made():
    there = inversion.draws_alike(torch.float32)
    inversion.draws_alike.cache_clear()
    with META:
        assert inversion.draws_alike(torch.float32) == there


def test_reward_models_are_loaded_there_too():
    lm = ppl.load("tiny", device="cpu")
    text = lm.chat("2 + 3 =") + lm.continuation("5", finished=True)
    there = step_scores(PRM.load("tiny", device="cpu"), [text])
    with META:
        here = step_scores(PRM.load("tiny", device="cpu"), [text])
    assert here == there
