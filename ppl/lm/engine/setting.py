"""What is set around a pass and reset behind it: the attention that a model's configuration names,
that nothing is differentiated or cast, and where tensors are of which no device is said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch

# Where transformers' property `_attn_implementation` keeps what it was set to.
_KEPT = "_attn_implementation_internal"


def on_the_cpu() -> AbstractContextManager[Any]:
    """Tensors of which no device is said are on the CPU, also where torch has another default."""
    # torch's function that says so takes as long as all else that is set around a step.
    is_so = torch.empty(0).device.type == "cpu"
    return contextlib.nullcontext() if is_so else torch.device("cpu")


def inferring() -> AbstractContextManager[Any]:
    """Inference mode, `on_the_cpu`, and no casts but the model's own, whatever is set around it;
    nothing inside of itself, as entering it again takes its time, too."""
    # Whose leaving was interrupted at its very start is still inside; torch has left the mode.
    inside = _inside.get() and torch.is_inference_mode_enabled()
    return contextlib.nullcontext() if inside else _Inferring()


# Each thread has its own.
_inside: ContextVar[bool] = ContextVar("_inside", default=False)
# Kinds of devices on which models run.
_KINDS = "cpu", "cuda"


class _Inferring:
    """A generator would take as long as all that is entered.

    Whoever interrupts it finds the thread as it was: half of it would fail all that runs later.
    """

    def __enter__(self) -> None:
        casting = [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]
        self._modes: list[Any] = [torch.inference_mode(), on_the_cpu()]
        self._modes += [torch.autocast(kind, enabled=False) for kind in casting]
        self._entered, was = 0, torch.is_inference_mode_enabled()
        try:
            for each in self._modes:
                each.__enter__()
                self._entered += 1
            _inside.set(True)
        except BaseException:
            if not self._entered and torch.is_inference_mode_enabled() != was:
                self._entered = 1  # it was entered, and not counted
            self.__exit__(None, None, None)
            raise

    def __exit__(self, *failure: Any) -> None:
        try:
            self._leave(failure)
        except BaseException:
            self._leave(failure)  # leaving inference mode twice is leaving it
            raise

    def _leave(self, failure: tuple[Any, ...]) -> None:
        _inside.set(False)
        while self._entered:
            self._modes[self._entered - 1].__exit__(*failure)
            self._entered -= 1


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
