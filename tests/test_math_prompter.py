"""Forms of one calculation that agree on random numbers."""

from __future__ import annotations

import math

import pytest
from bubblewrap import needs_bubblewrap

import ppl
from ppl.verifiers import Agreement, MathPrompter, agreement

pytestmark = needs_bubblewrap
QUESTION = {"a": 3, "b": 4}


@pytest.mark.parametrize(
    ("forms", "value", "agreeing"),
    [
        (["a*(b+1)", "def f(x, y):\n    return x*y + x", "a+b"], 15, 2),
        (["a*(b+1)", "a*(b+1)"], None, 0),  # one form said twice
        (["a+b", "a + b", "(a+b)", "def f(x, y):\n    return x + y"], None, 0),  # or four times
        (["a+b", "def f(x, y):\n    'The sum.'\n    return x + y", "b+a"], 7, 2),
        (
            ["def f(a, b):\n    s = a\n    s += b\n    return s",
             "def g(x, y):\n    total = x\n    total += y\n    return total"],
            None, 0,
        ),  # whatever is called what
        (["a - b", "def f(b, a, c=0):\n    return c - (b - a)"], -1, 2),
        (["7", "3+4"], None, 0),  # constants: true of these numbers only
        (["a*2", "a+a"], None, 0),  # b is left out
        (["a*b", "a+b+5"], None, 0),  # equal at the question's numbers by accident
        (["a/b", "a*b**-1", "a*b", "b*a", "b*a*1"], 12, 3),  # the larger group
        (["a*b", "import os", "def f(:", "1/0", "exit(0)", "b*a"], 12, 2),
        (["a > b", "not a <= b"], None, 0),  # no numbers
        (["a - b", "def f(b, a):\n    return a - b"], None, 0),  # arguments by name: the same
        (["a - b", "def f(b, a):\n    return -(b - a)"], -1, 2),
        (["a - b", "def f(y, x):\n    return -(x - y)"], -1, 2),  # or in order
        (["b*a", "import math\ndef f(a, b):\n    return math.prod([a, b])"], 12, 2),
        (["10**400*a", "a*10**400"], None, 0),
        ([], None, 0),
    ],
)  # fmt: skip
def test_agreement(forms, value, agreeing):
    found = agreement(forms, QUESTION)
    assert (found.value, len(found.agreeing)) == (value, agreeing)


def test_forms_that_meet_no_random_number_have_not_agreed():
    with pytest.raises(ValueError, match="draws=0"):
        agreement(["a + a", "2 * a"], {"a": 2.0}, draws=0)


def test_one_seed_is_one_result():
    forms = ["a*b", "b*a"]
    assert agreement(forms, QUESTION, seed=3) == agreement(forms, QUESTION, seed=3)
    assert agreement(forms, QUESTION) == Agreement(12.0, ("a*b", "b*a"))


def test_as_a_verifier():
    lm = ppl.TableLM({"$": 1.0}, symbols="^ab*+1$", end="$")
    prompter = MathPrompter(QUESTION, floor=0.01)

    def log_probability(*lines):
        text = lm.prompt("^")
        for line in lines:
            text = text + lm.continuation(line)
        return prompter(text).log_probability

    assert log_probability("a*b", "b*a") == pytest.approx(math.log(0.99))
    assert log_probability("a*b", "a+b") == pytest.approx(math.log(0.01))
