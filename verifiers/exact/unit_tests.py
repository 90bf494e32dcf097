"""Unit tests as a verifier: the program that a text contains is run, in a sandbox.

Reference: Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (HumanEval). Tests
are an imperfect verifier: what passes them may still be wrong.
"""

from __future__ import annotations

import atexit
import math
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Self

from ppl.language.text import Text
from ppl.runtime.verdict import JudgeRequest, Verifier
from ppl.verifiers.exact.sandbox import Check, Outcome, Pair, Sandbox

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def code_of(text: Text) -> str:
    """The last fenced code block of a text, or all of it if it has none."""
    blocks = _FENCE.findall(text.text)
    return blocks[-1] if blocks else text.text


class Pool:
    """Runs programs side by side, each in a fresh pair of interpreters started ahead of time.

    A pair serves one program and is thrown away, so nothing passes from one program to the next;
    what the pool saves is the wait for interpreters to start, not their work.

    Args:
        sandbox: the limits.
        workers: programs at a time.
    """

    def __init__(self, sandbox: Sandbox, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers}: must be at least 1")
        self.sandbox, self.workers = sandbox, workers
        self._warm: deque[Pair] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, checks: Sequence[Check]) -> list[Outcome]:
        """The outcome of each program, in order; each has its own time limit.

        Raises:
            SandboxError: the isolation is not available; no program was run.
        """
        with self._lock:
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
                    if len(self._warm) < self.workers:  # one at a time, between two looks
                        self._warm.append(self.sandbox.start())
                    left = min(pair.deadline for pair in running) - time.monotonic()
                    ready = select.select(list(running), [], [], max(left, 0))[0]
                    now = time.monotonic()
                    for pair in list(running):
                        over = now >= pair.deadline
                        outcome = (
                            pair.listen() if pair in ready else pair.expire() if over else None
                        )
                        if outcome is not None:
                            found[running.pop(pair)] = outcome
            finally:
                for pair in running:
                    pair.stop()
            return [found[i] for i in range(len(checks))]

    def _take(self) -> Pair:
        # A waiting pair dies with the thread that started it.
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


@lru_cache(maxsize=8)
def shared_pool(sandbox: Sandbox) -> Pool:
    """The pool of all verifiers with these limits; its interpreters end with this process."""
    pool = Pool(sandbox)
    atexit.register(pool.close)
    return pool


class UnitTests(Verifier):
    """The chance that a program is right, from tests that it passes or fails.

    All tests passed: probability one; otherwise zero, or the share of passed tests with
    `partial=True` (a shaped potential: another target, of use to guide a search). Both are moved
    inside by `floor`. A timeout, a crash or too much memory is a failure; a sandbox that is not
    available is a `SandboxError` and never a failure.

    Args:
        tests: Python code, one string or several; each calls the functions by name and fails by
            raising, see `ppl.verifiers.exact.sandbox.Check`.
        names: the functions that the tests call.
        setup: executed before each test, where the tests run.
        prefix: put before the code, such as the signature that the model was asked to complete.
        extract: finds the code in a text; the last fenced block by default.
        partial: score the share of passed tests.
        runs: a program that does not pass is run again, so many times in all, and its best run
            counts: for tests or programs that are left to chance or to the clock.
        sandbox: limits and isolation.
        floor: scores are clipped to [floor, 1 - floor].
        name: shown in messages; give verifiers that meet in one program different names.

    Attributes:
        flaky: programs so far whose runs did not end alike.

    Example:
        >>> from ppl.verifiers import UnitTests
        >>> tests = UnitTests(["assert add(1, 2) == 3", "assert add(0, 0) == 0"], names=["add"])
    """

    def __init__(
        self,
        tests: str | Sequence[str],
        *,
        names: Sequence[str],
        setup: str = "",
        prefix: str = "",
        extract: Callable[[Text], str] = code_of,
        partial: bool = False,
        runs: int = 1,
        sandbox: Sandbox | None = None,
        floor: float = 1e-6,
        name: str | None = None,
    ) -> None:
        if isinstance(names, str):
            raise TypeError(f"names={names!r}: give a list of function names")
        self.tests = (tests,) if isinstance(tests, str) else tuple(tests)
        if not self.tests:
            raise ValueError("UnitTests without tests would pass everything; give at least one")
        if not 0 <= floor < 0.5:
            raise ValueError(f"floor={floor}: must be in [0, 0.5)")
        if runs < 1:
            raise ValueError(f"runs={runs}: at least 1")
        self.runs, self.flaky = runs, 0
        self.names, self.setup, self.prefix = tuple(names), setup, prefix
        self.extract, self.partial, self.floor = extract, partial, floor
        self.sandbox = sandbox or Sandbox()
        self.name, self.meaning = name or f"UnitTests({', '.join(names)})", "outcome"

    def outcomes(self, sources: Sequence[str]) -> list[Outcome]:
        """What happens to each program; equal ones are run together."""
        distinct = list(dict.fromkeys(self.prefix + source for source in sources))
        found: dict[str, list[Outcome]] = {source: [] for source in distinct}
        for _ in range(self.runs):
            left = [s for s in distinct if not any(o.status == "passed" for o in found[s])]
            checks = [Check(source, self.names, self.tests, self.setup) for source in left]
            for source, outcome in zip(left, shared_pool(self.sandbox).run(checks), strict=True):
                found[source].append(outcome)
        self.flaky += sum(len({o.passed for o in found[source]}) > 1 for source in distinct)
        best = {source: max(runs, key=lambda o: sum(o.passed)) for source, runs in found.items()}
        return [best[self.prefix + source] for source in sources]

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        outcomes = self.outcomes([self.extract(request.text) for request in requests])
        return [[self._log_score(outcome)] for outcome in outcomes]

    def _log_score(self, outcome: Outcome) -> float:
        share = sum(outcome.passed) / len(self.tests)
        score = share if self.partial else float(share == 1)
        return math.log(score) if score > 0 else -math.inf
