"""Judges that keep less of keys and values: exact for the compressed model, named, refused."""

from __future__ import annotations

import pyro
import pytest
import torch
import transformers as tf
from compressed import compressed
from engines import SMALL, Letters, make

import ppl
from ppl.runtime.verdict import JudgeRequest
from ppl.searchers import BestOfN
from ppl.verifiers import PRM, ConfidenceHead, Judge, OutcomeModel, RewardModel

KINDS = ["int8", "window(6, 2)", "int8+window(6, 2)"]
TEXT = "4 - 9 + 6 ="


def steps(lm) -> ppl.Text:
    text = lm.prompt(TEXT)
    for step in ("\n4 - 9 = -5", "\n-5 + 6 = 1", "\nAnswer: 1"):
        text = text + lm.continuation(lm.encode(step))
    return text


@pytest.mark.parametrize("kv", KINDS)
def test_scores_are_those_of_the_compressed_model(kv):
    prm = PRM.load("tiny", kv=kv)
    full = PRM.load("tiny")
    assert prm.name == f"PRM('tiny') kv={kv}"
    text = steps(ppl.load("tiny"))
    tokens, positions = prm._render(JudgeRequest(prm, text))
    states = compressed(prm.engine.base, kv, tokens)[positions]
    with torch.inference_mode():
        exact = torch.nn.functional.logsigmoid(prm.log_odds(states))
    (scores,) = prm.judge([JudgeRequest(prm, text)])
    assert scores == pytest.approx(exact.tolist(), abs=2e-3 if "int8" in kv else 1e-4)
    assert scores != pytest.approx(full.judge([JudgeRequest(full, text)])[0], abs=1e-6)


def classifier(labels: int):
    torch.manual_seed(3)
    config = tf.LlamaConfig(**{**SMALL, "num_labels": labels, "pad_token_id": 0})
    model = tf.LlamaForSequenceClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    return model


@pytest.mark.parametrize(("kind", "labels"), [(RewardModel, 1), (OutcomeModel, 2)])
@pytest.mark.parametrize("kv", KINDS)
def test_outcomes_are_those_of_the_compressed_model(kind, labels, kv, monkeypatch):
    tokens = tuple(3 + (7 * i * i + 5 * i) % 90 for i in range(20))
    monkeypatch.setattr("ppl.verifiers.models.outcome._WholeText._tokens", lambda *_: tokens)
    model = classifier(labels)
    more = {"good": "LABEL_1"} if labels == 2 else {}
    judge = kind(model, Letters(), name="judge", kv=kv, **more)
    assert judge.name == f"judge kv={kv}"
    with torch.inference_mode():
        out = model.score(compressed(model, kv, tokens)[-1])
    wanted = float(out[0] if labels == 1 else out.log_softmax(-1)[1])
    text = ppl.Text((5, 6), make().codec)
    assert judge.judge([JudgeRequest(judge, text)])[0][0] == pytest.approx(wanted, abs=1e-3)


def test_a_judge_is_named_wherever_its_numbers_go(tmp_path):
    lm, prm = ppl.load("tiny"), PRM.load("tiny", kv="int8", weights=None)

    def program(said):
        text = lm.prompt(said)
        text = text + pyro.sample("step", lm(text, max_tokens=3))
        pyro.sample("ok", prm(text), obs=True)
        return text.text

    posterior = BestOfN(2).run(program, TEXT, seed=0)
    assert set(posterior.cost.models) == {"tiny", "PRM('tiny') kv=int8"}
    posterior.save(tmp_path / "one.ppl")
    stored = ppl.Posterior.load(tmp_path / "one.ppl")
    (told,) = [m for m in stored.models if m["name"] == "PRM('tiny') kv=int8"]
    assert told["loaded"]["settings"]["kv"] == "int8"


def test_judges_of_a_language_model_have_its_name():
    lm = ppl.load("tiny", kv="window(8, 2)")
    said = Judge(lm, lambda lm, text: lm.prompt(text.text), verdicts={"1": 1.0, "2": 0.0})
    assert said.name == "Judge(tiny kv=window(8, 2))"
    head = ConfidenceHead(lm, [0.1] * lm.model.config.hidden_size)
    assert head.name == "confidence of tiny kv=window(8, 2)"
    text = steps(lm)
    states = compressed(lm.model, "window(8, 2)", text.tokens)[-1]
    odds = torch.tensor(float(states.sum()) * 0.1)
    exact = float(torch.nn.functional.logsigmoid(odds))
    assert head.judge([JudgeRequest(head, text)])[0][0] == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("load", [PRM.load, RewardModel.load, OutcomeModel.load])
def test_what_makes_no_sense_of_a_judge_is_refused(load):
    with pytest.raises(ValueError, match=r"kv='half': give 'full', 'int8'"):
        load("tiny", kv="half")
    for setting, remedy in (
        ("compile", "no steps to be compiled"),
        ("graphs", "no steps to be captured"),
        ("replicas", "one model"),
    ):
        with pytest.raises(TypeError, match=f"knows no {setting}=; leave it out.*{remedy}"):
            load("tiny", **{setting: 2})
    base = make(kv="int8")
    with pytest.raises(ValueError, match="kv= with base= are those of the base"):
        load("nowhere", base=base, kv="int8")


def test_an_adapter_of_a_judge_is_given_as_its_source():
    with pytest.raises(TypeError, match=r"adapter=; use the adapter's folder as source.*base="):
        PRM.load("tiny", adapter="somewhere")
