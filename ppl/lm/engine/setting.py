"""What is set around a pass and reset behind it: the attention that a model's configuration names,
that nothing is differentiated, and where tensors are of which no device is said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

# Where transformers' property `_attn_implementation` keeps what it was set to.
_KEPT = "_attn_implementation_internal"


def on_the_cpu() -> AbstractContextManager[Any]:
    """Tensors of which no device is said are on the CPU, also where torch has another default."""
    is_so = torch.get_default_device().type == "cpu"
    return contextlib.nullcontext() if is_so else torch.device("cpu")


def inferring() -> AbstractContextManager[Any]:
    """Inference mode, `on_the_cpu`; nothing where it is on already, as entering it again takes its
    time, too."""
    if torch.is_inference_mode_enabled():
        return contextlib.nullcontext()
    if torch.get_default_device().type == "cpu":
        return torch.inference_mode()
    return _inferring_on_the_cpu()


@contextlib.contextmanager
def _inferring_on_the_cpu() -> Iterator[None]:
    with torch.inference_mode(), on_the_cpu():
        yield


class Attention:
    """The attention that a configuration names, and those inside of it.

    It is set and reset at every pass. transformers' own property goes the long way to each
    attribute, so that this would take half as long as a layer of a small model.

    Args:
        config: of the model.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        found = [object.__getattribute__(part, "__dict__") for part in _parts(config)]
        self._kept = found if all(_KEPT in each for each in found) else []

    @property
    def name(self) -> str:
        """How the model attends."""
        name: str = self._kept[0][_KEPT] if self._kept else self._config._attn_implementation
        return name

    @name.setter
    def name(self, name: str) -> None:
        for each in self._kept:
            each[_KEPT] = name
        if not self._kept:  # another version of transformers
            self._config._attn_implementation = name

    @contextlib.contextmanager
    def named(self, name: str) -> Iterator[None]:
        """Lets the model attend in another way, and only meanwhile."""
        before, self.name = self.name, name
        try:
            yield
        finally:
            self.name = before


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and all inside of it."""
    yield config
    for name in config.sub_configs:
        inside = getattr(config, name, None)
        if inside is not None:
            yield from _parts(inside)
