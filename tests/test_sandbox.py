"""Model-written code: right verdicts, nothing forged, nothing left behind."""

from __future__ import annotations

import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hostile import HOSTILE

import ppl
from ppl.errors import SandboxError
from ppl.searchers import BestOfN
from ppl.verifiers import Check, Sandbox, UnitTests
from ppl.verifiers.exact import sandbox
from ppl.verifiers.exact.code import code_of
from ppl.verifiers.exact.pool import Pool
from ppl.verifiers.exact.sandbox import Outcome

SECONDS = 1.0
SIDE_BY_SIDE, PARTS = 5, 10  # hostile programs; the parts are spread over the test processes
DOCS = Path(__file__).parent.parent / "docs" / "sandbox.md"


def working() -> bool:
    try:
        Sandbox().require()
    except SandboxError:
        return False
    return True


needs_bubblewrap = pytest.mark.skipif(not working(), reason="needs a working bubblewrap")


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
    pair = Sandbox(seconds=SECONDS, file_bytes=size).start()
    warm = time.monotonic() + 10
    while len(seen := left_behind(str(size))) < 2 and time.monotonic() < warm:
        time.sleep(0.02)
    outcome = pair.run(Check(source.replace("MARK", str(size)), ("f",), (test,)))
    over = pair.begun + SECONDS + 1
    while (left := left_behind(str(size))) and time.monotonic() < over:
        time.sleep(0.02)  # the kernel ends a process namespace in its own time
    return [
        f"{what}: {fault}"
        for fault, happens in (
            ("not to be seen from here", len(seen) < 2),
            (f"{outcome}", outcome.status not in verdicts),
            ("a verdict against its tests", outcome.passed != (outcome.status == "passed",)),
            (f"left {left} {SECONDS + 1} s after its beginning", left),
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
    weak = Sandbox(seconds=1, isolation="process")
    good = Check(ADD + "open('left', 'w')", ("add",), ("assert add(1, 2) == 3",))
    assert weak.run(good).status == "passed"
    assert weak.run(Check("while True: pass", (), ("",))).status == "timeout"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"isolation": "docker"}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sandbox(**wrong)


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
    with Pool(Sandbox(seconds=1.5), workers=2) as pool:
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


LM = ppl.TableLM({"0": 0.2, "1": 0.3, "2": 0.5}, symbols="^012$", end="$")


@needs_bubblewrap
@pytest.mark.parametrize(("partial", "floor"), [(False, 0.0), (False, 0.1), (True, 0.0)])
def test_unit_tests_as_a_likelihood(partial, floor):
    """The evidence of a one-token program is known: P(x) times the clipped score, summed."""
    tests = UnitTests(
        ["assert f() > 0", "assert f() < 2"],
        names=["f"],
        prefix="def f(): return ",
        partial=partial,
        floor=floor,
    )

    def program():
        text = LM.prompt("^")
        text = text + pyro_sample("x", LM(text, max_tokens=1))
        pyro_sample("ok", tests(text), obs=True)
        return text.text

    exact = ppl.enumerate_program(program)
    scores = {"0": 0.5, "1": 1.0, "2": 0.5} if partial else {"0": 0.0, "1": 1.0, "2": 0.0}
    joint = {
        x: p * min(max(scores[x], floor), 1 - floor)
        for x, p in (("0", 0.2), ("1", 0.3), ("2", 0.5))
    }
    total = sum(joint.values())
    want = {x: p / total for x, p in joint.items() if p > 0}
    assert exact.marginal() == pytest.approx(want)
    posterior = BestOfN(20).run(program, seed=0)
    assert posterior.vote() == max(want, key=want.get)


def pyro_sample(name, fn, **kwargs):
    import pyro

    return pyro.sample(name, fn, **kwargs)


def test_code_is_found_in_a_fence_or_is_the_whole_text():
    lm = ppl.TableLM({"$": 1.0}, symbols="^$`python\nx=1 ab", end="$")
    text = lm.prompt("^") + "a\n```python\nx=1\n```\nb\n```\nx=11\n```"
    assert code_of(text) == "x=11\n"
    assert code_of(lm.prompt("^") + "x=1") == "x=1"


def test_unit_tests_need_tests():
    with pytest.raises(ValueError, match="at least one"):
        UnitTests([], names=["f"])
    with pytest.raises(TypeError, match="list"):
        UnitTests("assert f()", names="f")


def test_what_does_not_pass_is_run_again_and_counted(monkeypatch):
    """Programs by name: one always passes, one fails at first, one never gets further."""
    fate = {"good": ["passed"], "flaky": ["failed", "half", "passed"], "bad": ["half"] * 3}
    passed = {"passed": (True, True), "half": (True, False), "failed": (False, False)}
    asked: list[list[str]] = []

    class Scripted:
        def run(self, checks):
            asked.append([c.source for c in checks])
            ends = [fate[c.source].pop(0) for c in checks]
            return [Outcome("passed" if e == "passed" else "failed", passed[e]) for e in ends]

    monkeypatch.setattr("ppl.verifiers.exact.unit_tests.shared_pool", lambda _: Scripted())
    tests = UnitTests(["assert f()", "assert g()"], names=["f", "g"], partial=True, runs=3)
    outcomes = tests.outcomes(["good", "flaky", "bad", "flaky"])
    assert asked == [["good", "flaky", "bad"], ["flaky", "bad"], ["flaky", "bad"]]
    assert [sum(o.passed) for o in outcomes] == [2, 2, 1, 2]
    assert tests.flaky == 1
    with pytest.raises(ValueError, match="runs=0"):
        UnitTests("assert f()", names=["f"], runs=0)
