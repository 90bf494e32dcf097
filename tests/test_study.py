"""Studies: what they say, what they write, and that they go on where they ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import kill_study
import pyro
import pytest
from kill_study import PROBLEMS, lasting, likes_a, lm, rows, solve, study, task

import ppl
from ppl.errors import ArgumentError, StudyError, TaskError
from ppl.posterior.posterior import Posterior
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN, Greedy, ParticleGibbs
from ppl.study import Study, merge, question_seed, records, steps, thinking, whole
from ppl.study.plan import completions
from ppl.study.problems import places
from ppl.study.records import plain
from ppl.tasks import Problem, Task


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "run"
    study().run(folder, trees=True)
    return folder


# -- what a study says ---------------------------------------------------------------------------

TOML = """
models = ["tiny-lines"]
verifiers = ["tiny-lines"]
searchers = ["BestOfN(8)", "SMC(num_particles=8, ess_threshold=1.0)"]
budgets = [{}, {tokens = 400}]
seeds = [0, 1]

[tasks]
chain = {load = "lines/chain", n = 5}
boards = "lines/sudoku"

[programs.short]
use = "steps"
max_steps = 12

[programs.blind]
use = "whole"
verifier = false
"""


def test_a_toml_file_is_the_object_of_the_same_names(tmp_path):
    (tmp_path / "a.toml").write_text(TOML)
    read = Study.read(tmp_path / "a.toml")
    made = Study(
        tasks={"chain": {"load": "lines/chain", "n": 5}, "boards": "lines/sudoku"},
        models=["tiny-lines"],
        verifiers=["tiny-lines"],
        programs={
            "short": {"use": "steps", "max_steps": 12},
            "blind": {"use": "whole", "verifier": False},
        },
        searchers=["BestOfN(8)", "SMC(num_particles=8, ess_threshold=1.0)"],
        budgets=[None, ppl.Budget(tokens=400)],
        seeds=[0, 1],
        folder=str(tmp_path),
    )
    assert read == made
    assert len(read.groups) == 2 * 2 * 2 * 2 * 2
    assert len(list(read.cells(limit=3))) == 3 * len(read.groups)
    assert len({cell.identity for cell in read.cells(limit=3)}) == 3 * len(read.groups)
    assert [read.verifier(p, "tiny-lines") for p in ("short", "blind")] == ["tiny-lines", None]
    assert {g.n for g in read.groups} == {8}
    assert {str(g.limits) for g in read.groups} == {"None", "{'tokens': 400}"}


def test_a_searcher_is_the_same_however_it_is_written():
    cells = [
        {c.identity for c in study(searchers=[s]).cells()}
        for s in ("SMC(3)", " SMC( num_particles = 3 )", SMC(3), "SMC(4)")
    ]
    assert cells[0] == cells[1] == cells[2]
    assert not cells[0] & cells[3]


def test_a_cell_has_the_same_name_everywhere():
    cell = next(study().cells())
    assert (cell.problem, cell.identity) == ("as/0", "45a1f67d1fa86011")
    assert question_seed(0, "as/0") == 78340733052597


@pytest.mark.parametrize(
    ("searcher", "n"),
    [
        (BestOfN(5), 5),
        (SMC(7), 7),
        (BeamSearch(4, 3), 12),
        (MCTS(9, width=2), 9),
        (Greedy(), 1),
        (ParticleGibbs(4, sweeps=3), 12),
    ],
)
def test_completions_of_searchers(searcher, n):
    assert completions(searcher) == n


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"searchers": ["SMC(16"]}, "SMC"),
        ({"searchers": ["__import__('os').system('true')"]}, "searchers"),
        ({"searchers": ["Bogus(3)"]}, "Bogus"),
        ({"searchers": ["SMC(0)"]}, "num_particles"),
        ({"searchers": "SMC(16)"}, "searchers='SMC.*a list"),
        ({"searchers": []}, "searchers: a study needs at least one"),
        ({"models": 3}, "models=3"),
        ({"models": ["tiny", "tiny"]}, "two are called 'tiny'"),
        ({"tasks": {"x": {"n": 3}}}, "tasks.x: give load"),
        ({"programs": ["stepz"]}, "no program 'stepz': one of steps, whole, thinking"),
        ({"programs": {"p": {"use": "steps", "verifier": "b"}}}, "no verifier 'b'"),
        ({"budgets": [{"tokens": -1}]}, "budgets.*tokens"),
        ({"budgets": [{"token": 1}]}, "budgets.*token"),
        ({"seeds": [0, 0]}, "seeds: one is there twice"),
        ({"seeds": ["0"]}, "seeds='0'"),
    ],
)
def test_what_is_no_study_is_refused_by_name(changes, said):
    with pytest.raises((StudyError, ArgumentError, ValueError), match=said):
        study(**changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks = [", "is no TOML"),
        ("tasks = ['a']\nmodels = ['b']", "searchers is missing"),
        ("tasks = ['a']\nmodels = ['b']\nsearchers = []\nfolder = 'x'", "unknown key 'folder'"),
    ],
)
def test_a_file_that_is_no_study(tmp_path, text, said):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(StudyError, match=said):
        Study.read(tmp_path / "a.toml")
    with pytest.raises(StudyError, match="cannot be read"):
        Study.read(tmp_path / "b.toml")


def test_searchers_that_are_the_same_are_refused():
    with pytest.raises(StudyError, match="are the same"):
        study(searchers=["SMC(3)", "SMC(num_particles=3)"]).groups  # noqa: B018


def test_which_verifier():
    two = {"a": {"make": "kill_study:likes_a"}, "table": {"make": "kill_study:likes_a"}}
    assert study(verifiers=two).verifier("count", "table") == "table"
    named = {"count": {"use": "kill_study:solve", "verifier": "a"}}
    assert study(verifiers=two, programs=named).verifier("count", "table") == "a"
    with pytest.raises(StudyError, match="which verifier with the model 'lm'"):
        study(verifiers=two, models={"lm": {"make": "kill_study:lm"}}).verifier("count", "lm")
    assert study(verifiers=[]).verifier("count", "table") is None


def test_places():
    assert places("0-3") == [0, 1, 2, 3]
    assert places("7, 2-3,3") == [2, 3, 7]
    for bad in ("", "3-1", "a", "-1", "1-"):
        with pytest.raises(StudyError, match="problems="):
            places(bad)


# -- what a run writes ---------------------------------------------------------------------------


def test_lines_of_results(undisturbed):
    found = rows(undisturbed)
    assert len(found) == 4 * PROBLEMS
    cells = {c.identity: c for c in study().cells()}
    candidates = {row["cell"]: row["candidates"] for row in rows(undisturbed, records.CANDIDATES)}
    assert {row["cell"] for row in found} == set(cells) == set(candidates)
    for row in found:
        cell, problem = cells[row["cell"]], task()[row["problem"]]
        assert list(row) == [
            *("cell", "task", "problem", "model", "program", "searcher", "n", "budget", "seed"),
            *("gold", "answer", "right", "answers", "rights", "log_evidence", "cost", "seconds"),
            *("stopped", "error"),
        ]
        assert (row["problem"], row["searcher"]) == (cell.problem, cell.group.searcher)
        assert (row["n"], row["budget"], row["gold"]) == (3, None, problem.gold)
        if row["problem"] == "as/7":
            assert row["error"].startswith("ProgramError: ")
            assert "always fails" in row["error"]
            assert (row["answer"], row["right"], row["answers"]) == (None, None, {})
            continue
        assert row["error"] is None
        assert row["answers"]["best"] == row["answer"]
        assert row["right"] == kill_study.score(problem, row["answer"])
        assert row["cost"]["lm_tokens"] > 0 == row["cost"]["verifier_tokens"]
        # The searcher itself says the same.
        searcher = {"BestOfN(3)": BestOfN(3), "SMC(3)": SMC(3)}[row["searcher"]]
        seed = question_seed(row["seed"], row["problem"])
        alone = searcher.run(solve, problem, lm(), likes_a, seed=seed)
        assert row["answers"] == {"best": str(alone.best), "vote": str(alone.vote())}
        assert row["log_evidence"] == pytest.approx(alone.log_evidence)
        assert row["cost"]["lm_tokens"] == alone.cost.lm_tokens
        for one, sample in zip(candidates[row["cell"]], alone.samples, strict=True):
            assert one["answer"] == str(sample.value)
            assert one["log_weight"] == pytest.approx(sample.log_weight)
            assert one["log_likelihood"] == pytest.approx(sample.log_likelihood)
            assert one["log_prob"] == pytest.approx(sample.log_joint - sample.log_likelihood)
            assert "".join(one["steps"]).count("a") == int(one["answer"])
            assert len(one["scores"]) == len(one["steps"]) == one["tokens"]
            assert one["right"] == kill_study.score(problem, one["answer"])
        kept = Posterior.load(undisturbed / "trees" / f"{row['cell']}.ppl")
        assert [s.value for s in kept.samples] == [s.value for s in alone.samples]
    assert any(row["right"] for row in found)
    assert any(row["right"] is False for row in found)


def test_what_cannot_be_read_is_null(tmp_path):
    unreadable = Task("as", list(task(2)), lambda problem, answer: None)
    study(tasks=[unreadable]).run(tmp_path / "run")
    assert all(row["right"] is None and row["error"] is None for row in rows(tmp_path / "run"))


def test_a_judge_that_fails_is_an_error_of_its_question(tmp_path):
    def judge(problem, answer):
        if problem.id == "as/1":
            raise TaskError("the checker failed")
        return True

    done = study(tasks=[Task("as", list(task(3)), judge)]).run(tmp_path / "run")
    assert done.failed == 4
    errors = {row["problem"]: row["error"] for row in rows(tmp_path / "run")}
    assert errors == {"as/0": None, "as/1": "TaskError: the checker failed", "as/2": None}


def never(problem, lm, judge):
    """Rules everything out."""
    pyro.sample("s", lm(lm.prompt("^"), max_tokens=1))
    ppl.condition(False)


def test_dead_particles_are_an_error_with_its_evidence_and_cost(tmp_path):
    study(programs={"never": never}).run(tmp_path / "run", limit=1)
    for row in rows(tmp_path / "run"):
        assert row["error"].startswith("AllParticlesDeadError")
        assert row["log_evidence"] == "-inf"
        assert row["cost"]["lm_tokens"] == 3
    for row in rows(tmp_path / "run", records.CANDIDATES):
        assert {c["log_weight"] for c in row["candidates"]} == {"-inf"}


def test_a_budget_is_kept_and_told(tmp_path):
    study(budgets=[{"tokens": 4}]).run(tmp_path / "run", limit=6)
    found = rows(tmp_path / "run")
    assert {str(row["budget"]) for row in found} == {"{'tokens': 4}"}
    assert max(row["cost"]["lm_tokens"] for row in found) <= 4
    assert "budget" in {row["stopped"] for row in found}


def test_results_do_not_depend_on_the_batch(undisturbed, tmp_path):
    study().run(tmp_path / "run", trees=True, batch=1)
    assert lasting(tmp_path / "run") == lasting(undisturbed)


def test_config_says_everything(undisturbed):
    config = json.loads((undisturbed / records.CONFIG).read_text())
    assert config["format"] == "ppl-study"
    assert config["packages"]["torch"]
    assert config["machine"]["python"]
    told = config["study"]
    assert told["tasks"]["as"]["make"] == "kill_study:task"
    assert told["searchers"]["SMC(3)"]["settings"].startswith("SMC(num_particles=3, ess_")
    assert told["programs"]["count"]["verifiers"] == {"table": "a"}
    assert (told["budgets"], told["seeds"]) == ([None], [0, 1])


def test_infinite_numbers_are_strings():
    inf = float("inf")
    assert plain({"a": [inf, -inf, float("nan"), 1.5]}) == {"a": ["inf", "-inf", "nan", 1.5]}


# -- shards and forecasts ------------------------------------------------------------------------


def test_shards_merge(undisturbed, tmp_path):
    shards = [tmp_path / str(i) for i in range(3)]
    for i, shard in enumerate(shards):
        study().run(shard, shard=(i, 3), trees=True)
    assert merge(shards, tmp_path / "all") == 4 * PROBLEMS
    assert lasting(tmp_path / "all") == lasting(undisturbed)
    assert merge(shards, tmp_path / "all") == 0
    assert study().run(tmp_path / "all").before == 4 * PROBLEMS


def test_what_does_not_go_together_is_not_merged(tmp_path):
    study().run(tmp_path / "a", limit=1)
    study(verifiers=[]).run(tmp_path / "b", limit=1)
    with pytest.raises(StudyError, match=r"b: programs\.count"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    study().run(tmp_path / "c", limit=1)
    path = tmp_path / "c" / records.RESULTS
    path.write_text(path.read_text().replace('"answer": "', '"answer": "9'))
    with pytest.raises(StudyError, match=r"already with another result \(they differ in answer"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "both")
    with pytest.raises(StudyError, match="it is no run"):
        merge([tmp_path / "nothing"], tmp_path / "both")


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0,), (0.5, 2)])
def test_no_shard(tmp_path, shard):
    with pytest.raises((StudyError, ArgumentError), match="shard="):
        study().run(tmp_path, shard=shard)


def test_dry_run(tmp_path):
    ready = study(programs={"steps": {"use": "steps", "max_steps": 4, "max_tokens": 2}})
    new = ready.dry_run(limit=5)
    assert (new.cells, new.done) == (20, 0)
    assert (new.tokens, new.calls) == (20 * 3 * 4 * 2, 20 * 3 * 4 * 2)
    assert {row.basis for row in new.rows} == {"at most"}

    own = study()
    assert own.dry_run().tokens is None
    assert "run with limit=2 first" in str(own.dry_run())
    assert own.dry_run().cells == 4 * PROBLEMS

    own.run(tmp_path, problems="0-3")
    there = own.dry_run(tmp_path)
    assert (there.cells, there.done) == (4 * PROBLEMS, 16)
    assert {row.basis for row in there.rows} == {"measured"}
    tokens = sum(row["cost"]["lm_tokens"] for row in rows(tmp_path))
    assert there.tokens == pytest.approx(tokens / 16 * (4 * PROBLEMS - 16))
    assert there.verifier_tokens == 0
    more = study(searchers=["SMC(6)"]).dry_run(tmp_path, limit=4)
    assert more.rows[0].basis == "scaled"
    assert more.tokens == pytest.approx(tokens / 16 * 2 * 8)


# -- ready programs ------------------------------------------------------------------------------


def test_ready_programs_say_what_the_text_says():
    # "a" thrice or so, "b" ends a step or a thought, "$" ends the text.
    text = Task("t", [Problem("t/0", "^", "a")], extract=lambda problem, said: f"<{said}>")
    model = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$\n", context_length=64)
    for program, settings in (
        (steps, {"until": "b", "max_steps": 9}),
        (whole, {}),
        (thinking, {"closing": "b", "until": "a", "max_steps": 3}),
    ):
        posterior = BestOfN(200).run(
            program, text[0], model, likes_a, task=text, chat=False, seed=0, **settings
        )
        for sample in posterior.samples:
            said = sample.text.text
            if program is thinking:
                assert sample.text.finished
                expected = f"<{said.partition('b')[2]}>" if "b" in said else None
                thoughts = said.partition("b")[0]
                assert thoughts.count("a") <= 3
                if expected is not None:
                    # After the first "b" the model answers, which may hold more of them.
                    expected = f"<{said.rpartition('b')[2]}>"
            else:
                expected = f"<{said}>" if sample.text.finished else None
            assert sample.value == expected
            assert sample.score == pytest.approx(likes_a.function(sample.text))


@pytest.mark.parametrize(
    ("program", "settings"),
    [
        (steps, {"until": "b", "max_tokens": 4}),
        (whole, {}),
        (thinking, {"closing": "b", "until": "a"}),
        (thinking, {"closing": "b" * 6, "until": "a", "max_steps": 2}),
    ],
)
def test_one_that_fills_the_context_has_no_answer_and_stops_no_other(program, settings):
    text = Task("t", [Problem("t/0", "^", "a")], extract=lambda problem, said: said)
    model = ppl.TableLM({"a": 0.6, "b": 0.1, "$": 0.3}, symbols="^ab$", context_length=7)
    posterior = BestOfN(200).run(
        program, text[0], model, likes_a, task=text, chat=False, seed=0, **settings
    )
    open_ = [sample for sample in posterior.samples if not sample.text.finished]
    assert open_
    assert all(sample.value is None for sample in open_)
    if program is not thinking:
        assert {len(sample.text.tokens) for sample in open_} == {7}
        assert {sample.value for sample in posterior.samples} > {None, "a"}


def test_prompts_of_ready_programs():
    text = Task("t", [Problem("t/0", "a", "a")])
    model = ppl.TableLM({"$": 1.0}, symbols="^ab$\n", context_length=64)
    asked = {
        "^a\n": {"prompt": "^{question}"},
        "^a": {"prompt": "^{question}", "chat": False},
        "b\na": {"system": "b", "chat": False},
        "b\na\n": {"system": "b"},
    }
    for prompt, settings in asked.items():
        posterior = BestOfN(1).run(whole, text[0], model, None, task=text, **settings)
        sample = posterior.samples[0]
        assert model.codec.decode(sample.text.tokens[: sample.text.prompt_length]) == prompt


def test_what_lies_beside_the_file_is_found(tmp_path, monkeypatch):
    (tmp_path / "beside_the_study.py").write_text(
        "def echo(problem, lm, verifier):\n    return problem.question\n"
    )
    (tmp_path / "mine.jsonl").write_text('{"question": "a", "answer": "a"}\n')
    (tmp_path / "a.toml").write_text(
        'tasks = ["mine.jsonl"]\nmodels = {t = {make = "kill_study:lm"}}\n'
        'programs = ["beside_the_study:echo"]\nsearchers = ["BestOfN(2)"]\n'
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = list(sys.path)
    Study.read(tmp_path / "a.toml").run("run")
    assert sys.path == path
    (row,) = rows(Path("run"))
    assert (row["task"], row["program"]) == ("mine.jsonl", "beside_the_study:echo")
    assert (row["answer"], row["right"], row["error"]) == ("a", True, None)
