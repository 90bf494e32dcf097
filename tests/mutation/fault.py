"""A deliberate fault: a few characters of the library changed, and the tests that should notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One change that no test suite worth its time lets through.

    Attributes:
        file: what is changed, from the project's root.
        old: text that occurs exactly once in the file.
        new: what stands there instead.
        tests: arguments for pytest: the tests that should fail, as narrow as they can be.
        equivalent: why the changed program means the same, if it does; such a fault need not be
            noticed, and is not counted.
    """

    file: str
    old: str
    new: str
    tests: str
    equivalent: str = ""

    @property
    def name(self) -> str:
        """File and change, in one line."""
        one_line = " ".join(self.old.split()), " ".join(self.new.split())
        return f"{self.file}: {one_line[0]!r} -> {one_line[1]!r}"
