"""A control group for each interpreter of a sandbox: memory counted over all that it starts.

`RLIMIT_AS` counts each process for itself; only a control group counts processes, shared pages and
files in memory together. One can be made where this process may write beside or below its own
group: version 2 by delegation (a systemd user session, a container with a writable
`/sys/fs/cgroup`, root), or the memory controller of version 1. Elsewhere there is none, and the
sandbox's other limits hold.

Reference: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

import atexit
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Shell: enters the group named by $0, then is the parent of the command until it ends.
ENTER = 'echo 0 > "$0" && "$@"; exit "$?"'
_dying: list[Path] = []


@dataclass(frozen=True)
class Home:
    """Where groups can be made.

    Attributes:
        folder: a group whose children have a memory controller.
        version: 1 or 2.
    """

    folder: Path
    version: int


class Cgroup:
    """One group with a limit in bytes.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, home: Home, memory: int) -> None:
        sweep()
        self.folder = home.folder / f"ppl-{os.getpid()}-{secrets.token_hex(6)}"
        self.folder.mkdir()
        try:
            if home.version == 2:
                self._write("memory.max", memory)
                self._write("memory.oom.group", 1, needed=False)
                self._write("memory.swap.max", 0, needed=False)
            else:
                self._write("memory.limit_in_bytes", memory)
                self._write("memory.memsw.limit_in_bytes", memory, needed=False)
        except OSError:
            self.remove()
            raise

    @property
    def entrance(self) -> str:
        """Writing 0 to this file enters the group."""
        return str(self.folder / "cgroup.procs")

    @property
    def overflowed(self) -> bool:
        """Whether the kernel killed something here because the memory ran out."""
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                for line in (self.folder / name).read_text().splitlines():
                    word, _, count = line.partition(" ")
                    if word == "oom_kill":
                        return int(count) > 0
        return False

    def remove(self) -> None:
        """Removes the group, now or as soon as the kernel has ended its killed processes."""
        _dying.append(self.folder)
        sweep()

    def _write(self, name: str, value: int, *, needed: bool = True) -> None:
        try:
            (self.folder / name).write_text(str(value))
        except OSError:
            if needed:
                raise


def sweep(seconds: float = 0.0) -> None:
    """Removes the groups that are empty by now, waiting so long at most."""
    deadline = time.monotonic() + seconds
    while True:
        for folder in list(_dying):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                continue
            with suppress(ValueError):  # another thread was faster
                _dying.remove(folder)
        if not _dying or time.monotonic() >= deadline:
            return
        time.sleep(0.005)


atexit.register(sweep, 2.0)


@lru_cache(maxsize=1)
def home() -> Home | None:
    """Where groups can be made; None if nowhere (tried once)."""
    for candidate in _candidates():
        try:
            _clear(candidate.folder)
            group = Cgroup(candidate, 64 << 20)
        except OSError:
            continue
        try:
            entered = subprocess.run(
                ["/bin/sh", "-c", ENTER, group.entrance, "true"],
                check=False,
                capture_output=True,
                timeout=20,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        finally:
            group.remove()
        if entered.returncode == 0:
            return candidate
    return None


def _clear(folder: Path) -> None:
    """Removes what callers left that were killed."""
    for left in folder.glob("ppl-*-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            with suppress(OSError):
                left.rmdir()


def _candidates() -> Iterator[Home]:
    """This process's own group, and in version 2 the one above it.

    There a group that holds processes has no limited children, unless it is the uppermost.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version = 2 if not controllers else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        for fields in mounts:
            kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
            fits = kind == "cgroup2" if version == 2 else kind == "cgroup" and "memory" in options
            if not fits:
                continue
            root = fields[3]
            below = path[len(root) :] if root != "/" and path.startswith(root) else path
            own = Path(fields[4]) / below.lstrip("/")
            for folder in (own, own.parent) if version == 2 else (own,):
                if version == 1 or _limits_children(folder):
                    yield Home(folder, version)


def _limits_children(folder: Path) -> bool:
    try:
        return "memory" in (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False
