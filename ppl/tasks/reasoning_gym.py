"""Multi-step problems with a checker: `reasoning-gym` instances that the embedded model never saw.

`problems("countdown", 100)` gives questions, `Judge().score_many(problems, answers)` says which
answers are right. The scorers of `reasoning-gym` execute the answer as text, so an answer must
first pass a strict whitelist here, and is then scored in a separate process with a time limit.

Train and evaluation sets are disjoint by construction: every problem has a canonical key, and only
keys with `held_out(key)` are served, while the model's own generator rejects exactly those.

Needs the extra `ppl-search[tasks]`; importing this module does not.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, cast, get_args

from ppl.errors import TaskError, WorkerError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.runtime.worker import Worker

TaskName = Literal["arithmetic", "countdown"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)

DATASETS: Mapping[TaskName, str] = {"arithmetic": "basic_arithmetic", "countdown": "countdown"}
"""Name of each task in `reasoning-gym`."""

SETTINGS: Mapping[TaskName, Mapping[str, object]] = {
    "arithmetic": {
        "min_terms": 3,
        "max_terms": 4,
        "min_digits": 1,
        "max_digits": 1,
        "operators": ["+", "-", "*"],
        "allow_parentheses": True,
        "allow_negation": True,
    },
    "countdown": {
        "min_numbers": 3,
        "max_numbers": 4,
        "min_value": 1,
        "max_value": 20,
        "min_target": 10,
        "max_target": 99,
        "operators": ["+", "-"],
    },
}
"""Evaluation settings: keyword arguments of `reasoning_gym.create_dataset`."""

# reasoning-gym draws item i of seed s from Random(s + i): far-apart seeds share no items.
SEED_STRIDE = 10_000_019
MAX_ANSWER = 200  # characters; the longest right answer has fewer than 60
SCAN_PER_PROBLEM = 400  # items looked at per problem wanted before giving up


@dataclass(frozen=True, slots=True)
class Problem:
    """One held-out question.

    Attributes:
        task: which task it belongs to.
        question: the exact question of `reasoning-gym`.
        key: canonical name of the problem; equal keys are the same problem.
        answer: one right answer, `reasoning-gym`'s own.
        metadata: what its scorer needs, as JSON text.
    """

    task: TaskName
    question: str
    key: str
    answer: str
    metadata: str


@checked
def arithmetic_key(expression: str) -> str:
    """Canonical key of an arithmetic problem: its expression without spaces."""
    return "arithmetic:" + "".join(expression.split())


@checked
def countdown_key(numbers: Iterable[int], target: int) -> str:
    """Canonical key of a countdown problem: its sorted numbers and its target."""
    return f"countdown:{','.join(map(str, sorted(numbers)))}={target}"


@checked
def held_out(key: str) -> bool:
    """Whether a problem is kept for evaluation: one key in eight, the same on every machine."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 8 == 0


@checked
def problems(task: TaskName, n: int, seed: int = 0) -> list[Problem]:
    """The first `n` distinct held-out instances of a task.

    Item i depends on `task`, `seed` and i only, so a longer list starts with the shorter one.
    """
    if task not in TASKS:
        raise TaskError(f"no task {task!r}: choose one of {', '.join(TASKS)}")
    if n < 0:
        raise TaskError(f"problems({task!r}, n={n}): n must not be negative")
    found: dict[str, Problem] = {}
    for problem in _stream(task, seed, SCAN_PER_PROBLEM * (n + 10)):
        if len(found) >= n:
            break
        if held_out(problem.key):
            found.setdefault(problem.key, problem)
    if len(found) < n:
        raise TaskError(
            f"problems({task!r}, n={n}): only {len(found)} distinct held-out problems found with"
            " these settings; ask for fewer"
        )
    return list(found.values())


def _stream(task: TaskName, seed: int, limit: int) -> Iterator[Problem]:
    """Items of the `reasoning-gym` dataset in order, held out or not."""
    try:
        import reasoning_gym  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise TaskError(
            "the tasks need the package reasoning-gym: pip install 'ppl-search[tasks]'"
        ) from error
    dataset = reasoning_gym.create_dataset(
        DATASETS[task], seed=seed * SEED_STRIDE, size=limit, **SETTINGS[task]
    )
    for i in range(limit):
        try:
            item = dataset[i]
        except ValueError:
            continue  # countdown gives up on an index for which no target in range came up
        yield _problem(task, item)


def _problem(task: TaskName, item: Mapping[str, object]) -> Problem:
    metadata = cast(Mapping[str, object], item["metadata"])
    if task == "arithmetic":
        key = arithmetic_key(str(metadata["expression"]))
    else:
        key = countdown_key(cast(Sequence[int], metadata["numbers"]), cast(int, metadata["target"]))
    return Problem(
        task, str(item["question"]), key, str(item["answer"]), json.dumps(metadata, default=list)
    )


# --- the whitelist ----------------------------------------------------------------------------

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


# --- the judge --------------------------------------------------------------------------------

_WORKER = """
import json, os, sys
reply = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import reasoning_gym
scorers = {}
print("ready", file=reply, flush=True)
for line in sys.stdin:
    request = json.loads(line)
    name = request["dataset"]
    if name not in scorers:
        scorers[name] = reasoning_gym.create_dataset(name, seed=0, size=1).score_answer
    score = float(scorers[name](request["answer"], request["entry"]))
    print(json.dumps(score), file=reply, flush=True)
"""


class Judge:
    """Says which answers are right, with one warm worker process.

    Only a score of exactly 1.0 by `reasoning-gym` counts as right. An answer of None, or one
    outside the whitelist, is wrong. When the worker hangs or dies the truth is unknown, which is
    not wrong: `TaskError` is raised, and the next call starts a new worker.

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
        if answer is None or not allowed_answer(problem.task, answer):
            return False
        entry = {"answer": problem.answer, "metadata": json.loads(problem.metadata)}
        request = {"dataset": DATASETS[problem.task], "answer": answer, "entry": entry}
        try:
            return bool(self.worker.ask(request, self.limit) == 1.0)
        except WorkerError as error:
            raise TaskError(f"{problem.key}, answer {answer!r}: {error}") from error

    @checked
    def score_many(self, problems: Sequence[Problem], answers: Sequence[str | None]) -> list[bool]:
        """`score` for each pair, in order."""
        if len(problems) != len(answers):
            raise TaskError(f"{len(problems)} problems but {len(answers)} answers")
        return [self.score(p, a) for p, a in zip(problems, answers, strict=True)]


_shared: list[Judge] = []


@checked
def is_correct(problem: Problem, answer: str | None) -> bool:
    """Whether an answer is right, by a shared `Judge` that lives until the interpreter ends."""
    if not _shared:
        _shared.append(Judge())
        atexit.register(_shared[0].close)
    return _shared[0].score(problem, answer)
