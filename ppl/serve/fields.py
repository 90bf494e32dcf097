"""The fields of a request, read one by one; what nobody reads is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ppl.language.arguments import shown
from ppl.language.json_numbers import finite, no_constant
from ppl.serve.refusal import RefusedError


def decoded(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises RefusedError (400)."""
    try:
        found = json.loads(body, parse_constant=no_constant, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise RefusedError(
            400, f"the body is no JSON: {str(error)[:200]}", code="invalid_json"
        ) from error
    if not isinstance(found, dict):
        raise RefusedError(400, "the body is no JSON object", code="invalid_json")
    return found


class Fields:
    """An object's fields by name; `None` is as good as a field that is not there.

    Args:
        body: the object.
        where: put before names in messages, as in `"ppl."`.
    """

    def __init__(self, body: Mapping[str, Any], where: str = "") -> None:
        self._body, self._where = body, where
        self._read: set[str] = set()

    def name(self, field: str) -> str:
        """How messages call a field."""
        return self._where + field

    def any(self, field: str) -> Any:
        """Whatever a field holds."""
        self._read.add(field)
        return self._body.get(field)

    def refuse(self, field: str, what: str) -> RefusedError:
        """The error for a field that holds something else."""
        name = self.name(field)
        said = f"{name}={shown(self._body.get(field))}: {what}"
        return RefusedError(400, said, param=name, code="invalid_value")

    def whole(self, field: str, least: int | None = None, most: int | None = None) -> int | None:
        """A whole number."""
        value = self.any(field)
        if value is None:
            return None
        low = least is None or (isinstance(value, int) and value >= least)
        if isinstance(value, bool) or not isinstance(value, int) or not low:
            at_least = "" if least is None else f", at least {least}"
            raise self.refuse(field, f"a whole number{at_least}")
        if most is not None and value > most:
            raise self.refuse(field, f"this server allows {most} at most")
        return value

    def number(self, field: str, most: float | None = None) -> float | None:
        """A number of zero or more."""
        value = self.any(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise self.refuse(field, "a number of zero or more")
        if most is not None and value > most:
            raise self.refuse(field, f"this server allows {most} at most")
        return value

    def flag(self, field: str) -> bool:
        """True or false; false if it is not there."""
        value = self.any(field)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(field, "true or false")
        return bool(value)

    def word(self, field: str) -> str | None:
        """A string."""
        value = self.any(field)
        if value is not None and not isinstance(value, str):
            raise self.refuse(field, "a string")
        return value

    def words(self, field: str, most: int) -> tuple[str, ...]:
        """A string that is not empty, or a list of such."""
        value = self.any(field)
        found = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(found, list) or not all(isinstance(s, str) and s for s in found):
            raise self.refuse(field, "a string, or a list of strings")
        if len(found) > most:
            raise self.refuse(field, f"{most} strings at most")
        return tuple(found)

    def object(self, field: str) -> Fields:
        """The fields of an object; none if it is not there."""
        value = self.any(field)
        if value is not None and not isinstance(value, dict):
            raise self.refuse(field, "an object")
        return Fields(value or {}, f"{self.name(field)}.")

    def neutral(self, fields: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuses fields that would change the answer and are not supported here, unless they hold
        one of the values that change nothing."""
        for field, harmless in fields.items():
            value = self.any(field)
            same = any(value == known and type(value) is type(known) for known in harmless)
            if value is not None and not same:
                name = self.name(field)
                raise RefusedError(
                    400,
                    f"{name} is not supported by this server; leave it out",
                    param=name,
                    code="unsupported_parameter",
                )

    def end(self) -> None:
        """Refuses fields that nobody has read."""
        for field in self._body:
            if field not in self._read:
                name = self.name(field)
                raise RefusedError(
                    400,
                    f"{name[:80]} is not known to this server; leave it out",
                    param=name[:80],
                    code="unsupported_parameter",
                )
