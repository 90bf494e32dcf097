"""How results and models show themselves, in a shell and in a cell of a notebook."""

from __future__ import annotations

from typing import Any


class Printed:
    """For results whose `str` is for people and whose `repr` is for programs: IPython shows the
    value of a cell by its `repr`, unless it is told."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # It looks into the class itself first, where dataclasses have a `__repr__`.
        cls._repr_pretty_ = _shown  # type: ignore[attr-defined]


def _shown(self: Any, printer: Any, cycle: bool) -> None:
    printer.text(str(self))


class Named:
    """For what has a name, by which messages call it, too."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self, 'name', '?')!r})"
