"""Names that a package gives, each imported when it is first asked for.

A package's front has the plain imports that type checkers read, and that never run; they are its
table, too:

    if TYPE_CHECKING:
        from ppl.lm.huggingface import HFModel
    else:
        __getattr__, __dir__ = attach(__name__)

So `import ppl` costs nothing of what a program does not use: torch, Pyro and transformers take
seconds. It is Python's own way (PEP 562), which scientific Python's libraries go (SPEC 1, whose
`attach_stub` reads a front's imports as well). No name may be that of a module in its package:
importing that module would put it in the name's place. tests/test_lazy.py holds imports and
`__all__` to each other.
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from ppl.locks import lock

# Held while modules are imported. So a module that is being imported must ask no front for a name:
# whoever has the lock may be waiting for that module.
_FIRST = lock()


def attach(
    package: str, hint: Callable[[str], str] = lambda name: ""
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`: for the names that it imports for type checkers, and
    for its own modules.

    Any number of threads may ask at once: one imports, and the others wait. Python's own locks are
    of single modules, and where modules import each other, as Pyro's and those of transformers do,
    a second thread is handed what is half there.

    Args:
        package: its `__name__`.
        hint: what an error says of a name that is not there, "" for nothing more.

    Raises:
        ImportError: the package was shipped without its source.
    """
    front = sys.modules[package]
    home = homes(package)

    def get(name: str) -> Any:
        if name in home:
            with _FIRST:
                found = getattr(import_module(home[name]), name)
            setattr(front, name, found)  # asked for once
            return found
        module = f"{package}.{name}"
        if name.isidentifier() and name[0] != "_" and find_spec(module) is not None:
            return import_module(module)
        said = f"module {package!r} has no attribute {name!r}{hint(name)}"
        raise AttributeError(said, name=name, obj=front)

    def listed() -> list[str]:
        modules = (module.name for module in iter_modules(front.__path__))
        return sorted({*vars(front), *home, *(name for name in modules if name[0] != "_")})

    return get, listed


def homes(package: str) -> dict[str, str]:
    """Of the names that a package's front imports for type checkers, the modules they are in."""
    typed = (
        statement
        for block in _front(package)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.module != package
    )
    return {alias.name: str(each.module) for each in typed for alias in each.names}


def public(package: str) -> list[str]:
    """The `__all__` of a package, which is not imported for it."""
    assigned = (each for each in _front(package) if isinstance(each, ast.Assign))
    named = (each.value for each in assigned if ast.unparse(each.targets[0]) == "__all__")
    return list(map(str, ast.literal_eval(next(named))))


def _front(package: str) -> list[ast.stmt]:
    """The statements of a package's `__init__.py`."""
    found: Any = find_spec(package)
    source = found.loader.get_source(package)
    if source is None:
        raise ImportError(f"the source of {package} is needed, and was not shipped", name=package)
    tree: ast.Module = ast.parse(source)
    return tree.body
