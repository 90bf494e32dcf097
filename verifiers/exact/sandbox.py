"""A sandbox for model-written Python: one fresh interpreter under bubblewrap for each program.

Each program gets a *pair* of interpreters, each in namespaces of its own (user, process, network,
mount, IPC): one holds the program, the other the tests. The verdict comes from the second, as one
line that begins with a nonce which the first never sees; between them runs a pipe of plain data.
So a program can lie about the values that its functions return, and about nothing else.

Both see a read-only system (`/usr` and this interpreter's own installation), a private small
`/tmp`, an empty environment, no descriptor but the pipe, a session keyring of their own, no system
call that a tested program does not need (`seccomp.py`), and hard limits on processor time, memory,
processes, files. At the end the whole process namespace is killed; so it is when the caller ends,
whichever way. As root, the sandbox is entered as an unused user id, because the kernel puts no
limit on the number of root's processes.
"""

from __future__ import annotations

import json
import math
import operator
import os
import platform
import secrets
import selectors
import shutil
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ppl.errors import SandboxError, WorkerError
from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.runtime.process import Group, send
from ppl.verifiers.exact.cgroup import ENTER, Cgroup, home
from ppl.verifiers.exact.inside import decode
from ppl.verifiers.exact.seccomp import system_call_filter

Status = Literal["passed", "failed", "error", "timeout", "oom", "invalid"]
_INSIDE = Path(__file__).with_name("inside.py")
_REMEDY = (
    "install bubblewrap (apt-get install bubblewrap) and allow unprivileged user namespaces, or "
    "accept by name that the code runs with your own rights: Sandbox(isolation='process')"
)
_FIRST_UID = 700_000_000  # far from any user of the system
START_LIMIT = 60.0  # seconds for two interpreters to start on a busy machine
# The parent of bubblewrap must last: the kernel ends it with the thread that started it.
_STAY = '"$@"; exit "$?"'


