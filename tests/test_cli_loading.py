"""The options with which the command line loads models, and those of a study's file."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from test_cli import QUESTION, ppl, told

import ppl as library
from ppl.cli.app import app
from ppl.cli.loading import _PANEL, Loading
from ppl.errors import StudyError
from ppl.serve.offer import Menu
from ppl.study import Source
from ppl.study.sources import model_of, verifier_of
from ppl.verifiers import PRM

SHORT = ("--searcher", "BestOfN(1)", "--budget", "8", "--json")


def test_solve_loads_as_it_is_told(monkeypatch):
    calls = []
    load, judge = library.load, PRM.load

    def noted(kind, loader):
        def call(source, **settings):
            calls.append((kind, source, settings))
            return loader(source)

        return call

    monkeypatch.setattr("ppl.study.sources.load_model", noted("lm", load))
    monkeypatch.setattr(PRM, "load", noted("prm", judge))
    flags = ("--kv", "int8", "--weights", "int8", "--compile", "auto", "--replicas", "2")
    more = ("--dtype", "bfloat16", "--device", "cpu")
    more = (*more, "--kv-bytes", "1.5MB", "--context-length", "64", "--drafts", "siblings")
    found = json.loads(ppl("solve", QUESTION, *flags, *more, *SHORT).stdout)
    both = {"device": "cpu", "dtype": "bfloat16"}
    own = {"kv": "int8", "weights": "int8", "compile": "auto", "replicas": 2, "drafts": "siblings"}
    assert calls == [
        ("lm", "tiny-lines", {**both, **own, "kv_bytes": 1_500_000, "context_length": 64}),
        ("prm", "tiny-lines", both),
    ]
    assert found["model"] == "tiny-lines@int8 kv=int8"
    calls.clear()
    more = ("--adapter", "some/lora", "--graphs", "--prm", "none")
    ppl("solve", QUESTION, "--compile", "off", *more, *SHORT)
    own = {"compile": False, "adapter": "some/lora", "graphs": True}
    assert calls == [("lm", "tiny-lines", own)]


@pytest.mark.parametrize("command", ["solve", "sweep", "serve"])
def test_commands_that_load_have_all_options_of_loading(command):
    params = {p.name: p for p in typer.main.get_command(app).commands[command].params}
    names = {field.name for field in fields(Loading)}
    assert names <= inspect.signature(library.load).parameters.keys()
    assert {n for n, p in params.items() if p.rich_help_panel == _PANEL} == names
    assert all(params[name].default is None for name in names)
    assert "options" not in params


def test_another_model_is_named_in_what_is_told():
    found = told("solve", QUESTION, "--kv", "window(24, 4)", "--searcher", "SMC(2)")
    assert found["model"] == "tiny-lines kv=window(24, 4)"
    assert set(found["cost"]["models"]) == {"tiny-lines kv=window(24, 4)", "PRM('tiny-lines')"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--kv", "int4"), ["--kv", "'int8'", "'window(512, 4)'"]),
        (("--weights", "int4"), ["--weights", "'int8'"]),
        (("--drafts", "sibling"), ["--drafts", "'siblings'"]),
        (("--dtype", "int8"), ["--dtype", "bfloat16"]),
        (("--device", "nowhere"), ["--device", "cpu"]),
        (("--compile", "yes"), ["--compile", "auto, on, off"]),
        (("--replicas", "0"), ["--replicas"]),
        (("--kv-bytes", "2G"), ["--kv-bytes", "'2GiB' (1024**3", "'2GB' (1000**3)"]),
        (("-m", "http://a/v1", "--kv", "int8", "--replicas", "2"), ["--kv, --replicas", "server"]),
        (("-m", "http://a/v1", "--dtype", "float32"), ["--dtype", "leave it out"]),
    ],
)
@pytest.mark.parametrize("command", [("solve", QUESTION), ("serve",)])
def test_what_is_none_is_refused_with_its_flag(command, flags, said):
    output = " ".join(ppl(*command, *flags, code=2).output.replace("│", " ").split())
    assert all(part in output for part in said), output


def test_an_adapter_is_of_one_model():
    flags = ("-m", "tiny", "-m", "tiny-lines", "--adapter", "x")
    for command in (("serve",), ("sweep", "--task", "lines/chain", "--method", "SMC(2)")):
        more = ("--dry-run",) if command[0] == "sweep" else ()
        assert "--adapter" in ppl(*command, *flags, *more, code=2).output


def test_serve_loads_as_it_is_told(monkeypatch):
    served = {}

    def record(models: dict, **options: object) -> None:
        served.update(models)
        raise KeyboardInterrupt

    monkeypatch.setattr("ppl.serve.serve", record)
    ppl("serve", "-m", "small=tiny-lines", "--kv", "int8", "--device", "cpu")
    offer = served["small"]
    assert offer.lm.name == "tiny-lines kv=int8"
    assert offer.verifier.name == "PRM('tiny-lines')"


@pytest.mark.parametrize("options", [(), ("--kv", "int8", "--device", "cpu")])
def test_serve_loads_what_has_two_aliases_once(monkeypatch, options):
    menus = []

    def record(models: dict, **_: object) -> None:
        menus.append(Menu(models))

    monkeypatch.setattr("ppl.serve.serve", record)
    aliases = ("a=tiny-lines", "b=tiny-lines", "c=tiny")
    ppl("serve", *(flag for alias in aliases for flag in ("-m", alias)), *options)
    a, b, c = (menus[0].offers[name] for name in "abc")
    assert a.lm is b.lm
    assert a.verifier is b.verifier
    assert (a.lm.plain_name, a.verifier.name) == ("tiny-lines", "PRM('tiny-lines')")
    assert (c.lm.plain_name, c.verifier.name) == ("tiny", "PRM('tiny')")


def test_a_sweep_of_other_models_names_them(tmp_path: Path):
    out = tmp_path / "run"
    flags = ("--task", "lines/chain", "--method", "SMC(2)", "--limit", "1", "--out", out)
    ppl("sweep", *flags)
    ppl("sweep", *flags, "--kv", "int8")
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["tiny-lines", "tiny-lines kv=int8"]
    assert set(rows[1]["cost"]["models"]) == {"tiny-lines kv=int8", "PRM('tiny-lines')"}
    config = json.loads((out / "config.json").read_text())["study"]
    assert config["models"]["tiny-lines kv=int8"] == {"load": "tiny-lines", "kv": "int8"}


def test_a_file_says_how_its_models_are_loaded(tmp_path: Path):
    path = tmp_path / "study.toml"
    path.write_text(
        'tasks = ["lines/chain"]\nsearchers = ["SMC(2)"]\n'
        '[models.small]\nload = "tiny-lines"\nkv = "int8"\ncompile = false\n'
        '[verifiers.judge]\nload = "tiny-lines"\nkv = "window(32, 4)"\n'
    )
    said = ppl("sweep", path, "--dry-run", "--kv", "int8", "--replicas", "2", code=2).output
    assert "--kv, --replicas" in said
    assert "--model" in said
    ppl("sweep", path, "--limit", "1", "--out", tmp_path / "run")
    (row,) = map(json.loads, (tmp_path / "run" / "results.jsonl").read_text().splitlines())
    assert row["model"] == "small"
    assert set(row["cost"]["models"]) == {
        "tiny-lines kv=int8",
        "PRM('tiny-lines') kv=window(32, 4)",
    }
    ppl("sweep", path, "--dry-run", "-m", "tiny-lines", "--kv", "int8")
    path.write_text(path.read_text().replace("compile = false", 'kv_dtype = "fp8"'))
    said = ppl("sweep", path, "--limit", "1", "--out", tmp_path / "other", code=1)
    said = " ".join(said.output.split())
    assert "models.small: ppl.load('tiny-lines') knows no kv_dtype=" in said


def test_settings_that_are_refused_name_whose_they_are():
    with pytest.raises(StudyError, match=r"models\.small: kv='int4': give 'full'"):
        model_of("small", Source(load="tiny-lines", settings={"kv": "int4"}))
    with pytest.raises(StudyError, match=r"verifiers\.prm: PRM\.load knows no compile=; leave it"):
        verifier_of("prm", Source(load="tiny-lines", settings={"compile": "auto"}))
