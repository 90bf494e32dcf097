"""Models whose weights, memory and compiled programs are this process's own."""

from __future__ import annotations

from typing import Any, Never, Self


class Held:
    """Cannot be pickled, and so not sent to another process; says what to do there instead.

    Attributes:
        name: of the model.
    """

    name: str

    def __reduce_ex__(self, protocol: Any) -> Never:
        """Raises TypeError, as Python does for what cannot be pickled."""
        origin = vars(self).get("origin")
        given = "" if origin is None else repr(origin.source)
        call = f"{type(self).__name__}.load" if hasattr(self, "judge") else "ppl.load"
        raise TypeError(
            f"{self.name}: a model that is held in this process cannot be pickled, or sent to "
            f"another one: call {call}({given}) there, in a function at the top of a module; or "
            "let ppl.load(..., replicas=2) run copies in processes of their own"
        )

    def __copy__(self) -> Self:
        """Another view of the same model."""
        view = object.__new__(type(self))
        vars(view).update(vars(self))
        return view
