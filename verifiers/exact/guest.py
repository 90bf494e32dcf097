"""One sandboxed interpreter that is kept and asked again and again.

A `Pair` of the sandbox gives one verdict and is thrown away. A guest holds model-written code that
the caller talks with for as long as a search lasts: a program of ours goes in first, the code is
handed to it, and its functions are called through a pipe, strings in and strings out. All that
holds for the sandbox's other interpreters holds for this one; what it says is untrusted, and read
as text of limited length within limited time. One that is late, that ends, or that says anything
else than one answer to one question is stopped, and never asked again.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from ppl.errors import SandboxError, WorkerError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.runtime.process import Group, forget_in_children
from ppl.verifiers.exact.cgroup import Cgroup, home
from ppl.verifiers.exact.sandbox import START_LIMIT, Sandbox, launched

ANSWER_LIMIT = 1 << 18  # bytes of one answer; nothing of ours is nearly as long


class Guest:
    """A program of ours in a sandboxed interpreter, and whatever code is handed to it.

    Any thread may ask, one at a time. A forked child cannot: the interpreter is its parent's.

    Args:
        sandbox: the limits; `seconds` is that of one answer.
        program: executed first, outside of any limit of one answer: text of ours, whose functions
            take strings and numbers and return strings.
        processor_seconds: of the interpreter in its whole life.

    Raises:
        SandboxError: code cannot be isolated here, or the interpreter does not start.
    """

    @checked
    def __init__(self, sandbox: Sandbox, program: str, *, processor_seconds: float = 300.0) -> None:
        checks.positive(processor_seconds=processor_seconds)
        sandbox.require()
        self.sandbox = sandbox
        self.why = ""  # it was stopped
        self._heard = b""
        self._lock = threading.Lock()
        self._held: list[Any] = []  # groups and descriptors, until they are given back
        self._finalizer = weakref.finalize(self, _give_back, self._held)
        forget_in_children(self)
        try:
            self._start(replace(sandbox, seconds=processor_seconds))
            ready = self._line(time.monotonic() + START_LIMIT)
            if ready != b'"ready"':
                raise WorkerError(f"it said {ready[:40]!r}")
            self._ask({"source": program}, START_LIMIT)
        except (OSError, WorkerError) as error:
            self.stop("it does not start")
            raise SandboxError(f"an interpreter of the sandbox does not start: {error}") from error

    def _start(self, limits: Sandbox) -> None:
        questions, answers = os.pipe(), os.pipe()
        self._read, self._write = answers[0], questions[1]
        try:
            self._held += [self._read, self._write]
            place = home()
            cgroup = None if place is None else Cgroup(place, int(limits.memory))
            if cgroup is not None:
                self._held.append(cgroup)
            leaves = [] if cgroup is None else [str(cgroup.folder)]
            group = Group(folder=limits.isolation == "process", leaves=leaves)
            self._held.append(group)
            launched(limits, "program", questions[0], answers[1], group, cgroup)
        finally:
            os.close(questions[0])
            os.close(answers[1])
        os.set_blocking(self._write, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self.why

    def call(self, name: str, *arguments: str | float) -> str:
        """What a function of the program returns.

        Raises:
            WorkerError: it raised, is late, has ended, or answered anything but a string. Of these
                the first alone leaves it running.
        """
        request = {"name": name, "arguments": list(arguments), "named": {"dict": []}}
        with self._lock:
            if self.why:
                raise WorkerError(f"the interpreter was stopped: {self.why}")
            return str(self._ask(request, float(self.sandbox.seconds)) or "")

    def _ask(self, request: Any, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        try:
            if self._heard or self._ready(self._read, select.POLLIN, 0):
                raise WorkerError("it spoke without being asked, or has ended")
            self._tell(json.dumps(request).encode() + b"\n", deadline)
            line = self._line(deadline)
            reply = _read(line)
            if reply is None:
                raise WorkerError(f"its answer is none: {line[:60]!r}")
        except BaseException as error:  # if interrupted, too: its answer is for nobody then
            late = isinstance(error, TimeoutError)
            self.stop(f"no answer within {seconds:g} s" if late else str(error) or "interrupted")
            if isinstance(error, WorkerError | OSError):
                raise WorkerError(self.why) from error
            raise
        if "error" in reply:
            raise WorkerError(f"{reply['error']!s:.80}: {reply.get('message')!s:.500}")
        return reply["value"]

    def _tell(self, message: bytes, deadline: float) -> None:
        view = memoryview(message)
        while view:
            self._ready(self._write, select.POLLOUT, deadline)
            with suppress(BlockingIOError):
                view = view[os.write(self._write, view) :]

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._heard:
            if len(self._heard) > ANSWER_LIMIT:
                raise WorkerError(f"its answer is longer than {ANSWER_LIMIT} bytes")
            self._ready(self._read, select.POLLIN, deadline)
            chunk = os.read(self._read, 1 << 16)
            if not chunk:
                raise WorkerError("its process ended")
            self._heard += chunk
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def _ready(self, descriptor: int, what: int, deadline: float) -> bool:
        """Waits until it is, or, with a deadline of 0, says whether it is. Raises TimeoutError."""
        poll = select.poll()  # and not select, which knows the first 1,024 descriptors only
        poll.register(descriptor, what)
        left = deadline - time.monotonic() if deadline else 0.0
        ready = bool(poll.poll(max(left, 0.0) * 1000))
        if deadline and not ready:
            raise TimeoutError
        return ready

    def stop(self, why: str = "it is not needed any more") -> None:
        """Kills it and all that it started; may be called twice."""
        self.why = self.why or why
        _give_back(self._held)

    def forget(self) -> None:
        """In a forked child: closes its copies of the pipes; the interpreter is the parent's."""
        self.why = self.why or "it belongs to the parent process"
        self._lock = threading.Lock()
        while self._held:
            held = self._held.pop()
            if isinstance(held, int):
                os.close(held)


def _read(line: bytes) -> dict[str, Any] | None:
    """A reply as the interpreter's own loop writes it: an error, nothing, or a string."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(reply, dict):
        return None
    answered = reply.keys() == {"value"} and isinstance(reply["value"], str | None)
    return reply if answered or isinstance(reply.get("error"), str) else None


def _give_back(held: list[Any]) -> None:
    """Processes first, then their control group and the pipes."""
    while held:
        last = held.pop()
        if isinstance(last, Group):
            last.stop()
        elif isinstance(last, Cgroup):
            last.remove()
        else:
            os.close(last)
