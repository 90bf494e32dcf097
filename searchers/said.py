"""What the functions of a search said when it was saved: to be compared, never to be run.

A function is found again by its name, and a name may stand for another function by then: a cell was
changed and run again, a module was edited. So files keep what functions say, as fingerprints, and
of those that no module has (a notebook's, a script's) the text, which tells what has changed.
"""

from __future__ import annotations

import ast
import functools
import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from types import FunctionType
from typing import Any

from ppl.errors import SearchStateError
from ppl.runtime.source import code_of, other_use, text_of, uses_of

_SHOWN = 60  # characters of a line that differs
_OVER = "or hand the one over that is meant: Search.load(path, {}=...)"


def functions_of(program: Any) -> list[Any]:
    """The functions that a program is made of: itself, or those in its partials."""
    if not isinstance(program, functools.partial):
        return [program]
    inside = [*program.args, *program.keywords.values()]
    found = [f for f in inside if isinstance(f, FunctionType | functools.partial)]
    return [f for part in (program.func, *found) for f in functions_of(part)]


def said(function: Any) -> dict[str, Any]:
    """What a file keeps of a function."""
    name = str(getattr(function, "__qualname__", type(function).__qualname__))
    module = getattr(function, "__module__", None)
    row: dict[str, Any] = {"name": name, "code": None, "uses": {}}
    if "<lambda>" in name:  # a piece of some line, which also says what it is written for
        return row
    row |= {"code": code_of(function), "uses": uses_of(function)}
    if row["code"] is not None and (module == "__main__" or "<" in name):
        row["text"] = text_of(function)
    return row


def check(row: Mapping[str, Any], found: Any, path: str, what: str) -> None:
    """Raises SearchStateError if what stands by a name is not what was saved by it.

    Args:
        row: from `said`.
        found: what stands there now.
        path: the name.
        what: "program", "guide", or "" for what cannot be handed over.
    """
    now = code_of(found)
    over = f", {_OVER.format(what)}" if what else ""
    if path.startswith("__main__:") and None in (row["code"], now):
        raise SearchStateError(
            f"whether {path} is what it was cannot be told, as its source is not known: define it "
            f"in a module, a script or a notebook{over}"
        )
    if (changed := _changed(row, found)) is not None:
        text = f". It was:\n\n{row['text']}" if "text" in row else ""
        raise SearchStateError(
            f"{path} is not what it was when the search was saved ({changed}): define it as it was"
            f"{over}{text}"
        )


def missing(path: str, kept: Mapping[str, Any]) -> str:
    """What to do where a notebook or script has no such function."""
    name = path.partition(":")[2]
    rows = [*kept.get("program", ()), *kept.get("guide", ()), *kept.get("others", {}).values()]
    text = next((row["text"] for row in rows if row["name"] == name and "text" in row), None)
    return (
        f"{name!r} was defined in a notebook or script, and here it is not: run its cell before "
        f"you load, {_OVER.format('program')}" + ("" if text is None else f". It was:\n\n{text}")
    )


def compare(rows: Sequence[Mapping[str, Any]], given: Any, what: str) -> None:
    """Warns if a program that is handed over says something else than the one that was saved."""
    for row, function in zip(rows, functions_of(given), strict=False):
        if (changed := _changed(row, function)) is not None:
            warnings.warn(
                f"the {what} is not what it was when the search was saved ({changed}): what was "
                "drawn is replayed with the new one, and what was finished keeps its result",
                UserWarning,
                stacklevel=6,  # of whoever calls Search.load
            )


def _changed(row: Mapping[str, Any], function: Any) -> str | None:
    """How a function differs from what was saved; None if it does not, or that is not known."""
    now = code_of(function)
    if None in (row["code"], now):
        return None
    if row["code"] != now:
        return _difference(row["text"], function) if "text" in row else "its lines are others now"
    return other_use(row["uses"], uses_of(function))


def _difference(old: str, function: Any) -> str:
    """Where two texts begin to differ, comments and layout left out."""
    texts = old, text_of(function)
    before, after = (ast.unparse(ast.parse(text)).splitlines() for text in texts)
    pairs = zip_longest(before, after, fillvalue="")
    was, is_now = next((a.strip(), b.strip()) for a, b in pairs if a != b)
    same = next((i for i, (a, b) in enumerate(zip(was, is_now, strict=False)) if a != b), 0)
    return f"`{_around(was, same)}` then, `{_around(is_now, same)}` now"


def _around(line: str, place: int) -> str:
    """The part of a line around a place."""
    start = max(0, place - _SHOWN // 2)
    before, after = "..." * (start > 0), "..." * (len(line) > start + _SHOWN)
    return before + line[start : start + _SHOWN] + after
