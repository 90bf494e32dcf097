"""MathPrompter end to end, as a program: one calculation written in several forms that must agree.

Imani, Du, Shrivastava 2023, "MathPrompter: Mathematical Reasoning using Large Language Models",
arXiv 2303.05398:

    1  the question's numbers become variables
    2  the model writes an expression of them, and a Python function
    3  both are run on random numbers; where they do not agree on all, 2 is done again
    4  those that agree are run on the question's own numbers
    5  2 to 4 are done several times over, and the most frequent value is the answer

Model-written code runs in the sandbox only.
"""

from __future__ import annotations

import itertools
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import pyro

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields, checked, shown
from ppl.language.call import call
from ppl.language.placeholders import filled
from ppl.language.primitives import answer, condition, parallel
from ppl.language.text import Text
from ppl.lm.base import LanguageModel
from ppl.verifiers.exact.code import code_of
from ppl.verifiers.exact.sandbox import Sandbox
from ppl.verifiers.generative.math_prompter import agreement, alike, evaluated

Different = Literal["calculation", "prompt"]

EXPRESSION = (
    "{template}\nWrite a mathematical equation in the variables {variables} and generate the answer"
    " format starting with 'Answer ='"
)
FUNCTION = (
    "{template}\nWrite a Python function of the arguments {variables} that returns the answer."
)

