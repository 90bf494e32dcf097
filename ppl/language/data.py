"""Plain data: values that can be copied, told apart and stored without running any code.

What a program was told from outside is kept in its record, handed to forks and written to files. So
it has to be data, and the record's copy must not change with the program's.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl.language.answers.extraction import Answer
from ppl.language.answers.joint import JointAnswer
from ppl.language.text import Continuation, Text

PLAIN = (
    "numbers, strings, bytes, lists, tuples, dicts, sets, tensors, arrays, fractions, dates, texts "
    "and continuations"
)
_DEEPEST = 90  # files nest values within rows, and stop at 100
_NUMBERS = "biufc"  # kinds of numpy that are numbers

# What cannot change; equal exactly if its type and `repr` are.
_ATOMS: frozenset[type] = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        Fraction,
        Decimal,
        Answer,
        JointAnswer,
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        torch.Size,
        torch.dtype,
        torch.device,
    }
)
_MANY: dict[type, Callable[[Any], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
}


class NotPlainError(Exception):
    """A value is no plain data; the message says what it is."""


def copied(value: Any, depth: int = 0) -> Any:
    """A copy of plain data that shares nothing that can change.

    Raises:
        NotPlainError: it is none, or holds what is none.
    """
    kind = type(value)
    if kind in _ATOMS or kind in (Text, Continuation) or isinstance(value, Path):
        return value
    if depth > _DEEPEST:
        raise NotPlainError(f"something nested more than {_DEEPEST} deep")
    if kind in _MANY:
        return _MANY[kind](copied(each, depth + 1) for each in value)
    if kind is dict:
        return {copied(k, depth + 1): copied(v, depth + 1) for k, v in value.items()}
    if kind is torch.Tensor and value.layout == torch.strided and not value.is_quantized:
        return value.detach().clone()
    if isinstance(value, np.generic) and value.dtype.kind in _NUMBERS:
        return value
    if kind is np.ndarray and value.dtype.kind in _NUMBERS:
        return value.copy()
    where = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    raise NotPlainError(f"a value of type {where}{kind.__qualname__}")


def digest(value: Any) -> str:
    """32 hex digits that are equal for equal plain data, in every process.

    Objects that are no data go by their type alone.
    """
    return _hashed(value, 0).hex()


def _hashed(value: Any, depth: int) -> bytes:
    kind = type(value)
    parts: list[bytes] = [kind.__qualname__.encode()]
    if kind in _ATOMS or isinstance(value, Path):
        parts.append(repr(value).encode(errors="surrogatepass"))
    elif kind is Text:
        parts += [repr((value.tokens, value.step_ends, value.finished)).encode()]
        parts += [value.codec.identity.fingerprint.encode()]
    elif kind is Continuation:
        parts += [repr((value.tokens, value.reason)).encode()]
    elif isinstance(value, torch.Tensor):
        parts += [str((value.dtype, tuple(value.shape))).encode(), _elements(value)]
    elif isinstance(value, np.generic | np.ndarray):
        array = np.ascontiguousarray(value)
        parts += [str((array.dtype, array.shape)).encode(), array.tobytes()]
    elif depth <= _DEEPEST and kind in (list, tuple):
        parts += [_hashed(each, depth + 1) for each in value]
    elif depth <= _DEEPEST and kind in (set, frozenset):
        parts += sorted(_hashed(each, depth + 1) for each in value)
    elif depth <= _DEEPEST and kind is dict:
        parts += [_hashed(each, depth + 1) for pair in value.items() for each in pair]
    else:
        parts.append(kind.__module__.encode())
    whole = blake2b(digest_size=16)
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.digest()


def _elements(value: torch.Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    # By their bits: numpy does not have all of torch's types.
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""
