"""Models from GGUF files are called alike on every machine, and are loaded again from where they
were."""

from __future__ import annotations

from functools import partial

import pytest
from test_cli import QUESTION, ppl, told

import ppl as library
from ppl.errors import StudyError
from ppl.lm import pretrained, sources
from ppl.searchers import BestOfN, Search
from ppl.study import Source, Study
from ppl.study.sources import told as source_told


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The same file in two folders, and another one of the same name; each is read as `tiny`."""
    monkeypatch.setattr(pretrained, "converted", lambda path: sources.TINY / "lm")
    made = []
    for folder, content in (("here", b"GGUF"), ("there", b"GGUF"), ("other", b"FUGG")):
        path = tmp_path / folder / "small-1B.Q8_0.gguf"
        path.parent.mkdir()
        path.write_bytes(content)
        made.append(path)
    return made


def test_a_file_goes_by_its_own_name_wherever_it_lies(files, tmp_path, monkeypatch):
    here, there, _ = files
    assert library.load(here).name == library.load(str(there)).name == "small-1B.Q8_0"
    assert library.load(here, weights="int8", kv="int8").name == "small-1B.Q8_0@int8 kv=int8"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.name_of("~/here/small-1B.Q8_0.gguf") == "small-1B.Q8_0"
    # What is no file here is named as it is given.
    for source in ("who/m-GGUF/small.gguf", tmp_path / "gone.gguf", tmp_path, "tiny", "who/m:Q8_0"):
        assert sources.name_of(source) == str(source)


def one(lm, question):
    library.answer(lm(lm.chat(question), max_tokens=2).sample().text)


def test_a_search_loads_it_again_from_where_it_was(files, tmp_path):
    lm = library.load(files[0])
    search = BestOfN(2).begin(one, lm, "1 + 1", seed=0)
    search.save(tmp_path / "search")
    loaded, question = Search.load(tmp_path / "search").tree.args
    assert question == "1 + 1"
    assert (loaded.name, loaded.origin.source) == (lm.name, str(files[0]))


def test_a_study_tells_files_apart_by_what_is_in_them(files):
    here, there, other = map(str, files)
    study = partial(Study, ["lines/chain"], searchers=["SMC(2)"], programs=["whole"])
    assert list(study(models=[here]).models) == ["small-1B.Q8_0"]
    with pytest.raises(StudyError, match=r"two are called 'small-1B\.Q8_0'"):
        study(models=[here, other])
    first, second, third = (Source(load=path).told for path in (here, there, other))
    assert first == second != third
    assert first["load"] == "small-1B.Q8_0.gguf"
    assert source_told(library.load(here)) == first


def test_the_command_line_names_it_so(files):
    found = told("solve", QUESTION, "-m", files[0], "--method", "BestOfN(1)", "--budget", "4")
    assert found["model"] == "small-1B.Q8_0"
    assert set(found["cost"]["models"]) == {"small-1B.Q8_0"}
    both = ("-m", files[0], "-m", files[2])
    for command in (
        ("serve",),
        ("sweep", "--task", "lines/chain", "--method", "SMC(2)", "--kv=int8", "--dry-run"),
    ):
        assert "two are called" in ppl(*command, *both, code=2).output
