"""Model-written code: right verdicts, nothing forged, nothing left behind."""

from __future__ import annotations

import ctypes
import math
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from bubblewrap import needs_bubblewrap
from hostile import HOSTILE
from work import until

from ppl.errors import SandboxError
from ppl.verifiers import Check, Sandbox, UnitTests
from ppl.verifiers.exact import sandbox
from ppl.verifiers.exact.cgroup import home
from ppl.verifiers.exact.pool import Pool
from ppl.verifiers.exact.seccomp import DENIED, JUDGED, system_call_filter

SIDE_BY_SIDE, PARTS = 5, 10  # hostile programs; the parts are spread over the test processes
DOCS = Path(__file__).parent.parent / "docs" / "sandbox.md"


def left_behind(mark: str) -> list[str]:
    """Processes with this number in their command line (others' sandboxes do not count)."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if mark.encode() in (folder / "cmdline").read_bytes():
                    found.append(folder.name)
    return found


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory) -> Iterator[dict[str, str]]:
    secret = tmp_path_factory.mktemp("caller") / "secret"
    secret.write_text("secret")
    abstract = f"ppl-{secrets.token_hex(8)}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as named:
        named.bind("\0" + abstract)
        named.listen()
        port = str(server.getsockname()[1])
        yield {"SECRET": str(secret), "PORT": port, "ABSTRACT": abstract}
    assert secret.read_text() == "secret"


def attempt(what: str, source: str, verdicts: set[str], test: str) -> list[str]:
    """What one hostile program achieves; nothing, it is hoped."""
    # This very limit stands in the command line of all interpreters of this run.
    size = (16 << 20) + secrets.randbelow(1 << 20)
    for seconds in (1.0, 8.0, 64.0):  # a machine that is slow, or stands still, needs longer
        pair = Sandbox(seconds=seconds, file_bytes=size).start()
        seen = until(lambda: len(left_behind(str(size))) >= 2)
        outcome = pair.run(Check(source.replace("MARK", str(size)), ("f",), (test,)))
        # The kernel ends a process namespace in its own time.
        left = not until(lambda: not left_behind(str(size)))
        if outcome.status != "timeout" or "timeout" in verdicts:
            break
    return [
        f"{what}: {fault}"
        for fault, happens in (
            ("not to be seen from here", not seen),
            (f"{outcome}", outcome.status not in verdicts),
            ("a verdict against its tests", outcome.passed != (outcome.status == "passed",)),
            ("left a process", left),
            ("left a file", Path("/tmp/hostile_was_here").exists()),
        )
        if happens
    ]


@needs_bubblewrap
@pytest.mark.parametrize("part", range(PARTS))
def test_hostile_programs(part, surroundings):
    programs = []
    for what, source, verdicts, test in HOSTILE[part::PARTS]:
        for word, value in surroundings.items():
            source = source.replace(word, value)
        programs.append((what, source, verdicts, test))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        faults = list(threads.map(lambda program: attempt(*program), programs))
    assert not [fault for found in faults for fault in found]


def test_the_documented_table_is_this_one():
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", DOCS.read_text(), re.MULTILINE)[1:]
    assert rows == [(what, ", ".join(sorted(verdicts))) for what, _, verdicts, _ in HOSTILE]
    assert len({what for what, *_ in HOSTILE}) == len(HOSTILE) >= 100


ADD = "def add(a, b):\n    return a + b\n"


@needs_bubblewrap
@pytest.mark.parametrize(
    ("source", "status", "passed"),
    [
        (ADD, "passed", (True, True)),
        (ADD.replace("+", "-"), "failed", (False, True)),
        ("def add(a, b)", "error", (False, False)),
        ("", "failed", (False, False)),
    ],
)
def test_verdicts(source, status, passed):
    tests = ("assert add(1, 2) == 3", "assert add(0, 0) == 0")
    outcome = Sandbox().run(Check(source, ("add",), tests))
    assert (outcome.status, outcome.passed) == (status, passed)


@needs_bubblewrap
def test_plain_data_crosses_unchanged():
    values = [None, True, 1, 1 << 70, 1.5, "é\n", b"\0", (1, (2,)), {1, 2}, {(1, 2): [3]}, 2j]
    test = (
        f"v = {values!r}\nassert f(v) == v\nassert [type(a) for a in f(v)] == [type(a) for a in v]"
    )
    nan = "assert f(float('inf')) == float('inf')\nassert f(x=float('nan')) != f(float('nan'))"
    outcome = Sandbox().run(Check("def f(x): return x", ("f",), (test, nan)))
    assert outcome.status == "passed", outcome


@needs_bubblewrap
def test_exceptions_cross_by_name():
    source = "class Own(Exception): pass\ndef f(x):\n    raise KeyError('k') if x else Own('o')"
    tests = (
        "try: f(1)\nexcept KeyError as e: assert 'k' in str(e)\nelse: assert False",
        "try: f(0)\nexcept RuntimeError as e: assert 'Own: o' in str(e)\nelse: assert False",
    )
    assert Sandbox().run(Check(source, ("f",), tests)).status == "passed"


@needs_bubblewrap
def test_a_dead_program_passes_no_test_that_swallows_everything():
    source = "import os\ndef f(x): os._exit(0)"
    outcome = Sandbox().run(Check(source, ("f",), ("try: f(1)\nexcept BaseException: pass",)))
    assert outcome.status == "error"


@needs_bubblewrap
def test_tests_that_end_their_interpreter_are_no_pass():
    outcome = Sandbox().run(Check("", (), ("import os; os._exit(0)",)))
    assert (outcome.status, outcome.passed) == ("error", (False,))


def test_without_bubblewrap_it_refuses_by_name(monkeypatch):
    monkeypatch.setattr(sandbox, "_complaint", lambda: "bubblewrap is not installed")
    with pytest.raises(SandboxError, match=r"not run.*apt-get install bubblewrap.*isolation="):
        Sandbox().run(Check(ADD, ("add",), ("assert add(1, 2) == 3",)))
    with pytest.raises(SandboxError):  # not a failed test
        UnitTests("assert add(1, 2) == 3", names=["add"]).outcomes([ADD])


@needs_bubblewrap
@pytest.mark.parametrize("which", ["program", "checker"])
def test_an_interpreter_that_does_not_start_is_no_failed_program(which, monkeypatch):
    command = Sandbox.command

    def broken(self, role, *rest):  # as where namespaces or memory have run out by now
        return ["false"] if role == which else command(self, role, *rest)

    monkeypatch.setattr(Sandbox, "command", broken)
    with pytest.raises(SandboxError, match="not run"):
        Sandbox().run(Check(ADD, ("add",), ("assert add(1, 2) == 3",)))
    with Pool(Sandbox()) as pool, pytest.raises(SandboxError, match="not run"):
        pool.run([Check(ADD, ("add",), ("assert add(1, 2) == 3",))])


def test_complaint_when_the_command_is_missing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert sandbox._complaint.__wrapped__() == "bubblewrap is not installed"


@needs_bubblewrap
def test_where_user_namespaces_are_forbidden_it_refuses(monkeypatch):
    # Tried inside a bubblewrap that forbids them, as a container or the kernel may.
    outside = ["bwrap", "--dev-bind", "/", "/", "--unshare-user", "--uid", "1000"]
    outside += ["--gid", "1000", "--disable-userns", "--"]
    inside = sandbox._bubblewrap
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda size: [*outside, *inside(size)])
    monkeypatch.setattr(sandbox, "_complaint", sandbox._complaint.__wrapped__)
    check = Check(ADD, ("add",), ("assert add(1, 2) == 3",))
    tests = UnitTests("assert add(1, 2) == 3", names=["add"])
    for run in (lambda: Sandbox().run(check), lambda: tests.outcomes([ADD])):
        with pytest.raises(SandboxError, match=r"fails here.*allow unprivileged user namespaces"):
            run()


def test_the_weaker_mode_runs_and_tidies_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    weak = Sandbox(isolation="process")
    good = Check(ADD + "open('left', 'w')", ("add",), ("assert add(1, 2) == 3",))
    assert weak.run(good).status == "passed"
    short = Sandbox(seconds=0.5, isolation="process")
    assert short.run(Check("while True: pass", (), ("",))).status == "timeout"
    assert not list(tmp_path.iterdir())


WRONG = [("seconds", v) for v in (0, -1, math.nan, math.inf, 1e300, "1", None, True, 1j, [])]
WRONG += [("memory", v) for v in (-1, 0, 1 << 20, 1 << 70, 1e8 + 0.5, math.nan, "1G", None, True)]
WRONG += [("processes", v) for v in (-1, 0, 2, 1 << 40, 2.5, None, "16")]
WRONG += [("file_bytes", v) for v in (-1, 0, 1 << 60, 2048.5, None)]
WRONG += [("isolation", v) for v in ("docker", None, 3)]


@pytest.mark.parametrize(("setting", "value"), WRONG)
def test_settings_are_checked(setting, value):
    with pytest.raises((ValueError, TypeError), match=setting):
        Sandbox(**{setting: value})


def test_bytes_may_be_strings():
    sandbox = Sandbox(memory="256MiB", file_bytes="1MB")
    assert (sandbox.memory, sandbox.file_bytes) == (256 << 20, 10**6)
    assert sandbox == Sandbox(memory=256 << 20, file_bytes=1_000_000)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", None, True])
def test_workers_are_checked(workers):
    with pytest.raises((ValueError, TypeError), match="workers"):
        Pool(Sandbox(), workers=workers)


def test_integers_of_other_libraries_are_integers():
    assert Sandbox(memory=np.int64(64 << 20)).memory == 64 << 20
    assert type(Sandbox(memory=np.int64(64 << 20)).memory) is int


def test_the_smallest_memory_runs():
    sandbox = Sandbox(memory=64 << 20, isolation="process")
    assert sandbox.run(Check(ADD, ("add",), ("assert add(1, 2) == 3",))).status == "passed"


NUMBERS = """
import ctypes
def f(numbers):
    libc, ends = ctypes.CDLL(None, use_errno=True), []
    for number in numbers:
        ends.append(ctypes.get_errno() if libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1 else 0)
    return ends