def whole(name: str, value: object, least: int, most: int) -> int:
    """A count that was given by a caller, as an int.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}={value!r}: must be an integer")
    count = operator.index(value)
    if not least <= count <= most:
        raise ValueError(f"{name}={count}: must be between {least} and {most}")
    return count


@dataclass(frozen=True)
class Check:
    """A program and what it has to do.

    Attributes:
        source: the program.
        names: its functions that the tests call.
        tests: each is Python code in which the functions go by their names; it fails by raising.
            It must call the program, and fails also if an exception of the program ends in silence
            (`StopIteration` out of `map`) instead of in a handler of the test.
            Arguments and results are plain data: numbers, strings, bytes, None, and lists, tuples,
            sets and dicts of them. They are copies: a change of an argument in place is not seen.
        setup: executed before each test, on the tests' side. The first time, before the program.
    """

    source: str
    names: tuple[str, ...]
    tests: tuple[str, ...]
    setup: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Outcome:
    """What a program did.

    Attributes:
        status: `"passed"` (every test), `"failed"` (a test raised), `"error"` (the program does not
            load, or its process ended), `"timeout"`, `"oom"` (it ran into its memory limit), or
            `"invalid"`: the tests do not compile, their setup raises, or one of them ends without
            having called the program. That is no verdict on the program.
        passed: one entry per test; all False unless the run came to its end.
        why: a line about the first failure.
        seconds: wall time.
        results: for each test, what it left in its variable `result`: plain data, None if it failed
            or left nothing. Empty unless the run came to its end; 64 KiB in all.
    """

    status: Status
    passed: tuple[bool, ...]
    why: str = ""
    seconds: float = 0.0
    results: tuple[object, ...] = ()


@dataclass(frozen=True)
class Sandbox:
    """The limits under which a program runs.

    Args:
        seconds: wall time from the moment the program is handed over to interpreters that have
            started; the same processor time. At most 10^6.
        memory: bytes (or `"512MiB"`) of address space of each process; where a control group can
            be made (`ppl.verifiers.exact.cgroup`), also of all memory that is in use at a time by
            all of a program's processes and files together. At least 64 MiB, which an interpreter
            needs.
        processes: processes and threads at a time, with the sandbox's own two.
        file_bytes: size of one file, as `memory`; `/tmp` holds four times as much in all.
        isolation: `"bubblewrap"`, or the weaker `"process"`: limits, the system call filter where
            there is one for this machine, and a kill of the process group, no namespaces. The code
            then runs with the caller's rights, can read and delete the caller's files, use the
            network, and leave a process behind.

    Raises:
        TypeError: a setting of another type.
        ValueError: a setting out of its range. There is no value that means "no limit".
    """

    seconds: float = 3.0
    memory: float | str = 512 << 20
    processes: int = 16
    file_bytes: float | str = 16 << 20
    isolation: Literal["bubblewrap", "process"] = "bubblewrap"

    def __post_init__(self) -> None:
        if isinstance(self.seconds, bool | str) or not hasattr(self.seconds, "__float__"):
            raise TypeError(f"seconds={self.seconds!r}: must be a number")
        if not 0 < float(self.seconds) <= 1e6:
            raise ValueError(f"seconds={self.seconds}: must be positive and at most 1000000")
        for name, least, most in (
            ("memory", 64 << 20, 1 << 62),
            ("processes", 3, 1 << 20),
            ("file_bytes", 1 << 10, 1 << 40),
        ):
            value = getattr(self, name)
            number = value if name == "processes" else checks.nbytes(**{name: value})
            object.__setattr__(self, name, whole(name, number, least, most))
        if self.isolation not in ("bubblewrap", "process"):
            raise ValueError(f"isolation={self.isolation!r}: bubblewrap or process")

    def require(self) -> None:
        """Raises SandboxError, with the remedy, unless the isolation is available here."""
        if self.isolation == "bubblewrap":
            complaint = _complaint()
            if complaint:
                raise SandboxError(f"model-written code is not run: {complaint}; {_REMEDY}")

    def command(self, role: str, read: int, write: int) -> list[str]:
        """The command line of one interpreter."""
        limits = [math.ceil(self.seconds) + 1, self.memory, self.processes, self.file_bytes]
        if self.isolation == "process":
            # Without a namespace the kernel counts all of the user's processes together.
            limits[2] = 1 << 20
        rules = system_call_filter()
        inside = [_PYTHON, "-I", "-S", "-c", _source(), role, str(read), str(write)]
        inside += [str(limit) for limit in limits]
        inside += [str(rules.keyctl), rules.program.hex()] if rules else ["0", ""]
        if self.isolation == "process":
            return inside
        return [*_bubblewrap(4 * int(self.file_bytes)), *inside]

    def start(self) -> Pair:
        """A pair of interpreters that waits for its program.

        Raises:
            SandboxError: the isolation is not available.
        """
        self.require()
        return Pair(self)

    def run(self, check: Check) -> Outcome:
        """Runs one program; its verdict comes within `seconds` and a small change."""
        return self.start().run(check)


class Pair:
    """Two fresh interpreters for one program. Serves once."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.nonce = secrets.token_hex(16)
        self.cgroups: list[Cgroup] = []
        self.begun = self.deadline = 0.0
        self.heard = b""
        self.tests = 0
        calls, replies = os.pipe(), os.pipe()
        try:
            place = home()
            if place is not None:
                self.cgroups += [Cgroup(place, int(sandbox.memory)) for _ in range(2)]
            self.group = Group(
                folder=sandbox.isolation == "process",
                leaves=[str(cgroup.folder) for cgroup in self.cgroups],
            )
            try:
                self.program = self._start("program", calls[0], replies[1])
                self.checker = self._start("checker", replies[0], calls[1])
            except OSError:
                self.stop()
                raise
        except (OSError, WorkerError) as error:
            self._leave()
            raise SandboxError(f"the sandbox does not start: {error}; {_REMEDY}") from error
        finally:
            for fd in (*calls, *replies):
                os.close(fd)

    def _start(self, role: str, read: int, write: int) -> subprocess.Popen[bytes]:
        cgroup = self.cgroups[role == "checker"] if self.cgroups else None
        return launched(self.sandbox, role, read, write, self.group, cgroup)

    def fileno(self) -> int:
        """Readable when there is something to `listen` to."""
        assert self.checker.stdout is not None
        return self.checker.stdout.fileno()

    @property
    def alive(self) -> bool:
        """True while both interpreters run."""
        return self.program.poll() is None and self.checker.poll() is None

    def submit(self, check: Check) -> None:
        """Hands the program over; the clock runs from when both interpreters have started."""
        self.deadline = time.monotonic() + START_LIMIT
        self.tests = len(check.tests)
        order = json.dumps({"nonce": self.nonce, **asdict(check)}).encode()
        assert self.checker.stdin is not None
        with suppress(BrokenPipeError), self.checker.stdin:
            send(self.checker, order)

    def listen(self) -> Outcome | None:
        """Reads what is there; the outcome once it is known. Then the pair may be stopped.

        Raises:
            SandboxError: an interpreter ended before the program was handed over to it.
        """
        chunk = os.read(self.fileno(), 1 << 16)
        self.heard += chunk
        ready, started, verdict = self.heard.partition(b"\n")
        if not started and chunk and len(self.heard) < 1 << 16:
            return None
        if not started or ready != b"ready":
            raise SandboxError(
                "an interpreter of the sandbox did not start, so the program was not run: memory, "
                "processes or user namespaces may have run out here"
            )
        if not self.begun:
            self.begun = time.monotonic()
            self.deadline = self.begun + self.sandbox.seconds
        line, newline, _ = verdict.partition(b"\n")
        if not newline and chunk and len(self.heard) < 1 << 16:
            return None
        seconds = time.monotonic() - self.begun
        nothing = (False,) * self.tests
        nonce, _, content = line.partition(b" ")
        if not newline or nonce.decode(errors="replace") != self.nonce:
            # The tests' own interpreter ended: by its limits, or the tests made it.
            return Outcome("error", nothing, "the tests ended without a verdict", seconds)
        found = json.loads(content)
        if found["status"] == "error" and any(group.overflowed for group in self.cgroups):
            return Outcome("oom", nothing, "all processes together ran out of memory", seconds)
        results = tuple(map(decode, found.get("results", ())))
        return Outcome(found["status"], tuple(found["passed"]), found["why"], seconds, results)

    def expired(self) -> Outcome:
        """The outcome of a pair whose time is over.

        Raises:
            SandboxError: it had not started by then.
        """
        if not self.begun:
            raise SandboxError(
                f"the sandbox did not start within {START_LIMIT} s, so the program was not run: "
                "this machine has too much to do"
            )
        why = f"not done after {self.sandbox.seconds} s"
        return Outcome("timeout", (False,) * self.tests, why, time.monotonic() - self.begun)

    def run(self, check: Check) -> Outcome:
        """`submit`, then wait."""
        try:
            self.submit(check)
            outcome = None
            with selectors.DefaultSelector() as selector:
                selector.register(self, selectors.EVENT_READ)
                while outcome is None:
                    left = self.deadline - time.monotonic()
                    ready = selector.select(max(left, 0))
                    if ready:
                        outcome = self.listen()
                    elif time.monotonic() >= self.deadline:
                        outcome = self.expired()
            return outcome
        finally:
            self.stop()

    def stop(self) -> None:
        """Kills all there is; may be called twice."""
        self.group.stop()
        self._leave()

    def _leave(self) -> None:
        while self.cgroups:
            self.cgroups.pop().remove()


