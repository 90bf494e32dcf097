"""How a model was loaded: kept with it, so that a file can name it and a process load it again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
M = TypeVar("M")

# What is written to no file: secrets, what runs code of the source, and what is no plain setting.
_WITHHELD = ("api_key", "token", "trust_remote_code")
_PLAIN = (NoneType, bool, int, float, str, Path, torch.dtype, torch.device)

LOADERS: dict[str, Callable[..., Any]] = {}
"""The functions of this library that load models, by import path."""


@dataclass(frozen=True)
class Origin:
    """A call that made a model.

    Attributes:
        loader: import path of the function, `"module:qualname"`.
        source: what was loaded.
        settings: what else was given, plain values only, and lists of them.
        withheld: names of settings that are not kept: keys, tokens, `trust_remote_code`, and values
            that are no plain data. Without them the call cannot be repeated.
    """

    loader: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    withheld: tuple[str, ...] = ()


def keeps_origin(loader: Callable[P, M]) -> Callable[P, M]:
    """Decorates a function `(source, **settings)`: what it returns has the `Origin` as `origin`."""
    path = f"{loader.__module__}:{loader.__qualname__}"

    @functools.wraps(loader)
    def load(*args: P.args, **settings: P.kwargs) -> M:
        model = loader(*args, **settings)
        given_source: Any = args[0] if args else settings.pop("source")
        several = isinstance(given_source, list | tuple)
        source = ",".join(given_source) if several else str(given_source)
        plain = {
            name: _kept(value)
            for name, value in settings.items()
            if name not in _WITHHELD and _is_plain(value)
        }
        given = {name for name, value in settings.items() if value not in (None, False)}
        withheld = tuple(sorted(given - plain.keys()))
        model.origin = Origin(path, source, plain, withheld)  # type: ignore[attr-defined]
        return model

    LOADERS[path] = load
    return load


def _is_plain(value: Any) -> bool:
    listed = isinstance(value, list | tuple)
    return all(isinstance(each, _PLAIN) for each in (value if listed else (value,)))


def _kept(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
