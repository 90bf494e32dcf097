"""Unit tests as a verifier: the program that a text contains is run, in a sandbox.

Reference: Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (HumanEval). Tests
are an imperfect verifier: what passes them may still be wrong.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Sequence

from ppl.errors import VerifierError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.text import Text
from ppl.runtime.verdict import JudgeRequest, Verifier
from ppl.verifiers.exact.code import code_of
from ppl.verifiers.exact.pool import shared_pool
from ppl.verifiers.exact.sandbox import Check, Outcome, Sandbox, whole
from ppl.verifiers.exact.suite import require_tests


class UnitTests(Verifier):
    """The chance that a program is right, from tests that it passes or fails.

    All tests passed: probability one; otherwise zero, or the share of passed tests with
    `partial=True` (a shaped potential: another target, of use to guide a search). Both are moved
    inside by `floor`. A timeout, a crash or too much memory is a failure; a sandbox that is not
    available is a `SandboxError` and never a failure.

    Args:
        tests: Python code, one string or several; each calls the functions by name and fails by
            raising, see `ppl.verifiers.exact.sandbox.Check`. A test that can pass without calling
            them, or whatever they return, is refused.
        names: the functions that the tests call.
        setup: executed before each test, where the tests run.
        prefix: put before the code, such as the signature that the model was asked to complete.
        extract: finds the code in a text; by default as in `ppl.verifiers.exact.code`.
        partial: score the share of passed tests.
        runs: a program that does not pass is run again, so many times in all, and its best run
            counts: for tests or programs that are left to chance or to the clock.
        sandbox: limits and isolation.
        floor: scores are clipped to [floor, 1 - floor].
        name: shown in messages; give verifiers that meet in one program different names.

    Raises:
        VerifierError: a test does not compile or cannot fail, here; its setup raises or it ends
            without having called the program, when it first runs.
        TypeError, ValueError: an argument of a wrong type or out of range.

    Attributes:
        flaky: programs so far whose runs did not end alike.

    Example:
        >>> from ppl.verifiers import UnitTests
        >>> tests = UnitTests(["assert add(1, 2) == 3", "assert add(0, 0) == 0"], names=["add"])
    """

    @checked
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
        for argument, texts in (("tests", self.tests), ("setup", (setup,)), ("prefix", (prefix,))):
            for text in texts:
                if not isinstance(text, str):
                    raise TypeError(f"{argument}={text!r}: give Python code as a string")
        for function in names:
            if not _nameable(function):
                raise ValueError(f"names: {function!r} cannot be the name of a function")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"names={list(names)!r}: at least one, each once")
        checks.floor(floor=floor)
        self.runs, self.flaky = whole("runs", runs, 1, 10**6), 0
        require_tests(self.tests, names, setup)
        self.names, self.setup, self.prefix = tuple(names), setup, prefix
        self.extract, self.partial, self.floor = extract, partial, floor
        self.sandbox = sandbox or Sandbox()
        self.name, self.meaning = name or f"UnitTests({', '.join(names)})", "outcome"

    @checked
    def outcomes(self, sources: Sequence[str]) -> list[Outcome]:
        """What happens to each program; equal ones are run together.

        Raises:
            SandboxError: the isolation is not available.
            VerifierError: the tests are at fault, whatever the program.
        """
        distinct = list(dict.fromkeys(self.prefix + source for source in sources))
        found: dict[str, list[Outcome]] = {source: [] for source in distinct}
        for _ in range(self.runs):
            left = [s for s in distinct if not any(o.status == "passed" for o in found[s])]
            checks = [Check(source, self.names, self.tests, self.setup) for source in left]
            for source, outcome in zip(left, shared_pool(self.sandbox).run(checks), strict=True):
                if outcome.status == "invalid":
                    raise VerifierError(
                        f"{self.name}: {outcome.why}; no program was judged. Correct the tests"
                    )
                found[source].append(outcome)
        self.flaky += sum(len({o.passed for o in found[source]}) > 1 for source in distinct)
        best = {source: max(runs, key=lambda o: sum(o.passed)) for source, runs in found.items()}
        return [best[self.prefix + source] for source in sources]

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """One log-score per text: its code runs against the tests, equal programs once."""
        outcomes = self.outcomes([self.extract(request.text) for request in requests])
        return [[self._log_score(outcome)] for outcome in outcomes]

    def _log_score(self, outcome: Outcome) -> float:
        share = sum(outcome.passed) / len(self.tests)
        score = share if self.partial else float(share == 1)
        return math.log(score) if score > 0 else -math.inf


def _nameable(name: object) -> bool:
    """Whether a test can call something by this name without losing a name of its own."""
    return (
        isinstance(name, str)
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and not (name.startswith("__") and name.endswith("__"))
    )
