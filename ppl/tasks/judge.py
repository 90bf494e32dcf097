"""The scorers of `reasoning-gym` in a separate process with a time limit, behind a gate.

Some of its scorers execute the answer as text (`eval`, sympy's `parse_expr`). Which ones is read
off their source, in the worker; to these only answers are handed that cannot call anything, see
`harmless` and `literal`. The embedded tasks are stricter: see `allowed_answer`.
"""

from __future__ import annotations

import ast
import atexit
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from ppl.errors import TaskError, WorkerError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.runtime.worker import Worker
from ppl.tasks.task import Problem

TaskName = Literal["arithmetic", "countdown"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)

MAX_ANSWER = 200  # characters; the longest right answer of the embedded tasks has fewer than 60
LONGEST = 20_000  # characters of an answer to any other task

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_EXPRESSION = re.compile(r"[0-9+\-*/() ]+")
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div)


@checked
def allowed_answer(task: TaskName, answer: str) -> bool:
    """Whether an answer may be handed to the scorer at all.

    Arithmetic: one integer. Countdown: integers, `+ - * /`, a minus sign and parentheses, checked
    on the parsed tree, so powers, floor division, calls and names never reach the scorer.
    """
    if len(answer) > MAX_ANSWER:
        return False
    if task == "arithmetic":
        return _INTEGER.fullmatch(answer) is not None
    if _EXPRESSION.fullmatch(answer) is None:
        return False
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _plain(tree.body)


def _plain(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, _OPERATORS) and _plain(node.left) and _plain(node.right)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _plain(node.operand)
    return isinstance(node, ast.Constant) and type(node.value) is int


_FUNCTIONS = "sin|cos|tan|asin|acos|atan|sinh|cosh|tanh|exp|log|ln|sqrt"
_CALL = re.compile(r"(\w*)\s*\(|[\])]\s*\(")
_DANGEROUS = re.compile(r"""["'`\\@{}:;#]|__|\.\s*[^\W\d]|[^\W\d]\s*\.|[\])]\s*\.""")


def harmless(answer: str) -> bool:
    """Whether executing an answer as a Python expression calls at most functions of numbers.

    Such is what has neither strings (which sympy executes in its turn), attributes nor calls but
    those of sin, exp, sqrt and their like. It may still take long: the scorer has a time limit.
    """
    if _DANGEROUS.search(answer):
        return False
    called = [match.group(1) for match in _CALL.finditer(answer)]
    # None is a bracket that closed: what it gave would be called.
    return all(name is not None and re.fullmatch(f"({_FUNCTIONS})?", name) for name in called)


def literal(answer: str) -> bool:
    """Whether an answer is a JSON value or a Python literal, whose execution only makes a value."""
    for reader in (json.loads, ast.literal_eval):
        try:
            reader(answer)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            continue
        return True
    return False


_WORKER = Path(__file__).with_name("gym_worker.py").read_text(encoding="utf-8")


