"""Cells of a notebook without Jupyter: code of `__main__` whose source is known to `linecache`."""

from __future__ import annotations

import itertools
import linecache
import sys
import types

import pytest

_CELLS = itertools.count()


class Notebook:
    """Runs cells in a module that stands for `__main__`, which has no file and no spec."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.module = types.ModuleType("__main__")
        patch.setitem(sys.modules, "__main__", self.module)

    def run(self, cell: str) -> dict[str, object]:
        """Runs a cell; what all cells have defined."""
        name = f"/tmp/ipykernel_1/{next(_CELLS)}.py"
        linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
        exec(compile(cell, name, "exec"), self.module.__dict__)
        return self.module.__dict__
