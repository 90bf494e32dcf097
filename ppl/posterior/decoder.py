"""JSON to values, the reading half of `ppl.posterior.values`: it runs nothing of what it reads."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ppl.language.call import Called
from ppl.language.codec import Codec, Identity
from ppl.language.text import Continuation, Text
from ppl.lm.sampling import Warp
from ppl.posterior.texts import Blocks, StoredCodec
from ppl.posterior.values import BITS, DEEPEST, SIMPLE, torch_dtype
from ppl.runtime.record import Record

T = TypeVar("T")


class Decoder:
    """Turns JSON back into values. Whatever it is given, it runs nothing.

    Args:
        rows: of a table by name: `tokens`, `texts`, `records`.
        tokenizers: see `Encoder.tokenizers`.
        array: elements by type.
        codecs: tokenizers that are at hand; others are read from the file.
        devices: put tensors where they were, which a search needs to go on; else on the CPU.

    Raises:
        ValueError, TypeError, KeyError: (all methods) it is no JSON of an `Encoder`.
    """

    def __init__(
        self,
        rows: Callable[[str], list[Any]],
        tokenizers: Sequence[Any],
        array: Callable[[str], NDArray[Any]],
        *,
        codecs: Sequence[Codec] = (),
        devices: bool = False,
    ) -> None:
        self.blocks = Blocks(rows("tokens"))
        self._depth = 0
        self._array_of, self._arrays, self._devices = array, dict[str, NDArray[Any]](), devices
        self._identities = [Identity(row["name"], row["fingerprint"]) for row in tokenizers]
        simple = {name: decode for name, _, decode in SIMPLE.values()}
        self.kinds: dict[str, Callable[[Any], Any]] = {
            **{name: _of_string(decode) for name, decode in simple.items()},
            "int": _of_string(lambda s: int(s, 16)),
            "float": _of_string(float),
            "tuple": lambda v: tuple(map(self.value, _list(v))),
            "ids": self.blocks.read,
            "dict": lambda v: {self.value(k): self.value(x) for k, x in _list(v)},
            "set": lambda v: set(map(self.value, _list(v))),
            "frozenset": lambda v: frozenset(map(self.value, _list(v))),
            "size": lambda v: torch.Size(_list(v)),
            "timedelta": lambda v: datetime.timedelta(*_list(v)),
            "fraction": lambda v: Fraction(*map(self.value, _list(v))),
            "path": _of_string(Path),
            "tensor": self._tensor,
            "array": lambda v: self._elements(v).copy(),
            "scalar": lambda v: self._elements(v)[()],
            "warp": lambda v: self.build(Warp, v),
            "called": lambda v: self.build(Called, v),
            "text": lambda v: self.texts[_index(v)],
            "continuation": self._continuation,
        }
        self._codecs = [
            _codec(identity, row, self.value, codecs)
            for identity, row in zip(self._identities, tokenizers, strict=True)
        ]
        self.texts = [self._text(row) for row in rows("texts")]
        self.records = [self._record(row) for row in rows("records")]

    def value(self, value: Any) -> Any:
        """What JSON stands for."""
        if not isinstance(value, list | dict):
            return value
        self._depth += 1
        if self._depth > 2 * DEEPEST:  # a state nests rows within values
            raise ValueError(f"values are nested more than {2 * DEEPEST} deep")
        try:
            if isinstance(value, list):
                return [self.value(entry) for entry in value]
            if len(value) != 1:
                raise ValueError(f"{str(value)[:60]} is no value: it has {len(value)} keys")
            ((kind, content),) = value.items()
            if kind not in self.kinds:
                raise ValueError(f"values of kind {kind!r} are not known here")
            return self.kinds[kind](content)
        finally:
            self._depth -= 1

    def row(self, row: Any) -> dict[str, Any]:
        """A row of named values."""
        if not isinstance(row, dict):
            raise TypeError(f"{str(row)[:60]} is no row")
        return {name: self.value(content) for name, content in row.items()}

    def build(self, cls: type[T], row: Any, **given: Any) -> T:
        """A dataclass from its fields by name. What is missing gets its default.

        Raises:
            ValueError: a field that `cls` does not have here, or has no default; or its content is
                none for it.
        """
        values = self.row(row)
        hidden = [name for name in values if name.startswith("_") or name in given]
        if hidden:
            raise ValueError(f"{hidden[0]!r} is no column of {cls.__name__}")
        return build(cls, {**values, **given})

    def _record(self, row: Any) -> Record:
        others = {name: content for name, content in row.items() if name != "fingerprint"}
        return self.build(Record, others, _fingerprint=self.value(row.get("fingerprint")))

    def _text(self, row: dict[str, Any]) -> Text:
        codec = self._codecs[_index(row["tokenizer"])]
        if codec is None:
            raise ValueError("a text has a tokenizer that the file says nothing of")
        tokens = self.blocks.read(row["tokens"])
        ends = tuple(map(_index, _list(row["step_ends"])))
        length = _index(row["prompt_length"])
        if list(ends) != sorted(ends) or not length <= len(tokens) >= max(ends, default=0):
            raise ValueError(f"steps end at {ends} in a text of {len(tokens)} ids")
        # Without its model the prompt cannot be read from its ids as a text's beginning is.
        said = row["prompt_string"]
        if said is None and isinstance(codec, StoredCodec):
            said = row.get("prompt")
        return Text(
            tokens,
            codec,
            prompt_length=length,
            step_ends=ends,
            finished=bool(row["finished"]),
            prompt_string=said,
        )

    def _continuation(self, row: dict[str, Any]) -> Continuation:
        by = row["made_with"]
        if row["reason"] not in ("until", "end", "length", "open") or not isinstance(
            row["text"], str
        ):
            raise ValueError(f"{str(row)[:60]} is no continuation")
        made_with = None if by is None else self._identities[_index(by)]
        tokens = tuple(map(int, self.value(row["tokens"])))
        kv = row.get("kv")
        if kv is not None and not isinstance(kv, str):
            raise ValueError(f"{str(row)[:60]} is no continuation")
        return Continuation(tokens, row["text"], row["reason"], made_with, kv)

    def _elements(self, row: dict[str, Any]) -> NDArray[Any]:
        name, shape, start = row["type"], tuple(map(_index, row["shape"])), _index(row["start"])
        if name not in self._arrays:
            self._arrays[name] = self._array_of(name).astype(np.dtype(_numpy(name)), copy=False)
        flat = self._arrays[name][start : start + math.prod(shape)]
        return flat.reshape(shape)

    def _tensor(self, row: dict[str, Any]) -> torch.Tensor:
        dtype = torch_dtype(row["type"])
        tensor = torch.from_numpy(np.array(self._elements(row)))
        if tensor.dtype != dtype:
            tensor = tensor.view(dtype)
        if not self._devices or "device" not in row:
            return tensor
        try:
            return tensor.to(row["device"])
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"a tensor was on {row['device']!r}, which is not here") from error


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from its fields by name, see `Decoder.build`."""
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known and not name.startswith("_"):
            raise ValueError(
                f"the column {name!r} of {cls.__name__} is not known here: a newer version of the "
                "library wrote it, which can read it"
            )
        said = known[name].type if name in known else name
        if said in _TYPES and not isinstance(value, _TYPES[said]):
            raise ValueError(f"the column {name!r} of {cls.__name__} holds {value!r}, no {said}")
    for f in known.values():
        default = (f.default, f.default_factory) != (dataclasses.MISSING,) * 2
        if f.name not in values and not default and f.init:
            raise ValueError(f"the column {f.name!r} of {cls.__name__} is missing")
    return cls(**values)


