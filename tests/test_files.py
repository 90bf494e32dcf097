"""Models and saved searches that are not what they should be: named, and nothing is lost."""

from __future__ import annotations

import pickle
import random
import re
import shutil
import sys
import types
from pathlib import Path

import prm_models
import pytest
from programs import toy
from safetensors.torch import load_file, save_file

import ppl
from ppl import errors
from ppl.lm.sources import TINY
from ppl.searchers import SMC, BestOfN, Search
from ppl.verifiers import PRM

# -- models --------------------------------------------------------------------------------------


def rewritten(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


DAMAGE = {
    "config is no JSON": rewritten("config.json", b"{"),
    "config is a list": rewritten("config.json", b"[]"),
    "unknown kind": rewritten("config.json", b'{"model_type": "nothing-like-it"}'),
    "weights are junk": rewritten("model.safetensors", b"junk" * 9),
    "weights are empty": rewritten("model.safetensors", b""),
    "weights are cut off": lambda folder: rewritten(
        "model.safetensors", (folder / "model.safetensors").read_bytes()[:20_000]
    )(folder),
    "weights are missing": lambda folder: (folder / "model.safetensors").unlink(),
    "tokenizer is junk": rewritten("tokenizer.json", b"{"),
}


def test_unknown_models(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("nobody/no-such-model", tmp_path, tmp_path / "no.gguf"):
        with pytest.raises(errors.ModelNotFoundError, match=re.escape(str(source))):
            ppl.load(source)
    with pytest.raises(errors.ModelNotFoundError, match="no-such-prm"):
        PRM.load("nobody/no-such-prm")


def test_a_file_is_no_model_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.ModelNotFoundError, match=r"config\.json"):
        ppl.load(tmp_path / "file")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_model_folders(damage, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(TINY / "lm", folder)
    DAMAGE[damage](folder)
    with pytest.raises(errors.ModelNotFoundError, match="damaged"):
        ppl.load(folder)


@pytest.mark.parametrize("content", [b"", b"junk", b"GGUF\x03\0\0\0"])
def test_damaged_gguf_files_leave_nothing_behind(content, tmp_path, monkeypatch):
    monkeypatch.setenv("PPL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(errors.ModelNotFoundError, match=r"model\.gguf"):
        ppl.load(tmp_path / "model.gguf")
    assert not list((tmp_path / "cache" / "gguf").iterdir())


def test_a_language_model_is_no_reward_model():
    """Its scoring head would be random numbers."""
    with pytest.raises(errors.PRMFormatError, match=r"a \w+ForCausalLM: .*weights score.*Judge"):
        PRM.load(TINY / "lm", good="LABEL_1", bad="LABEL_0")


def test_a_model_of_whole_texts_is_told_who_takes_it(tmp_path):
    said = r"but a LlamaForSequenceClassification.*RewardModel\.load.*OutcomeModel\.load"
    with pytest.raises(errors.PRMFormatError, match=said):
        PRM.load(prm_models.reward(tmp_path / "reward"))


def test_a_model_of_the_right_kind_whose_weights_are_missing_is_damaged(tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(TINY / "lm", folder)
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "norm" in name)
    save_file({n: t for n, t in tensors.items() if n != gone}, folder / "model.safetensors")
    said = rf"no whole \w+ForCausalLM: its files lack the weights {gone}"
    with pytest.raises(errors.ModelNotFoundError, match=said):
        ppl.load(folder)


def test_prm_labels_must_be_the_declared_ones():
    with pytest.raises(errors.PRMFormatError, match=r"good.*'correct'.*good="):
        PRM.load("tiny", good="correct")


@pytest.mark.parametrize("length", [-1, 100_000])
def test_no_model_has_more_context_than_positions(length):
    words = "at least 1" if length < 0 else "positions 1 to 512"
    with pytest.raises(ValueError, match=f"context_length={length}.*{words}"):
        ppl.load("tiny", context_length=length)


# -- saved searches and posteriors ---------------------------------------------------------------


def test_files_that_do_not_exist(tmp_path):
    for load in (ppl.Posterior.load, Search.load):
        with pytest.raises(errors.SearchStateError, match="nowhere"):
            load(tmp_path / "nowhere")


def test_garbage_never_escapes_as_another_error(tmp_path):
    rng = random.Random(0)
    for _ in range(300):
        (tmp_path / "junk").write_bytes(rng.randbytes(rng.randint(0, 8)))
        for load in (ppl.Posterior.load, Search.load):
            with pytest.raises(errors.SearchStateError, match="junk"):
                load(tmp_path / "junk")


@pytest.mark.parametrize("content", [3, ("ppl-posterior-1", 3), ("ppl-search-1", 3), ("a", "b")])
def test_pickles_of_something_else(content, tmp_path):
    (tmp_path / "other").write_bytes(pickle.dumps(content))
    for load in (ppl.Posterior.load, Search.load):
        with pytest.raises(errors.SearchStateError, match="other"):
            load(tmp_path / "other")


def test_a_posterior_is_no_search_and_the_reverse(tmp_path):
    SMC(2).run(toy, "prod").save(tmp_path / "posterior")
    SMC(2).begin(toy, "prod").save(tmp_path / "search")
    with pytest.raises(errors.SearchStateError, match="posterior"):
        Search.load(tmp_path / "posterior")
    with pytest.raises(errors.SearchStateError, match="search"):
        ppl.Posterior.load(tmp_path / "search")


def test_programs_that_are_gone_when_their_search_is_loaded(tmp_path, monkeypatch):
    module = types.ModuleType("a_module_of_this_test")
    module.program = types.FunctionType(toy.__code__, toy.__globals__, "program")
    module.program.__qualname__ = "program"
    module.program.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    SMC(2).begin(module.program).save(tmp_path / "search")
    monkeypatch.setitem(sys.modules, module.__name__, types.ModuleType(module.__name__))
    with pytest.raises(errors.SearchStateError, match="program"):
        Search.load(tmp_path / "search")
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(errors.SearchStateError, match="a_module_of_this_test"):
        Search.load(tmp_path / "search")


def test_searches_that_cannot_be_saved(tmp_path):
    search = SMC(2).begin(lambda given: None, object())
    with pytest.raises(errors.SearchStateError, match="argument 0 of the program holds <object"):
        search.save(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_saved_leave_the_old_file(tmp_path):
    path: Path = tmp_path / "posterior"
    good = SMC(2).run(toy, "prod")
    good.save(path)
    bad = BestOfN(1).run(lambda: lambda: None)
    with pytest.raises(errors.SearchStateError, match=r"sample 0.*'value'.*function.*plain data"):
        bad.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["posterior"]
    assert str(ppl.Posterior.load(path)) == str(good)