# A number as a whole that no letter touches: 1000, 1,000 and 2.5, but nothing of "2nd" or "2.5x".
_NUMBER = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w|\.\d|,\d{3})")
_SIGNS = {"\u00d7": "*", "\u00b7": "*", "\u22c5": "*", "\u00f7": "/", "\u2212": "-", "^": "**"}
_SIGNS |= {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": "", "$": ""}
_SIGNS |= dict.fromkeys(("\\(", "\\)", "\\[", "\\]"), "")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_STATED = re.compile(r"answer\s*[=:]", re.I)


class Template(NamedTuple):
    """A question with variables for its numbers.

    Attributes:
        text: the question, a variable in the place of each number.
        values: what number each variable stands for.
    """

    text: str
    values: dict[str, float]


@checked
def algebraic_template(question: str) -> Template:
    """The question with A, B, C, ... for its numbers, equal numbers alike.

    Letters that the question has as words ("A farmer ...") are left out.

    Raises:
        ArgumentError: the question has no number.
    """
    words = set(re.findall(r"\w+", question))
    free = (f"{c}{n or ''}" for n in itertools.count() for c in string.ascii_uppercase)
    names = (name for name in free if name not in words)
    variables: dict[float, str] = {}

    def variable(found: re.Match[str]) -> str:
        value = _plain(float(found[0].replace(",", "")))
        if value not in variables:
            variables[value] = next(names)
        return variables[value]

    text = _NUMBER.sub(variable, question)
    if not variables:
        raise ArgumentError(
            f"question={shown(question)}: it has no number that could be a variable"
        )
    return Template(text, {name: value for value, name in variables.items()})


@checked
def math_prompter(
    lm: LanguageModel,
    question: str,
    *,
    k: int = 5,
    draws: int = 5,
    repeats: int = 5,
    different: Different = "calculation",
    expression: str = EXPRESSION,
    function: str = FUNCTION,
    max_tokens: int = 256,
    temperature: float = 0.7,
    sandbox: Sandbox | None = None,
) -> float | None:
    """The answer to a question with numbers, where several written forms of it agree.

    A program: `BestOfN(1).run(math_prompter, lm, question)`. Whatever is to be written in a round,
    for all repeats, is one batch. After each round it says what the answer would be (`ppl.answer`),
    so that a budget that ends it leaves the consensus until then.

    Price: 2 * repeats to 2 * k * repeats generations, and two sandboxes for each form. Forms agree
    by chance with probability (d / 1000)^draws at most, if they are polynomials of degree d. Forms
    that are wrong in one way agree, too: no random number finds that out.

    Args:
        lm: the model that writes.
        question: with numbers, in digits.
        k: most rounds of a repeat; a round adds an expression and a function to its forms.
        draws: random draws on which forms must agree.
        repeats: how often an agreement is looked for; the most frequent value is the answer.
        different: what two forms must differ in to count as two: `"calculation"`, their syntax
            trees, so that nothing agrees with its copy; or, as published, `"prompt"`: an expression
            and a function will do. Both must use every variable.
        expression, function: what is asked; `{template}` and `{variables}` stand for the question
            and the names.
        max_tokens, temperature: of what is written.
        sandbox: its limits.

    Returns:
        The value on the question's own numbers; None if no repeat came to an agreement.

    Raises:
        ArgumentError: the question has no number.
        ToolError: the isolation is not available.
    """
    checks.count(k=k, draws=draws, repeats=repeats, max_tokens=max_tokens)
    checks.nonnegative(temperature=temperature)
    template = algebraic_template(question)
    agreed = Agreed(template.values, draws, different, sandbox or Sandbox())
    asked = [
        (lm.chat(_filled(prompt, name, template)), read)
        for name, prompt, read in (
            ("expression", expression, stated_expression),
            ("function", function, code_of),
        )
    ]

    def write(text: Text) -> str:
        reply = pyro.sample("form", lm(text, max_tokens=max_tokens, temperature=temperature))
        return str(reply.text)

    forms: list[list[list[str]]] = [[[], []] for _ in range(repeats)]  # by repeat and prompt
    values: list[float | None] = [None] * repeats
    for i in range(k):
        going = [r for r in range(repeats) if values[r] is None]
        if not going:
            break
        written = parallel(
            [partial(write, text) for _ in going for text, _ in asked], name=f"round_{i}"
        )
        for j, reply in enumerate(written):
            forms[going[j // 2]][j % 2].append(asked[j % 2][1](reply))
        found = call(f"agreed_{i}", agreed, [forms[r] for r in going])
        for r, value in zip(going, found, strict=True):
            values[r] = value
        agreeing = consensus(values)
        if agreeing is not None:
            answer(agreeing)
        condition(True, f"round_{i}")  # where a search that is stopped finds the answer
    return consensus(values)


@dataclass(frozen=True)
class Agreed:
    """For the forms of each repeat the value that they agree on, or None.

    Attributes:
        values: the question's number for each variable.
        draws, different, sandbox: as of `math_prompter`.
    """

    values: Mapping[str, float]
    draws: int
    different: Different
    sandbox: Sandbox

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, repeats: Sequence[Sequence[Sequence[str]]]) -> list[float | None]:
        """One value for each repeat, of its expressions and functions."""
        one = self._calculations if self.different == "calculation" else self._prompts
        return [one(*forms) for forms in repeats]

    def _calculations(self, expressions: Sequence[str], functions: Sequence[str]) -> float | None:
        found = agreement(
            [*expressions, *functions], self.values, draws=self.draws, sandbox=self.sandbox
        )
        return None if found.value is None else _plain(found.value)

    def _prompts(self, expressions: Sequence[str], functions: Sequence[str]) -> float | None:
        forms = [*expressions, *functions]
        rows = evaluated(forms, self.values, draws=self.draws, sandbox=self.sandbox)
        written = len(expressions)
        groups = alike(rows)
        both = [g for g in groups if min(g) < written <= max(g)]  # an expression and a function
        row = rows[max(both, key=len)[0]] if both else None
        return None if row is None else _plain(row[-1])


@checked
def consensus(values: Sequence[float | None]) -> float | None:
    """The most frequent value, up to rounding; the first among equals; None without one."""
    there = [value for value in values if value is not None]
    largest = max(alike([(value,) for value in there]), key=len, default=None)
    return None if largest is None else there[largest[0]]


@checked
def stated_expression(reply: str) -> str:
    """The expression of a reply: what follows `Answer =`, or the last line, as Python writes it."""
    *_, stated = _STATED.split(reply)
    lines = [line for line in stated.splitlines() if line.strip()]
    if not lines:
        return ""
    # What follows the expression on its line is its value: "Answer = A*B = 12".
    said = lines[-1].rpartition("=")[2] if stated == reply else lines[0].partition("=")[0]
    said = _FRACTION.sub(r"((\1)/(\2))", said)
    for sign, python in _SIGNS.items():
        said = said.replace(sign, python)
    return said.strip(" `*").rstrip(" .`*")


def _filled(prompt: str, name: str, template: Template) -> str:
    if "{template}" not in prompt:
        raise ArgumentError(f"{name}={shown(prompt)}: has a place for {{template}}")
    return filled(prompt, template=template.text, variables=", ".join(template.values))


def _plain(value: float) -> float:
    """A whole number as an int: what programs return is compared and shown."""
    return int(value) if math.isfinite(value) and value == int(value) else value
