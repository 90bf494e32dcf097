"""What a searcher tells a program: a site without a law, whose value the searcher takes."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro  # noqa: F401 (all of it before its parts: threads)
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppl.errors import ObservationError
from ppl.language.site import Draw, Site, Visit


class Told(Site, TorchDistribution):  # type: ignore[misc]
    """Nothing, unless the searcher has something to tell (`decide=` of `Tree.expand`).

    Whatever it tells has probability one: it is no part of the law.

    Attributes:
        nothing: what is told where nobody tells anything; all that is told is of its type.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (the name is torch's)
    decidable = True
    nothing: ClassVar[Any]

    def __init__(self) -> None:
        super().__init__(validate_args=False)

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """Nothing."""
        return self.nothing, 0.0, None

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """Zero for what can be told."""
        if not isinstance(value, type(self.nothing)):
            what, kind = type(self).__name__.lower(), type(self.nothing).__name__
            raise ObservationError(f"{visit.label}: {what}() is a {kind}, got {value!r}")
        return 0.0

    def sample(self, sample_shape: Any = ()) -> Any:
        """Nothing."""
        return self.nothing

    def log_prob(self, value: Any) -> Tensor:
        """Zero: it is no part of the law."""
        return torch.zeros((), dtype=torch.float64)

    def support(self) -> list[tuple[Any, float]]:
        """Nothing is all there is."""
        return [(self.nothing, 0.0)]
