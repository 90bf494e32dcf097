"""What `pyro.factor` makes inside a particle: Pyro's `Unit`, without what makes it dear.

Most checkpoints are factors, and all that one says is a number. Pyro looks whether it is one, works
out shapes and draws an empty tensor of them, which takes longer than all that a search does there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro  # noqa: F401 (all of it before its parts: threads)
import torch
from pyro.distributions import Unit
from pyro.poutine import runtime
from torch import Tensor

from ppl.runtime.record import content


class Factor(Unit):  # type: ignore[misc]
    """A `Unit` of one number that is known to be one."""

    _batch_shape, _event_shape = torch.Size(), torch.Size((0,))

    def __init__(self, log_factor: Tensor, has_rsample: bool | None) -> None:
        # All that `Unit` and torch set of an object, but for what the class says already.
        self.log_factor = log_factor
        if has_rsample is not None:
            self.has_rsample = has_rsample

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Nothing, in the shape asked for."""
        if sample_shape:
            return self.log_factor.new_empty((*sample_shape, 0))
        return _nothing(self.log_factor.dtype, self.log_factor.device)

    rsample = sample

    def log_prob(self, value: Tensor) -> Tensor:
        """The number itself, for the one value that it has."""
        log_prob: Tensor = self.log_factor if value.ndim == 1 else super().log_prob(value)
        return log_prob

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Unit:
        """Pyro's own, as in a plate."""
        rsample = vars(self).get("has_rsample")
        whole = Unit(self.log_factor, has_rsample=rsample, validate_args=False)
        return whole.expand(batch_shape, _instance)

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """That of the `Unit` in whose place it is (`ppl.runtime.record.fingerprint`)."""
        return ("Unit", ("log_factor", (), content(self.log_factor)))


def light(made: type, args: Sequence[Any], settings: Mapping[str, Any]) -> Factor | None:
    """The `Factor` for what `pyro.factor` is about to make in a particle.

    None for all else, which Pyro makes, and for what is no number, which Pyro refuses.

    Args:
        made, args, settings: a class and the arguments of its constructor.
    """
    if made is not Unit or len(args) != 1 or settings.keys() != {"has_rsample"}:
        return None
    stack = runtime._PYRO_STACK
    if not stack or not getattr(stack[0], "light_factors", False):
        return None
    log_factor = torch.as_tensor(args[0])
    if log_factor.ndim or math.isnan(log_factor.item()):
        return None
    return Factor(log_factor, settings["has_rsample"])


@functools.cache
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The only value of a factor: one tensor for all, as there is nothing in it to change."""
    with torch.inference_mode(False):  # whoever comes first may be in there
        return torch.empty(0, dtype=dtype, device=device)
