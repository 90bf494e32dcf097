"""Keyed draws of tensors: torch's generators are global, so they are lent and given back.

Pyro's distributions draw from the generator of their tensors' device and take no other. Seeding it
just before makes a draw a function of its key alone; `generators_kept` puts all generators that
were seeded back to where they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_CPU = torch.device("cpu")
# What to give back, for every `generators_kept` that is under way: the innermost is last.
_lent: list[dict[torch.device, Tensor]] = []


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Leaves torch's generators, of the CPU and of every device, as they were."""
    states: dict[torch.device, Tensor] = {}
    _lent.append(states)
    try:
        yield
    finally:
        _lent[:] = [other for other in _lent if other is not states]
        for device, state in states.items():
            _generator(device).set_state(state)


def seed(key: int, distribution: Any = None) -> None:
    """Makes the next draw of `distribution` a function of `key`, on whatever device it lives."""
    _seed(_CPU, key)
    if distribution is not None and torch.accelerator.is_available():
        for device in devices(distribution):
            _seed(device, key)


def devices(distribution: Any) -> set[torch.device]:
    """Where the parameters of a distribution live, apart from the CPU."""
    found: set[torch.device] = set()
    for value in vars(distribution).values():
        if isinstance(value, Tensor):
            found.add(value.device)
        elif isinstance(value, torch.distributions.Distribution):  # what it wraps or mixes
            found |= devices(value)
    return found - {_CPU}


def _seed(device: torch.device, key: int) -> None:
    generator = _generator(device)
    if _lent and device not in _lent[-1]:
        _lent[-1][device] = generator.get_state()
    generator.manual_seed(key & (2**63 - 1))


def _generator(device: torch.device) -> torch.Generator:
    if device == _CPU:
        return torch.default_generator
    module = torch.get_device_module(device)
    index = module.current_device() if device.index is None else device.index
    found: torch.Generator = module.default_generators[index]
    return found
