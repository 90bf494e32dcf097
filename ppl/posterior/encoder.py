"""Values to JSON, the writing half of `ppl.posterior.values`: what is no data is refused."""

from __future__ import annotations

import dataclasses
import datetime
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppl.errors import SearchStateError
from ppl.language.call import Called
from ppl.language.codec import Codec, Identity
from ppl.language.data import PLAIN
from ppl.language.text import Continuation, Text
from ppl.lm.sampling import Warp
from ppl.posterior.texts import Blocks
from ppl.posterior.values import BITS, DEEPEST, SIMPLE, NotDataError
from ppl.runtime.record import Record

Encode = Callable[[Any], Any]

_LARGEST = 1 << 256  # larger numbers are written in base 16, which takes linear time
_IDS = 8  # fewer are written where they stand
_SHOWN = reprlib.Repr()
_SHOWN.maxother = 80
_KINDS = "biufc"  # of numpy: bool, int, unsigned, float, complex


class Encoder:
    """Turns values into JSON, and collects what is kept apart.

    Args:
        strings: write beside the ids what texts say, for people and other programs.
        fingerprints: write what sites were, which a search needs to go on.
    """

    def __init__(self, *, strings: bool = False, fingerprints: bool = False) -> None:
        self.strings, self.fingerprints = strings, fingerprints
        self.blocks = Blocks()
        self.texts: list[Any] = []
        self.records: list[Any] = []
        self._tokenizers: list[tuple[Identity, Codec | None]] = []
        self._pieces: dict[int, dict[int, bytes]] = {}
        self._elements: dict[str, list[NDArray[Any]]] = {}
        self._lengths: dict[str, int] = {}
        self._known: dict[int, tuple[Any, int]] = {}  # with the object, so that its id stays its
        self._depth = 0
        self._kinds: dict[type, Encode] = {
            int: self._int,
            float: self._float,
            list: lambda v: [self._value(x) for x in v],
            tuple: self._tuple,
            dict: lambda v: {"dict": self._pairs(v)},
            set: lambda v: {"set": [self._value(x) for x in v]},
            frozenset: lambda v: {"frozenset": [self._value(x) for x in v]},
            torch.Size: lambda v: {"size": list(v)},
            torch.Tensor: self._tensor,
            np.ndarray: lambda v: {"array": self._array(v)},
            Fraction: lambda v: {"fraction": [self._int(v.numerator), self._int(v.denominator)]},
            datetime.timedelta: lambda v: {"timedelta": [v.days, v.seconds, v.microseconds]},
            Text: lambda v: {"text": self.text(v)},
            Continuation: lambda v: {"continuation": self._continuation(v)},
            Warp: lambda v: {"warp": self.fields(v)},
            Called: lambda v: {"called": self.fields(v)},
        }

    def value(self, value: Any, where: str) -> Any:
        """A value as JSON.

        Raises:
            SearchStateError: it is no data, or holds what is none; begins with `where`.
        """
        try:
            return self._value(value)
        except NotDataError as error:
            raise SearchStateError(
                f"{where} holds {error}, which is no data and cannot be saved: let it be plain "
                f"data ({PLAIN}), such as its str(...) or a dict of what matters in it"
            ) from None
        finally:
            self._depth = 0

    def row(self, entries: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A row of named values."""
        strange = [name for name in entries if not isinstance(name, str)]
        if strange:
            raise SearchStateError(f"{where} has the name {strange[0]!r}, which is no string")
        return {str(k): self.value(v, f"{where}, {k!r},") for k, v in entries.items()}

    def fields(self, value: Any, without: Sequence[str] = ()) -> dict[str, Any]:
        """The public fields of a dataclass by name."""
        names = [f.name for f in dataclasses.fields(value) if not f.name.startswith("_")]
        return {n: self._value(getattr(value, n)) for n in names if n not in without}

    def record(self, record: Record, where: str) -> int:
        """The number of a record's row; the same one for the same record."""
        known = self._known.get(id(record))
        if known is not None:
            return known[1]
        if record.kind == "choice":
            record.prior()  # it is computed when first needed; its distribution stays here
        names = [f.name for f in dataclasses.fields(record) if not f.name.startswith("_")]
        entries = {n: getattr(record, n) for n in names}
        if self.fingerprints:
            entries["fingerprint"] = record.fingerprint
        self.records.append(self.row(entries, f"site {record.name!r} of {where}"))
        self._known[id(record)] = record, len(self.records) - 1
        return len(self.records) - 1

    def text(self, text: Text) -> int:
        """The number of a text's row; the same one for the same text."""
        known = self._known.get(id(text))
        if known is not None:
            return known[1]
        tokenizer = self._tokenizer(text.codec.identity, text.codec)
        # From its own codec: one that was read from a file knows no other ids.
        pieces = self._pieces.setdefault(tokenizer, {})
        new = {*text.tokens, *text.codec.end_tokens} - pieces.keys()
        pieces.update((token, text.codec.piece(token)) for token in new)
        row = {
            "tokenizer": tokenizer,
            "tokens": self.blocks.add(text.tokens),
            "prompt_length": text.prompt_length,
            "step_ends": list(text.step_ends),
            "finished": text.finished,
            "prompt_string": text.prompt_string,
        }
        if self.strings:
            row |= {"prompt": text.prompt, "string": text.text}
        self.texts.append(row)
        self._known[id(text)] = text, len(self.texts) - 1
        return len(self.texts) - 1

    @property
    def tokenizers(self) -> list[Any]:
        """For `meta.json`: per tokenizer its identity and how the ids that were met read."""
        rows = []
        for number, (identity, codec) in enumerate(self._tokenizers):
            row: dict[str, Any] = {"name": identity.name, "fingerprint": identity.fingerprint}
            if codec is not None:
                pieces = sorted(self._pieces[number].items())
                row |= {
                    "size": codec.size,
                    "end_tokens": sorted(codec.end_tokens),
                    "begin_tokens": list(codec.begin_tokens),
                    "pieces": [[token, self._piece(piece)] for token, piece in pieces],
                }
            rows.append(row)
        return rows

    @property
    def tables(self) -> dict[str, list[Any]]:
        """What the rows of other tables refer to."""
        return {"tokens": self.blocks.rows, "texts": self.texts, "records": self.records}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All elements of tensors and arrays, flat, by their type."""
        return {name: np.concatenate(parts) for name, parts in self._elements.items()}

    def _value(self, value: Any) -> Any:
        kind = type(value)
        if kind in (NoneType, bool, str):
            return value
        self._depth += 1
        if self._depth > DEEPEST:
            raise NotDataError(
                f"something nested more than {DEEPEST} deep, or a {kind.__name__} that contains "
                "itself"
            )
        encode = self._kinds.get(kind)
        if encode is not None:
            found = encode(value)
        elif kind in SIMPLE:
            found = {SIMPLE[kind][0]: SIMPLE[kind][1](value)}
        else:
            found = self.other(value)
        self._depth -= 1
        return found

    def other(self, value: Any) -> Any:
        """A value of a kind that is met more rarely. Raises NotDataError."""
        if isinstance(value, np.generic) and value.dtype.kind in _KINDS:
            return {"scalar": self._array(np.asarray(value))}
        if isinstance(value, Path):
            return {"path": str(value)}
        kind = type(value)
        where = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        raise NotDataError(f"{_SHOWN.repr(value)} of type {where}{kind.__qualname__}")

    def _int(self, value: int) -> Any:
        return value if -_LARGEST < value < _LARGEST else {"int": hex(value)}

    def _float(self, value: float) -> Any:
        return value if math.isfinite(value) else {"float": str(value)}

    def _pairs(self, value: Mapping[Any, Any]) -> list[Any]:
        return [[self._value(k), self._value(v)] for k, v in value.items()]

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        if len(value) >= _IDS and all(type(x) is int and abs(x) < _LARGEST for x in value):
            return {"ids": self.blocks.add(value)}
        return {"tuple": [self._value(x) for x in value]}

    def _tensor(self, value: torch.Tensor) -> Any:
        odd = value.is_nested or value.is_quantized or value.device.type == "meta"
        if odd or value.layout != torch.strided:
            raise NotDataError(f"a tensor of layout {value.layout} on {value.device}")
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        name = str(value.dtype).removeprefix("torch.")
        try:
            elements = flat.numpy()
        except TypeError:  # bfloat16, float8
            if value.element_size() not in BITS:
                raise NotDataError(f"a tensor of {value.dtype}") from None
            elements = flat.view(BITS[value.element_size()]).numpy()
        row = self._kept(elements, name)
        if value.device.type != "cpu":
            row["device"] = str(value.device)
        return {"tensor": row}

    def _array(self, value: NDArray[Any]) -> Any:
        if value.dtype.kind not in _KINDS:
            raise NotDataError(f"an array of {value.dtype}")
        return self._kept(value, value.dtype.name)

    def _kept(self, elements: NDArray[Any], name: str) -> dict[str, Any]:
        start = self._lengths.get(name, 0)
        little = elements.dtype.newbyteorder("<")
        self._elements.setdefault(name, []).append(elements.astype(little).reshape(-1))
        self._lengths[name] = start + elements.size
        return {"type": name, "shape": list(elements.shape), "start": start}

    def _continuation(self, value: Continuation) -> dict[str, Any]:
        by = value.made_with
        return {
            "tokens": self._value(value.tokens),
            "text": value.text,
            "reason": value.reason,
            "made_with": None if by is None else self._tokenizer(by, None),
            **({} if value.kv in (None, "full") else {"kv": value.kv}),
        }

    def _tokenizer(self, identity: Identity, codec: Codec | None) -> int:
        """Its number. Ids of continuations do not say how they are read; texts know."""
        for number, (other, known) in enumerate(self._tokenizers):
            if other == identity and (codec is None or known is None or codec == known):
                if known is None:
                    self._tokenizers[number] = identity, codec
                return number
        self._tokenizers.append((identity, codec))
        return len(self._tokenizers) - 1

    def _piece(self, piece: bytes) -> Any:
        try:
            return piece.decode()
        except UnicodeDecodeError:  # part of a character
            return self._value(piece)
