"""A worker process that runs one copy of a model (`ppl.lm.replica`), as who asks it sees it."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from ppl.errors import UnsupportedModelError, WorkerError
from ppl.lm.replica import About, Answer, addressed, packed, unpacked
from ppl.runtime.worker import Process

# Seconds that loading a model may take, and that is waited for anything else.
_LOADING, _EVER = 1800.0, 1e9

_PROGRAM = "import sys; sys.path[:] = {path!r}; from ppl.lm.replica import main; main()"


class Link:
    """One worker process and what it was asked."""

    def __init__(self, name: str, first: Any) -> None:
        self.name = name
        program = _PROGRAM.format(path=sys.path)
        command = [sys.executable, "-P", "-W", "ignore", "-c", program]
        self.process = Process(command, name, in_turn=False)
        self.held = [self.process]
        self._pending: dict[int, Future[Answer]] = {}
        self._lock = threading.Lock()
        self.process.tell(packed(first))

    def about(self) -> About:
        """What it says once its model is loaded. Raises what loading it raised."""
        try:
            said = unpacked(self.process.hear(_LOADING, "loading"))
        except WorkerError as error:
            raise WorkerError(f"{error}; {_remedy()}") from error
        except Exception as error:  # tokenizers may have code of their own
            raise UnsupportedModelError(
                f"{self.name} tells of itself what cannot be read here ({type(error).__name__}: "
                f"{error}); load the model without replicas="
            ) from error
        if isinstance(said, Exception):
            self.process.stop()
            raise said
        assert isinstance(said, About)
        threading.Thread(
            target=_listen, args=(self.process, self._pending, self._lock), daemon=True
        ).start()
        return said

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.alive

    def ask(self, kind: str, ticket: int, label: str, what: Any) -> Future[Answer]:
        """Sends a request of somebody; its answer is to come."""
        future: Future[Answer] = Future()
        with self._lock:
            self._pending[ticket] = future
            try:
                self.process.tell(addressed(kind, ticket, label, what))
            except WorkerError as error:
                del self._pending[ticket]
                future.set_exception(WorkerError(f"{error}; {_remedy()}"))
        return future

    def fresh(self) -> None:
        """Tells it to forget what it computed."""
        with self._lock, contextlib.suppress(WorkerError):  # whoever listens says so
            if self.alive:
                self.process.tell(addressed("fresh", 0, "", None))

    def leave(self, tickets: Collection[int]) -> None:
        """Tells it that nobody waits for these: it answers with what it has."""
        with self._lock:
            still = [ticket for ticket in tickets if ticket in self._pending]
            if still and self.alive:
                try:
                    self.process.tell(addressed("leave", 0, "", still))
                except WorkerError:
                    return  # whoever listens says so


def _listen(process: Process, pending: dict[int, Future[Answer]], lock: threading.Lock) -> None:
    """Hands answers out until the process ends; then all that it was asked fails."""
    while True:
        try:
            answers = unpacked(process.hear(_EVER, "drawing"))
        except WorkerError as error:
            with lock:
                lost = list(pending.values())
                pending.clear()
            for future in lost:
                if future.set_running_or_notify_cancel():
                    future.set_exception(WorkerError(f"{error}; {_remedy()}"))
            return
        with lock:
            arrived = [(pending.pop(t), answer) for t, answer in answers.items() if t in pending]
        for future, answer in arrived:
            if future.set_running_or_notify_cancel():
                if answer.error is None:
                    future.set_result(answer)
                else:
                    future.set_exception(answer.error)


def _remedy() -> str:
    return (
        "each replica holds the whole model and kv_bytes of its own: is there memory for all of "
        "them? Load fewer replicas, or with a smaller kv_bytes=; the next request starts it anew"
    )
