"""The held-out problems and their judge: right answers pass, everything else does not."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from ppl.errors import ArgumentError, TaskError
from ppl.tasks import (
    TASKS,
    Judge,
    Problem,
    TaskName,
    allowed_answer,
    arithmetic_key,
    countdown_key,
    held_out,
    is_correct,
    problems,
)
from ppl.tasks import judge as judging

pytest.importorskip("reasoning_gym")

SUM = Problem(
    countdown_key([3, 5, 7], 22),
    "",
    "3*5+7",
    {
        "task": "countdown",
        "dataset": "countdown",
        "metadata": {"numbers": [3, 5, 7], "target": 22},
    },
)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(limit=120.0) as one:
        yield one


@pytest.mark.parametrize("task", TASKS)
def test_problems_are_distinct_held_out_and_repeatable(task: TaskName) -> None:
    found = problems(task, 60, seed=3)
    assert len({p.id for p in found}) == 60
    assert all(held_out(p.id) for p in found)
    assert problems(task, 20, seed=3) == found[:20]  # same (seed, i), same item
    assert len(set(problems(task, 60, seed=4)) & set(found)) < 30
    assert pickle.loads(pickle.dumps(found[0])) == found[0]


def test_question_and_key_are_those_of_reasoning_gym() -> None:
    problem = problems("arithmetic", 1)[0]
    expression = problem.meta["metadata"]["expression"]
    assert problem.question == f"Calculate {expression}."
    assert problem.id == arithmetic_key(expression)
    assert countdown_key([7, 3, 5], 22) == "countdown:3,5,7=22"
    assert arithmetic_key("( 5 + -3 ) * 4") == "arithmetic:(5+-3)*4"


def test_held_out_is_stable_and_one_in_eight() -> None:
    # Fixed values: a salted hash would differ from run to run.
    keys = [f"arithmetic:{i}+{i}" for i in range(4000)]
    assert [i for i in range(24) if held_out(keys[i])] == [4, 5, 7, 17, 18, 19, 20]
    assert 0.1 < sum(map(held_out, keys)) / 4000 < 0.15


@pytest.mark.parametrize("task", TASKS)
def test_oracle_is_right_and_constants_are_not(task: TaskName, judge: Judge) -> None:
    found = problems(task, 100)
    assert all(judge.score_many(found, [p.gold for p in found]))
    common = [answer for answer, _ in Counter(p.gold for p in found).most_common(10)]
    best = max(sum(judge.score_many(found, [answer] * 100)) for answer in common)
    assert best < 25
    for garbage in ("", "hello", "0", "1+1", "-", "()"):
        assert sum(judge.score_many(found, [garbage] * 100)) < 25


@pytest.mark.parametrize(
    "answer",
    [
        "2**3*4",
        "7//2",
        "__import__('os')",
        "4!+3",
        "3*5+7 # comment",
        "3*5+7\n",
        "\n3*5+7",
        "3*5+7=22",
        "3*5+7.0",
        "3*5+7e0",
        "3*5+7,",
        "3(5+7)",
        "+3*5+7",
        "~3*5+7",
        "(3*5+7",
        "3*5+７",
        "((" * 90 + "1" + "))" * 90,
        "1" * 500,
        "Symbol",
        "",
    ],
)
def test_hostile_answers_never_reach_the_scorer(answer: str) -> None:
    assert not allowed_answer("countdown", answer)
    assert not allowed_answer("arithmetic", answer)
    assert Judge(start_limit=1e-9).score(SUM, answer) is False  # no worker was needed


@pytest.mark.parametrize("answer", ["3*5+7", "(3*5)+7", " 7 + 5 * 3 ", "7-(-3)*5"])
def test_plain_countdown_answers_are_allowed(answer: str, judge: Judge) -> None:
    assert allowed_answer("countdown", answer)
    assert not allowed_answer("arithmetic", answer)
    assert judge.score(SUM, answer)


@pytest.mark.parametrize("answer", ["3*5", "3*5+7+7-7", "3+5+7", "22", "3/(5-5)", "35+7"])
def test_wrong_countdown_answers_are_wrong(answer: str, judge: Judge) -> None:
    assert not judge.score(SUM, answer)


def test_none_is_wrong_and_lengths_must_agree(judge: Judge) -> None:
    assert judge.score_many([SUM, SUM], [None, "3*5+7"]) == [False, True]
    with pytest.raises(TaskError, match="1 problems but 2 answers"):
        judge.score_many([SUM], ["1", "2"])


def test_unknown_task_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"chess.*'arithmetic', 'countdown'"):
        problems("chess", 1)  # type: ignore[arg-type]


HANG = """
import sys, time
print("ready", flush=True)
for line in sys.stdin:
    time.sleep(600)
"""
DIE = """
import sys
print("ready", flush=True)
sys.stdin.readline()
sys.exit(3)
"""


@pytest.mark.parametrize(("program", "word"), [(HANG, "hung"), (DIE, "died")])
def test_a_lost_worker_is_an_error_then_replaced(
    program: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Judge(limit=0.5) as judge:
        with monkeypatch.context() as patch:
            patch.setattr(judge.worker, "program", program)
            with pytest.raises(TaskError, match=word):
                judge.score(SUM, "3*5+7")
        judge.limit = 120.0
        assert judge.score(SUM, "3*5+7")  # a new worker, and unknown was not counted as wrong


def test_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "_WORKER", "import a_module_that_does_not_exist_anywhere")
    with Judge() as judge, pytest.raises(TaskError, match="died while starting"):
        judge.score(SUM, "3*5+7")


def test_close_ends_the_process() -> None:
    judge = Judge(limit=120.0)
    assert judge.score(SUM, "3*5+7")
    process = judge.worker.process
    judge.close()
    assert process is not None
    assert process.poll() is not None
    assert judge.worker.process is None


def test_is_correct_is_quiet_and_leaves_nothing_behind() -> None:
    """A plain script without a main guard: no output, no warning, no hang at exit."""
    script = (
        "from ppl.tasks import Problem, is_correct\n"
        f"problem = Problem({SUM.id!r}, '', '3*5+7', {SUM.meta!r})\n"
        "assert is_correct(problem, '3*5+7') and not is_correct(problem, None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        check=False,
        capture_output=True,
        timeout=900,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert not is_correct(SUM, "3+5")
