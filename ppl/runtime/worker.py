"""A warm helper process that answers one message with another; every wait on it has a limit.

The one pattern for processes that are kept: started at the first request, asked by any thread, one
request at a time; given up when it dies, hangs or talks nonsense, and started anew for the next
request; never shared with a forked child; ended with this process (`ppl.runtime.process`). It is
for trusted programs that may hang or crash on hostile input (answer checkers, Lean). It is no
sandbox: model-written *code* belongs in `ppl.verifiers.exact.sandbox`, which keeps its interpreters
in the same groups of processes, but uses each of them once.
"""

from __future__ import annotations

import io
import json
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import IO, Any, Self, cast

from ppl.errors import WorkerError
from ppl.runtime.process import Group, forget_in_children, send


class WorkerTimeoutError(WorkerError):
    """No answer within the limit; the process was ended."""


class Process:
    """One started process that speaks messages of text.

    Args:
        command: starts it.
        name: shown in messages.
        blocks: a message ends at a blank line, instead of at the end of its line.
        folder: where it runs.
        in_turn: every message has one reply, and is sent after the reply to the one before.
        files: numbers of open files that it is to have under the same numbers.

    Raises:
        WorkerError: it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        *,
        blocks: bool = False,
        folder: str | None = None,
        in_turn: bool = True,
        files: Sequence[int] = (),
    ) -> None:
        self.name, self.blocks, self.in_turn = name, blocks, in_turn
        self._group = Group()
        try:
            self.process = self._group.start(
                command,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=files,
            )
        except OSError as error:
            self._group.stop()
            raise WorkerError(f"{name} does not start: {error}") from error
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert self.process.stdout is not None
        self._reader = threading.Thread(
            target=_forward, args=(self.process.stdout, self._replies, blocks), daemon=True
        )
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def tell(self, message: str) -> None:
        """Sends a message.

        Raises:
            WorkerError: the process is gone; or, where there are turns, it has said what nobody
                asked for, which would be taken for the answer.
        """
        if self.in_turn and not self._replies.empty() and self.alive:
            self.stop()
            raise WorkerError(f"{self.name} spoke without being asked")
        try:
            send(self.process, (message + ("\n\n" if self.blocks else "\n")).encode())
        except (OSError, ValueError) as error:
            raise WorkerError(f"{self.name} died before the request") from error

    def hear(self, limit: float, doing: str) -> str:
        """The next message.

        Args:
            limit: seconds to wait for it.
            doing: what it should be doing, for error messages.

        Raises:
            WorkerTimeoutError: there is none within the limit; the process is ended.
            WorkerError: the process ended.
        """
        try:
            reply = self._replies.get(timeout=limit)
        except queue.Empty:
            self.stop()
            raise WorkerTimeoutError(
                f"{self.name} hung while {doing}: no answer within {limit} s"
            ) from None
        if reply is None:
            self.stop()
            raise WorkerError(f"{self.name} died while {doing}")
        return reply

    def stop(self) -> None:
        """Kills it and all that it started, and waits; may be called twice."""
        self._group.kill()
        if self._reader is not threading.current_thread():  # where garbage may be collected, too
            self._reader.join(timeout=5)  # before its pipe is closed
        self._group.stop()


class Worker:
    """A Python program that is kept warm and answers JSON values with JSON values.

    Nothing starts before the first request. After a failure the next request finds a fresh process.

    Args:
        program: what it runs, as a text for `python -c`: it must import neither this package
            (torch) nor the user's script, which a multiprocessing target would. It keeps a private
            copy of stdout for replies, so that nothing a library prints can be taken for one,
            prints `ready`, and then one JSON line for each line of its input.
        name: shown in messages.
        extra: what to install if it does not start.
        start_limit: seconds allowed for its start.
    """

    def __init__(self, program: str, name: str, extra: str, start_limit: float) -> None:
        self.program, self.name, self.extra, self.start_limit = program, name, extra, start_limit
        self._held: list[Process] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, stop_all, self._held)
        forget_in_children(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The process that runs now."""
        return self._held[0].process if self._held else None

    def start(self) -> None:
        """Starts the process unless it runs: to find out early whether it can.

        Raises:
            WorkerError: it does not start.
        """
        with self._lock:
            self._start()

    def ask(self, request: Any, limit: float) -> Any:
        """The reply to one request, both JSON values.

        Raises:
            WorkerError: the process does not start, died, answered no JSON, or did not answer
                within `limit` seconds. What was asked stays unknown.
        """
        with self._lock:
            process = self._start()
            try:
                process.tell(json.dumps(request))
                reply = process.hear(limit, "scoring")
                return json.loads(reply)
            except BaseException as error:  # interrupted: its answer would be taken for the next
                stop_all(self._held)
                if isinstance(error, ValueError | RecursionError):
                    raise WorkerError(f"{self.name}'s worker answered {reply[:80]!r}") from error
                raise

    def _start(self) -> Process:
        if self._held and not self._held[0].alive:
            stop_all(self._held)
        if not self._held:
            process = Process(
                [sys.executable, "-P", "-W", "ignore", "-c", self.program], f"{self.name}'s worker"
            )
            self._held.append(process)
            remedy = f"is it installed (pip install '{self.extra}')?"
            try:
                ready = process.hear(self.start_limit, "starting")
            except WorkerError as error:
                stop_all(self._held)
                raise WorkerError(f"{error}; {remedy}") from error
            except BaseException:
                stop_all(self._held)
                raise
            if ready != "ready":
                stop_all(self._held)
                raise WorkerError(f"{self.name}'s worker started wrongly; {remedy}")
        return self._held[0]

    def stop(self) -> None:
        """Ends the process; a later request starts a new one."""
        with self._lock:
            stop_all(self._held)

    def forget(self) -> None:
        """In a forked child: the process is the parent's; the next request starts another."""
        self._held.clear()
        self._lock = threading.Lock()


def stop_all(held: list[Process]) -> None:
    """Ends the processes and empties the list."""
    while held:
        held.pop().stop()


def _forward(stream: IO[bytes], replies: queue.SimpleQueue[str | None], blocks: bool) -> None:
    """Hands messages on to a queue, then None: a queue can be waited on with a limit everywhere."""
    block = ""
    try:
        with io.BufferedReader(cast(io.RawIOBase, stream)) as lines:
            for line in map(_text, lines):
                if not blocks:
                    replies.put(line.rstrip("\r\n"))
                elif line.strip():
                    block += line
                elif block:
                    replies.put(block)
                    block = ""
    except (OSError, ValueError):
        if not stream.closed:  # else it was given up, maybe before this thread could begin
            raise
    if block:
        replies.put(block)
    replies.put(None)


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace")
