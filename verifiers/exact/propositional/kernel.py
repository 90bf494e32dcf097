"""The kernel: whether a term proves a formula, by the rules of natural deduction.

All trust is here, and only here: tactics make terms in whatever way they like, and a proof counts
if the kernel accepts its term. Terms are nested tuples; a hypothesis is a name.

    h                       the hypothesis h
    ("fun", h, A, t)        A → B         where t proves B from h : A
    ("app", f, t)           B             where f proves A → B, and t proves A
    ("pair", s, t)          A ∧ B
    ("fst", t) ("snd", t)   A, B          where t proves A ∧ B
    ("inl", t, B)           A ∨ B         where t proves A
    ("inr", A, t)           A ∨ B         where t proves B
    ("case", t, h, l, r)    C             where t proves A ∨ B, and l, r prove C from h : A, h : B
    ("absurd", t, C)        C             where t proves False
    ("dne", h, A, t)        A             where t proves False from h : ¬A; the one classical rule
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ppl.verifiers.exact.propositional.formulas import Formula, well_formed

Term = str | tuple[Any, ...]


class NoProofError(Exception):
    """A term is no proof; the message says where."""


def proves(term: Term, formula: Formula) -> bool:
    """Whether a term without hypotheses proves a formula."""
    try:
        return proved(term, {}) == formula
    except (NoProofError, RecursionError):
        return False


def proved(term: Term, known: Mapping[str, Formula]) -> Formula:
    """What a term proves from hypotheses.

    Raises:
        NoProofError: nothing.
    """
    if isinstance(term, str):
        if term not in known:
            raise NoProofError(f"no hypothesis {term}")
        return known[term]
    match term:
        case ("fun", str(h), a, body):
            return ("→", _read(a), proved(body, {**known, h: a}))
        case ("app", function, argument):
            _, a, b = _made(proved(function, known), "→")
            return b if proved(argument, known) == a else _wrong(term)
        case ("pair", left, right):
            return ("∧", proved(left, known), proved(right, known))
        case ("fst", pair):
            return _made(proved(pair, known), "∧")[1]
        case ("snd", pair):
            return _made(proved(pair, known), "∧")[2]
        case ("inl", left, b):
            return ("∨", proved(left, known), _read(b))
        case ("inr", a, right):
            return ("∨", _read(a), proved(right, known))
        case ("case", either, str(h), left, right):
            _, a, b = _made(proved(either, known), "∨")
            first = proved(left, {**known, h: a})
            return first if proved(right, {**known, h: b}) == first else _wrong(term)
        case ("absurd", impossible, c):
            return _read(c) if proved(impossible, known) is False else _wrong(term)
        case ("dne", str(h), a, body):
            supposed = ("→", _read(a), False)
            return a if proved(body, {**known, h: supposed}) is False else _wrong(term)
    return _wrong(term)


def _read(formula: Any) -> Formula:
    if not well_formed(formula):
        raise NoProofError(f"{formula} is no formula")
    return cast(Formula, formula)


def _made(formula: Formula, connective: str) -> tuple[Formula, Formula, Formula]:
    if not isinstance(formula, tuple) or formula[0] != connective:
        raise NoProofError(f"{formula} is no {connective}")
    return formula


def _wrong(term: Term) -> Formula:
    raise NoProofError(f"{term!r:.60} proves nothing")


def classical(term: Term) -> bool:
    """Whether it uses the classical rule."""
    return isinstance(term, tuple) and (term[0] == "dne" or any(map(classical, term[1:])))
