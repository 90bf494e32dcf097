"""Archon's unit tests: written by a model, and run.

In the published code a model reads tests and programs and says which would pass; here they are
executed, in the sandbox of `ppl.verifiers.UnitTests`.
"""

from __future__ import annotations

import ast
import builtins
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from ppl.errors import VerifierError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.call import call
from ppl.programs.archon.asking import Writer
from ppl.programs.archon.drafts import Drafts
from ppl.programs.archon.operators import Operator, _writer
from ppl.verifiers.exact.code import code_of
from ppl.verifiers.exact.pool import shared_pool
from ppl.verifiers.exact.sandbox import Check, Outcome, Sandbox
from ppl.verifiers.exact.suite import require_tests

_BUILTINS = set(dir(builtins))


@dataclass(frozen=True)
class WriteTests(Operator):
    """See `write_tests`."""

    kind: ClassVar[str] = "write_tests"

    writer: Writer
    count: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count(count=self.count)
        _writer(self.writer)

    def __call__(self, drafts: Drafts) -> Drafts:
        """The same drafts, and tests."""
        prompt = (
            f"{drafts.question}\n\nDo not solve this. Write {self.count} tests of a solution, each "
            "a Python assertion on a line of its own, as in\nassert f(2) == 4"
        )
        ((said, _),) = self.asked(drafts, [self.writer], [prompt])
        name = self.name(drafts)
        tests = assertions(said)[: self.count]
        flags = () if tests else (f"{name}: no test",)
        return drafts.after([draft.through(name) for draft in drafts], *flags, tests=tests)


@dataclass(frozen=True)
class RunTests(Operator):
    """See `run_tests`."""

    kind: ClassVar[str] = "run_tests"

    top: int | None = None
    names: tuple[str, ...] = ()
    sandbox: Sandbox = field(default_factory=Sandbox)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top is not None:
            checks.count(top=self.top)

    def __call__(self, drafts: Drafts) -> Drafts:
        """Ordered by how many tests they pass."""
        name = self.name(drafts)
        sources = [code_of(draft.text) for draft in drafts]
        names = list(self.names) or called(drafts.tests)
        ran = call(name, partial(passes, self.sandbox), sources, names, list(drafts.tests))
        passed, usable = ran
        flags = []
        if usable < len(drafts.tests):
            flags.append(f"{name}: {len(drafts.tests) - usable} tests that test nothing")
        if not usable:
            flags.append(f"{name}: nothing to run")
        order = sorted(range(len(drafts)), key=lambda i: -passed[i])[: self.top]
        kept = [drafts.drafts[i].through(f"{name}: {passed[i]} of {usable}") for i in order]
        return drafts.after(kept, *flags)

    def size(self, k: int) -> int:
        """No more than `top`."""
        return k if self.top is None else min(self.top, k)

    def calls(self, k: int) -> int:
        """No model is asked."""
        return 0


@checked
def write_tests(
    writer: Writer,
    count: int = 5,
    *,
    max_tokens: int | None = 2048,
    temperature: float = 0.7,
) -> WriteTests:
    """Has tests written for the question, without a look at the drafts.

    Args:
        writer: who writes.
        count: most tests that are taken of what it writes.
        max_tokens, temperature: of what a model writes.
    """
    return WriteTests(writer, count, max_tokens=max_tokens, temperature=temperature)


@checked
def run_tests(
    top: int | None = None, *, names: Sequence[str] = (), sandbox: Sandbox | None = None
) -> RunTests:
    """Runs the tests on the program in each draft, and puts those first that pass most.

    Tests that cannot fail, or that never call the program, count for nobody, and are flagged. A
    model's tests are an imperfect verifier: they may be wrong.

    Args:
        top: how many drafts are kept; None for all.
        names: the functions that the tests call; by default those names of the tests that nobody
            else defines.
        sandbox: limits and isolation.

    Raises:
        SandboxError: the isolation is not available.
    """
    return RunTests(top, tuple(names), sandbox or Sandbox())


def assertions(reply: str) -> list[str]:
    """The assertions in a reply, each once: of its program, or, if that is no Python, by lines."""
    code = code_of(reply)
    found = _asserted(code)
    if found is None:
        lines = (line.strip().lstrip("-*0123456789. `").rstrip("`") for line in code.splitlines())
        found = [test for line in lines for test in _asserted(line) or []]
    return list(dict.fromkeys(found))


def _asserted(code: str) -> list[str] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return [ast.unparse(node) for node in body if isinstance(node, ast.Assert)]


def called(tests: Sequence[str]) -> list[str]:
    """The names that tests call and that are not Python's own."""
    found: dict[str, None] = {}
    for test in tests:
        for node in ast.walk(ast.parse(test)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found.setdefault(node.func.id)
    return [name for name in found if name not in _BUILTINS]


def passes(
    sandbox: Sandbox, sources: list[str], names: list[str], tests: list[str]
) -> tuple[list[int], int]:
    """How many tests each program passes, and how many tests there are that test anything."""
    usable = [test for test in tests if _can_fail(test, names)]
    outcomes = _ran(sandbox, sources, names, usable)
    if any(outcome.status == "invalid" for outcome in outcomes):
        # Seen only when they run: a test that ends without having called the program.
        usable = [
            test
            for test in usable
            if all(o.status != "invalid" for o in _ran(sandbox, sources, names, [test]))
        ]
        outcomes = _ran(sandbox, sources, names, usable)
    return [sum(outcome.passed) for outcome in outcomes] or [0] * len(sources), len(usable)


def _can_fail(test: str, names: list[str]) -> bool:
    try:
        require_tests([test], names, "")
    except VerifierError:
        return False
    return True


def _ran(sandbox: Sandbox, sources: list[str], names: list[str], tests: list[str]) -> list[Outcome]:
    if not tests:
        return []
    distinct = list(dict.fromkeys(sources))
    checks = [Check(source, tuple(names), tuple(tests)) for source in distinct]
    found = dict(zip(distinct, shared_pool(sandbox).run(checks), strict=True))
    return [found[source] for source in sources]
