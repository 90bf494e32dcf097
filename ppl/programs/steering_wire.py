"""What comes out of a steering module's sandbox, of which nothing is believed.

Answers are JSON texts. Here they become values of known types and sizes, or a `ModuleError`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

_MOST_HINTS, _MOST_STRINGS = 64, 16
_MOST_WORDS = 4000  # characters of a hint, of words, of all characters of a mask
_MOST_PROMPT, _MOST_MEMORY = 100_000, 20_000


class ModuleError(Exception):
    """Something raised in a module, or an answer that is none."""


@dataclass(frozen=True)
class Mask:
    """Which characters may be written; see `ppl.programs.letters.tokens_of`."""

    only: str | None
    never: str
    end: bool


@dataclass(frozen=True)
class Extend:
    """The follower is to write on."""

    hints: tuple[str, ...]
    until: tuple[str, ...] | None
    max_tokens: int | None
    mask: Mask | None


@dataclass(frozen=True)
class Observe:
    """Words that are written for it."""

    hints: tuple[str, ...]
    words: str


@dataclass(frozen=True)
class End:
    """The step is over.

    Attributes:
        finished: so is the text.
        memory: what the next step is told; only the sandbox can read it.
        twist: as for `ppl.twist`.
    """

    hints: tuple[str, ...]
    finished: bool
    memory: str
    twist: float


@dataclass(frozen=True)
class Reject:
    """The particle is given up."""


def request_of(said: str) -> Extend | Observe | End | Reject:
    """What a step asks, or how it ended."""
    row = _row(said)
    match row.get("do"):
        case "extend":
            until, most, mask = row.get("until"), row.get("max_tokens"), row.get("mask")
            return Extend(
                _hints(row),
                None if until is None else _strings(until, _MOST_STRINGS),
                None if most is None else _whole(most),
                None if mask is None else _mask(mask),
            )
        case "observe":
            return Observe(_hints(row), _string(row.get("words")))
        case "end":
            memory = _string(row.get("memory"), _MOST_MEMORY)
            twist = row.get("twist")
            if not isinstance(twist, float) or not math.isfinite(twist):
                raise _strange(twist)
            return End(_hints(row), _flag(row.get("finished")), memory, twist)
        case "reject":
            return Reject()
    raise _strange(row)


def verdict_of(said: str) -> bool:
    """What `check` says."""
    return _flag(_row(said).get("right"))


def prompts_of(said: str) -> tuple[str | None, str | None]:
    """The prior and the proposal prompt of a module that has loaded; None for one it lacks."""
    row = _row(said)
    prior, proposal = (
        None if row.get(name) is None else _string(row[name], _MOST_PROMPT)
        for name in ("prior", "proposal")
    )
    return prior, proposal


def _row(said: str) -> dict[str, Any]:
    try:
        row = json.loads(said)
    except (ValueError, RecursionError):
        raise _strange(said) from None
    if not isinstance(row, dict):
        raise _strange(row)
    if "error" in row:
        raise ModuleError(_string(row["error"]))
    return row


def _hints(row: dict[str, Any]) -> tuple[str, ...]:
    return _strings(row.get("hints"), _MOST_HINTS, least=0)


def _strings(value: Any, most: int, least: int = 1) -> tuple[str, ...]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise _strange(value)
    return tuple(_string(each) for each in value)


def _string(value: Any, most: int = _MOST_WORDS) -> str:
    if not isinstance(value, str) or not value:
        raise _strange(value)
    if len(value) > most:
        raise ModuleError(f"a string of {len(value)} characters, where {most} are allowed")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _strange(value) from None
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 31:
        raise _strange(value)
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _strange(value)
    return value


def _mask(value: Any) -> Mask:
    if not isinstance(value, dict):
        raise _strange(value)
    only, never = value.get("only"), value.get("never")
    return Mask(
        only if only is None else _string(only),
        "" if never == "" else _string(never),
        _flag(value.get("end")),
    )


def _strange(value: Any) -> ModuleError:
    return ModuleError(f"the sandbox answered {str(value)[:80]!r}, which is no answer")