"""


@pytest.mark.parametrize(
    "isolation", [pytest.param("bubblewrap", marks=needs_bubblewrap), "process"]
)
def test_every_denied_system_call_is_denied(isolation):
    column = 0 if platform.machine() == "x86_64" else 1
    numbers = [both[column] for both in DENIED.values() if both[column]]
    test = f"result = f({numbers})\nassert result"
    outcome = Sandbox(isolation=isolation).run(Check(NUMBERS, ("f",), (test,)))
    assert outcome.results == ([1] * len(numbers),)
    assert len(numbers) > 70


def test_the_numbers_are_those_of_the_kernel():
    """Against the headers of Linux, where they are installed."""
    found = 0
    for column, name in enumerate(("x86_64-linux-gnu/asm/unistd_64.h", "asm-generic/unistd.h")):
        header = Path("/usr/include", name)
        if header.exists():
            rows = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
            known = dict(rows)
            for call, numbers in (DENIED | JUDGED).items():
                if call in known:
                    assert numbers[column] == int(known[call]), call
                    found += 1
    if not found:
        pytest.skip("needs the kernel's headers")
    assert found > 70


def test_a_machine_without_numbers_has_no_sandbox(monkeypatch):
    assert system_call_filter("riscv64") is None
    monkeypatch.setattr(sandbox, "system_call_filter", lambda: None)
    assert "no system call filter" in sandbox._complaint.__wrapped__()


@needs_bubblewrap
def test_the_caller_keeps_its_keys_to_itself():
    """A key of the session keyring of this very process, which the kernel hands on to children."""
    column = 0 if platform.machine() == "x86_64" else 1
    libc = ctypes.CDLL(None, use_errno=True)
    add, control = DENIED["add_key"][column], DENIED["keyctl"][column]
    name = f"ppl-{secrets.token_hex(8)}".encode()
    key = libc.syscall(add, b"user", name, b"secret", 6, -3)
    if key < 0:
        pytest.skip("there are no keys here")
    try:
        if Path("/proc/keys").exists():
            assert name.decode() in Path("/proc/keys").read_text()  # it can be found, outside
        source = (
            "import ctypes\ndef f(call, name):\n"
            "    return ctypes.CDLL(None).syscall(call, 10, -3, b'user', name, 0)\n"
            "def keys():\n    try: return open('/proc/keys').read()\n"
            "    except OSError: return ''\n"
        )
        test = f"assert f({control}, {name!r}) == -1\nassert {name.decode()!r} not in keys()"
        outcome = Sandbox().run(Check(source, ("f", "keys"), (test,)))
        assert outcome.status == "passed", outcome
        # Without the filter, it is the session keyring of its own that hides it.
        code = sandbox._source().split("if __name__")[0] + (
            f"confine({control}, b'')\nlibc = ctypes.CDLL(None)\n"
            f"print(libc.syscall({control}, 10, -3, b'user', {name!r}, 0))"
        )
        alone = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        assert alone.stdout.strip() == b"-1"
    finally:
        libc.syscall(control, 3, key)


@needs_bubblewrap
@pytest.mark.skipif(home() is None, reason="no control group can be made here")
def test_memory_is_counted_over_all_processes():
    """Each child holds less than the limit, all together more."""
    source = (
        "import os, time\ndef f(children):\n    ends = []\n    for _ in range(children):\n"
        "        read, write = os.pipe()\n        ends.append(read)\n"
        "        if os.fork() == 0:\n            held = bytearray(60 << 20)\n"
        "            os.write(write, b'x')\n            time.sleep(100)\n        os.close(write)\n"
        "    return sum(len(os.read(end, 1)) for end in ends)"
    )
    sandbox = Sandbox(memory=160 << 20)
    one = sandbox.run(Check(source, ("f",), ("assert f(1) == 1",)))
    assert one.status == "passed", one
    many = sandbox.run(Check(source, ("f",), ("assert f(8) == 8",)))
    assert many.status in ("oom", "failed"), many


@needs_bubblewrap
@pytest.mark.parametrize("isolation", ["bubblewrap", "process"])
def test_without_a_control_group_the_other_limits_hold(isolation, monkeypatch):
    monkeypatch.setattr(sandbox, "home", lambda: None)
    weak = Sandbox(memory=128 << 20, isolation=isolation)
    assert weak.run(Check(ADD, ("add",), ("assert add(1, 2) == 3",))).status == "passed"
    large = "def f(x): return len(bytearray(1 << 30))"
    assert weak.run(Check(large, ("f",), ("assert f(2) == 1 << 30",))).status == "oom"


@needs_bubblewrap
def test_slow_starts_are_not_taken_from_the_program(monkeypatch):
    """The clock runs from when both interpreters stand, however busy the machine."""
    bubblewrap = sandbox._bubblewrap
    slowly = ["/bin/sh", "-c", 'sleep 3.5; exec "$@"', "sh"]
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda size: [*slowly, *bubblewrap(size)])
    outcome = Sandbox(seconds=3.0).run(Check(ADD, ("add",), ("assert add(1, 2) == 3",)))
    assert outcome.status == "passed"


@needs_bubblewrap
def test_no_state_passes_between_programs_of_a_pool():
    leave = (
        "import builtins\nbuiltins.left = 1\nopen('/tmp/left', 'w')\n"
        "import math\nmath.pi = 3\ndef f(): return 1"
    )
    look = (
        "import builtins, math, os\n"
        "def f(): return int(not hasattr(builtins, 'left') and math.pi > 3.1 "
        "and not os.path.exists('/tmp/left'))"
    )
    with Pool(Sandbox(), workers=1) as pool:
        checks = [Check(s, ("f",), ("assert f() == 1",)) for s in (leave, look, leave, look)]
        assert [o.status for o in pool.run(checks)] == ["passed"] * 4


@needs_bubblewrap
def test_pool_keeps_order_and_gives_each_program_its_own_time():
    slow = "import time\ndef f(): time.sleep(0.5); return 1"
    sources = [slow, "def f(): return 1", slow, "def f(): return 2", slow, "while True: pass"]
    with Pool(Sandbox(seconds=5), workers=2) as pool:
        found = pool.run([Check(s, ("f",), ("assert f() == 1",)) for s in sources])
    want = ["passed", "passed", "passed", "failed", "passed", "timeout"]
    assert [o.status for o in found] == want


@needs_bubblewrap
def test_pool_replaces_waiting_pairs_that_died():
    check = Check(ADD, ("add",), ("assert add(1, 2) == 3",))
    with Pool(Sandbox(), workers=1) as pool:
        assert pool.run([check])[0].status == "passed"
        for process in pool._warm[0].group.processes:
            process.kill()
            process.wait()
        assert pool.run([check])[0].status == "passed"
