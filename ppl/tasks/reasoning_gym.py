"""Problems of `reasoning-gym`: those that the embedded model never saw, and any by name.

`problems("countdown", 100)` gives held-out questions, `Judge().score_many(problems, answers)` says
which answers are right. `gym("knights_knaves", n_people=3)` is any of its tasks.

Train and evaluation sets of the embedded model are disjoint by construction: every problem has a
canonical key, and only keys with `held_out(key)` are served, while the model's own generator
rejects exactly those.

Needs the extra `ppl-search[tasks]`; importing this module does not.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from ppl.errors import TaskError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.tasks.judge import TASKS, TaskName, shared_judge
from ppl.tasks.task import Problem, Task, fitting

DATASETS: Mapping[TaskName, str] = {"arithmetic": "basic_arithmetic", "countdown": "countdown"}
"""Name of each embedded task in `reasoning-gym`."""

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
SCAN_PER_PROBLEM = 400  # items looked at per problem wanted before giving up


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
    """The first `n` distinct held-out instances of an embedded task; their ids are their keys.

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
        if held_out(problem.id):
            found.setdefault(problem.id, problem)
    if len(found) < n:
        raise TaskError(
            f"problems({task!r}, n={n}): only {len(found)} distinct held-out problems found with"
            " these settings; ask for fewer"
        )
    return list(found.values())


@checked
def gym(name: str, *, n: int = 100, seed: int = 0, **settings: Any) -> Task:
    """Any task of `reasoning-gym` by its name there.

    Judged by its own scorer, in a separate process with a time limit: right is a score of exactly
    one. Equal names, settings and seeds give equal problems; a larger `n` begins with the smaller.

    Args:
        name: as `reasoning_gym.create_dataset` knows it, such as "knights_knaves".
        n: number of problems.
        seed: of their making.
        settings: of this task, see its configuration in `reasoning-gym`.

    Raises:
        TaskError: the extra is missing; the name or a setting is unknown or out of range.
    """
    checks.count(n=n)
    judge = shared_judge()
    known = judge.fields(name)
    if known is None:
        close = difflib.get_close_matches(name, judge.fields() or (), 3, 0.4)
        raise TaskError(
            f"reasoning-gym has no task {name!r}"
            + (f"; did you mean {' or '.join(close)}?" if close else "")
        )
    own = [field for field in known if field not in ("seed", "size")]
    fitting(f"reasoning_gym/{name}", settings, own)
    whole = {**settings, "seed": seed * SEED_STRIDE, "size": n}
    found = []
    for i in range(n):
        made = judge.make(name, whole, i)
        if made["question"] is not None:
            meta = {"dataset": name, "settings": whole, "index": i}
            place = f"reasoning_gym/{name}/{seed}/{i}"
            found.append(Problem(place, made["question"], made["gold"], meta))
    return Task(
        f"reasoning_gym/{name}",
        found,
        judged,
        about="made by reasoning-gym, judged by its scorer",
        licence="Apache-2.0",
    )


def judged(problem: Problem, answer: str | None) -> bool | None:
    """Whether an answer is right, see `Judge.verdict`."""
    return shared_judge().verdict(problem, answer)


def gym_names() -> list[str]:
    """The tasks of the installed `reasoning-gym`.

    Raises:
        TaskError: the extra is missing.
    """
    return shared_judge().fields() or []


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
    plain = json.loads(json.dumps(metadata, default=list))
    meta = {"task": task, "dataset": DATASETS[task], "metadata": plain}
    return Problem(key, str(item["question"]), str(item["answer"]), meta)
