"""Whether a test can fail at all, seen before anything runs.

A test that cannot fail passes every program, and a search then believes all of them. What can be
seen from the text alone is refused when the tests are handed over: tests that are no Python, that
never speak of the program, or that look at its values without judging them. What cannot be seen
(a call in a branch that is never taken) is found when the tests run: a test that ends without
having called the program is no test, see `ppl.verifiers.exact.inside`.
"""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Iterator, Sequence

from ppl.errors import VerifierError

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
# Methods that end a test, by the names they have in unittest, numpy, doctest and sys.
_VERBS = re.compile(
    r"_*(assert|check|expect|fail|verify|validate|exit|main|run|testmod|raise)", re.I
)
_OPAQUE = {"eval", "exec", "globals", "locals", "vars"}  # behind these a text says nothing
_ENDING = {"exit", "quit"}
_BUILTINS = set(dir(builtins)) - _ENDING


def require_tests(tests: Sequence[str], names: Sequence[str], setup: str) -> None:
    """Refuses tests that cannot fail.

    Raises:
        VerifierError: one does not compile, never reaches a call of `names`, or reaches nothing by
            which it could fail.
    """
    given = _parse(setup, "setup")
    for number, test in enumerate(tests, 1):
        where = f"test {number} of {len(tests)} ({' '.join(test.split())[:60]!r})"
        body = _parse(test, where)
        reached = list(_reached([*given, *body]))
        words = {node.id for node in reached if isinstance(node, ast.Name)}
        if words & _OPAQUE:
            continue
        if not words & set(names):
            raise VerifierError(
                f"{where} passes without calling {' or '.join(names)}: every program would pass; "
                "call a function that the test defines, and remove a test that tests nothing"
            )
        whole = ast.walk(ast.Module([*given, *body], []))
        known = {
            node.arg if isinstance(node, ast.arg) else node.name
            for node in whole
            if isinstance(node, _Definition | ast.arg)
        }
        if not any(_judges(node, known.union(names, _BUILTINS)) for node in reached):
            raise VerifierError(
                f"{where} passes whatever {' or '.join(names)} returns: write `assert` before what "
                "has to be true"
            )


def _parse(source: str, where: str) -> list[ast.stmt]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "test", "exec", dont_inherit=True)
            return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise VerifierError(
            f"{where} does not compile: {error}; every program would fail"
        ) from error


def _reached(body: Sequence[ast.stmt]) -> Iterator[ast.AST]:
    """All nodes that may run: those outside of definitions, and in definitions that are named."""
    hidden: dict[str, list[_Definition]] = {}
    named: set[str] = set()
    queue: list[ast.AST] = list(body)
    while queue:
        node = queue.pop()
        if isinstance(node, _Definition):
            queue += node.decorator_list
            if node.name in named:
                queue += _contents(node)
            else:
                hidden.setdefault(node.name, []).append(node)
            continue
        yield node
        if isinstance(node, ast.Name | ast.Attribute):
            word = node.id if isinstance(node, ast.Name) else node.attr
            named.add(word)
            queue += [part for found in hidden.pop(word, ()) for part in _contents(found)]
        queue += ast.iter_child_nodes(node)


def _contents(node: _Definition) -> list[ast.AST]:
    """What runs when it is used: of a class, any method."""
    parts = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.ClassDef):
        methods = [part for part in parts if isinstance(part, _Definition)]
        parts += [part for method in methods for part in _contents(method)]
    return parts


def _judges(node: ast.AST, harmless: set[str]) -> bool:
    """Whether this may make a test fail: assert, raise, or a call of something from elsewhere."""
    if isinstance(node, ast.Raise):
        return True
    if isinstance(node, ast.Assert):
        # A tuple is true, whatever is in it.
        return not isinstance(node.test, ast.Tuple) and any(
            isinstance(part, ast.Name | ast.Call) for part in ast.walk(node.test)
        )
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name):
            return node.func.id not in harmless
        return isinstance(node.func, ast.Attribute) and _VERBS.match(node.func.attr) is not None
    return False
