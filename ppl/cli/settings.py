"""Settings as people type them: `level=5`, `type=algebra`, `"SMC(16)"`."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import typer


def settings(pairs: Sequence[str], flag: str = "--set") -> dict[str, Any]:
    """`["level=5", "type=algebra"]` as a mapping; values are Python literals, or strings.

    Raises:
        typer.BadParameter: one has no `=`, or one name comes twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"{pair!r}: write NAME=VALUE, as in level=5", param_hint=flag)
        if name in found:
            raise typer.BadParameter(f"{name} is set twice", param_hint=flag)
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            found[name] = value
    return found


def searcher(text: str, flag: str = "--searcher") -> Any:
    """The searcher that a text describes, see `ppl.searchers.parse`.

    Raises:
        typer.BadParameter: it is none.
    """
    from ppl.errors import PPLError
    from ppl.searchers import Searcher
    from ppl.searchers.parse import parse

    try:
        found = parse(text if "(" in text else f"{text}()", imports=True)
    except (PPLError, TypeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint=flag) from error
    if not isinstance(found, Searcher):
        raise typer.BadParameter(f"{text!r} is no searcher", param_hint=flag)
    return found
