"""Reward models that are LoRA adapters, beside the weights of the model that writes."""

from __future__ import annotations

from dataclasses import replace

import prm_models
import pytest
import torch
import transformers as tf
from adapters_made import layers_of, random_pairs
from compiler import needs_compiler
from engines import request
from safetensors.torch import load_file, save_file
from test_adapters import made

import ppl
from ppl.errors import PRMFormatError
from ppl.lm.adapter import put_in
from ppl.runtime.verdict import JudgeRequest
from ppl.study.sources import told
from ppl.verifiers import PRM, OutcomeModel, RewardModel
from ppl.verifiers.models.formats import TOKEN_CLASSIFICATION
from ppl.verifiers.models.heads import Layers, Words


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """A base, and what was trained from it: a token classifier, layers, words, a reward model."""
    folder = tmp_path_factory.mktemp("judges")
    words = prm_models.tokenizer([" ки"], bos="<s>")
    config = tf.LlamaConfig(vocab_size=len(words), **prm_models.SHAPE)
    torch.manual_seed(3)
    base = tf.LlamaForCausalLM(config)
    base.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    places = {k: v for k, v in layers_of(base).items() if k != "lm_head"}
    heads = {
        "classifier": {"score.weight": torch.randn(2, 32), "score.bias": torch.randn(2)},
        "layers": {
            "score.0.weight": torch.randn(32, 32), "score.0.bias": torch.randn(32),
            "score.2.weight": torch.randn(1, 32), "score.2.bias": torch.randn(1),
        },
        "words": {},
        "reward": {"score.weight": torch.randn(1, 32)},
        "outcome": {"score.weight": torch.randn(2, 32)},
    }  # fmt: skip
    for i, (name, head) in enumerate(heads.items()):
        weights = random_pairs(places, 3, i)
        weights |= {f"base_model.model.{k}": v for k, v in head.items()}
        made(folder / name, weights, r=3)
    return folder


def texts_for(lm):
    prompt = lm.chat("What is 2 + 3?")
    first = prompt + lm.continuation("2 + 3 = 5\n") + lm.continuation("so 5.\n", finished=True)
    return [first, lm.chat("Calculate 9.") + lm.continuation("9\n", finished=True)]


def last_states(folder, name, tokens):
    """Of the merged model."""
    model = tf.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    weights = load_file(folder / name / "adapter_model.safetensors")
    (folder / f"{name}-lora").mkdir(exist_ok=True)
    config = (folder / name / "adapter_config.json").read_text()
    (folder / f"{name}-lora" / "adapter_config.json").write_text(config)
    pairs = {k: v for k, v in weights.items() if "lora" in k}
    save_file(pairs, folder / f"{name}-lora" / "adapter_model.safetensors")
    put_in(model, folder / f"{name}-lora", {})
    heads = {k.removeprefix("base_model.model."): v for k, v in weights.items() if k not in pairs}
    with torch.inference_mode():
        out = model(torch.tensor([tokens]), output_hidden_states=True)
    return out.hidden_states[-1][0], out.logits[0], heads


@pytest.mark.parametrize("name", ["classifier", "layers", "words"])
def test_a_process_reward_model_beside_its_generator(judges, name):
    base = ppl.load(judges / "base")
    writer = base.with_adapter(judges / "words", name="writer")
    bare = format_of(name)
    prm = PRM.load(judges / name, base=base, format=bare)
    assert prm.engine is base.engine
    assert prm.name == f"PRM({f'{base.name}+{judges / name}'!r})"
    texts = texts_for(base)
    asked = [JudgeRequest(prm, text) for text in texts]
    drawn = writer.sample_batch([request(writer, texts[0].tokens[:9], i) for i in range(3)])
    for text, scores in zip(texts, prm.judge(asked), strict=True):
        tokens, positions = prm._render(JudgeRequest(prm, text))
        states, logits, heads = last_states(judges, name, tokens)
        if name == "classifier":
            out = states @ heads["score.weight"].T + heads["score.bias"]
            odds = out[:, 1] - out[:, 0]
        elif name == "layers":
            hidden = torch.relu(states @ heads["score.0.weight"].T + heads["score.0.bias"])
            odds = (hidden @ heads["score.2.weight"].T + heads["score.2.bias"])[:, 0]
        else:
            good, bad = (bare.head._token(base.codec.tokenizer, w, "x") for w in ("+", "-"))
            odds = logits[:, good] - logits[:, bad]
        wanted = torch.nn.functional.logsigmoid(odds[positions])
        assert scores == pytest.approx(wanted.tolist(), abs=1e-4)
        assert len(scores) == len(positions) > 0
    again = writer.sample_batch([request(writer, texts[0].tokens[:9], i) for i in range(3)])
    assert [d.value.tokens for d in drawn] == [d.value.tokens for d in again]


