"""MathPrompter: several forms of one calculation, believed where they agree on random numbers.

Reference: Imani, Du, Shrivastava 2023, "MathPrompter: Mathematical Reasoning using Large Language
Models". A model writes a question's calculation several times over, as expressions or functions of
variables. Forms that agree on every random draw are taken for equal: two different polynomials of
degree d agree on m draws from S integers with probability (d / S)^m at most (Schwartz-Zippel).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.text import Text
from ppl.runtime.verdict import JudgeRequest, Verifier
from ppl.verifiers.exact.pool import shared_pool
from ppl.verifiers.exact.sandbox import Check, Sandbox

_LARGEST = 1000  # the S of the module's docstring


@dataclass(frozen=True)
class Agreement:
    """What the forms say.

    Attributes:
        value: the calculation's value for the question's own numbers, by the largest group of at
            least two independent forms that agree; None if there is none.
        agreeing: the forms of that group.
    """

    value: float | None
    agreeing: tuple[str, ...] = ()


@checked
def agreement(
    forms: Sequence[str],
    values: Mapping[str, float],
    *,
    draws: int = 5,
    seed: int = 0,
    sandbox: Sandbox | None = None,
) -> Agreement:
    """Runs the forms, each in a sandbox of its own, on random numbers and on the question's.

    Args:
        forms: Python expressions in the variables, or functions whose arguments are the variables,
            by name or in order. Forms of one calculation count once: equal programs, whatever their
            spacing, brackets and names. A form that fails agrees with none, and so does one that
            does not use every variable: what a constant is worth says nothing about the question.
        values: the question's number for each variable.
        draws: random draws on which forms must agree.
        seed: of the draws.
        sandbox: the limits.

    Raises:
        SandboxError: the isolation is not available.
        ValueError: there are no draws.
    """
    _check(values, draws)
    checks.count(least=0, seed=seed)
    distinct = list(_independent(forms, tuple(values)).values())
    if len(distinct) < 2:  # nothing to agree with
        return Agreement(None)
    rows = evaluated(distinct, values, draws=draws, seed=seed, sandbox=sandbox)
    groups = alike(rows)
    largest = max(groups, key=len, default=[])
    if len(largest) < 2:
        return Agreement(None)
    first = rows[largest[0]]
    assert first is not None
    return Agreement(first[-1], tuple(distinct[i] for i in largest))


def evaluated(
    forms: Sequence[str],
    values: Mapping[str, float],
    *,
    draws: int = 5,
    seed: int = 0,
    sandbox: Sandbox | None = None,
) -> list[tuple[float, ...] | None]:
    """What each form gives on the random draws, and last on the question's own numbers.

    Args:
        forms, values, draws, seed, sandbox: as of `agreement`.

    Returns:
        `[draws + 1]` numbers a form; None for one that fails, gives anything else, or does not use
        every variable.

    Raises:
        SandboxError: the isolation is not available.
    """
    names = tuple(values)
    forms = [form.strip() for form in forms]
    usable = [i for i, form in enumerate(forms) if _calculation(form, names) is not None]
    random = np.random.default_rng(seed).integers(1, _LARGEST + 1, (draws, len(values)))
    points = [*random.tolist(), list(values.values())]
    runs = [
        Check(
            _source(forms[i], names),
            ("form",),
            tuple(f"result = form(*{[p[k] for k in _order(forms[i], names)]!r})" for p in points),
        )
        for i in usable
    ]
    outcomes = shared_pool(sandbox or Sandbox()).run(runs) if runs else []
    rows: list[tuple[float, ...] | None] = [None] * len(forms)
    for i, outcome in zip(usable, outcomes, strict=True):
        if outcome.status == "passed" and all(map(_number, outcome.results)):
            rows[i] = tuple(float(r) for r in outcome.results)  # type: ignore[arg-type]
    return rows


def alike(rows: Sequence[tuple[float, ...] | None]) -> list[list[int]]:
    """Which rows are the same numbers, up to rounding; None is like nothing."""
    groups: list[list[int]] = []
    for i, row in enumerate(rows):
        if row is None:
            continue
        for group in groups:
            first = rows[group[0]]
            assert first is not None
            if all(map(_close, first, row)):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _check(values: Mapping[str, float], draws: int) -> None:
    checks.count(draws=draws)
    if not values or not all(isinstance(name, str) for name in values):
        raise ValueError(f"values={values!r}: a number for each variable, by its name")


class MathPrompter(Verifier):
    """Probability one if two different forms in a text agree, else zero; moved by `floor`.

    Args:
        values: the question's number for each variable.
        extract: finds the forms in a text; its steps by default.
        draws, seed, sandbox: as in `agreement`.
        floor: scores are clipped to [floor, 1 - floor].
    """

    @checked
    def __init__(
        self,
        values: Mapping[str, float],
        *,
        extract: Callable[[Text], Sequence[str]] = lambda text: text.steps,
        draws: int = 5,
        seed: int = 0,
        sandbox: Sandbox | None = None,
        floor: float = 1e-6,
    ) -> None:
        checks.floor(floor=floor)
        _check(values, draws)
        checks.count(least=0, seed=seed)
        self.values, self.extract, self.draws, self.seed = dict(values), extract, draws, seed
        self.sandbox, self.floor = sandbox, floor
        self.name, self.meaning = f"MathPrompter({', '.join(values)})", "outcome"

    def agreement(self, text: Text) -> Agreement:
        """What the forms of a text say."""
        return agreement(
            self.extract(text),
            self.values,
            draws=self.draws,
            seed=self.seed,
            sandbox=self.sandbox,
        )

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """0 for a text whose two forms agree, else -inf."""
        found = [self.agreement(request.text) for request in requests]
        return [[-math.inf if f.value is None else 0.0] for f in found]


def _independent(forms: Sequence[str], names: tuple[str, ...]) -> dict[str, str]:
    """The first form of each calculation, by the calculation."""
    found: dict[str, str] = {}
    for form in map(str.strip, forms):
        calculation = _calculation(form, names)
        if calculation is not None:
            found.setdefault(calculation, form)
    return found


def _calculation(form: str, names: tuple[str, ...]) -> str | None:
    """What a form calculates: its syntax tree, with places for the variables and for the names that
    it gives to what it works out on the way. None if it leaves a variable out.

    A function of one `return` is the expression that it returns; helpers beside it are not
    compared.
    What cannot be parsed fails when it is run.
    """
    function = _function(_source(form, names))
    if function is None:
        return None
    arguments = _arguments(function)
    if len(arguments) < len(names):
        return None
    variables = [arguments[_order(form, names).index(k)] for k in range(len(names))]
    places = {name: f"${i}" for i, name in enumerate(variables)}
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and body[1:]:
        body = body[1:]  # without the docstring
    named = [n for each in body for n in ast.walk(each) if isinstance(n, ast.Name)]
    if not {node.id for node in named}.issuperset(variables):
        return None
    for node in named:
        if isinstance(node.ctx, ast.Store):
            places.setdefault(node.id, f"${len(places)}")
    for node in named:
        node.id = places.get(node.id, node.id)
    return "\n".join(ast.dump(statement) for statement in body)


def _function(source: str) -> ast.FunctionDef | None:
    """The last function that a program defines; it is parsed and never run."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return functions[-1] if functions else None


def _arguments(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in (*function.args.posonlyargs, *function.args.args)]


def _order(form: str, names: tuple[str, ...]) -> list[int]:
    """Which variable each argument of a form is: the one of its name, if the first ones have the
    names of all, else the one in its place."""
    function = _function(form)
    arguments = [] if function is None else _arguments(function)[: len(names)]
    if sorted(arguments) == sorted(names):
        return [names.index(name) for name in arguments]
    return list(range(len(names)))


def _source(form: str, names: tuple[str, ...]) -> str:
    function = _function(form)
    if function is not None:
        return f"{form}\nform = {function.name}\n"
    return f"def form({', '.join(names)}):\n    return ({form})\n"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
