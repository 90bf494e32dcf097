"""What a program's own code says, as fingerprints: whether two functions are the same program.

What a function does is its own lines, and what it uses of the place where it is written: helper
functions, constants such as a prompt. In a notebook all of these are cells that are run again.
Comments and layout are no difference. What lies in other modules is not looked at. Lists, dicts and
sets of constants are, where they are only read: a program that keeps something there would never be
the same again.
"""

from __future__ import annotations

import ast
import contextlib
import dis
import functools
import hashlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from ppl.runtime.reads import only_reads

_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_HOLDERS = (list, dict, set)
_CHANGES = ""  # in the place of a fingerprint: what may be changed by the program itself


def code_of(function: Callable[..., Any]) -> str | None:
    """16 hex digits of what a function's own lines say; None if its source is not known (typed
    into a shell, an object that is called)."""
    function = written(function)
    try:
        tree = ast.parse(text_of(function))
    except (OSError, TypeError, SyntaxError):
        return None
    name = getattr(function, "__name__", "<lambda>")
    if name != "<lambda>" and [getattr(node, "name", None) for node in tree.body] != [name]:
        return None  # lines of something else: its file was written anew, or never was one
    return _digest(_shape(tree))


def uses_of(function: Callable[..., Any]) -> dict[str, str]:
    """16 hex digits for each thing that a function, and what it calls there, uses of its module
    and of the functions around it: functions, classes and verifiers that are written in the same
    module, constants, and lists, dicts and sets of constants that are only read. By name, in order:
    a method as in `"Class.method"`, a default or an argument of a partial as in `"steps="`."""
    found: dict[str, str] = {}
    first = written(function)
    module = str(getattr(first, "__module__", None))
    _collect(first, module, found, {id(first)})
    if isinstance(function, functools.partial):  # takes the place of defaults
        for name, value in [*enumerate(function.args), *function.keywords.items()]:
            if type(value) in _HOLDERS:
                _hold(f"{name}=", value, first, found)
            else:
                _add(f"{name}=", value, module, found, {id(first)})
    return {name: said for name, said in sorted(found.items()) if said != _CHANGES}


def same(a: Any, b: Any) -> bool:
    """Whether two functions say the same and use the same; False if their source is not known."""
    if not (isinstance(a, FunctionType) and isinstance(b, FunctionType)):
        return False
    code = code_of(a)
    return code is not None and code == code_of(b) and uses_of(a) == uses_of(b)


def other_use(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """How two `uses_of` differ; None if they do not."""
    differ = (name for name in sorted({*before, *now}) if before.get(name) != now.get(name))
    return next((f"{name!r}, which it uses, is another one now" for name in differ), None)


def text_of(function: Callable[..., Any]) -> str:
    """A function's own lines, as if nothing were around it.

    Raises:
        OSError, TypeError: its source is not known.
    """
    return textwrap.dedent(inspect.getsource(written(function)))


def written(program: Any) -> Any:
    """The function that was written, without partials, decorators and `verifier`."""
    while isinstance(program, functools.partial):
        program = program.func
    return inspect.unwrap(program)


def _collect(function: Any, module: str, found: dict[str, str], seen: set[int]) -> None:
    for name, value in _values(function):
        inner = written(getattr(value, "function", value))  # a verifier's function
        if isinstance(value, type) and value.__module__ == module:
            for part, method in vars(value).items():
                if isinstance(method, FunctionType) or not part.startswith("__"):
                    _add(f"{name}.{part}", written(method), module, found, seen)
        elif type(value) in _HOLDERS:
            _hold(name, value, function, found)
        else:
            _add(name, inner, module, found, seen)


def _hold(name: str, value: Any, function: Any, found: dict[str, str]) -> None:
    """A list, dict or set of constants, unless one of the functions that use it may change it."""
    if found.get(name) == _CHANGES or not _reads(function, name.rstrip("=")):
        found[name] = _CHANGES
        return
    if all(map(_constant, value.items() if isinstance(value, dict) else value)):
        found[name] = _digest(f"{type(value).__name__} {_say(value)}")


def _reads(function: Any, name: str) -> bool:
    try:
        return only_reads(ast.parse(text_of(function)), name)
    except (OSError, TypeError, SyntaxError):  # its source is not known
        return False


def _add(name: str, value: Any, module: str, found: dict[str, str], seen: set[int]) -> None:
    if isinstance(value, FunctionType):
        if value.__module__ == module and id(value) not in seen:
            seen.add(id(value))
            found[name] = code_of(value) or "unknown"
            _collect(value, module, found, seen)
    elif isinstance(value, re.Pattern) or _constant(value):
        found[name] = _digest(f"{type(value).__name__} {_say(value)}")


def _values(function: Any) -> Iterator[tuple[str, Any]]:
    """What a function reads from outside of itself, with names; not what it sets there."""
    if not isinstance(function, FunctionType):
        return
    defaults = function.__defaults__ or ()
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    given = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    for name, value in {**given, **(function.__kwdefaults__ or {})}.items():
        yield f"{name}=", value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not set yet
            yield name, cell.cell_contents
    codes = list(_codes(function.__code__))
    instructions = [each for code in codes for each in dis.get_instructions(code)]
    sets = {each.argval for each in instructions if each.opname == "STORE_GLOBAL"}
    for name in sorted({each.argval for each in instructions if each.opname in _GLOBAL} - sets):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _codes(inner)


def _constant(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_constant, value))
    return type(value) in _PLAIN


def _say(value: Any) -> str:
    """Constants, and what holds them, as Python shows them; what has no order, in one."""
    if type(value) not in (tuple, frozenset, *_HOLDERS):
        return repr(value)
    parts = [*map(_say, value.items() if isinstance(value, dict) else value)]
    if isinstance(value, set | frozenset):
        parts.sort()
    return f"({', '.join(parts)}{',' * (len(parts) == 1)})"


def _shape(node: Any) -> str:
    """A syntax tree in words in which all versions of Python agree: newer ones have more fields,
    which are empty where they say nothing, and `ast.dump` writes them or not."""
    if isinstance(node, ast.AST):
        fields = ((n, v) for n, v in ast.iter_fields(node) if v is not None and v != [])
        return f"{type(node).__name__}({', '.join(f'{n}={_shape(v)}' for n, v in fields)})"
    if isinstance(node, list):
        return f"[{', '.join(map(_shape, node))}]"
    return repr(node)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
