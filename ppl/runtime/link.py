"""A worker process that runs one copy of a model (`ppl.lm.replica`), as who asks it sees it.

What a request brings along (a function in `allowed=`, a pattern in `until=`) runs there with the
limits of who asks: while somebody waits for the request it may take its time, as it may here. Once
nobody does (a limit, an interrupt, a cancelled search), a call that goes on for `PATIENCE` seconds
is ended with its process, or every later request would wait for it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ppl.errors import UnsupportedModelError, WorkerError
from ppl.lm.calling import Calling
from ppl.lm.replica import About, Answer, addressed, packed, unpacked
from ppl.runtime.worker import Process

# Seconds that a call of a function goes on for which nobody waits; and how often it is looked at
# meanwhile, as a machine that stands still is no call that does not return, and loses one look.
PATIENCE = 2.0
_LOOKS = 10
# Seconds that loading a model may take, and that is waited for anything else.
_LOADING, _EVER = 1800.0, 1e9

_PROGRAM = "import sys; sys.path[:] = {path!r}; from ppl.lm.replica import main; main()"


@dataclass
class _Pending:
    """What a process was asked and has not answered.

    Attributes:
        asked: who waits, by ticket, with the label of who asks.
        lock: held while it changes.
        ended: why the process was ended.
    """

    asked: dict[int, tuple[Future[Answer], str]] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)
    ended: str | None = None


class Link:
    """One worker process and what it was asked."""

    def __init__(self, name: str, first: Any) -> None:
        self.name = name
        program = _PROGRAM.format(path=sys.path)
        command = [sys.executable, "-P", "-W", "ignore", "-c", program]
        with tempfile.TemporaryFile() as shared:
            shared.truncate(Calling.SIZE)
            self._calling = Calling(shared.fileno())
            self.process = Process(command, name, in_turn=False, files=(shared.fileno(),))
            self.process.tell(packed((*first, shared.fileno())))
        self._pending = _Pending()
        self._left: set[int] = set()  # tickets that nobody waits for any more
        self._watching = False

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
        threading.Thread(target=_listen, args=(self.process, self._pending), daemon=True).start()
        return said

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._pending.ended is None and self.process.alive

    def ask(self, kind: str, ticket: int, label: str, what: Any) -> Future[Answer]:
        """Sends a request of somebody; its answer is to come."""
        future: Future[Answer] = Future()
        with self._pending.lock:
            self._pending.asked[ticket] = future, label
            try:
                self.process.tell(addressed(kind, ticket, label, what))
            except WorkerError as error:
                del self._pending.asked[ticket]
                future.set_exception(WorkerError(f"{error}; {_remedy()}"))
        return future

    def fresh(self) -> None:
        """Tells it to forget what it computed."""
        with self._pending.lock, contextlib.suppress(WorkerError):  # whoever listens says so
            if self.alive:
                self.process.tell(addressed("fresh", 0, "", None))

    def leave(self, tickets: Collection[int]) -> None:
        """Tells it that nobody waits for these: it answers with what it has."""
        with self._pending.lock:
            still = [ticket for ticket in tickets if ticket in self._pending.asked]
            if not still or not self.alive:
                return
            try:
                self.process.tell(addressed("leave", 0, "", still))
            except WorkerError:
                return  # whoever listens says so
            self._left.update(still)
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="ppl watch", daemon=True).start()

    def _watch(self) -> None:
        """Until all that was left is answered, ends a call of theirs that does not end."""
        before, same = (0, 0), 0
        while True:
            with self._pending.lock:
                self._left &= self._pending.asked.keys()
                if not self._left or not self.alive:
                    self._watching = False
                    return
                now = self._calling.now
                same = same + 1 if now == before and now[0] in self._left else 0
                if same == _LOOKS:
                    label = self._pending.asked[now[0]][1]
                    self._pending.ended = why = _endless(label, self.name)
                    break
            before = now
            time.sleep(PATIENCE / _LOOKS)
        self.process.process.kill()  # whoever listens ends the rest
        warnings.warn(why, stacklevel=2)


def _listen(process: Process, pending: _Pending) -> None:
    """Hands answers out until the process ends; then all that it was asked fails."""
    while True:
        try:
            answers = unpacked(process.hear(_EVER, "drawing"))
        except WorkerError as error:
            with pending.lock:
                lost = [future for future, _ in pending.asked.values()]
                pending.asked.clear()
            why = pending.ended or f"{error}; {_remedy()}"
            for future in lost:
                if future.set_running_or_notify_cancel():
                    future.set_exception(WorkerError(why))
            return
        with pending.lock:
            arrived = [
                (pending.asked.pop(ticket)[0], answer)
                for ticket, answer in answers.items()
                if ticket in pending.asked
            ]
        for future, answer in arrived:
            if future.set_running_or_notify_cancel():
                if answer.error is None:
                    future.set_result(answer)
                else:
                    future.set_exception(answer.error)


def _endless(label: str, name: str) -> str:
    return (
        f"{label}: what it brings along (a function in allowed=, or a pattern in until=) has not "
        f"returned, {PATIENCE:g} s after nobody waited for it; {name} was ended, and the next "
        "request starts it anew; give token ids or a mask, or a function that returns"
    )


def _remedy() -> str:
    return (
        "each replica holds the whole model and kv_bytes of its own: is there memory for all of "
        "them? Load fewer replicas, or with a smaller kv_bytes=; the next request starts it anew"
    )
