"""Groups of child processes that end with this process, whichever way it ends.

A child outlives a caller that was killed, unless something is left to end it. What is left here is
a guard: a shell, leader of the process group in which all others are started, that waits for the
end of a pipe whose other end only this process holds. The kernel closes it whatever happens to this
process (SIGKILL, SIGTERM, a crash), and the guard then ends the whole group. A parent-death signal
would not do: it is sent when the *thread* ends that started the child, and is lost at a change of
user.

Also here: what is held across `fork`. A forked child forgets the groups of its parent (closes its
copies of their pipes, and never signals them), so that parent and child cannot read each other's
answers, and the parent's end is seen.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet

from ppl.errors import WorkerError

# `kill` ends the guard as well, so a last shell outside the group tidies up behind it. The guard
# waits until that one has left the group, which is when it closes its output.
# It tries for minutes, as a busy kernel ends processes, and frees what they hold, in its own time.
_TIDY = (
    "exec >&-; folder=$1; shift; for wait in 0 .1 .2 .4 .8 1.6 3 6 12 24 48 96; do sleep $wait; "
    '[ -z "$folder" ] || rm -rf -- "$folder"; [ $# = 0 ] || rmdir -- "$@"; '
    'for left in "$folder" "$@"; do [ ! -d "$left" ] || continue 2; done; break; done'
)
_GUARD = f"read -r _; _=$(setsid -f /bin/sh -c '{_TIDY}' sh \"$@\"); kill -9 0"


class Forgetful(Protocol):
    """Holds what a forked child must not share with its parent."""

    def forget(self) -> None:
        """Called in a forked child: drop processes and locks that are the parent's."""


_held: WeakSet[Any] = WeakSet()


def forget_in_children(holder: Forgetful) -> None:
    """Has `holder.forget` called in every forked child, for as long as the holder lives."""
    _held.add(holder)


def _after_fork() -> None:
    for holder in list(_held):
        holder.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Group:
    """Processes that end together, at the latest with this process.

    Args:
        folder: whether they get a temporary folder, which goes when they go.
        leaves: empty folders that nobody else can remove if this process is killed.

    Raises:
        WorkerError: no process can be started here.
    """

    def __init__(self, *, folder: bool = False, leaves: Sequence[str] = ()) -> None:
        self.folder = tempfile.mkdtemp(prefix="ppl-") if folder else None
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", self.folder or "", *leaves],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                process_group=0,
            )
        except OSError as error:
            self._remove()
            raise WorkerError(f"no helper process can be started: {error}") from error
        self.processes.append(self._guard)
        forget_in_children(self)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Starts a process in the group. `options` are those of `subprocess.Popen`.

        Its pipes are unbuffered: a forked child can close its copies without writing anything.

        Raises:
            OSError: it does not start.
        """
        process: subprocess.Popen[bytes] = subprocess.Popen(
            command, bufsize=0, process_group=self._guard.pid, **options
        )
        self.processes.append(process)
        return process

    def kill(self) -> None:
        """Kills all and waits for them."""
        if self._guard.returncode is None:  # not waited for, so its number is still its own
            with suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)
        for process in reversed(self.processes):  # the guard last
            process.wait()

    def stop(self) -> None:
        """Kills all, closes their pipes and removes the folder; may be called twice."""
        self.kill()
        while self.processes:
            _close(self.processes.pop())
        self._remove()

    def forget(self) -> None:
        """In a forked child: closes the copies of the pipes, and leaves all else to the parent."""
        for process in self.processes:
            _close(process)
            process.returncode = process.returncode or 0  # no child of ours: nothing to wait for
        self.processes, self.folder = [], None

    def _remove(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def send(process: subprocess.Popen[bytes], message: bytes) -> None:
    """Writes all of a message to a process of a group.

    Raises:
        OSError: the process is gone.
    """
    assert process.stdin is not None
    view = memoryview(message)
    while view:  # a signal may cut a write short
        view = view[process.stdin.write(view) :]


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
