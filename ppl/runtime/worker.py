"""A warm helper process that answers one JSON line with another; every wait on it has a limit.

For trusted libraries that may hang or crash on hostile input (answer checkers). It is no sandbox:
model-written *code* belongs in `ppl.verifiers.exact.sandbox`.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from typing import IO, Any

from ppl.errors import WorkerError


class Worker:
    """One process.

    Args:
        program: what it runs, as a text for `python -c`: it must import neither this package
            (torch) nor the user's script, which a multiprocessing target would. It keeps a private
            copy of stdout for replies, so that nothing a library prints can be taken for one,
            prints `ready`, and then one JSON line for each line of its input.
        name: shown in messages.
        extra: what to install if it does not start.
        start_limit: seconds allowed for its start.

    Raises:
        WorkerError: it does not start.
    """

    def __init__(self, program: str, name: str, extra: str, start_limit: float) -> None:
        self.name, self.extra = name, extra
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert self.process.stdout is not None
        self.reader = threading.Thread(
            target=_forward, args=(self.process.stdout, self.lines), daemon=True
        )
        self.reader.start()
        if self._receive(start_limit, "starting") != "ready":
            self.stop()
            raise WorkerError(f"{name}'s worker started wrongly; is {extra} whole?")

    def ask(self, request: Any, limit: float) -> Any:
        """The reply to one request, both JSON values.

        Raises:
            WorkerError: the process died, or did not answer within `limit` seconds.
        """
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerError(f"{self.name}'s worker died before the request") from error
        return json.loads(self._receive(limit, "scoring"))

    def _receive(self, limit: float, doing: str) -> str:
        try:
            line = self.lines.get(timeout=limit)
        except queue.Empty:
            self.stop()
            raise WorkerError(f"{self.name}'s worker hung while {doing} ({limit} s)") from None
        if line is None:
            self.stop()
            raise WorkerError(
                f"{self.name}'s worker died while {doing};"
                f" is it installed (pip install '{self.extra}')?"
            )
        return line

    def stop(self) -> None:
        """Kill the process and wait for it; may be called twice."""
        self.process.kill()
        self.process.wait()
        self.reader.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # a broken pipe: the process was gone before its input was flushed


def stop_all(workers: list[Worker]) -> None:
    """Empties the list."""
    while workers:
        workers.pop().stop()


def _forward(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    """Hand lines on to a queue, then None: a queue can be waited on with a limit everywhere."""
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)
