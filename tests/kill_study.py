"""Kills a study with SIGKILL at random moments, again and again, and looks at what it leaves.

    python tests/kill_study.py --kills 200

A process that has imported everything forks children that run a small study into a folder. Each is
killed after a random time, and its files are looked at; the next child goes on where it ended,
until the study is done, and the folder is compared with that of a run that nobody disturbed.
Children write their lines in two parts with a pause between, so that kills fall within lines too.
A file system in memory is used where there is one: a killed process loses nothing that it has
written, wherever that is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch

import ppl
from ppl.study import Study, records
from ppl.tasks import Problem, Task
from ppl.verifiers import verifier

PROBLEMS = 12


def lm() -> ppl.TableLM:
    """A model of three symbols."""
    return ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", context_length=24)


def rows(folder: Path, name: str = records.RESULTS) -> list[dict[str, Any]]:
    """The lines of a run's file."""
    return list(records.read(folder / name))


@verifier
def likes_a(text):
    """Half a chance for every b."""
    return 0.5 ** text.text.count("b")


def task(problems: int = PROBLEMS) -> Task:
    """How many a's come before the end? One question fails, and one cannot be read."""
    made = [Problem(f"as/{i}", "^" * (1 + i % 3), str(i % 4)) for i in range(problems)]
    return Task("as", made, score)


def score(problem: Problem, answer: str | None) -> bool | None:
    """By the letter; "5" cannot be read."""
    return None if answer == "5" else answer == problem.gold


def solve(problem: Problem, lm: Any, judge: Any, *, longest: int = 8) -> int:
    """Writes until the end, and counts."""
    if problem.id == "as/7":
        raise ValueError("this question always fails")
    text = lm.prompt(problem.question)
    for t in range(longest):
        text = text + pyro.sample(f"s_{t}", lm(text, max_tokens=1))
        if judge is not None:
            pyro.sample(f"ok_{t}", judge(text), obs=True)
        if text.finished:
            break
    return text.text.count("a")


def study(problems: int = PROBLEMS, **changes: Any) -> Study:
    """Four searches of every problem."""
    settings: dict[str, Any] = {
        "tasks": {"as": {"make": "kill_study:task", "problems": problems}},
        "models": {"table": {"make": "kill_study:lm"}},
        "verifiers": {"a": {"make": "kill_study:likes_a"}},
        "programs": {"count": {"use": "kill_study:solve"}},
        "searchers": ["BestOfN(3)", "SMC(3)"],
        "seeds": [0, 1],
    }
    return Study(**{**settings, **changes})


def lasting(folder: Path) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """Results without seconds, candidates, and names of trees, by cell; every line is whole."""
    found = []
    for name in (records.RESULTS, records.CANDIDATES):
        content = (folder / name).read_bytes()
        assert content.endswith(b"\n"), f"{name} ends within a line"
        rows = [json.loads(line) for line in content.splitlines()]
        cells = {row["cell"]: {k: v for k, v in row.items() if k != "seconds"} for row in rows}
        assert len(cells) == len(rows), f"{name}: a cell is there twice"
        found.append(cells)
    trees = {path.stem for path in (folder / records.TREES).glob("*.ppl")}
    return found[0], found[1], trees


def whole_so_far(folder: Path) -> bool:
    """What holds after every kill: lines are whole but for the last one, and cells there once.

    Returns:
        Whether a file ends within a line.
    """
    torn = False
    for name in (records.RESULTS, records.CANDIDATES):
        path = folder / name
        *lines, rest = (path.read_bytes() if path.exists() else b"").split(b"\n")
        cells = [json.loads(line)["cell"] for line in lines]
        assert len(cells) == len(set(cells)), f"{name}: a cell is there twice"
        torn = torn or bool(rest)
    if (folder / records.CONFIG).exists():
        json.loads((folder / records.CONFIG).read_bytes())
    return torn


class _Slow:
    """`os`, whose writes take their time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def write(handle: int, content: bytes) -> int:
        half = os.write(handle, content[: len(content) // 2 or 1])
        time.sleep(0.001)
        return half


@dataclass
class Tally:
    """What kills did: how many, in how many runs, how many within a line."""

    kills: int = 0
    runs: int = 0
    torn: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.runs} runs, {self.torn} of them within a line, "
            f"{self.seconds:.0f} s: nothing lost, nothing doubled, results as undisturbed"
        )


def kill(kills: int, seed: int = 0, place: Path | None = None) -> Tally:
    """Kills so often, in as many runs as that takes; the last run is brought to its end."""
    rng, tally = random.Random(seed), Tally()
    began = time.perf_counter()
    memory = Path("/dev/shm")
    if place is None and os.access(memory, os.W_OK):
        place = memory
    folder = Path(tempfile.mkdtemp(dir=place))
    try:
        study().run(folder / "undisturbed", trees=True)
        expected = lasting(folder / "undisturbed")
        assert len(expected[0]) == 4 * PROBLEMS
        child = _child(folder / "timed")
        started = time.perf_counter()
        assert os.waitpid(child, 0)[1] == 0
        longest = time.perf_counter() - started
        while tally.kills < kills:
            run = folder / f"run-{tally.runs}"
            while _killed(run, rng.uniform(0, longest / 2), tally) and tally.kills < kills:
                tally.torn += whole_so_far(run)
            assert os.waitpid(_child(run), 0)[1] == 0
            assert lasting(run) == expected
            assert not list(run.rglob("*.tmp"))
            tally.runs += 1
            shutil.rmtree(run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tally.seconds = time.perf_counter() - began
    return tally


def _child(folder: Path) -> int:
    """Forks a process that runs the study."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        records.os = _Slow()  # type: ignore[assignment]
        study().run(folder, trees=True, batch=5)
        code = 0
    except BaseException as error:
        os.write(2, f"{error!r}\n".encode())
    finally:
        os._exit(code)


def _killed(folder: Path, wait: float, tally: Tally) -> bool:
    """Runs the study and kills it after `wait` seconds; False if it was done before."""
    child = _child(folder)
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    tally.kills += status != 0
    return status != 0


def main(argv: list[str] | None = None) -> Tally:
    """Kills and tells."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    sys.modules.setdefault("kill_study", sys.modules["__main__"])
    tally = kill(args.kills, args.seed)
    print(tally)
    return tally


if __name__ == "__main__":
    main()
