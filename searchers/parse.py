"""Searchers as text: what `repr` writes is read back, and nothing is ever evaluated.

    parse("SMC(16)")
    parse("ParticleFilter(6, temperature=EntropicAnnealing(6))")
    parse("my_package.search.Mine(n=3)")

The text is a call of a known class: of this library by its name, of others by its import path. The
arguments are literals, and calls of known classes. Known is every `Searcher` whose module has been
imported, and what is `register`ed. A function among the settings is named by its import path.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import math
import reprlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar
from weakref import WeakValueDictionary

from ppl.errors import SearchStateError
from ppl.runtime.source import same

C = TypeVar("C", bound=type)

_OURS = ("ppl.searchers.", "ppl.decide.")
_CLASSES: WeakValueDictionary[str, type] = WeakValueDictionary()
_NUMBERS = {"inf": math.inf, "nan": math.nan}


def register(cls: C) -> C:
    """Lets texts name a frozen dataclass of settings. Searchers are registered on their own."""
    _CLASSES[_path(cls)] = cls
    return cls


def parse(text: str, *, imports: bool = False) -> Any:
    """The searcher, or other settings, that a text describes: `parse(repr(s)) == s`.

    Args:
        text: such as `"SMC(16, ess_threshold=1.0)"`.
        imports: import the modules that the text names, which runs their code; else they must have
            been imported.

    Raises:
        SearchStateError: it is no such text, or names what is not known.
        TypeError, ValueError: the class does not take these settings.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        if not isinstance(tree.body, ast.Call):
            raise SearchStateError(f"{text[:80]!r} is no searcher: write it as in 'SMC(16)'")
        return _Reading(text.strip(), imports).value(tree.body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        said = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise SearchStateError(
            f"{text[:80]!r} is no searcher: {said}; write it as in 'SMC(16)'"
        ) from error


def spell(settings: Any, main: bool = False) -> str:
    """Settings as a text that `parse` reads: as `repr` has them, with import paths where needed.

    A setting whose field says `metadata={"quiet": True}` is left out where it has its default, so
    that one which is added does not rename what was stored before.

    Args:
        settings: an instance of a registered class.
        main: also name what is defined in `__main__`, see `named`.

    Raises:
        SearchStateError: a setting has no text (it is named).
    """
    return _spelled(settings, type(settings).__name__, main)


def named(function: Any, what: str, main: bool = False) -> str:
    """The import path `"module:qualname"` of a function or class, or of one that says the same: a
    cell was run again, a module loaded again.

    Args:
        function: what is named.
        what: it is, for messages.
        main: also name what is defined in `__main__`, a notebook or script; another process finds
            it once it has the same definition there.

    Raises:
        SearchStateError: it cannot be imported by that name.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise SearchStateError(
            f"{what} is a {type(function).__name__}, which no import path names: {_REMEDY}"
        )
    if module == "__main__" and not main:
        raise SearchStateError(
            f"{what} {name!r} is defined in the notebook or script that runs (__main__), which "
            f"another process cannot import: {_REMEDY}"
        )
    found = None if "<" in name else _found(module, name)
    if found is not function and not same(found, function):
        raise SearchStateError(
            f"{what} {module}:{name} cannot be imported by this name (a lambda, defined in a "
            f"function, or is another one there now): {_REMEDY}"
        )
    return f"{module}:{name}"


_REMEDY = (
    "define it at the top level of a module and import it from there (in a notebook, "
    "%%writefile my_program.py writes a cell to one)"
)


def imported(path: str, *, imports: bool) -> Any:
    """What an import path names.

    Args:
        path: `"module:qualname"`.
        imports: import the module if it is not yet, which runs its code.

    Raises:
        SearchStateError: there is no such thing, or its module was not imported.
    """
    module, _, name = path.partition(":")
    if not module or not all(
        part.isidentifier() for part in [*module.split("."), *name.split(".")]
    ):
        raise SearchStateError(f"{path!r} is no import path such as 'module:function'")
    if module not in sys.modules:
        if not imports:
            raise SearchStateError(f"{path!r}: {module!r} has not been imported: import it first")
        try:
            importlib.import_module(module)
        except Exception as error:  # a module may raise anything
            raise SearchStateError(f"{module!r} cannot be imported: {error!r}") from error
    found = _found(module, name)
    if found is None:
        close = difflib.get_close_matches(name, vars(sys.modules[module]), 1)
        meant = f" (did you mean {close[0]!r}?)" if close else ""
        raise SearchStateError(f"the module {module!r} has no {name!r}{meant}")
    return found


def _found(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _spelled(value: Any, where: str, main: bool) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        path = _path(cls)
        if _CLASSES.get(path) is not cls:
            raise SearchStateError(
                f"{where}: {path} is another class now than this instance is of: make it again"
                if path in _CLASSES
                else f"{where}: {path} is not registered: ppl.searchers.parse.register"
            )
        if not path.startswith(_OURS):
            path = _dots(cls, f"{where}: the class", main)
        given = ", ".join(
            f"{f.name}={_spelled(getattr(value, f.name), f'{where}, {f.name}', main)}"
            for f in dataclasses.fields(value)
            if f.init and not (f.metadata.get("quiet") and getattr(value, f.name) == f.default)
        )
        return f"{cls.__name__ if path.startswith(_OURS) else path}({given})"
    if type(value) is tuple:
        inner = ", ".join(_spelled(x, where, main) for x in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if type(value) is list:
        return f"[{', '.join(_spelled(x, where, main) for x in value)}]"
    if type(value) is dict:
        pairs = [[_spelled(x, where, main) for x in pair] for pair in value.items()]
        return f"{{{', '.join(f'{k}: {v}' for k, v in pairs)}}}"
    if value is None or type(value) in (bool, int, float, str, bytes):
        return repr(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return _dots(value, f"{where}: the function", main)
    raise SearchStateError(
        f"{where} is {reprlib.repr(value)}, which no text describes: stored settings are "
        "numbers, strings, registered settings, and functions at the top level of a module"
    )


def _dots(named_value: Any, what: str, main: bool) -> str:
    path = named(named_value, what, main)
    if "." in path.partition(":")[2]:
        raise SearchStateError(f"{what} {path} is defined inside of a class: {_REMEDY}")
    return path.replace(":", ".")


@dataclasses.dataclass(frozen=True)
class _Reading:
    text: str
    imports: bool

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value) if not isinstance(value, complex | type(...)):
                return value
            case ast.Name(id=name) if name in _NUMBERS:
                return _NUMBERS[name]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                number = self.value(operand)
                if isinstance(number, int | float):
                    return -number
            case ast.Tuple(elts=entries):
                return tuple(map(self.value, entries))
            case ast.List(elts=entries):
                return list(map(self.value, entries))
            case ast.Dict(keys=keys, values=values) if None not in keys:
                return dict(
                    zip([self.value(k) for k in keys if k], map(self.value, values), strict=True)
                )
            case ast.Call(func=function, args=args, keywords=keywords):
                cls = self.cls(_dotted(function), node)
                given = {k.arg: self.value(k.value) for k in keywords if k.arg is not None}
                if len(given) == len(keywords):
                    return cls(*map(self.value, args), **given)
            case ast.Attribute():
                return self.function(_dotted(node), node)
        return self.refuse(node, "is no literal and no known settings")

    def cls(self, name: str, node: ast.expr) -> Callable[..., Any]:
        """The known class of a name: ours, or by import path."""
        if "." in name:
            if self.imports and name not in _CLASSES:
                imported(":".join(name.rsplit(".", 1)), imports=True)
            found = _CLASSES.get(name)
        else:
            ours = [c for p, c in _CLASSES.items() if p.startswith(_OURS) and c.__name__ == name]
            found = ours[0] if len(ours) == 1 else None
        if found is None:
            names = {c.__name__ for p, c in _CLASSES.items() if p.startswith(_OURS)}
            close = difflib.get_close_matches(name, names, n=1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            self.refuse(
                node,
                f"names no known class{meant}; one that is not of ppl.searchers is written with "
                "the module that it is in, as in my_package.search.Mine(n=3), and that module is "
                "imported",
            )
        return found

    def function(self, name: str, node: ast.expr) -> Any:
        found = imported(":".join(name.rsplit(".", 1)), imports=self.imports)
        if not callable(found):
            self.refuse(node, "is no function")
        return found

    def refuse(self, node: ast.expr, why: str) -> NoReturn:
        part = ast.get_source_segment(self.text, node) or self.text
        raise SearchStateError(f"{part[:80]!r} in {self.text[:80]!r} {why}")


def _dotted(node: ast.expr) -> str:
    """`a.b.c` of a chain of names, empty for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""