def launched(
    sandbox: Sandbox, role: str, read: int, write: int, group: Group, cgroup: Cgroup | None
) -> subprocess.Popen[bytes]:
    """One interpreter in its sandbox. Only a checker has an input and an output of its own."""
    command = sandbox.command(role, read, write)
    if cgroup is not None:
        command = ["/bin/sh", "-c", ENTER, cgroup.entrance, *command]
    elif sandbox.isolation == "bubblewrap":
        command = ["/bin/sh", "-c", _STAY, "sh", *command]
    return group.start(
        command,
        stdin=subprocess.PIPE if role == "checker" else subprocess.DEVNULL,
        stdout=subprocess.PIPE if role == "checker" else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(read, write),
        env={"PATH": "/usr/bin:/bin"} if group.folder is None else {},
        cwd=group.folder or "/",
    )


_PYTHON = str(Path(sys.executable).resolve())


@lru_cache(maxsize=1)
def _source() -> str:
    return _INSIDE.read_text(encoding="utf-8")


def _bubblewrap(tmp_bytes: int) -> list[str]:
    """The command that enters the sandbox. The innermost user is nobody, whoever calls."""
    prefix = sysconfig.get_config_var("installed_base")
    seen, outer = prefix, []
    if os.getuid() == 0:
        # First as root: bring the interpreter where any user may read it, then become nobody known.
        uid = str(_FIRST_UID + secrets.randbelow(1 << 30))
        seen = "/mnt/python"
        outer = ["bwrap", "--die-with-parent", "--dev-bind", "/", "/"]
        outer += ["--tmpfs", "/mnt", "--dir", seen]
        outer += ["--ro-bind", prefix, seen, "--"]
        outer += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
    inner = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    inner += ["--new-session", "--clearenv", "--cap-drop", "ALL", "--uid", "65534"]
    inner += ["--gid", "65534", "--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib64", "bin"):
        inner += ["--symlink", f"usr/{name}", f"/{name}"]
    if not Path(prefix).is_relative_to("/usr"):
        inner += ["--ro-bind", seen, prefix]
    # A key that may be looked up by name is listed in /proc with its description.
    inner += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    for name in ("/proc/keys", "/proc/key-users"):
        if Path(name).exists():
            inner += ["--ro-bind", "/dev/null", name]
    inner += ["--size", str(tmp_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"]
    return [*outer, *inner, "--"]


@lru_cache(maxsize=1)
def _complaint() -> str | None:
    """What keeps bubblewrap from working here; None if it works (tried once)."""
    if system_call_filter() is None:
        return f"there is no system call filter for {platform.machine()} with this interpreter"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        return "setpriv (util-linux) is not installed"
    try:
        done = subprocess.run(
            [*_bubblewrap(1 << 20), _PYTHON, "-I", "-S", "-c", "pass"],
            check=False,
            capture_output=True,
            text=True,
            timeout=20,
            env={"PATH": "/usr/bin:/bin"},
        )
    except subprocess.TimeoutExpired:
        return "bubblewrap does not start within 20 s"
    return None if done.returncode == 0 else f"bubblewrap fails here ({done.stderr.strip()[-200:]})"
