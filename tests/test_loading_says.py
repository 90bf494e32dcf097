"""What is said to someone who comes from another library, or has mistyped: the name of what was
given, and what to give instead."""

import copy
import functools
import pickle
import shutil

import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from engines import FAMILIES, Letters, random_model
from test_whole import needs_any

import ppl
from ppl.cli import doctor
from ppl.cli.machine import Machine
from ppl.errors import (
    ArgumentError,
    ModelNotFoundError,
    PromptError,
    SearchStateError,
    UnsupportedModelError,
)
from ppl.language import foreign
from ppl.lm.sources import TINY
from ppl.searchers.parse import parse
from ppl.verifiers import PRM


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("kv_cache_dtype", "use kv='int8'"),
        ("type_k", "use kv='int8'"),
        ("max_num_seqs", "use kv_bytes="),
        ("data_parallel_size", "use replicas="),
        ("speculative_config", "use drafts='siblings'"),
        ("assistant_model", "use drafts='siblings'"),
        ("num_speculative_tokens", r"Drafts\(source, depth="),
        ("filename", "'owner/name:Q8_0'"),
        ("temperature", r"lm\(text, temperature=\.\.\.\)"),
        ("max_new_tokens", r"lm\(text, max_tokens=\.\.\.\)"),
        ("stop", r"lm\(text, until=\.\.\.\)"),
    ],
)
def test_settings_of_other_libraries_are_answered_with_ours(setting, said):
    with pytest.raises(TypeError, match=rf"knows no {setting}=; .*{said}"):
        ppl.load("tiny", **{setting: 1})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("tinny", r"tiny or tiny-lines \(did you mean 'tiny'\?\)"),
        ("Tiny_Lines", "did you mean 'tiny-lines'"),
        ("owner/name", "neither an embedded model.*hands out"),
        ("./nowhere", "there is no such folder or file"),
        ("/nowhere/at/all", "there is no such folder or file"),
        ("localhost:8000", "the address of a server is written 'http://host:8000/v1'"),
        ("owner/name:Q8_0", "a file that is here is loaded by its path"),
    ],
)
def test_models_that_are_not_there(source, said, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=said) as refused:
        ppl.load(source)
    assert source.partition(":Q8")[0] in str(refused.value)
    assert ("did you mean" in str(refused.value)) == ("did you mean" in said)


def test_a_reward_model_is_no_language_model(tmp_path):
    """Its head would be left out, and the rest would write nonsense."""
    with pytest.raises(UnsupportedModelError, match=r"ForTokenClassification.*PRM\.load"):
        ppl.load(TINY / "prm")
    folder = tmp_path / "classifier"
    model = random_model(FAMILIES["Llama"]())
    model.save_pretrained(folder)
    for file in (TINY / "lm").glob("tok*"):
        shutil.copy(file, folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("ForCausalLM", "ForSequenceClassification"))
    with pytest.raises(UnsupportedModelError, match=r"RewardModel\.load or OutcomeModel\.load"):
        ppl.load(folder)
    assert ppl.load(TINY / "lm").name == str(TINY / "lm")


def test_models_that_are_held_say_what_they_cannot_have():
    model = random_model(FAMILIES["Llama"]())
    for settings, said in (
        ({"weights": "int8"}, "ppl.load takes weights= for a folder or a name"),
        ({"replicas": 2}, "ppl.load takes replicas="),
        ({"dtype": "bfloat16"}, r"use model\.to\(torch\.bfloat16\) before"),
        ({"adapter": "x"}, r"lm\.with_adapter\(folder\)"),
        ({"max_model_len": 9}, "use context_length="),
        ({"kv_byte": 9}, "did you mean kv_bytes="),
    ):
        (name,) = settings
        with pytest.raises(TypeError, match=rf"ppl\.HFModel knows no {name}=; .*{said}"):
            ppl.HFModel(model, Letters(), name="held", **settings)
    with pytest.raises(TypeError, match=r"model='tiny'.*ppl\.load\(name\)"):
        ppl.HFModel("tiny", Letters(), name="held")
    with pytest.raises(TypeError, match=r"tokenizer=None.*AutoTokenizer"):
        ppl.HFModel(model, None, name="held")
    headless = tf.LlamaModel(FAMILIES["Llama"]()).eval()
    with pytest.raises(
        UnsupportedModelError, match=r"LlamaModel has no head.*AutoModelForCausalLM"
    ):
        ppl.HFModel(headless, Letters(), name="held")


def test_values_are_shown_on_one_line():
    with pytest.raises(ArgumentError, match="source=LlamaForCausalLM") as refused:
        PRM.load(random_model(FAMILIES["Llama"]()))
    assert "\n" not in str(refused.value)
    with pytest.raises(ArgumentError, match=r"compile='on': True or False or 'auto'$"):
        ppl.load("tiny", compile="on")


def test_long_prompts_are_our_error_and_nobody_elses_notice(monkeypatch):
    notices = []
    logger = tf.tokenization_utils_base.logger
    monkeypatch.setattr(logger, "warning", lambda message, *_, **__: notices.append(message))
    long = "4 + 5 = " * 400
    tf.AutoTokenizer.from_pretrained(TINY / "lm").encode(long)
    assert len(notices) == 1  # so it is without us
    with pytest.raises(PromptError, match=r"the prompt has 2400 tokens, tiny holds 512: shorten"):
        ppl.load("tiny").prompt(long)
    assert len(notices) == 1


