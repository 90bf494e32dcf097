"""What is imported when: nothing heavy by `ppl` itself, transformers with a model of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packages import reached, sources
from served import serve

import ppl

MODULES = sources()
HEAVY = ("torch", "pyro", "transformers", "scipy", "networkx")

# The rooms and files that may import transformers at their top. They run or read models in its
# format; everything else imports them in functions that are called for such a model.
TRANSFORMERS = (
    "ppl.lm.adapter",
    "ppl.lm.drafting",
    "ppl.lm.engine",
    "ppl.lm.gguf",
    "ppl.lm.huggingface",
    "ppl.lm.leading",
    "ppl.lm.local",
    "ppl.lm.pretrained",
    "ppl.lm.quiet",
    "ppl.verifiers.exact.similarity",
    "ppl.verifiers.models",
)


def test_transformers_is_imported_by_what_runs_its_models_alone():
    needing = {name for name in MODULES if "transformers" in reached(name, MODULES)}
    within = {t: {n for n in needing if n == t or n.startswith(f"{t}.")} for t in TRANSFORMERS}
    assert all(within.values())  # the list says no more than there is
    strange = needing - set().union(*within.values())
    assert not {name: _way(name, "transformers") for name in strange}


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("ppl", (*HEAVY, "numpy", "rich", "typer")),
        ("ppl.lazy", (*HEAVY, "numpy")),
        ("ppl.errors", (*HEAVY, "numpy")),
        ("ppl.cli.app", HEAVY),
        ("ppl.tasks", HEAVY),
        ("ppl.study.merging", HEAVY),
        ("ppl.study.report", ("torch", "pyro", "transformers", "networkx")),
    ],
)
def test_what_a_module_does_without(module, without):
    assert not {name: _way(module, name) for name in without if name in reached(module, MODULES)}


def _way(start: str, end: str) -> str:
    """How an import comes about."""
    found = reached(start, MODULES)
    way = [end]
    while way[-1] != start:
        way.append(found[way[-1]])
    return " <- ".join(way)


def loaded(code: str, *arguments: str) -> set[str]:
    """The modules that a program has imported at its end."""
    end = "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + end, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_ppl_alone_imports_nothing_heavy():
    modules = loaded("import ppl; ppl.__version__; ppl.__all__; dir(ppl)")
    assert not modules & {*HEAVY, "numpy"}
    assert {name for name in modules if name.startswith("ppl.")} == {
        "ppl.lazy",
        "ppl.lm",
        "ppl.lm.copies",
        "ppl.locks",
    }


COMMAND = """
import sys
from ppl.cli.app import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.fixture(scope="module")
def run_and_tree(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of a run, and a search in a file."""
    folder = tmp_path_factory.mktemp("imports")
    study = ppl.study.Study(
        {"lines/chain": {"load": "lines/chain", "n": 1}},
        {"table": ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="".join(map(chr, range(10, 127))))},
        ["BestOfN(2)"],
        programs={"whole": {"use": "whole", "max_tokens": 2}},
    )
    study.run(folder / "run", trees=True)
    return folder / "run", next((folder / "run").glob("trees/*"))


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "solve --help", "tasks", "merge", "report"]
)
def test_commands_import_what_they_need(arguments, run_and_tree, tmp_path):
    words = arguments.split()
    if words[0] in ("merge", "report"):
        words.append(str(run_and_tree[0]))
    if words[0] == "merge":
        words += ["--out", str(tmp_path / "merged")]
    without = {*HEAVY}
    if words[0] == "merge":
        without -= {"torch"}  # which says what accelerator there is
    if words[0] == "report":
        without -= {"scipy"}  # intervals and fits
    assert not loaded(COMMAND, *words) & without


def test_a_tree_is_shown_without_transformers(run_and_tree):
    modules = loaded(COMMAND, "view", str(run_and_tree[1]), "--text")
    assert "ppl.posterior.posterior" in modules
    assert "transformers" not in modules


TABLE = """
import pyro, ppl
from ppl.searchers import SMC
from ppl.verifiers import verifier
lm = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$")

@verifier
def short(text):
    return 1 / (1 + len(text.text))

def words():
    text = lm.prompt("^") + pyro.sample("word", lm(lm.prompt("^"), max_tokens=3))
    pyro.sample("ok", short(text), obs=True)
    return text.text

posterior = SMC(8).run(words, seed=0)
assert posterior.vote() is not None and len(posterior.samples) == 8
assert abs(posterior.log_evidence) < 5
ppl.register("mine:", lambda source: lm)
assert ppl.load("mine:x") is lm
"""


def test_a_program_over_a_table_needs_no_transformers():
    modules = loaded(TABLE)
    assert "ppl.searchers" in modules
    assert not {name for name in modules if name.partition(".")[0] == "transformers"}
    assert not modules & {
        "ppl.lm.huggingface",
        "ppl.lm.engine.engine",
        "scipy.stats",
        "scipy.optimize",
    }


SERVED = """
import sys, pyro, ppl
from ppl.lm.sources import TINY
lm = ppl.load(sys.argv[1], tokenizer=str(TINY / "lm"))
posterior = ppl.searchers.BestOfN(2).run(
    lambda: pyro.sample("x", lm(lm.prompt("2 + 3"), max_tokens=2)).text, seed=0
)
assert len(posterior.samples) == 2
"""


def test_a_served_model_needs_a_tokenizer_and_no_model_of_transformers(tiny):
    with serve(tiny[0]) as served:
        modules = loaded(SERVED, served.url)
    assert "transformers" in modules  # which has the tokenizers
    assert not modules & {
        "transformers.modeling_utils",
        "ppl.lm.huggingface",
        "ppl.lm.engine.engine",
    }


def test_transformers_comes_with_a_model_of_its_own():
    modules = loaded("import sys, ppl; assert 'transformers' not in sys.modules; ppl.HFModel")
    assert {"transformers.modeling_utils", "ppl.lm.huggingface"} <= modules


def test_copies_of_a_model_are_run_by_the_room_that_has_processes():
    modules = loaded(
        """
from ppl.lm.loading import load
try:
    load("nowhere/at/all", replicas=1, device="cpu")
except Exception as error:
    assert "nowhere/at/all" in str(error), error
else:
    raise AssertionError
"""
    )
    assert "ppl.runtime.replicas" in modules
    assert "ppl.lm.huggingface" not in modules  # it is in the process of the copy
