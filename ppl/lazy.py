"""Names that a package gives, each imported when it is first asked for.

A package's front has a table: of each module, the names that the package gives from it. Type
checkers read plain imports in its place, which never run:

    if TYPE_CHECKING:
        from ppl.lm.huggingface import HFModel
    else:
        __getattr__, __dir__ = attach(__name__, {"ppl.lm.huggingface": "HFModel"})

So `import ppl` costs nothing of what a program does not use: torch, Pyro and transformers take
seconds. It is Python's own way (PEP 562), which scientific Python's libraries go (SPEC 1). No name
in a table may be that of a module in its package: importing that module would put it in the name's
place. tests/test_lazy.py holds tables, imports and `__all__` to each other.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any


def attach(
    package: str,
    homes: Mapping[str, str] | None = None,
    hint: Callable[[str], str] = lambda name: "",
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`: for the names of a table, and for its own modules.

    Any number of threads may ask at once: Python lets the first one import and the others wait.

    Args:
        package: its `__name__`.
        homes: for each module, the names that the package gives from it, with spaces between.
        hint: what an error says of a name that is not there, "" for nothing more.
    """
    front = sys.modules[package]
    home = {name: module for module, names in (homes or {}).items() for name in names.split()}

    def get(name: str) -> Any:
        if name in home:
            found = getattr(import_module(home[name]), name)
            setattr(front, name, found)  # asked for once
            return found
        module = f"{package}.{name}"
        if not name.startswith("_") and find_spec(module) is not None:
            return import_module(module)
        said = f"module {package!r} has no attribute {name!r}{hint(name)}"
        raise AttributeError(said, name=name, obj=front)

    def listed() -> list[str]:
        modules = (module.name for module in iter_modules(front.__path__))
        return sorted({*vars(front), *home, *(name for name in modules if name[0] != "_")})

    return get, listed
