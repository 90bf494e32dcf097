"""Sandboxes that are started ahead, and programs that run side by side in them."""

from __future__ import annotations

import atexit
import selectors
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Self

from ppl.runtime.process import forget_in_children
from ppl.verifiers.exact.cgroup import sweep
from ppl.verifiers.exact.sandbox import Check, Outcome, Pair, Sandbox, whole


class Pool:
    """Runs programs side by side, each in a fresh pair of interpreters started ahead of time.

    A pair serves one program and is thrown away, so nothing passes from one program to the next;
    what the pool saves is the wait for interpreters to start, not their work. Any thread may call
    `run`; one run at a time. A forked child starts pairs of its own.

    Args:
        sandbox: the limits.
        workers: programs at a time.
    """

    def __init__(self, sandbox: Sandbox, workers: int = 2) -> None:
        self.sandbox, self.workers = sandbox, whole("workers", workers, 1, 1024)
        self.forget()
        forget_in_children(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget(self) -> None:
        """Starts anew without ending anything: in a forked child the pairs are the parent's."""
        self._warm: deque[Pair] = deque()
        self._lock = threading.Lock()

    def run(self, checks: Sequence[Check]) -> list[Outcome]:
        """The outcome of each program, in order; each has its own time limit.

        Raises:
            SandboxError: the isolation is not available; no program was run.
        """
        with self._lock, selectors.DefaultSelector() as selector:
            self.sandbox.require()
            waiting = deque(range(len(checks)))
            running: dict[Pair, int] = {}
            found: dict[int, Outcome] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < self.workers:
                        pair, i = self._take(), waiting.popleft()
                        running[pair] = i
                        pair.submit(checks[i])
                        selector.register(pair, selectors.EVENT_READ)
                    if len(self._warm) < self.workers:  # one at a time, between two looks
                        self._warm.append(self.sandbox.start())
                    left = min(pair.deadline for pair in running) - time.monotonic()
                    ready = {key.fileobj for key, _ in selector.select(max(left, 0))}
                    now = time.monotonic()
                    for pair in list(running):
                        over = now >= pair.deadline
                        outcome = (
                            pair.listen() if pair in ready else pair.expired() if over else None
                        )
                        if outcome is not None:
                            selector.unregister(pair)
                            pair.stop()
                            found[running.pop(pair)] = outcome
            finally:
                for pair in running:
                    pair.stop()
            return [found[i] for i in range(len(checks))]

    def _take(self) -> Pair:
        while self._warm:
            pair = self._warm.popleft()
            if pair.alive:
                return pair
            pair.stop()
        return self.sandbox.start()

    def close(self) -> None:
        """Ends the waiting pairs; a later run starts new ones."""
        with self._lock:
            while self._warm:
                self._warm.popleft().stop()
        sweep(1.0)


@lru_cache(maxsize=8)
def shared_pool(sandbox: Sandbox) -> Pool:
    """The pool of all verifiers with these limits; its interpreters end with this process."""
    pool = Pool(sandbox)
    atexit.register(pool.close)
    return pool
