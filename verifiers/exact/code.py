"""The program that an answer contains.

Fences are read by a CommonMark parser, so tildes, long fences, fences in lists and quotations,
carriage returns and a missing end are what CommonMark says they are. Which of several blocks is the
program is a judgement, made here for all callers:

1. blocks in Python, by their info string, before blocks without one, before all others;
2. of these, the last that defines a function or class, or is a function's body: what comes after
   shows how to use it, what comes before is an earlier attempt. If there is none, the last block;
3. before it, the blocks of the same kind that only import, define and assign: its helpers, or what
   it defines once more.

A text without a fence is a program as it stands. So is what comes before the first fence, if it
defines something and no block does: the answer went on after an opening fence in the prompt.

Reference: the CommonMark specification 0.31, sections 4.5, 5.1 and 5.2.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from markdown_it import MarkdownIt

from ppl.language.text import Text

_PYTHON = re.compile(r"\W*(python|py)[\d.]*\b(?!-)", re.IGNORECASE)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Block(NamedTuple):
    """A fenced block of code.

    Attributes:
        info: its info string.
        content: its lines, without the fence's indentation.
        line: where it begins.
    """

    info: str
    content: str
    line: int


def code_of(text: Text | str) -> str:
    """The program in a text; all of the text if it has no fence. See this module's docstring."""
    string = text if isinstance(text, str) else text.text
    found = blocks(string) or blocks(textwrap.dedent(string))
    if not found:
        return string
    kinds: list[list[Block]] = [[], [], []]
    for block in found:
        kinds[0 if _PYTHON.match(block.info) else 1 if not block.info else 2].append(block)
    trees = {block: _parse(block.content) for block in found}
    for kind in kinds:
        defining = [block for block in kind if _defines(trees[block])]
        if defining:
            chosen = defining[-1]
            helpers = [block for block in kind[: kind.index(chosen)] if _quiet(trees[block])]
            return "\n".join(block.content for block in [*helpers, chosen])
    before = "".join(string.splitlines(keepends=True)[: found[0].line])
    return before if _defines(_parse(before)) else next(kind for kind in kinds if kind)[-1].content


def blocks(string: str) -> list[Block]:
    """The fenced blocks of a text in CommonMark, in order."""
    tokens = MarkdownIt("commonmark").parse(string)
    return [
        Block(token.info.strip(), token.content, token.map[0] if token.map else 0)
        for token in tokens
        if token.type == "fence"
    ]


def _parse(source: str) -> Sequence[ast.stmt] | None:
    """Its statements, or those of an indented body; None if it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a model's string escapes
            return ast.parse(textwrap.dedent(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defines(body: Sequence[ast.stmt] | None) -> bool:
    """Whether it makes a function or class, as a statement or a lambda, or is a function's body."""
    return any(
        isinstance(node, _DEFINITIONS)
        or (isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda))
        or any(isinstance(part, ast.Return) for part in ast.walk(node))
        for node in body or ()
    )


def _quiet(body: Sequence[ast.stmt] | None) -> bool:
    """Whether running it does nothing but make names."""
    return body is not None and all(
        isinstance(node, (*_DEFINITIONS, ast.Import, ast.ImportFrom))
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        or (
            isinstance(node, ast.Assign | ast.AnnAssign)
            and not any(isinstance(part, ast.Call) for part in ast.walk(node))
        )
        for node in body
    )