def test_searchers_that_are_mistyped():
    with pytest.raises(SearchStateError, match=r"'SMC\(16' is no searcher: .*never closed; write"):
        parse("SMC(16")
    with pytest.raises(SearchStateError, match=r"no known class \(did you mean SMC\?\)"):
        parse("SCM(16)")


def test_models_and_judges_show_their_names():
    assert repr(PRM.load("tiny", kv="int8")) == "PRM('tiny') kv=int8"


def test_a_model_cannot_be_sent_and_says_what_to_do_instead():
    """Whatever the model is in: a program, a partial, a list."""
    lm, prm = ppl.load("tiny"), PRM.load("tiny")
    for held, call in (
        (lm, r"ppl\.load\('tiny'\) there"),
        (prm, r"PRM\.load\('tiny'\) there"),
        ([functools.partial(print, lm)], r"replicas=2"),
    ):
        with pytest.raises(TypeError, match=f"tiny.*cannot be pickled.*{call}"):
            pickle.dumps(held)
    with pytest.raises(TypeError, match="cannot be pickled"):
        copy.deepcopy(lm)
    other = copy.copy(lm)  # a view of the same one
    assert type(other) is ppl.HFModel
    assert other.engine is lm.engine
    table = ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$")
    assert pickle.loads(pickle.dumps(table)).name == table.name


def test_names_that_other_models_have_are_answered_with_ours():
    lm, table = ppl.load("tiny"), ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$")
    for model in (lm, table):
        name = type(model).__name__
        with pytest.raises(AttributeError, match=rf"'{name}' .*'generate': lm\(text, \.\.\.\)\.s"):
            model.generate("Calculate")
        with pytest.raises(AttributeError, match=rf"'{name}' object has no attribute 'bogus'$"):
            print(model.bogus)
        assert not hasattr(model, "_bogus")
    with pytest.raises(AttributeError, match=r"lm\.engine\.dtype is that of a model in this"):
        print(lm.dtype)
    assert lm.engine.dtype == torch.float32
    for hint in foreign.OF_MODELS:  # none of ours is among them
        assert not hasattr(lm, hint)


@needs_compiler
@needs_any
def test_models_say_whether_they_make_several_steps_at_once():
    """Not where layers are the model's own, or keys are kept in eight bits: no step is whole."""
    for settings in ({}, {"pack": False}, {"kv": "int8"}):
        lm = ppl.load("tiny-lines", **settings)
        assert (lm.bursts, lm.engine.steps) == ((False, "plain") if settings else (True, "whole"))


def test_engines_show_what_they_did_and_how(monkeypatch):
    lm = ppl.load("tiny", kv_bytes=64 << 20)
    monkeypatch.setattr(lm.engine.runner, "whole", None)  # which this machine may have
    assert lm.engine.steps == "plain"
    lm(lm.chat("Calculate 4 - 9 + 6."), max_tokens=4).sample()
    said = repr(lm.engine)
    assert said.startswith(f"<Engine of tiny: float32 on {lm.engine.device}, plain steps, ")
    assert f"plain steps, {lm.engine.passes} passes, " in said
    assert f"{lm.engine.tokens_computed} tokens computed, 0 padded" in said
    assert said.endswith(f"at most {lm.engine.peak_nbytes / 1e6:.1f} of 67.1 MB>")

    class Whole:
        def takes(self, rows):
            return rows <= 1

    for part, found in (("compiled", "compiled"), ("whole", "whole"), ("graphs", "graphs")):
        monkeypatch.setattr(lm.engine.runner, part, Whole())
        assert lm.engine.steps == found
    monkeypatch.setattr(lm.engine.runner, "graphs", None)
    monkeypatch.setattr(Whole, "takes", lambda self, rows: False)  # its layers are others now
    assert lm.engine.steps == "compiled"


def machine(instructions, accelerators=(), compiler="/usr/bin/g++", threads=2):
    free = 4 << 30
    return Machine("a processor", 2, threads, 2 * free, free, accelerators, compiler, instructions)


def test_the_doctor_says_which_settings_are_for_this_machine():
    def said(*instructions, **machines):
        return "\n".join(doctor._advice(machine(instructions, **machines)))

    new, old = said("avx512_bf16", "avx512_vnni"), said()
    assert "dtype='bfloat16' (--dtype bfloat16) for models larger" in new
    assert "(--weights int8 --dtype bfloat16) for one to four rows" in new
    assert "for any number of rows" in said("avx512_bf16", "avx512_vnni", "amx_int8")
    assert "compare it with float32" in old
    for one in (new, old):
        assert "float32, whatever their files have, unless dtype= (--dtype)" in one
    assert "weights='int8'" not in old
    assert "compile='auto'" in old
    assert "install g++" in said("avx512_bf16", compiler="")
    assert "compile='auto'" not in said("avx512_bf16", compiler="")
    assert "0.5B in float32, 1.5B in bfloat16" in new  # of 4 GiB
    assert "torch uses 1 of 2 cores" in said(threads=1)
    assert "OMP_NUM_THREADS=2" in said(threads=4)
    two = said(accelerators=("cuda:0 H100, 78 GiB", "cuda:1 H100, 78 GiB"))
    assert "graphs=True, compile=True" in two
    assert "replicas=2" in two
    assert "replicas" not in said(accelerators=("cuda:0 H100, 78 GiB",))
    assert "device='mps'" in said(accelerators=("mps (Apple)",))
