"""Helper processes: they end with their caller, and no forked child shares them."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from bubblewrap import needs_bubblewrap
from scripts import run_script
from test_sandbox import left_behind
from work import until

from ppl.errors import WorkerError
from ppl.runtime.process import _TIDY, Group
from ppl.runtime.worker import Process, Worker, WorkerTimeoutError
from ppl.verifiers.exact.cgroup import home

ECHO = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request == "die": os._exit(3)
    if request == "hang": time.sleep(600)
    print("junk" if request == "junk" else json.dumps([os.getpid(), request]), flush=True)
"""


def gone(*pids: int) -> bool:
    """Whether the processes end soon."""
    return until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_worker_is_warm_and_replaced_after_each_kind_of_failure():
    with Worker(ECHO, "echo", "nothing", 60) as worker:
        first = worker.ask("a", 60)
        assert worker.ask({"b": [1.5, None]}, 60) == [first[0], {"b": [1.5, None]}]
        for request, says in (("die", "died"), ("hang", "hung"), ("junk", "answered 'junk'")):
            with pytest.raises(WorkerError, match=f"echo's worker {says}"):
                worker.ask(request, 0.5 if request == "hang" else 60)
            second = worker.ask("again", 60)
            assert second[1] == "again"
            assert second[0] != first[0]
            first = second
    assert gone(first[0])
    assert worker.ask("later", 60)[1] == "later"
    worker.stop()


def test_a_worker_that_does_not_start_names_what_to_install():
    worker = Worker("import no_such_module", "x", "ppl-search[x]", 60)
    with pytest.raises(WorkerError, match=r"x's worker died while starting.*ppl-search\[x\]"):
        worker.start()
    assert worker.process is None


def test_an_interrupted_request_gives_no_answer_to_the_next(monkeypatch):
    with Worker(ECHO, "echo", "nothing", 60) as worker:
        worker.start()
        hear = Process.hear
        with monkeypatch.context() as patch:

            def interrupted(self, *arguments):
                hear(self, *arguments)
                raise KeyboardInterrupt

            patch.setattr(Process, "hear", interrupted)
            with pytest.raises(KeyboardInterrupt):
                worker.ask("first", 60)
        assert worker.ask("second", 60)[1] == "second"


def test_a_process_that_speaks_in_blocks():
    cat = Process(["/bin/cat"], "cat", blocks=True, in_turn=False)
    cat.tell("a\nb")
    cat.tell("c")
    assert [cat.hear(60, "testing") for _ in range(2)] == ["a\nb\n", "c\n"]
    with pytest.raises(WorkerTimeoutError, match="cat hung while testing"):
        cat.hear(0.01, "testing")
    cat.stop()
    with pytest.raises(WorkerError, match="does not start"):
        Process(["no-such-command-anywhere"], "x")


@pytest.mark.parametrize("in_turn", [True, False])
def test_what_is_said_before_it_is_asked_is_no_answer_where_there_are_turns(in_turn):
    cat = Process(["/bin/cat"], "cat", in_turn=in_turn)
    cat.tell("one")
    assert until(lambda: not cat._replies.empty())
    if in_turn:
        with pytest.raises(WorkerError, match="cat spoke without being asked"):
            cat.tell("two")
        assert not cat.alive
    else:
        cat.tell("two")
        assert [cat.hear(60, "testing") for _ in range(2)] == ["one", "two"]
    cat.stop()


def test_a_group_ends_together_and_takes_its_folder():
    group = Group(folder=True)
    script = "sleep 600 & echo $!; touch left; wait"
    shell = group.start(["/bin/sh", "-c", script], cwd=group.folder, stdout=subprocess.PIPE)
    assert shell.stdout is not None
    grandchild = int(shell.stdout.read(64))
    folder = Path(str(group.folder))
    assert folder.is_dir()
    group.stop()
    group.stop()
    assert gone(shell.pid, grandchild)
    assert not folder.exists()


def test_who_tidies_up_behind_a_killed_caller_tries_for_minutes_and_stops_when_all_is_gone(
    tmp_path,
):
    folder, leaf, waited = (tmp_path / name for name in ("folder", "leaf", "waited"))
    (folder / "inside").mkdir(parents=True)
    leaf.mkdir()
    (leaf / "busy").touch()  # as a control group is until the kernel has ended its processes
    sleep = f'sleep() {{ echo "$1" >> "{waited}"; [ "$1" != 24 ] || rm "{leaf}/busy"; }}'
    command = ["/bin/sh", "-c", f"{sleep}; {_TIDY}", "sh", str(folder), str(leaf)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=900)
    assert not folder.exists()
    assert not leaf.exists()
    assert waited.read_text().split() == ["0", ".1", ".2", ".4", ".8", "1.6", "3", "6", "12", "24"]


CALLER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by who is in the background
from ppl.runtime.worker import Worker
from ppl.verifiers.exact.pool import Pool
from ppl.verifiers.exact.sandbox import Check, Sandbox

size, isolation = int(sys.argv[1]), sys.argv[2]
worker = Worker("print('ready', flush=True); import time; time.sleep(600)", sys.argv[1], "", 60)
worker.program += f"  # {size}"
worker.start()
pool = Pool(Sandbox(seconds=600, file_bytes=size, isolation=isolation))
source = "import os, time\\ndef f(x):\\n    if os.fork() == 0: GO\\n    time.sleep(600)"
source = source.replace("GO", "os.setsid(); time.sleep(600)" if isolation == "bubblewrap" else
                        "time.sleep(600)")
