"""Searches that are watched and stopped: below a cell of a notebook as in a terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest
from loops import counting, nothing_is_left, walk
from programs import contents, toy
from rich.progress import Progress

from ppl.runtime.awake import BEAT, awake
from ppl.searchers import SMC, BestOfN, run_all, watching


def cancel_from_a_handler(task: asyncio.Task) -> list[float]:
    """As a kernel does under a cell that awaits: a signal's handler adds a callback to the event
    loop, which wakes no loop that waits. When the signal came (`time.monotonic`)."""
    events, began = asyncio.get_running_loop(), [0.0]

    def handler(*_):
        began[0] = time.monotonic()
        events.call_soon(task.cancel)

    before = signal.signal(signal.SIGUSR1, handler)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
    task.add_done_callback(lambda _: signal.signal(signal.SIGUSR1, before))
    return began


def test_the_stop_button_reaches_a_cell_that_awaits():
    lm = counting()
    lm.before = lambda: time.sleep(0.02)

    async def cell():
        task = asyncio.create_task(BestOfN(2).arun(walk, lm, 1000, seed=0))  # it takes 20 s
        began = cancel_from_a_handler(task)
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        return time.monotonic() - began[0], caught.value

    seconds, error = asyncio.run(cell())
    assert seconds < 10
    assert "0 of 1 searches were over" in error.__notes__[0]
    lm.before = lambda: None
    nothing_is_left(lm)


def test_a_search_that_was_cancelled_goes_on():
    lm, right = counting(), contents(SMC(4).run(walk, counting(), 30, seed=1))
    lm.before = lambda: time.sleep(0.01)

    async def cell():
        task = asyncio.create_task(SMC(4).arun(walk, lm, 30, seed=1))
        while lm.steps < 5:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        return caught.value

    [search] = asyncio.run(cell()).searches
    nothing_is_left(lm)
    assert not search.over
    lm.before = lambda: None
    assert contents(run_all([search])[0]) == right


def test_an_event_loop_has_one_pulse_and_none_afterwards():
    async def cell():
        events, woken = asyncio.get_running_loop(), []
        later = events.call_later

        def counted(delay, *rest, **named):
            woken.append(delay)
            return later(delay, *rest, **named)

        events.call_later = counted
        with awake(events), awake(events), awake(events):
            await asyncio.sleep(2.5 * BEAT)
        beats = woken.count(BEAT)
        await asyncio.sleep(1.5 * BEAT)
        return beats, woken.count(BEAT)

    beats, after = asyncio.run(cell())
    assert 1 < beats <= 3
    assert after == beats


class Handle:
    def __init__(self, shown):
        self.shown = shown

    def update(self, data, *, raw):
        assert raw
        self.shown[-1].append(data["text/plain"])


@pytest.fixture
def cells(monkeypatch):
    """What IPython is asked to show, and then to show instead; no ipywidgets."""
    shown: list[list[str]] = []

    def display(data, *, raw, display_id):
        assert raw
        assert display_id
        shown.append([data["text/plain"]])
        return Handle(shown)

    found = types.ModuleType("IPython.display")
    found.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", found)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    return shown


def test_progress_in_a_notebook_is_one_line_that_stays(cells):
    plain = contents(SMC(4).run(toy, "prod", seed=0))
    assert contents(SMC(4).run(toy, "prod", seed=0, progress=True)) == plain
    [lines] = cells
    assert lines[0].startswith("SMC: 0 rounds, 0 tokens")
    assert lines[-1].startswith("SMC: 3 rounds, ")
    found = SMC(4).run_many(toy, ["prod"] * 3, seed=[1, 2, 3], progress=True)
    tokens = sum(p.cost.lm_tokens for p in found)
    assert cells[1][-1].startswith(f"SMC: 3 of 3 searches, 9 rounds, {tokens} tokens, ")
    asyncio.run(BestOfN(2).arun(toy, "prod", seed=0, progress=True))
    assert cells[2][-1].startswith("BestOfN: 3 rounds, 5 tokens, ")


def test_progress_is_on_stderr_and_into_a_file_one_line_a_run(capsys):
    SMC(4).run(toy, "prod", seed=0, progress=True)
    BestOfN(2).run_many(toy, ["prod"] * 3, seed=0, progress=True)
    SMC(4).run(toy, "prod", seed=0)
    said = capsys.readouterr()
    assert said.out == ""
    one, other = said.err.splitlines()
    assert one.startswith("SMC: 3 rounds, 9 tokens ")
    assert other.startswith("BestOfN: 3 of 3 searches, 9 rounds, ")


def test_searches_that_show_themselves_inside_of_each_other_do(capsys):
    def inner(search):
        BestOfN(2).run(toy, "prod", seed=0, progress=True)

    with Progress():  # of whoever has a line of their own
        SMC(4).run(toy, "prod", seed=0, progress=True, on_step=inner)
    names = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert names == ["BestOfN"] * 3 + ["SMC"]


PRINTS = """
from programs import toy
from ppl.searchers import SMC
SMC(4).run(toy, "prod", progress=True, on_step=lambda search: print("round", search.state.round))
print("result")
"""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="terminals of POSIX")
def test_what_a_script_prints_goes_where_its_output_goes():
    ours, theirs = os.openpty()  # stderr is a terminal, stdout is not
    try:
        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", PRINTS],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=environment,
            text=True,
            timeout=300,
            check=True,
        )
        assert done.stdout.splitlines() == ["round 1", "round 2", "round 3", "result"]
        assert b"rounds" in os.read(ours, 1 << 16)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_notebook_is_not_sent_a_line_for_every_round(cells):
    began = time.monotonic()
    SMC(2).run(walk, counting(), 200, seed=0, progress=True)
    [lines] = cells
    assert lines[-1].startswith("SMC: 200 rounds, ")
    assert len(lines) <= 2 + (time.monotonic() - began) / watching._EVERY  # it may take its time
    with pytest.raises(ZeroDivisionError):
        SMC(2).run(walk, counting(), 9, seed=0, progress=True, on_step=lambda search: 1 // 0)
    assert cells[1][-1].startswith("SMC: 1 round, ")
