"""Properties that are computed once."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

__all__ = ["cached_property"]

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from functools import cached_property
else:

    class cached_property(functools.cached_property):  # noqa: N801 (it stands for Python's own)
        """Python's own without the lock that all objects of a class share before Python 3.12: held
        while one is computed, it makes threads wait for each other in a circle where that takes
        locks of its own, and a child that is forked meanwhile for ever."""

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            """The value, kept in the object's `__dict__`."""
            if instance is None:
                return self
            value = self.func(instance)
            return instance.__dict__.setdefault(self.attrname, value)
