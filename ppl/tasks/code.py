"""HumanEval and MBPP: programs to write, judged by the tests that come with them.

An answer is run in the sandbox of `ppl.verifiers.UnitTests`: all tests passed is right, everything
else is wrong, also what is no Python. A sandbox that is not available is an error and no verdict.

References: Chen et al. 2021, "Evaluating Large Language Models Trained on Code"; Austin et al.
2021, "Program Synthesis with Large Language Models".
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

from ppl.tasks.installed import documents
from ppl.tasks.task import Problem, Task
from ppl.verifiers.exact.code import blocks, code_of

if TYPE_CHECKING:
    from ppl.verifiers.exact.unit_tests import UnitTests

INDENT = "    "


def humaneval() -> Task:
    """The 164 problems of HumanEval: a signature and a description; the function is wanted.

    An answer is the body that continues the question, or the whole function; a fenced block will
    do.
    """
    problems = [
        Problem(
            f"humaneval/{str(doc['task_id']).rpartition('/')[2]}",
            str(doc["prompt"]),
            str(doc["canonical_solution"]),
            {"entry_point": doc["entry_point"], "test": doc["test"]},
        )
        for doc in documents("codex_humaneval")
    ]
    about = "a Python function from its signature and description"
    return Task("humaneval", problems, passes, extract=program, about=about, licence="MIT")


def mbpp() -> Task:
    """The 500 test problems of MBPP: a sentence and three tests; the program is wanted.

    Two reference solutions are judged wrong here: mbpp/123 takes longer than the sandbox allows,
    and the tests of mbpp/367 make objects of the program's own class, which do not come out of it.
    """
    problems = []
    for doc in documents("codex_mbpp"):
        tests = [str(test) for test in doc["test_list"]]
        gold = str(doc["code"]).replace("\r\n", "\n")
        # One problem has a setup, and that makes objects of the program's own class.
        setup = str(doc["test_setup_code"]).replace("\r\n", "\n")
        whole = [f"{setup}\n{test}" if setup else test for test in tests]
        question = f"{doc['text']}\nYour code should pass these tests:\n" + "\n".join(tests)
        meta = {"tests": whole, "names": _called(gold, whole)}
        problems.append(Problem(f"mbpp/{doc['task_id']}", question, gold, meta))
    about = "a Python function from a sentence and three tests"
    return Task("mbpp", problems, passes, extract=program, about=about, licence="CC-BY-4.0")


def program(problem: Problem, text: str) -> str | None:
    """The program in a response: of a fenced block, or of the lines that continue the question."""
    if blocks(text) or "entry_point" not in problem.meta:
        return code_of(text)
    return text if _defined(text, problem) else _body(text)


def passes(problem: Problem, answer: str | None) -> bool | None:
    """Whether a program passes the problem's tests.

    Raises:
        SandboxError: programs cannot be isolated here; nothing was run.
    """
    if answer is None:
        return False
    (outcome,) = _tests(problem).outcomes([_source(problem, answer)])
    return outcome.status == "passed"


@lru_cache(maxsize=256)
def _tests(problem: Problem) -> UnitTests:
    from ppl.verifiers.exact.unit_tests import UnitTests  # torch, to judge and not to list

    name = f"tests of {problem.id}"
    if "entry_point" not in problem.meta:
        return UnitTests(problem.meta["tests"], names=problem.meta["names"], name=name)
    entry = str(problem.meta["entry_point"])
    return UnitTests(
        f"{problem.meta['test']}\ncheck({entry})",
        names=[entry],
        setup=f"{problem.question}{INDENT}pass\n",  # helpers of the question are at hand for tests
        name=name,
    )


def _source(problem: Problem, answer: str) -> str:
    """The whole program: of HumanEval the question comes first, whose last line is a docstring."""
    code = code_of(answer)
    if "entry_point" not in problem.meta:
        return code
    if _defined(code, problem):
        return f"{problem.question}\n{code}"
    # A body whose first line, or every line, has lost its indentation on the way.
    for body in (code, INDENT + code.lstrip(), textwrap.indent(code, INDENT)):
        if _parse(problem.question + body) is not None:
            return problem.question + body
    return problem.question + code


def _defined(code: str, problem: Problem) -> bool:
    """Whether it makes the function that is asked for."""
    tree = _parse(code)
    return tree is not None and any(
        isinstance(node, ast.FunctionDef) and node.name == problem.meta["entry_point"]
        for node in tree.body
    )


def _body(text: str) -> str:
    """The lines of a function's body: up to the first, but for the very first, without indent."""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if lines and line.strip() and not line.startswith((" ", "\t")):
            break
        lines.append(line)
    return "".join(lines)


def _called(gold: str, tests: list[str]) -> list[str]:
    """The functions and classes of a solution that its tests speak of."""
    tree = _parse(gold)
    words = {n.id for t in tests for n in ast.walk(ast.parse(t)) if isinstance(n, ast.Name)}
    made = (ast.FunctionDef, ast.ClassDef)
    defined = [n.name for n in (tree.body if tree else ()) if isinstance(n, made)]
    return [name for name in dict.fromkeys(defined) if name in words]


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a model's string escapes
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
