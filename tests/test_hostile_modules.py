"""Modules of a planner that do harm, and replies of its sandbox that nobody may believe."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

import hostile
import pytest
from bubblewrap import needs_bubblewrap
from test_self_steering import CHECK, PLAIN, SHORT, TOY, WHOLE, answering
from work import until

import ppl
from ppl.errors import SandboxError, SteeringError, WorkerError
from ppl.programs import Steering, selfsteer
from ppl.programs.steering_wire import ModuleError, prompts_of, request_of, verdict_of
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import Sandbox
from ppl.verifiers.exact.guest import Guest

HOSTILE = {
    "loops in a step": "def step(state):\n    while True: pass",
    "loops at import": "while True: pass\ndef step(state): pass",
    "a giant request": "def step(state):\n    state.hint('x' * 10**8)\n    state.extend()",
    "a giant memory": "def step(state):\n    state.x = 'x' * 10**6\n    state.extend()",
    "a giant answer": "import os\ndef step(state):\n    for fd in range(3, 64):\n        try:\n"
    "            while True: os.write(fd, b'x' * 65536)\n        except OSError: pass",
    "forges an answer": "import os\ndef step(state):\n    for fd in range(3, 64):\n        try:\n"
    '            os.write(fd, b\'{"value": "{}"}\\n\')\n        except OSError: pass',
    "leaves": "import os\ndef step(state):\n    os._exit(0)",
    "takes all memory": "def step(state):\n    x = [bytearray(2**20) for _ in range(10**6)]",
    "a fork bomb": "import os\ndef step(state):\n    while True: os.fork()",
    "a shell": "import os\ndef step(state):\n    if os.system('touch FILE; cp SECRET /tmp/x'): 1/0",
    "another process": "import subprocess, sys\ndef step(state):\n"
    "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(999)'])\n"
    "    open('SECRET')",
    "the environment": "import os\ndef step(state):\n    os.environ['PPL_SECRET']",
    "the network": "import socket\ndef step(state):\n"
    "    socket.create_connection(('127.0.0.1', 22), 1)",
    "the caller's memory": "import os\ndef step(state):\n"
    "    open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "asks without end": "def step(state):\n    while True: state.hint('?'); state.observe('a')",
    "prompts of 10 MB": "prior = 'a' * 10**7\ndef step(state): pass",
}


def left_behind(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if mark.encode() in (folder / "cmdline").read_bytes():
                    found.append(folder.name)
    return found


@needs_bubblewrap
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_modules_are_stopped_and_reported_and_nothing_is_left(what, tmp_path, monkeypatch):
    monkeypatch.setenv("PPL_SECRET", "secret")
    secret, touched = tmp_path / "secret", tmp_path / "touched"
    secret.write_text("secret")
    module = HOSTILE[what].replace("SECRET'", f"{secret}'").replace("SECRET ", f"{secret} ")
    module = module.replace(f"PPL_{secret}'", "PPL_SECRET'").replace("FILE", str(touched)) + CHECK
    size = (16 << 20) + secrets.randbelow(1 << 20)  # stands in every command line of this run
    planner, told = answering(module)
    begun = time.monotonic()
    sandbox = Sandbox(seconds=0.5, memory=128 << 20, file_bytes=size)
    with pytest.raises(SteeringError) as caught:
        selfsteer(planner, TOY, "^", 4, 0, **PLAIN, sandbox=sandbox)
    assert time.monotonic() - begun < 600  # some would go on for ever, or for 999 s
    assert len(told) == 1
    (attempt,) = caught.value.attempts
    assert attempt.faults
    assert not attempt.answered
    # The kernel ends a process namespace in its own time.
    assert until(lambda: not left_behind(str(size)))
    assert not touched.exists()
    assert secret.read_text() == "secret"


# Of tests/hostile.py, what does a deed that the sandbox has to stop, and needs no file or service.
DEEDS = [
    pytest.param(source, id=what)
    for what, source, verdicts, test in hostile.HOSTILE
    if verdicts == hostile.STOPPED and test == hostile.TEST
    and not re.search("SECRET|PORT|ABSTRACT|MARK|SEES", source)
][::3]  # fmt: skip


@needs_bubblewrap
@pytest.mark.parametrize("source", DEEDS)
def test_what_judged_programs_cannot_do_modules_cannot(source):
    module = f"{source}\ndef step(state):\n    state.require(f(2) == 4)\n    state.finish()"
    with Steering(module + CHECK, TOY, **PLAIN) as program:
        assert BestOfN(1).run(program, "^", seed=0).best == ""


@needs_bubblewrap
def test_an_interpreter_that_was_stopped_is_not_asked_again():
    module = "def step(state):\n    while state.text == 'a': pass\n    state.extend(max_tokens=1)"
    with (
        Steering(module + CHECK, TOY, **PLAIN, sandbox=Sandbox(seconds=1)) as program,
        pytest.raises(ppl.errors.AllParticlesDeadError),
    ):
        SMC(16).run(program, "^", seed=0)
    # One wait, not one for each particle.
    first, second = program.faults
    assert "no answer within 1 s" in first.said
    assert "was stopped: no answer within 1 s" in second.said


@needs_bubblewrap
def test_a_guest_says_strings():
    with Guest(Sandbox(), "def f(x): return x\ndef g(): return 1 / 0\n") as guest:
        assert guest.call("f", "é\n" * 1000) == "é\n" * 1000
        with pytest.raises(WorkerError, match="ZeroDivisionError: division by zero"):
            guest.call("g")
        assert guest.alive  # what is raised is an answer
        with pytest.raises(WorkerError, match="its answer is none"):
            guest.call("f", 3)
        assert not guest.alive
        with pytest.raises(WorkerError, match="was stopped"):
            guest.call("f", "x")
    with Guest(Sandbox(), "def f(n): return 'x' * int(n)") as guest:
        assert len(guest.call("f", 200_000)) == 200_000
        with pytest.raises(WorkerError, match="longer than 262144 bytes"):
            guest.call("f", 500_000)
        assert not guest.alive


@needs_bubblewrap
def test_a_forked_child_cannot_ask_and_the_parent_can():
    with Guest(Sandbox(), "def f(x): return x") as guest:
        child = os.fork()
        if not child:
            try:
                guest.call("f", "theirs")
            except WorkerError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert guest.call("f", "ours") == "ours"


def test_the_weaker_isolation_is_taken_by_name():
    with Steering(SHORT, TOY, **PLAIN, sandbox=Sandbox(isolation="process")) as program:
        assert SMC(8).run(program, "^", guide=program.proposals, seed=0).best


def test_without_isolation_nothing_runs(monkeypatch):
    from ppl.verifiers.exact import sandbox

    monkeypatch.setattr(sandbox, "_complaint", lambda: "bubblewrap is not installed")
    planner, _ = answering(WHOLE)
    with pytest.raises(SandboxError, match="isolation='process'"):
        selfsteer(planner, TOY, "^", **PLAIN)


EXTEND = {"do": "extend", "until": None, "max_tokens": 1, "mask": None, "hints": []}
END = {"do": "end", "finished": False, "memory": "{}", "twist": 0.0, "hints": []}


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[]",
        "[" * 100_000,
        "3",
        "{}",
        '{"do": "extend"}',
        *[
            json.dumps(EXTEND | change)
            for change in (
                {"until": "a"},
                {"until": [""]},
                {"until": [3]},
                {"until": ["a"] * 17},
                {"max_tokens": 0},
                {"max_tokens": True},
                {"max_tokens": 1 << 40},
                {"max_tokens": 1.5},
                {"mask": {}},
                {"mask": {"only": "", "never": "", "end": True}},
                {"mask": {"only": None, "never": None, "end": True}},
                {"mask": {"only": None, "never": "", "end": 1}},
                {"hints": None},
                {"hints": ["x" * 4001]},
                {"hints": ["x"] * 65},
                {"hints": ["\ud800"]},
                {"do": "observe"},
                {"do": ["extend"]},
            )
        ],
        *[
            json.dumps(END | change)
            for change in (
                {"twist": math.nan},
                {"twist": math.inf},
                {"twist": "0"},
                {"finished": "no"},
                {"memory": 3},
                {"memory": "x" * 20_001},
            )
        ],
        '{"max_tokens": ' + "9" * 10_000 + "}",
    ],
    ids=lambda said: said[:40],
)
def test_nothing_that_comes_out_is_believed(said):
    with pytest.raises(ModuleError):
        request_of(said)


def test_what_fits_is_read():
    assert request_of(json.dumps(EXTEND)).max_tokens == 1
    assert request_of(json.dumps(END)).memory == "{}"
    assert verdict_of('{"right": true}') is True
    assert prompts_of('{"prior": null, "proposal": "!"}') == (None, "!")
    for said in ('{"right": 1}', '{"error": "why"}'):
        with pytest.raises(ModuleError):
            verdict_of(said)
