"""Runs that go on where they ended, and files that do not go together."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import time
from pathlib import Path

import kill_study
import pytest
from kill_study import PROBLEMS, lasting, rows, solve, study

from ppl.errors import StudyError
from ppl.study import records
from ppl.study.records import Records


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "run"
    study().run(folder, trees=True)
    return folder


# -- going on ------------------------------------------------------------------------------------


def test_the_same_call_again_does_nothing(undisturbed, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.glob("*.json*")}
    monkeypatch.setattr("ppl.study.sources.model_of", lambda *_: pytest.fail("a model is loaded"))
    done = study().run(undisturbed, trees=True)
    assert (done.cells, done.before, done.tokens) == (4 * PROBLEMS, 4 * PROBLEMS, 0)
    assert {p: p.stat().st_mtime_ns for p in undisturbed.glob("*.json*")} == before


def test_more_of_everything_is_added(undisturbed, tmp_path):
    run = tmp_path / "run"
    assert study(seeds=[1], searchers=["SMC(3)"]).run(run, problems="2-5", trees=True).cells == 4
    assert study().run(run, limit=3, trees=True).before == 1
    progress = []
    assert study().run(run, trees=True, progress=progress.append).before == 4 + 12 - 1
    assert lasting(run) == lasting(undisturbed)
    assert [p.done for p in progress] == list(range(16, 4 * PROBLEMS + 1))
    assert progress[-1].remaining == 0.0
    assert progress[-1].failed == 4
    assert progress[0].label == "as table count BestOfN(3) seed 0"


def test_cut_anywhere_and_resumed(undisturbed, tmp_path):
    rng = random.Random(0)
    expected = lasting(undisturbed)
    whole_files = {n: (undisturbed / n).read_bytes() for n in (records.RESULTS, records.CANDIDATES)}
    for cut in range(8):
        run = tmp_path / str(cut)
        run.mkdir()
        (run / records.CONFIG).write_bytes((undisturbed / records.CONFIG).read_bytes())
        results = whole_files[records.RESULTS]
        results = results[: rng.choice([0, len(results) - 1, rng.randrange(len(results))])]
        # Candidates are written before results: never fewer.
        least = sum(
            map(len, whole_files[records.CANDIDATES].splitlines(True)[: results.count(b"\n")])
        )
        most = len(whole_files[records.CANDIDATES])
        end = rng.randint(least, min(most, least + 2000))
        (run / records.RESULTS).write_bytes(results)
        (run / records.CANDIDATES).write_bytes(whole_files[records.CANDIDATES][:end])
        done = study().run(run)
        assert done.before == results.count(b"\n")
        assert lasting(run)[:2] == expected[:2]


def test_killed_and_resumed():
    tally = kill_study.kill(int(os.environ.get("PPL_KILLS", "4")), seed=1)
    assert tally.kills >= 4


def test_errors_run_again_when_asked(tmp_path, monkeypatch):
    run = tmp_path / "run"
    study().run(run)
    again = study().run(run)
    assert (again.before, again.failed) == (4 * PROBLEMS, 4)  # they still stand there
    assert study().run(run, problems="0-6").failed == 0  # none of these

    def healed(problem, lm, judge, *, longest=8):
        return solve(dataclasses.replace(problem, id="healed"), lm, judge, longest=longest)

    monkeypatch.setattr("ppl.study.sources.Use.found", lambda self: healed)
    monkeypatch.setattr("ppl.study.sources.code_of", lambda function: "any")
    config = json.loads((run / records.CONFIG).read_text())
    config["study"]["programs"]["count"]["code"] = "any"
    del config["study"]["programs"]["count"]["uses"]  # as folders of earlier versions
    (run / records.CONFIG).write_text(json.dumps(config))
    assert study().run(run, problems="0-6", retry=True).before == 4 * 7  # not of these
    assert len([row for row in rows(run) if row["error"]]) == 4
    done = study().run(run, retry=True)
    assert (done.before, done.failed) == (4 * PROBLEMS - 4, 0)
    assert not [row for row in rows(run) if row["error"]]
    assert len(lasting(run)[1]) == 4 * PROBLEMS


def test_a_line_that_is_none_is_named(undisturbed, tmp_path):
    study().run(tmp_path / "run", limit=1)
    with (tmp_path / "run" / records.RESULTS).open("a") as file:
        file.write("hello\n")
    with pytest.raises(StudyError, match=r"results.jsonl, line 5 is no line of a study"):
        study().run(tmp_path / "run")


def test_one_process_at_a_time(tmp_path):
    with Records(tmp_path), pytest.raises(StudyError, match=f"process {os.getpid()}"):
        study().run(tmp_path)
    study().run(tmp_path, limit=1)


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    child = os.fork()
    if not child:
        Records(tmp_path)
        signal.pause()
    while not (tmp_path / records.LOCK).exists() or not (tmp_path / records.LOCK).read_text():
        time.sleep(0.01)
    with pytest.raises(StudyError, match=f"process {child}"):
        Records(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    Records(tmp_path).close()


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    class Full:
        def __getattr__(self, name):
            return getattr(os, name)

        @staticmethod
        def write(handle, content):
            os.write(handle, content[:7])
            raise OSError(28, "No space left on device")

    with Records(tmp_path) as found:
        row = {"cell": "0" * 16, "error": None}
        found.write([(row, {"cell": "0" * 16, "candidates": []})])
        before = [(tmp_path / n).read_bytes() for n in (records.RESULTS, records.CANDIDATES)]
        monkeypatch.setattr(records, "os", Full())
        with pytest.raises(StudyError, match=r"candidates\.jsonl: No space left"):
            found.write([({**row, "cell": "1" * 16}, {"cell": "1" * 16})])
        monkeypatch.undo()
    assert [(tmp_path / n).read_bytes() for n in (records.RESULTS, records.CANDIDATES)] == before


# -- what would be mixed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {"table": {"make": "kill_study:lm2"}}}, r"models\.table .*'kill_study:lm'"),
        ({"models": {"table": {"load": "tiny"}}}, r"models\.table .*load was None.*'tiny'"),
        ({"verifiers": {"a": {"make": "kill_study:other"}}}, r"verifiers\.a"),
        ({"tasks": {"as": {"make": "kill_study:task", "problems": 5}}}, r"tasks\.as .*contents"),
        ({"programs": {"count": {"use": "kill_study:solve", "longest": 3}}}, "longest was None"),
        ({"programs": {"count": {"use": "test_study:never"}}}, r"programs\.count .*code was"),
        (
            {"programs": {"count": {"use": "kill_study:solve", "verifier": False}}},
            r"programs\.count .*verifiers was \{'table': 'a'\}",
        ),
    ],
)
def test_a_name_that_means_something_else_is_refused(undisturbed, changes, said):
    before = (undisturbed / records.CONFIG).read_bytes()
    with pytest.raises(StudyError, match=said):
        study(**changes).run(undisturbed)
    with pytest.raises(StudyError, match=said):
        study(**changes).dry_run(undisturbed)
    assert (undisturbed / records.CONFIG).read_bytes() == before


def test_another_version_of_the_format_is_refused(tmp_path):
    study().run(tmp_path, limit=1)
    config = json.loads((tmp_path / records.CONFIG).read_text())
    for changed, said in (({"version": 2}, "version 2"), ({"format": "x"}, "is of no study")):
        (tmp_path / records.CONFIG).write_text(json.dumps({**config, **changed}))
        with pytest.raises(StudyError, match=said):
            study().run(tmp_path)
    (tmp_path / records.CONFIG).unlink()
    with pytest.raises(StudyError, match=r"no config\.json says of what"):
        study().run(tmp_path)


def test_another_writer_is_remembered(tmp_path):
    study().run(tmp_path, limit=1)
    config = json.loads((tmp_path / records.CONFIG).read_text())
    (tmp_path / records.CONFIG).write_text(json.dumps({**config, "ppl": "0.0.9"}))
    study().run(tmp_path, limit=2)
    again = json.loads((tmp_path / records.CONFIG).read_text())
    assert again["ppl"] == config["ppl"]
    assert [writer["ppl"] for writer in again["earlier"]] == ["0.0.9"]
