"""Studies in several processes, and on a local Ray: one that is killed is replaced."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from kill_study import PROBLEMS, lasting, lm, solve, study

from ppl.errors import StudyError
from ppl.study import cluster, records
from ppl.study.jobs import Job, Pieces
from ppl.study.workers import given_up
from ppl.tasks import Problem


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "run"
    study().run(folder, trees=True)
    return folder


def slowly(problem, lm, judge):
    """Takes its time, so that its process can be killed meanwhile."""
    time.sleep(0.02)
    return solve(problem, lm, judge)


def killing(problem, lm, judge, *, mark):
    """Kills its process at one question, once."""
    if problem.id == "as/3" and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return solve(problem, lm, judge)


def killing_study(mark: Path):
    uses = {"count": {"use": "test_study_workers:killing", "mark": str(mark)}}
    return study(programs=uses)


def as_undisturbed(folder: Path, undisturbed: Path) -> bool:
    """Cells are named by the program's name in the study, which is the same."""
    return lasting(folder) == lasting(undisturbed)


def test_workers_of_which_one_is_killed(undisturbed, tmp_path):
    seen = []
    done = killing_study(tmp_path / "mark").run(
        tmp_path / "run", workers=2, trees=True, batch=5, progress=seen.append
    )
    assert (tmp_path / "mark").exists()
    assert (done.cells, done.before, done.failed) == (4 * PROBLEMS, 0, 4)
    assert as_undisturbed(tmp_path / "run", undisturbed)
    assert [p.done for p in seen] == list(range(1, 4 * PROBLEMS + 1))
    assert not multiprocessing.active_children()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what a node that was late has left open
def test_ray_of_which_one_actor_is_killed(undisturbed, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    # Actors import what this process does.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *_path()]))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "300")
    for _ in range(3):
        try:
            done = killing_study(tmp_path / "mark").run(
                tmp_path / "run", workers=2, ray="local", trees=True, batch=5
            )
            break
        except Exception as error:  # a node has half a minute for its start, whatever one sets
            if "timed out during startup" not in str(error):
                raise
            gc.collect()
        finally:
            ray.shutdown()
    else:
        pytest.skip("Ray takes too long for its start here")
    assert (tmp_path / "mark").exists()
    assert (done.cells, done.before, done.failed) == (4 * PROBLEMS, 0, 4)
    assert as_undisturbed(tmp_path / "run", undisturbed)


def _path() -> list[str]:
    return [p for p in sys.path if p]


def test_ray_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(StudyError, match=r"pip install 'ppl-search\[ray\]'"):
        study().run(tmp_path, ray="auto")


@pytest.mark.parametrize("where", [{"workers": 2}, {"ray": "auto"}])
def test_objects_of_this_process_do_not_travel(tmp_path, where):
    with pytest.raises(StudyError, match=r"models\.table is an object of this process"):
        study(models={"table": lm()}).run(tmp_path, **where)


def test_programs_of_a_notebook_do_not_travel(tmp_path, notebook):
    """A new process would find no such function, and say so in a traceback of its own."""
    notebook.run("def solve(problem, lm, judge):\n    return str(1)")
    mine = study(programs={"mine": notebook.module.solve})
    with pytest.raises(StudyError, match=r"programs\.mine .* notebook .*%%writefile .*workers=1"):
        mine.run(tmp_path, workers=2, limit=1)
    assert mine.run(tmp_path, limit=1).cells == 4
    notebook.module.__file__ = "script.py"  # of a script, which new processes import
    with pytest.raises(StudyError, match=r"programs\.mine .*<lambda>.* import it from there"):
        study(programs={"mine": lambda problem, lm, judge: "1"}).run(tmp_path / "l", workers=2)


def test_helpers_that_are_changed_in_a_notebook_are_noticed(tmp_path, notebook):
    notebook.run("PROMPT = 'How many?'\ndef least(n):\n    return n")
    notebook.run("def solve(problem, lm, judge):\n    return str(len(PROMPT) + least(1))")
    mine = study(programs={"mine": notebook.module.solve})
    assert mine.run(tmp_path, limit=1).cells == 4
    notebook.run("def least(n):\n    return n  # the same")
    assert mine.run(tmp_path, limit=2).before == 4
    before = (tmp_path / records.CONFIG).read_bytes()
    for cell, name in (("PROMPT = 'Tell me'", "PROMPT"), ("def least(n):\n    return 2", "least")):
        notebook.run("PROMPT = 'How many?'")
        notebook.run(cell)
        with pytest.raises(StudyError, match=rf"programs\.mine .*'{name}', which it uses"):
            mine.run(tmp_path, limit=3)
    assert (tmp_path / records.CONFIG).read_bytes() == before


def test_what_ends_every_process_is_given_up_alone(tmp_path):
    group = study().groups[0]
    problems = [Problem(f"as/{i}", "^", "0") for i in range(5)]
    pieces = Pieces([Job(group, problems)], 3)
    deaths, done, failed = 0, [], []
    while (piece := pieces.take()) is not None:
        for problem in piece.problems:
            if problem.id == "as/1":  # its process dies at it, every time
                deaths += 1
                left = piece.without([group.cell(p) for p in done])
                for _, row in given_up(study(), pieces, left, "worker"):
                    failed.append(row.result)
                break
            done.append(problem.id)
    assert deaths == Pieces.PATIENCE
    assert sorted(done) == ["as/0", "as/2", "as/3", "as/4"]
    assert [row["problem"] for row in failed] == ["as/1"]
    assert failed[0]["error"].startswith("WorkerError: the worker died 3 times")


def test_an_actor_says_what_its_group_lacks():
    bencher = cluster.Bencher(study(models={"table": {"load": "no/such-folder/x"}}), 4, False)
    found = bencher.work(Job(study().groups[0], []))
    assert isinstance(found, str)
    assert "ModelNotFoundError" in found


def test_an_interrupted_run_keeps_what_it_has_and_leaves_no_search_behind(tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    slow = study(programs={"slow": slowly})
    with pytest.raises(KeyboardInterrupt):
        slow.run(tmp_path, progress=stop)
    assert len(list(records.read(tmp_path / records.RESULTS))) == 1
    for thread in threading.enumerate():
        if thread.name == "ppl loop":  # it ends once nothing is left to run
            thread.join(300)
            assert not thread.is_alive()
    assert slow.dry_run(tmp_path).done == 1