print("go", flush=True)
pool.run([Check(source, ("f",), ("assert f(2) == 4",))])
"""


@needs_bubblewrap
@pytest.mark.parametrize(
    ("number", "isolation"),
    [
        (signal.SIGKILL, "bubblewrap"),
        (signal.SIGTERM, "bubblewrap"),
        (signal.SIGINT, "bubblewrap"),
        (signal.SIGKILL, "process"),
    ],
)
def test_nothing_outlives_its_caller(number, isolation, tmp_path):
    """A running program that has forked, a waiting pair, a worker; and their folders."""
    size = (16 << 20) + secrets.randbelow(1 << 20)
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(size), isolation],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert caller.stdout is not None
    with caller.stdout:
        assert caller.stdout.readline() == b"go\n"
    interpreters = 9 if isolation == "bubblewrap" else 6  # at least, of two pairs, and the worker
    assert until(lambda: len(left_behind(str(size))) >= interpreters)
    caller.send_signal(number)
    assert caller.wait(300) in (-number, 1)
    place = home()

    def left() -> list[str]:
        groups = place.folder.glob(f"ppl-{caller.pid}-*") if place else ()
        return [*left_behind(str(size)), *map(str, tmp_path.iterdir()), *map(str, groups)]

    assert until(lambda: not left())


FORK = """
import os, threading, time
from ppl.runtime.worker import Worker
from ppl.verifiers import Check, Sandbox, UnitTests
from ppl.verifiers.exact.pool import shared_pool

tests = UnitTests("assert f(2) == 4", names=["f"], sandbox=Sandbox(seconds=60))
good, slow = "def f(x): return 4", "import time\\ndef f(x): time.sleep(1); return 4"
worker = Worker(%r, "echo", "", 60)
assert tests.outcomes([good])[0].status == "passed"
mine = worker.ask("warm", 60)[0]
ends = []
for trial in range(3):
    # The last time while another thread holds the pool and waits.
    thread = threading.Thread(target=lambda: ends.append(tests.outcomes([slow])[0].status))
    if trial == 2:
        thread.start()
        while not shared_pool(tests.sandbox)._lock.locked(): time.sleep(0.001)
        time.sleep(0.2)
    child = os.fork()
    if child == 0:
        right = tests.outcomes([good, "def f(x): return 5", good])
        other = worker.ask("child", 60)
        fine = [o.status for o in right] == ["passed", "failed", "passed"]
        fine = fine and other[1] == "child" and other[0] != mine
        shared_pool(tests.sandbox).close()
        worker.stop()
        os._exit(0 if fine else 1)
    ends += [o.status for o in tests.outcomes([good] * 3)] + [worker.ask(trial, 60)]
    ends.append(os.waitpid(child, 0)[1])
    if trial == 2: thread.join()
numbers = [e for e in ends if isinstance(e, list)]
assert numbers == [[mine, trial] for trial in range(3)], numbers
assert [e for e in ends if isinstance(e, str)] == ["passed"] * 10, ends
assert [e for e in ends if isinstance(e, int)] == [0] * 3, ends
print("fine")
"""


@needs_bubblewrap
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python itself warns of fork with threads")
def test_a_forked_child_and_its_parent_share_nothing():
    assert run_script(FORK % ECHO) == "fine"


SPAWN = """
import multiprocessing as mp
from ppl.verifiers import Sandbox, UnitTests

def outcome(source):
    tests = UnitTests("assert f(2) == 4", names=["f"], sandbox=Sandbox(seconds=60))
    return tests.outcomes([source])[0].status

if __name__ == "__main__":
    sources = ["def f(x): return 4", "def f(x): return 5"]
    with mp.get_context("spawn").Pool(1) as pool:
        print(pool.map(outcome, sources))
"""

JOBLIB = """
import joblib
from ppl.verifiers import Sandbox, UnitTests

def outcome(tests, source):
    return tests.outcomes([source])[0].status

if __name__ == "__main__":
    tests = UnitTests("assert f(2) == 4", names=["f"], sandbox=Sandbox(seconds=60))
    sources = ["def f(x): return 4", "def f(x): return 5"]
    for backend in ("loky", "threading"):
        run = joblib.Parallel(n_jobs=2, backend=backend)
        print(run(joblib.delayed(outcome)(tests, s) for s in sources))
"""


@needs_bubblewrap
@pytest.mark.parametrize("how", ["spawn", "joblib"])
def test_other_ways_to_processes(how, tmp_path):
    if how == "joblib" and importlib.util.find_spec("joblib") is None:
        pytest.skip("needs joblib")
    script = tmp_path / "script.py"
    script.write_text(SPAWN if how == "spawn" else JOBLIB)
    done = subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, timeout=900
    )
    times = 1 if how == "spawn" else 2
    assert done.stdout.splitlines() == ["['passed', 'failed']"] * times, done.stderr[-2000:]
    assert not done.stderr


DESCRIPTORS = """
import os, resource
from ppl.runtime.worker import Worker
from ppl.verifiers import Check, Sandbox, UnitTests

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
check = Check("def f(): return 1", ("f",), ("assert f() == 1",))
sandbox = Sandbox(seconds=60)
print(sandbox.run(check).status)
tests = UnitTests("assert f() == 1", names=["f"], sandbox=sandbox)
print(tests.outcomes(["def f(): return 1"])[0].status)
with Worker(%r, "echo", "", 60) as worker:
    print(worker.ask("far", 60)[1])
"""


@needs_bubblewrap
def test_more_than_a_thousand_descriptors():
    assert run_script(DESCRIPTORS % ECHO).split() == ["passed", "passed", "far"]


def test_a_pair_outlives_the_thread_that_started_it():
    groups: list[Group] = []
    commands = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]

    def begin() -> None:
        groups.append(Group())
        groups[0].start(commands)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert groups[0].processes[1].poll() is None
    groups[0].stop()
    with suppress(ProcessLookupError):
        os.kill(groups[0]._guard.pid, 0)
        raise AssertionError("the guard is still there")
