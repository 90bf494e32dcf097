"""Arguments of public calls, held to their annotations.

    @checked
    def reliability(log_probs: ArrayLike, labels: ArrayLike, *, bins: int = 10) -> Reliability: ...

    reliability(p, y, bins=2.5)      ArgumentError: bins=2.5: a whole number (int)

What an annotation does not say, such as a range, is for `ppl.language.checks`. Python's numeric
tower holds: an int is a float, NumPy's numbers are numbers; `True` is no number, and NaN none
either. A string is no sequence of strings. Elements are looked at where their type is told.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, Union

import numpy as np

from ppl.errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")


class Fit(NamedTuple):
    """What an annotation asks of a value, and how that is said."""

    holds: Callable[[Any], bool]
    said: str


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Refuses arguments that do not fit their annotations with an ArgumentError that names them.

    For constructors, decorate `__init__`. Costs microseconds: not for what runs at every token.
    """
    signature = inspect.signature(function)
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    plain = [each for each in signature.parameters.values() if each.kind not in several]
    in_order = [each.name for each in plain if each.kind is not inspect.Parameter.KEYWORD_ONLY]
    by_name = {each.name for each in plain if each.kind is not inspect.Parameter.POSITIONAL_ONLY}

    @functools.cache  # at the first call: by then all names that annotations use are there
    def fits() -> dict[str, Fit | None]:
        hints = typing.get_type_hints(function)
        return {each.name: fit(hints.get(each.name, Any)) for each in plain}

    def well_formed(*args: P.args, **kwargs: P.kwargs) -> bool:
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        in_place = zip(in_order, args, strict=False)  # of too many Python tells
        for name, value in chain(in_place, (one for one in kwargs.items() if one[0] in by_name)):
            expected = fits()[name]
            if expected is not None and not expected.holds(value):
                if well_formed(*args, **kwargs):
                    raise _unfit(name, value, expected)
                break  # Python's own error names the function
        return function(*args, **kwargs)

    return call


def check_fields(settings: Any) -> None:
    """`checked` for a dataclass, whose constructor is not written out: call it when it is made."""
    kind: Any = type(settings)
    for name, expected in _fields(kind).items():
        value = getattr(settings, name)
        if expected is not None and not expected.holds(value):
            raise _unfit(name, value, expected)


def _unfit(name: str, value: Any, expected: Fit) -> ArgumentError:
    """The error; a value, or its first element that can, says itself how to make it fit: its class
    has `remedies`, from what is asked for to what to do."""
    remedy = next(
        (
            f"; {remedy}"
            for each in (value if isinstance(value, list | tuple) else [value])
            for asked, remedy in getattr(type(each), "remedies", {}).items()
            if asked in expected.said
        ),
        "",
    )
    return ArgumentError(f"{name}={shown(value)}: {expected.said}{remedy}")


@functools.cache
def _fields(kind: Any) -> dict[str, Fit | None]:
    hints = typing.get_type_hints(kind)
    return {f.name: fit(hints[f.name]) for f in dataclasses.fields(kind)}


def shown(value: object) -> str:
    """A value for a message, on one line, at most 60 characters of it."""
    text = " ".join(line.strip() for line in repr(value).splitlines())
    return text if len(text) <= 60 else f"{text[:57]}..."


def fit(annotation: Any) -> Fit | None:
    """What an annotation asks, None if nothing that can be told."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, UnionType):
        found = [fit(each) for each in inner]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        said = " or ".join(each.said for each in known)
        return Fit(lambda value: any(each.holds(value) for each in known), said)
    if origin is Literal:
        said = ", ".join(map(repr, inner))
        said = f"one of {said}" if len(inner) > 1 else said
        return Fit(lambda value: isinstance(value, str) and value in inner, said)
    if origin is not None and inspect.isclass(origin):
        return _generic(origin, inner)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if not inspect.isclass(annotation) or annotation in (Any, object):
        return None
    if getattr(annotation, "_is_protocol", False):
        return _with(annotation)
    article = "an" if annotation.__name__[0] in "AEIO" else "a"
    made = f", as in {annotation.as_in}" if hasattr(annotation, "as_in") else ""
    said = f"{article} {annotation.__name__}{made}"
    return Fit(lambda value: isinstance(value, annotation), said)


def _generic(origin: Any, inner: tuple[Any, ...]) -> Fit | None:
    if origin is Callable:
        return _FUNCTION
    if issubclass(origin, Mapping):
        values = fit(inner[1]) if len(inner) == 2 else None
        return Fit(
            lambda m: (
                isinstance(m, Mapping) and (values is None or all(map(values.holds, m.values())))
            ),
            "a mapping" if values is None else f"a mapping, each value {values.said}",
        )
    if origin is np.ndarray:
        return None
    if not issubclass(origin, Iterable):
        return fit(origin)
    element = fit(inner[0]) if inner else None
    needs = Collection if issubclass(origin, Collection) else Iterable

    def holds(value: Any) -> bool:
        if not isinstance(value, needs) or isinstance(value, str | bytes | Mapping):
            return False
        # What can be gone through only once is left for whoever does.
        return element is None or needs is Iterable or all(map(element.holds, value))

    return Fit(holds, "a sequence" if element is None else f"a sequence, each {element.said}")


def _with(protocol: type) -> Fit | None:
    """What has the methods of a protocol."""
    methods = [n for n, f in vars(protocol).items() if callable(f) and n.strip("_") == n]
    if "__call__" in vars(protocol):
        return _FUNCTION
    said = f"an object with {', '.join(methods)}"
    return Fit(lambda value: all(hasattr(value, n) for n in methods), said) if methods else None


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


_FUNCTION = Fit(callable, "a function")
_PLAIN: dict[Any, Fit] = {
    NoneType: Fit(lambda value: value is None, "None"),
    bool: Fit(lambda value: isinstance(value, bool | np.bool_), "True or False"),
    int: Fit(
        lambda value: isinstance(value, Integral) and not isinstance(value, bool),
        "a whole number (int)",
    ),
    float: Fit(_number, "a number"),
    str: Fit(lambda value: isinstance(value, str), "a string"),
}
