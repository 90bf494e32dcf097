"""Searchers that strangers may name: parsed, held to a size, and never a way into the process.

`ppl.searchers.parse` reads literals and known settings. It also takes functions by import path,
which is right for the files of one's own studies and wrong here: a stranger would have the server
call any function of any module. So a name with a dot is refused before it is looked up.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from ppl.searchers.parse import parse
from ppl.searchers.search import Searcher
from ppl.serve.refusal import RefusedError

_LONGEST = 300  # characters of a searcher
# Settings that multiply to what a searcher holds or tries.
_FACTORS = (
    "num_particles",
    "n",
    "beam_width",
    "simulations",
    "expansions",
    "samples",
    "sweeps",
    "rounds",
    "depths",
    "answers",
)


def searcher_of(text: str, most: int, param: str) -> Searcher[Any]:
    """The searcher that a request names.

    Args:
        text: as in `"SMC(16)"`.
        most: the largest `size`; also the largest whole number among its settings that is not the
            default.
        param: where it stands in the request, for messages.

    Raises:
        RefusedError: it is none, or too large.
    """
    if len(text) > _LONGEST:
        raise _refused(f"a searcher has at most {_LONGEST} characters, this has {len(text)}", param)
    try:
        tree = ast.parse(text.strip(), mode="eval")
        if any(isinstance(node, ast.Attribute) for node in ast.walk(tree)):
            raise _refused(f"{text!r}: names with dots are not read here", param)
        searcher = parse(text)
    except RefusedError:
        raise
    except Exception as error:  # what settings raise that are given nonsense, and the parser
        raise _refused(f"{text!r} is no searcher: {error}", param) from error
    if not isinstance(searcher, Searcher):
        raise _refused(f"{text!r} is no searcher: write it as in 'SMC(16)'", param)
    large = [number for number in _whole_numbers(searcher) if abs(number) > most]
    if size(searcher) > most or large:
        raise _refused(
            f"{text!r} is larger than this server allows: {most} at most, as particles, "
            "simulations, or width times expansions",
            param,
        )
    return searcher


def size(searcher: Searcher[Any]) -> int:
    """How large a searcher is: the product of those of its settings that count particles, or what
    is tried for each (`num_particles`, `n`, `beam_width`, `simulations`, `expansions`, ...)."""
    counts = [getattr(searcher, name, 1) for name in _FACTORS]
    if hasattr(searcher, "rounds"):  # of so many runs each
        counts.append(getattr(searcher, "width", 1))
    return math.prod(max(1, count) for count in counts if isinstance(count, int))


def _whole_numbers(settings: Any) -> Iterator[int]:
    """Those that were given; a default is the author's choice."""
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if value == f.default:
            continue
        if dataclasses.is_dataclass(value):
            yield from _whole_numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield value


def _refused(message: str, param: str) -> RefusedError:
    return RefusedError(400, message, param=param, code="invalid_searcher")
