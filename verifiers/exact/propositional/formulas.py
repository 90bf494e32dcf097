"""Formulas of propositional logic, as nested tuples.

    "p"  False  ("→", a, b)  ("∧", a, b)  ("∨", a, b)

`¬a` is a → False, `True` is ¬False, and `a ↔ b` is (a → b) ∧ (b → a). In text, as in Lean, ¬ binds
tighter than ∧, ∧ than ∨, ∨ than →, → than ↔; all lean to the right, but of ↔ there is one between
brackets. The ASCII of `~ & | -> <->` is read as well.
"""

from __future__ import annotations

import itertools
import re
from typing import NoReturn

Formula = str | bool | tuple["Formula", "Formula", "Formula"]
"""An atom by its name, `False`, or a connective with its two sides."""

_TOKENS = re.compile(r"\s*(?:([A-Za-z]\w*)|(<->|↔)|(->|→)|(&|/\\|∧)|(\\/|\||∨)|(~|¬)|([()])|(\S))")
_KINDS = ["atom", "↔", "→", "∧", "∨", "¬", "bracket", "strange"]
_LEVELS = ("↔", "→", "∨", "∧")
_DEEPEST = 400  # calls; a bracket costs five


def implies(a: Formula, b: Formula) -> Formula:
    """a → b."""
    return ("→", a, b)


def negation(a: Formula) -> Formula:
    """¬a, which is a → False."""
    return ("→", a, False)


def parse(text: str) -> Formula:
    """The formula that a text is.

    Raises:
        ValueError: it is none (the message says where).
    """
    tokens = []
    for found in _TOKENS.finditer(text.rstrip()):
        index = found.lastindex or 0
        tokens.append((_KINDS[index - 1], found[index], found.start(index)))
    return _Reading(text, tokens).whole()


class _Reading:
    def __init__(self, text: str, tokens: list[tuple[str, str, int]]) -> None:
        self.text, self.tokens, self.at, self.depth = text, tokens, 0, 0

    def whole(self) -> Formula:
        formula = self.level(0)
        if self.at < len(self.tokens):
            self.refuse()
        return formula

    def level(self, n: int) -> Formula:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError(f"statement: {self.text[:40]!r}... is nested too deep")
        left = self.unary() if n == len(_LEVELS) else self.level(n + 1)
        if n < len(_LEVELS) and self.kind == _LEVELS[n]:
            self.at += 1
            if _LEVELS[n] == "↔":
                right = self.level(n + 1)
                left = ("∧", ("→", left, right), ("→", right, left))
            else:
                left = (_LEVELS[n], left, self.level(n))
        self.depth -= 1
        return left

    def unary(self) -> Formula:
        kind, word, _ = self.tokens[self.at] if self.at < len(self.tokens) else ("", "", 0)
        if kind == "¬":
            self.at += 1
            return negation(self.level(len(_LEVELS)))
        if word == "(":
            self.at += 1
            inner = self.level(0)
            if self.at >= len(self.tokens) or self.tokens[self.at][1] != ")":
                self.refuse()
            self.at += 1
            return inner
        if kind != "atom":
            self.refuse()
        self.at += 1
        return {"False": False, "True": negation(False)}.get(word, word)

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def refuse(self) -> NoReturn:
        here = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text)
        raise ValueError(
            f"statement: {self.text!r} is no formula: see what stands at character {here}; atoms "
            "are words, connectives → ∧ ∨ ¬ ↔ (or -> & | ~ <->), and False stands for itself"
        )


def show(formula: Formula) -> str:
    """As `parse` reads it, with few brackets."""
    return _shown(formula, 0)


def _shown(formula: Formula, level: int) -> str:
    if not isinstance(formula, tuple):
        return str(formula)
    connective, a, b = formula
    if connective == "→" and b is False:
        return f"¬{_shown(a, len(_LEVELS))}"
    mine = _LEVELS.index(connective)
    said = f"{_shown(a, mine + 1)} {connective} {_shown(b, mine)}"
    return f"({said})" if mine < level else said


def well_formed(formula: object) -> bool:
    """Whether it is a formula at all."""
    if isinstance(formula, tuple):
        sides = len(formula) == 3 and formula[0] in ("→", "∧", "∨")
        return sides and well_formed(formula[1]) and well_formed(formula[2])
    return formula is False or isinstance(formula, str)


def atoms(formula: Formula) -> frozenset[str]:
    """The names of its atoms."""
    if isinstance(formula, tuple):
        return atoms(formula[1]) | atoms(formula[2])
    return frozenset() if isinstance(formula, bool) else frozenset({formula})


def value(formula: Formula, true: frozenset[str]) -> bool:
    """Its truth value where the atoms in `true` are true and the others are not."""
    if not isinstance(formula, tuple):
        return formula in true if isinstance(formula, str) else False
    connective, a, b = formula
    if connective == "→":
        return not value(a, true) or value(b, true)
    if connective == "∧":
        return value(a, true) and value(b, true)
    return value(a, true) or value(b, true)


def tautology(formula: Formula) -> bool:
    """Whether it is true in every row of its truth table, `2^atoms` of them."""
    names = sorted(atoms(formula))
    rows = itertools.product((False, True), repeat=len(names))
    return all(value(formula, frozenset(itertools.compress(names, row))) for row in rows)
