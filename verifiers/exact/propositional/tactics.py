"""Tactics: what turns a goal into simpler ones, and the part of a proof term that this makes.

    intro        a → b: suppose a, show b          exact h      the goal is h
    split        a ∧ b: show a, show b             assumption   the goal is a hypothesis
    left, right  a ∨ b: show a, or show b          apply h      h : a → goal: show a
    cases h      h : a ∧ b, a ∨ b or False         have h       h : a → b: show a, then use b
    exfalso      show False instead                by_contra    suppose the opposite, show False

Names of hypotheses are made: h1, h2, ... Without `by_contra` proofs are intuitionistic. The rules
are those of a sequent calculus without cut, so every tautology has a proof by them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

from ppl.verifiers.exact.propositional.formulas import Formula, negation, show
from ppl.verifiers.exact.propositional.kernel import Term


class TacticFailedError(Exception):
    """A tactic does not fit the goal; the message says why."""


@dataclass(frozen=True)
class Goal:
    """What is to be shown, from what, and which hole of the proof it fills.

    Attributes:
        hypotheses: by name, in the order in which they came.
        target: what is to be shown.
        hole: the number of the hole.
        named: hypotheses named so far; a name is never used again.
    """

    hypotheses: tuple[tuple[str, Formula], ...]
    target: Formula
    hole: int = 0
    named: int = 0

    def __str__(self) -> str:
        lines = [f"{name} : {show(formula)}" for name, formula in self.hypotheses]
        return "\n".join([*lines, f"⊢ {show(self.target)}"])


@dataclass(frozen=True)
class Partial:
    """A proof with holes.

    Attributes:
        goals: one for every hole.
        term: the proof; hole k is `("?", k)`.
        holes: holes made so far.
    """

    goals: tuple[Goal, ...]
    term: Term
    holes: int = 1

    @classmethod
    def of(cls, formula: Formula) -> Partial:
        """Nothing but a hole."""
        return cls((Goal((), formula),), ("?", 0))


def after(partial: Partial, tactic: str) -> Partial:
    """The proof after a tactic on its first goal.

    Raises:
        TacticFailedError: there is no such tactic, or it does not fit.
    """
    if not partial.goals:
        raise TacticFailedError("no goals are left")
    word, *names = tactic.split() or [""]
    rule = _RULES.get(word)
    if rule is None or len(names) != (word in _NAMING):
        raise TacticFailedError(f"{tactic!r}: tactics are {', '.join(_RULES)}; some name one h")
    goal, *rest = partial.goals
    numbers = itertools.count(partial.holes)
    new: list[Goal] = []

    def show_that(target: Formula, *added: Formula, without: str = "") -> tuple[Term, list[str]]:
        """A hole for a new goal; and the names under which what is added is known there."""
        made = [f"h{goal.named + i}" for i in range(1, len(added) + 1)]
        kept = tuple(pair for pair in goal.hypotheses if pair[0] != without)
        hypotheses = (*kept, *zip(made, added, strict=True))
        new.append(Goal(hypotheses, target, next(numbers), goal.named + len(added)))
        return ("?", new[-1].hole), made

    term = rule(goal, show_that, *names)
    filled = _filled(partial.term, goal.hole, term)
    return Partial((*new, *rest), filled, next(numbers))


def fitting(goal: Goal) -> list[str]:
    """The tactics that fit a goal, as they are written."""
    names = [name for name, _ in goal.hypotheses]
    found = []
    for word in _RULES:
        for tactic in [f"{word} {name}" for name in names] if word in _NAMING else [word]:
            try:
                after(Partial((replace(goal, hole=0),), ("?", 0)), tactic)
            except TacticFailedError:
                continue
            found.append(tactic)
    return found


Show = Callable[..., tuple[Term, list[str]]]


def _intro(goal: Goal, show_that: Show) -> Term:
    _, a, b = _is(goal.target, "→")
    hole, (h,) = show_that(b, a)
    return ("fun", h, a, hole)


def _split(goal: Goal, show_that: Show) -> Term:
    _, a, b = _is(goal.target, "∧")
    return ("pair", show_that(a)[0], show_that(b)[0])


def _left(goal: Goal, show_that: Show) -> Term:
    _, a, b = _is(goal.target, "∨")
    return ("inl", show_that(a)[0], b)


def _right(goal: Goal, show_that: Show) -> Term:
    _, a, b = _is(goal.target, "∨")
    return ("inr", a, show_that(b)[0])


def _exact(goal: Goal, show_that: Show, name: str) -> Term:
    return name if _named(goal, name) == goal.target else _refuse(f"{name} is not the goal")


def _assumption(goal: Goal, show_that: Show) -> Term:
    for name, formula in goal.hypotheses:
        if formula == goal.target:
            return name
    return _refuse("no hypothesis is the goal")


def _apply(goal: Goal, show_that: Show, name: str) -> Term:
    rest, premises = _named(goal, name), list[Formula]()
    while isinstance(rest, tuple) and rest[0] == "→" and (rest != goal.target or not premises):
        premises.append(rest[1])
        rest = rest[2]
    if rest != goal.target or not premises:
        _refuse(f"{name} does not lead to the goal")
    term: Term = name
    for premise in premises:
        term = ("app", term, show_that(premise)[0])
    return term


def _have(goal: Goal, show_that: Show, name: str) -> Term:
    _, a, b = _is(_named(goal, name), "→")
    argument, _ = show_that(a)
    hole, (h,) = show_that(goal.target, b, without=name)
    return ("app", ("fun", h, b, hole), ("app", name, argument))


def _cases(goal: Goal, show_that: Show, name: str) -> Term:
    formula = _named(goal, name)
    if formula is False:
        return ("absurd", name, goal.target)
    if not isinstance(formula, tuple) or formula[0] == "→":
        _refuse(f"{name} has no cases")
    connective, a, b = formula
    if connective == "∧":
        hole, (h, k) = show_that(goal.target, a, b, without=name)
        inner = ("app", ("fun", k, b, hole), ("snd", name))
        return ("app", ("fun", h, a, inner), ("fst", name))
    left, (h,) = show_that(goal.target, a, without=name)
    right, _ = show_that(goal.target, b, without=name)
    return ("case", name, h, left, right)


def _exfalso(goal: Goal, show_that: Show) -> Term:
    if goal.target is False:
        _refuse("the goal is False already")
    return ("absurd", show_that(False)[0], goal.target)


def _by_contra(goal: Goal, show_that: Show) -> Term:
    if goal.target is False:
        _refuse("the goal is False already")
    hole, (h,) = show_that(False, negation(goal.target))
    return ("dne", h, goal.target, hole)


_RULES: dict[str, Callable[..., Term]] = {
    "intro": _intro,
    "split": _split,
    "left": _left,
    "right": _right,
    "assumption": _assumption,
    "exact": _exact,
    "apply": _apply,
    "cases": _cases,
    "have": _have,
    "exfalso": _exfalso,
    "by_contra": _by_contra,
}
_NAMING = ("exact", "apply", "cases", "have")


def _named(goal: Goal, name: str) -> Formula:
    for each, formula in goal.hypotheses:
        if each == name:
            return formula
    return _refuse(f"there is no hypothesis {name}")


def _is(formula: Formula, connective: str) -> tuple[Formula, Formula, Formula]:
    if isinstance(formula, tuple) and formula[0] == connective:
        return formula
    return _refuse(f"{show(formula)} is no {connective}")


def _refuse(why: str) -> NoReturn:
    raise TacticFailedError(why)


def _filled(term: Term, hole: int, with_: Term) -> Term:
    if not isinstance(term, tuple):
        return term
    if term == ("?", hole):
        return with_
    return tuple(_filled(part, hole, with_) if isinstance(part, tuple) else part for part in term)