_TYPES: dict[Any, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "int | None": (int, NoneType),
    "float | None": (float, int, NoneType),
    "str | None": (str, NoneType),
    "tuple[float, ...] | None": (tuple, NoneType),
}


def _codec(
    identity: Identity, row: dict[str, Any], value: Callable[[Any], Any], codecs: Sequence[Codec]
) -> Codec | None:
    if "pieces" not in row:
        return None
    ends = tuple(map(_index, _list(row["end_tokens"])))
    for codec in codecs:
        if codec.identity == identity and codec.end_tokens == frozenset(ends):
            return codec
    pieces = {_index(token): value(piece) for token, piece in _list(row["pieces"])}
    return StoredCodec(
        identity,
        _index(row["size"]),
        end_tokens=ends,
        begin_tokens=tuple(map(_index, _list(row["begin_tokens"]))),
        pieces={t: p.encode() if isinstance(p, str) else bytes(p) for t, p in pieces.items()},
    )


def _of_string(decode: Callable[[str], Any]) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no string")
        return decode(value)

    return checked


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:60]} is no list")
    return value


def _index(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of a row")
    return value


def _numpy(name: str) -> str:
    """The numpy type in which elements of a type are kept."""
    try:
        np.dtype(name)
    except TypeError:
        size = torch_dtype(name).itemsize
        return str(BITS[size]).removeprefix("torch.")
    return name


DAMAGED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    ArithmeticError,
    RuntimeError,
)
"""What decoding raises on content that no encoder wrote."""
