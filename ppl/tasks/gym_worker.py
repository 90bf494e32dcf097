"""What the process of `ppl.tasks.judge` runs: makes and scores problems of `reasoning-gym`.

It is run as a text and imports nothing of this package. One JSON request a line, one reply a line.
The order of Python's sets is fixed by its environment: some problems depend on it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import re
import sys
from typing import Any

MEMORY = 4 << 30  # bytes of address space: some scorers compute what an answer says
EXECUTES = re.compile(r"\b(eval|exec)\(")
_made: dict[str, tuple[Any, str | None]] = {}


def dataset(request: dict[str, Any]) -> tuple[Any, str | None]:
    """The data set of a request, and what of an answer must hold before its scorer may see it."""
    import reasoning_gym

    key = json.dumps([request["dataset"], request["settings"]], sort_keys=True)
    if key not in _made:
        while len(_made) >= 32:
            _made.pop(next(iter(_made)))
        settings = {"seed": 0, "size": 1, **request["settings"]}
        made = reasoning_gym.create_dataset(request["dataset"], **settings)
        modules = {c.__module__ for c in type(made).__mro__} - {"reasoning_gym.dataset"}
        modules = {m for m in modules if m.startswith("reasoning_gym.")}
        text = "".join(inspect.getsource(sys.modules[m]) for m in modules)
        # sympy executes strings in many ways; eval and exec only what is no literal.
        needs = "harmless" if "sympy" in text else "literal" if EXECUTES.search(text) else None
        _made[key] = made, needs
    return _made[key]


def fields(request: dict[str, Any]) -> Any:
    """The settings of a task; without one, the names of all."""
    from reasoning_gym.factory import DATASETS

    if request["dataset"] is None:
        return sorted(DATASETS)
    found = DATASETS.get(request["dataset"])
    return found and [f.name for f in dataclasses.fields(found[1])]


def make(request: dict[str, Any]) -> dict[str, Any]:
    """A problem; the reply names what does not fit."""
    try:
        made = dataset(request)[0]
    except (AssertionError, TypeError, ValueError) as error:
        return {"error": str(error)}
    try:
        item = made[request["index"]]
    except ValueError:  # it gives up on an index for which nothing in range came up
        return {"question": None}
    gold = item["answer"]
    return {"question": str(item["question"]), "gold": None if gold is None else str(gold)}


def entry(request: dict[str, Any]) -> Any:
    """The problem as its scorer wants it: as it was sent, or made once more."""
    return request["entry"] or dataset(request)[0][request["index"]]


def prepare(request: dict[str, Any]) -> bool:
    """Makes what a score needs, so that no answer pays for it. Whether the scorer judges at all."""
    problem = entry(request)
    try:
        return float(dataset(request)[0].score_answer("no answer at all", problem)) != 1.0
    except Exception:  # whatever a scorer raises; it did not call it right
        return True


def score(request: dict[str, Any]) -> float | None:
    """The score of an answer: None if the scorer would execute it and that is not allowed, NaN if
    it fails."""
    made, needs = dataset(request)
    if needs and not request[needs]:
        return None
    try:
        return float(made.score_answer(request["answer"], entry(request)))
    except Exception:  # whatever a scorer raises at an answer that it did not expect
        return math.nan


DOES = {"fields": fields, "make": make, "prepare": prepare, "score": score}


def main() -> None:
    """Answers requests until there are no more."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, sys.orig_argv)
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    import resource

    import reasoning_gym  # noqa: F401  (imported before it is ready)

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", file=reply, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(DOES[request["do"]](request)), file=reply, flush=True)


if __name__ == "__main__":
    main()
