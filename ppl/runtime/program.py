"""Programs with their arguments, and what is none."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from ppl.errors import ProgramError
from ppl.runtime.source import written

Program = Callable[..., Any]

_REMEDY = (
    "programs are plain functions that return their result: take `async`, `await` and `yield` "
    "out, all particles' requests are batched without them"
)


@dataclass(frozen=True, slots=True)
class Task:
    """A program with its arguments: what all particles of one search run."""

    program: Program
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    guide: Program | None = None


def check_program(program: Program, what: str = "the program") -> None:
    """Raises ProgramError unless calling `program` runs it.

    A generator, a coroutine or an async function would only return what has still to be run.
    """
    if not callable(program):
        raise ProgramError(
            f"{what} is a {type(program).__name__}, no function; programs are plain functions, "
            "handed over apart from their arguments, as in searcher.run(program, question)"
        )
    inner = _written(program)
    for is_one, kind in (
        (inspect.isgeneratorfunction, "a generator function (it has a yield)"),
        (inspect.iscoroutinefunction, "an async function"),
        (inspect.isasyncgenfunction, "an async generator function"),
    ):
        if is_one(inner):
            raise ProgramError(f"{what} {_name(program)} is {kind}; {_REMEDY}")


def check_result(result: Any, whose: str) -> None:
    """Raises ProgramError if a program returned something that has still to be run."""
    if isinstance(result, GeneratorType | CoroutineType | AsyncGeneratorType):
        if not isinstance(result, AsyncGeneratorType):
            result.close()
        raise ProgramError(
            f"{whose} returned a {type(result).__name__}, which nobody runs; {_REMEDY}"
        )


def warn_of(program: Program, said: str) -> None:
    """A UserWarning at the line where the program is written.

    Searches run beside the frames of whoever called them, so no `stacklevel` leads there.
    """
    function = _written(program)
    function = getattr(function, "__func__", function)
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:  # it is not written in Python
        warnings.warn(said, UserWarning, stacklevel=3)
        return
    registry = names.setdefault("__warningregistry__", {})
    module = names.get("__name__", "<unknown>")
    line = code.co_firstlineno
    warnings.warn_explicit(said, UserWarning, code.co_filename, line, module, registry)


def _written(program: Program) -> Any:
    """The function, or method, that runs when a program is called."""
    inner = written(program)
    if not inspect.isroutine(inner):
        inner = getattr(inner, "__call__", inner)  # noqa: B004 (an object that is called)
    return inner


def _name(program: Program) -> str:
    return repr(getattr(program, "__name__", type(program).__name__))
