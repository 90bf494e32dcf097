"""JSON's numbers as floats: what no float can hold is refused.

Python reads `NaN` and `Infinity`, which JSON does not have, and makes infinity of `1e999`, which it
has: from then on nothing that was written can be told from it. The two functions are hooks of
`json.loads` and `json.JSONDecoder`, as `parse_constant` and `parse_float`.
"""

from __future__ import annotations

import math
from typing import NoReturn

from ppl.language.arguments import shown


def no_constant(name: str) -> NoReturn:
    """Raises ValueError: `NaN`, `Infinity` and `-Infinity` are no JSON."""
    raise ValueError(f"{name} is no number of JSON")


def finite(digits: str) -> float:
    """The float. Raises ValueError for a number that is too large for one."""
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{shown(digits)[1:-1]} is too large for a float")
    return value
