"""Values in files: plain data as JSON, and nothing else.

Numbers, strings, lists stand for themselves. Everything else is an object with one key, its kind:
`{"tuple": [..]}`, `{"float": "-inf"}`, `{"bytes": "aGk="}`, `{"tensor": {..}}`. Elements of tensors
and arrays are kept apart, those of one type in one flat array. Texts and continuations are ids,
with the tokenizer that made them.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import torch

from ppl.language.answers.extraction import Answer
from ppl.language.answers.joint import JointAnswer

DEEPEST = 100  # how deep values are nested that can be saved
# What numpy has no type for (bfloat16, float8) is kept as its bits, by bytes of an element.
BITS = {1: torch.uint8, 2: torch.int16}


class NotDataError(Exception):
    """A value is no data; the message says what it is."""


def torch_dtype(name: str) -> torch.dtype:
    """A type of torch by name. Raises ValueError."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch has no type {name!r}")
    return found


def _joint(written: str) -> JointAnswer:
    call, _, answer = written.partition(" ")
    return JointAnswer(answer, int(call))


SIMPLE: dict[type, tuple[str, Callable[[Any], str], Callable[[str], Any]]] = {
    Answer: ("answer", str, Answer),
    JointAnswer: ("joint answer", lambda a: f"{a.call} {a}", _joint),
    complex: ("complex", repr, complex),
    Decimal: ("decimal", str, Decimal),
    datetime.datetime: ("datetime", str, datetime.datetime.fromisoformat),
    datetime.date: ("date", str, datetime.date.fromisoformat),
    datetime.time: ("time", str, datetime.time.fromisoformat),
    bytes: (
        "bytes",
        lambda b: base64.b64encode(b).decode(),
        lambda s: base64.b64decode(s, validate=True),
    ),
    torch.dtype: ("dtype", lambda d: str(d).removeprefix("torch."), torch_dtype),
    torch.device: ("device", str, torch.device),
}
"""Types whose values are a string: name of the kind, to the string, and back."""
