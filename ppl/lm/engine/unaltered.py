"""Whether the layers of a model still are what they were when a program was made of them.

A program has their sizes, settings and the addresses of their weights. It is asked before every
pass, so this looks at many things at once, and into none of them.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.modules import module

from ppl.lm.engine.beside import Thin

# What a layer multiplies with or adds, besides its weights.
_SETTINGS = "scaling", "variance_epsilon"


class Unaltered:
    """The layers of a model, as they are now.

    Args:
        base: the decoder without its head, or another part of a model.
        adapted: layers of it beside which low-rank adapters may stand: the program adds what they
            do.
    """

    def __init__(self, base: nn.Module, adapted: Collection[nn.Module] = ()) -> None:
        modules = list(base.modules())
        self._hooks: list[Any] = [m._forward_pre_hooks for m in modules]
        self._hooks += [m._forward_hooks for m in modules if m not in adapted]
        self._hooks += [module._global_forward_hooks, module._global_forward_pre_hooks]
        self._adapted = [m._forward_hooks for m in adapted]
        self._own = [vars(m) for m in modules]
        kinds: set[Any] = set(map(type, modules))
        self._forwards = {kind: kind.forward for kind in kinds}
        self._inside = [m._modules for m in modules if m._modules]
        self._settings = [(vars(m), name) for m in modules for name in _SETTINGS if name in vars(m)]
        self._norms = [m._parameters for m in modules if hasattr(m, "variance_epsilon")]
        self._kept = [each["weight"] for each in self._norms]  # or other weights get their address
        self._weights, self._parts, self._values = self._found()

    def _found(self) -> tuple[list[int], list[Any], list[Any]]:
        weights = [each.get("weight") for each in self._norms]
        return (
            [0 if weight is None else weight.data_ptr() for weight in weights],
            list(chain.from_iterable(map(dict.values, self._inside))),
            [own.get(name) for own, name in self._settings],
        )

    def __call__(self) -> bool:
        """Whether nothing else is to be done whenever a layer runs, none has been put in the place
        of another, and norms have the weights, and all the settings, that they had."""
        if any(self._hooks) or any("forward" in own for own in self._own):
            return False
        if any(type(h) is not Thin for hooks in self._adapted if hooks for h in hooks.values()):
            return False
        if self._found() != (self._weights, self._parts, self._values):
            return False
        return all(kind.forward is run for kind, run in self._forwards.items())