def format_of(name):
    head = {"layers": Layers(("score.0", "score.2")), "words": Words()}.get(name)
    if head is None:
        return TOKEN_CLASSIFICATION
    return replace(TOKEN_CLASSIFICATION, name=name, head=head)


@pytest.mark.parametrize(("name", "kind"), [("reward", RewardModel), ("outcome", OutcomeModel)])
def test_outcome_models_beside_their_generator(judges, name, kind):
    base = ppl.load(judges / "base")
    judge = kind.load(judges / name, base=base)
    for text in texts_for(base):
        request = JudgeRequest(judge, text)
        states, _, heads = last_states(judges, name, judge._model._tokens(request))
        out = states[-1] @ heads["score.weight"].T
        wanted = out[0] if name == "reward" else out.log_softmax(-1)[1]
        assert judge.judge([request])[0][0] == pytest.approx(float(wanted), abs=1e-4)


@needs_compiler
def test_what_the_base_keeps_is_named_with_its_adapters(judges):
    folder, kept = judges / "base", {"weights": "int8", "kv": "int8"}
    base = ppl.load(folder, **kept)
    words = base.with_adapter(judges / "words")
    assert words.name == f"{folder}@int8+{judges / 'words'} kv=int8"
    assert base.with_adapter(judges / "words", name="writer").name == "writer@int8 kv=int8"
    prm = PRM.load(judges / "classifier", base=base)
    assert prm.name == f"PRM({f'{folder}+{judges}/classifier'!r})@int8 kv=int8"
    assert told(prm)["name"] == prm.name
    judge = RewardModel.load(judges / "reward", base=base)
    assert judge.name == f"RewardModel({f'{folder}+{judges}/reward'!r})@int8 kv=int8"


@needs_compiler
def test_a_file_has_no_other_law_loaded_than_that_of_the_adapter_beside(judges):
    folder = judges / "base"
    for kept in ({}, {"kv": "int8"}, {"weights": "int8"}):
        beside = ppl.load(folder, **kept).with_adapter(judges / "words")
        within = ppl.load(folder, adapter=judges / "words", **kept)
        text, value = beside.prompt("2 + 3 ="), beside.continuation("5")
        ours = float(beside(text, max_tokens=1).log_prob(value))
        theirs = float(within(text, max_tokens=1).log_prob(value))
        same = abs(ours - theirs) < (1e-2 if kept else 1e-4)
        if "weights" in kept:  # rounded alone, or with the adapter in them
            assert not hasattr(beside, "origin")
            assert beside.name != within.name
        else:
            assert same
            assert beside.name == within.name
            assert beside.origin.settings == {**kept, "adapter": str(judges / "words")}


def test_reward_adapters_that_do_not_fit(judges):
    base = ppl.load(judges / "base")
    for name, said in (
        ("words", "no head, not score or classifier.*format"),
        ("reward", "1 outputs.*bad, good"),
    ):
        with pytest.raises(PRMFormatError, match=said):
            PRM.load(judges / name, base=base)
    with pytest.raises(PRMFormatError, match="2 outputs"):
        RewardModel.load(judges / "outcome", base=base)
    with pytest.raises(PRMFormatError, match=r"LABEL_0.*good="):
        OutcomeModel.load(judges / "outcome", base=base, good="right")
    with pytest.raises(ValueError, match="device=, kv_bytes= with base= are those of the base"):
        PRM.load(judges / "classifier", base=base, device="cpu", kv_bytes=9)
    with pytest.raises(ValueError, match="dtype= with base="):
        RewardModel.load(judges / "reward", base=base, dtype="bfloat16")
    with pytest.raises(ValueError, match="context_length=9 is that of the base"):
        PRM.load(judges / "classifier", base=base, context_length=9)
