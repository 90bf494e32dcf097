"""Programs that work token by token, of the examples."""

from __future__ import annotations

import json
import math

import pytest
import token_programs as tp
import torch

import ppl
from ppl.searchers import SMC, BestOfN

P = {"a": 0.4, "e": 0.3, "$": 0.3}


def toy() -> ppl.TableLM:
    return ppl.TableLM(
        lambda prefix: {"a": 0.1, "e": 0.7, "$": 0.2} if prefix.endswith("a") else P,
        symbols="^ae$",
    )


def test_a_lipogram_is_the_models_law_given_that_a_letter_never_occurs():
    lm = toy()
    exact = ppl.enumerate_program(tp.lipogram, lm, lm.prompt("^"), "e", 4)
    # "", "a", "aa", "aaa", and "aaaa" which is cut
    by_hand = {"": 0.3, "a": 0.08, "aa": 0.008, "aaa": 0.0008, "aaaa": 0.0004}
    assert math.exp(exact.log_evidence) == pytest.approx(sum(by_hand.values()))
    for value, p in by_hand.items():
        assert exact.marginal()[value] == pytest.approx(p / sum(by_hand.values()))
    found = SMC(500).run(tp.lipogram, lm, lm.prompt("^"), "e", 4, seed=0)
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=0.1)


NUMBER = ppl.TableLM(
    {"-": 0.1, "0": 0.2, "7": 0.2, ".": 0.2, "e": 0.1, "+": 0.1, "$": 0.1}, symbols="^-07.e+$"
)


def test_numbers_are_numbers_of_json():
    start = NUMBER.prompt("^")
    exact = ppl.enumerate_program(tp.json_number, NUMBER, start, 4)
    for value in exact.values:
        number = json.loads(value)
        assert isinstance(number, int | float)
        assert float(value) == number
    assert {"-0.7", "7e+0", "70", "0"} <= set(exact.values)
    found = SMC(200).run(tp.json_number, NUMBER, start, seed=0)
    for sample in found.samples:
        if sample.log_weight > -math.inf:
            json.loads(sample.value)


@pytest.mark.parametrize("string", ["01", "-", "1.", ".5", "+1", "1e", "1e+", "--1", "1.5.2", "a"])
def test_what_is_no_number_is_none(string):
    state = tp.follow("start", string)
    assert state not in tp._ENDS


def test_the_detector_is_bayes_rule(monkeypatch):
    lm = toy()
    lists = {1: [False, False, True, False], 0: [False, True, False, True]}
    monkeypatch.setattr(
        tp, "green", lambda size, before: torch.tensor(lists.get(before, [True] * size))
    )
    tokens = lm.encode("ae")
    exact = ppl.enumerate_program(tp.detector, lm, lm.prompt("^"), tokens)
    e = math.exp(tp.DELTA)
    # After ^ the list has a and the end (mass .7), after a only e (mass .7).
    ratio = (e / (1 + (e - 1) * 0.7)) * (e / (1 + (e - 1) * 0.7))
    assert exact.marginal()[True] == pytest.approx(ratio / (1 + ratio))
    law = ppl.enumerate_program(tp.watermarked, lm, lm.prompt("^"), 1)
    assert math.exp(law.log_evidence) == pytest.approx(1)  # it is normalised at every token
    shares = law.marginal(str)
    assert shares["a"] == pytest.approx(0.4 * e / (1 + (e - 1) * 0.7))


def test_the_embedded_model_at_one_pass_a_token(capsys):
    found = tp.main(["--particles", "8", "--tokens", "12"])
    printed = capsys.readouterr().out
    assert printed.count("tokens/s") == 3
    lipograms = found["lipogram"]
    assert all("7" not in s.value for s in lipograms.samples)
    json.loads(found["number"].vote())
    assert 1 > found["watermarked"] > found["not"] > 0
    lm, question, _ = tp.load("tiny")
    start = lm.chat(question)
    cost = BestOfN(8).run(tp.lipogram, lm, start, "", 12, seed=5).cost
    assert cost.lm_tokens == cost.lm_calls <= 96