class Judge:
    """Says which answers to problems of `reasoning-gym` are right, with one warm worker process.

    Only a score of exactly 1.0 by `reasoning-gym` counts as right. An answer of None is wrong, and
    so is one that would be executed and may not be: to the embedded tasks all outside of
    `allowed_answer`. When the scorer fails, or the worker hangs or dies, the truth is unknown,
    which is not wrong: `TaskError` is raised, and the next call starts a new worker.

    Args:
        limit: seconds allowed per answer.
        start_limit: seconds allowed for the worker to start and import `reasoning-gym`.

    Attributes:
        worker: the process, kept warm; see `ppl.runtime.worker`.
    """

    @checked
    def __init__(self, limit: float = 10.0, start_limit: float = 120.0) -> None:
        checks.positive(limit=limit, start_limit=start_limit)
        self.limit = limit
        self.worker = Worker(_WORKER, "the answer checker", "ppl-search[tasks]", start_limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker; a later call starts a new one."""
        self.worker.stop()

    @checked
    def score(self, problem: Problem, answer: str | None) -> bool:
        """Whether the answer is right."""
        name = _known(problem, "dataset")
        task = problem.meta.get("task")
        if answer is None or (task in TASKS and not allowed_answer(task, answer)):
            return False
        try:
            self._prepare(problem)
            score = self._ask(problem, answer)
        except WorkerError as error:
            raise TaskError(f"{name}, {problem.id}, answer {answer!r}: {error}") from error
        if score is not None and math.isnan(score):
            raise TaskError(f"{name}, {problem.id}: the scorer failed at the answer {answer!r}")
        return score == 1.0

    @checked
    def score_many(self, problems: Sequence[Problem], answers: Sequence[str | None]) -> list[bool]:
        """`score` for each pair, in order."""
        if len(problems) != len(answers):
            raise TaskError(f"{len(problems)} problems but {len(answers)} answers")
        return [self.score(p, a) for p, a in zip(problems, answers, strict=True)]

    @checked
    def verdict(self, problem: Problem, answer: str | None) -> bool | None:
        """`score`, but None for an answer that cannot be judged.

        Such are answers that would be executed and are not harmless, and those on which the scorer
        fails, hangs or dies.

        Raises:
            TaskError: `reasoning-gym` does not start.
        """
        _known(problem, "dataset")
        task = problem.meta.get("task")
        if answer is None:
            return False
        if len(answer) > LONGEST or (task in TASKS and not allowed_answer(task, answer)):
            return None
        try:
            self._prepare(problem)
        except WorkerError as error:
            raise TaskError(f"{problem.id}: {error}") from error
        try:
            score = self._ask(problem, answer)
        except WorkerError:
            return None
        return None if score is None or math.isnan(score) else score == 1.0

    def fields(self, dataset: str | None = None) -> list[str] | None:
        """The settings of a task of `reasoning-gym`, None if there is none; or all tasks' names.

        Raises:
            TaskError: `reasoning-gym` does not start.
        """
        found: list[str] | None = self._made({"do": "fields", "dataset": dataset})
        return found

    def make(self, dataset: str, settings: Mapping[str, Any], index: int) -> dict[str, Any]:
        """A problem: its "question" (None if none can be made at this place) and "gold" answer.

        Raises:
            TaskError: the settings do not fit, or `reasoning-gym` fails.
        """
        request = {"do": "make", "dataset": dataset, "settings": dict(settings), "index": index}
        made: dict[str, Any] = self._made(request)
        if "error" in made:
            raise TaskError(f"reasoning_gym/{dataset}: settings do not fit: {made['error']}")
        return made

    def _made(self, request: Mapping[str, Any]) -> Any:
        try:
            return self.worker.ask(request, self.worker.start_limit)
        except WorkerError as error:
            raise TaskError(f"{request['dataset'] or 'reasoning-gym'}: {error}") from error

    def _prepare(self, problem: Problem) -> None:
        """Has the problem made where its answers are scored, which may take longer than to score.

        Raises:
            WorkerError: that failed.
            TaskError: the scorer calls anything right.
        """
        if "metadata" in problem.meta:
            return  # sent whole with the answer; these scorers are known to judge
        if not self.worker.ask(_request(problem, "prepare"), self.worker.start_limit):
            raise TaskError(
                f"{problem.id}: the scorer of this version of reasoning-gym calls any answer right;"
                " choose another task"
            )

    def _ask(self, problem: Problem, answer: str) -> float | None:
        """The score of an answer, None if it was not handed to a scorer that executes it."""
        plain = harmless(answer)
        request = {
            **_request(problem, "score"),
            "answer": answer,
            "harmless": plain,
            "literal": plain or literal(answer),
        }
        score = self.worker.ask(request, self.limit)
        return None if score is None else float(score)


def _request(problem: Problem, what: str) -> dict[str, Any]:
    meta = problem.meta
    sent = "metadata" in meta
    return {
        "do": what,
        "dataset": meta["dataset"],
        "settings": dict(meta.get("settings", {})),
        "index": meta.get("index", 0),
        "entry": {"answer": problem.gold, "metadata": meta["metadata"]} if sent else None,
    }


def _known(problem: Problem, key: str) -> Any:
    meta: Mapping[str, Any] = problem.meta
    if key not in meta:
        raise TaskError(
            f"problem={problem.id!r} is none of reasoning-gym: make it by problems() or by"
            " load('reasoning_gym/NAME')"
        )
    return meta[key]


_shared: list[Judge] = []


def shared_judge() -> Judge:
    """The judge of all tasks, which lives until the interpreter ends."""
    if not _shared:
        _shared.append(Judge())
        atexit.register(_shared[0].close)
    return _shared[0]


@checked
def is_correct(problem: Problem, answer: str | None) -> bool:
    """Whether an answer is right, by a shared `Judge` that lives until the interpreter ends."""
    return shared_judge().score(problem, answer)
