"""MathPrompter as a program: what is asked, when it asks again, what it believes."""

from __future__ import annotations

import pytest
from backward_checks import Script
from bubblewrap import needs_bubblewrap

import ppl
from ppl.errors import ArgumentError
from ppl.programs import algebraic_template, math_prompter
from ppl.programs.prompted_math import consensus, stated_expression
from ppl.searchers import BestOfN

QUESTION = "Each adult meal costs $5 and kids eat free. Of a group of 15, 8 were kids. How much?"


def writer(expressions, functions, seen=None):
    """Writes one of these, each as likely as the others."""

    def replies(message):
        if seen is not None:
            seen.append(message)
        said = functions if "Python function" in message else expressions
        return {reply: said.count(reply) / len(said) for reply in said}

    return Script(replies)


def function(body, arguments="A, B, C"):
    return f"```python\ndef total({arguments}):\n    return {body}\n```"


def run(lm, *, seed=0, budget=None, **options):
    return BestOfN(1).run(math_prompter, lm, QUESTION, seed=seed, budget=budget, **options)


# -- the template and the forms -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "text", "values"),
    [
        (QUESTION, QUESTION.replace("15", "B").replace("8", "C").replace("$5", "$A"),
         {"A": 5, "B": 15, "C": 8}),
        ("A man has 1,250.5 coins; I 3.", "A man has B coins; I C.", {"B": 1250.5, "C": 3}),
        ("3 friends share 12; each of the 3 eats.", "A friends share B; each of the A eats.",
         {"A": 3, "B": 12}),
        ("The 2nd of 4 runs 20km.", "The 2nd of A runs 20km.", {"A": 4}),
        ("It is 2.5x 3,000m long, 4 or 5,6 wide.", "It is 2.5x 3,000m long, A or B,C wide.",
         {"A": 4, "B": 5, "C": 6}),
        ("Half of 1/2 and 5%?", "Half of A/B and C%?", {"A": 1, "B": 2, "C": 5}),
    ],
)  # fmt: skip
def test_numbers_become_variables(question, text, values):
    assert algebraic_template(question) == (text, values)


def test_a_question_without_numbers_has_no_template():
    with pytest.raises(ArgumentError, match="no number"):
        algebraic_template("How many?")
    with pytest.raises(ArgumentError, match="no number"):
        BestOfN(1).run(math_prompter, writer(["x"], ["x"]), "How many?")
    many = " ".join(str(n) for n in range(2, 402))
    template = algebraic_template(many)
    assert len(template.values) == 400
    assert template.text.split() == list(template.values)


@pytest.mark.parametrize(
    ("reply", "expression"),
    [
        ("Answer = A * (B - C)", "A * (B - C)"),
        ("We count. Answer = A*B. So\nAnswer = A*(B-C) = 35.", "A*(B-C)"),
        ("answer: $A \\times (B - C)$", "A * (B - C)"),
        ("Answer = \\frac{A}{B} \u2212 C", "((A)/(B)) - C"),
        ("Answer =\n  A^2 \u00d7 B", "A**2 * B"),
        ("Answer = .5 * A.", ".5 * A"),
        ("**Answer = \\(A \\times B\\)**", "A * B"),
        ("The total is A*B", "The total is A*B"),
        ("total = A*B", "A*B"),
        ("Answer =", ""),
        ("", ""),
    ],
)
def test_the_expression_of_a_reply(reply, expression):
    assert stated_expression(reply) == expression


def test_the_most_frequent_value_is_the_answer():
    assert consensus([3, None, 0.1 + 0.2, 0.3, None]) == 0.1 + 0.2
    assert consensus([7, 8, 8, 7]) == 7
    assert consensus([None, None]) is None


# -- the program ----------------------------------------------------------------------------------


@needs_bubblewrap
def test_what_agrees_is_calculated_with_the_own_numbers():
    seen = []
    lm = writer(["Answer = A*(B - C)"], [function("A*B - A*C")], seen)
    posterior = run(lm, repeats=2)
    assert posterior.best == 35
    assert isinstance(posterior.best, int)
    assert posterior.cost.lm_calls == 2 * 2  # one round
    assert posterior.cost.tool_calls == 1
    assert {m.splitlines()[0] for m in seen} == {algebraic_template(QUESTION).text}
    assert any("starting with 'Answer ='" in m for m in seen)
    assert any("Python function" in m and "A, B, C" in m for m in seen)


@needs_bubblewrap
@pytest.mark.parametrize(
    ("expression", "body"),
    [
        ("B*C - 17*A", "A + B*2 - C + 8"),  # two wrong forms that meet at 35
        ("A*B - 5*C", "A*B - A*C"),  # equal wherever A is 5
        ("A*B - 40", "A*(B - C)"),  # equal wherever A is 5 and C is 8; one leaves C out
        ("35", "7 * 5"),  # constants
        ("A*(B - C)", "A * (B-C)"),  # the same calculation
    ],
)
def test_what_agrees_at_the_own_numbers_only_is_rejected(expression, body):
    own = {"A": 5, "B": 15, "C": 8}
    assert [eval(form, own) for form in (expression, body)] == [35, 35]
    lm = writer([f"Answer = {expression}"], [function(body)])
    posterior = run(lm, k=2, repeats=1)
    assert posterior.best is None
    assert posterior.cost.lm_calls == 2 * 2  # it asked again, to the end


@needs_bubblewrap
def test_as_published_an_expression_and_a_function_will_do():
    lm = writer(["Answer = A*(B - C)"], [function("A * (B-C)")])
    assert run(lm, k=2, repeats=1).best is None
    assert run(lm, k=2, repeats=1, different="prompt").best == 35
    alone = writer(["Answer = A*(B - C)", "Answer = A*B - A*C"], [function("A + B + C")])
    assert run(alone, k=4, repeats=1, different="prompt").best is None  # no function agrees
    assert run(alone, k=4, repeats=1).best == 35
    constant = writer(["Answer = 35"], [function("7*5")])
    assert run(constant, k=1, repeats=1, different="prompt").best is None


@needs_bubblewrap
def test_it_asks_again_until_two_agree():
    lm = writer(
        ["Answer = A*(B - C)", "Answer = A + B", "Answer = A*B", "Answer = ?"],
        [function("A*B - A*C"), function("B - A"), "I cannot."],
    )
    rounds = []
    for seed in range(6):
        posterior = run(lm, k=12, repeats=1, seed=seed)
        assert posterior.best in (35, None)
        if posterior.best is not None:
            rounds.append(posterior.cost.lm_calls // 2)
    assert len(rounds) >= 5
    assert len(set(rounds)) > 1


@needs_bubblewrap
def test_repeats_go_on_by_themselves_and_their_majority_is_the_answer():
    right, wrong = ["Answer = A*(B - C)"] * 3, ["Answer = A*B*C"]
    lm = writer(right + wrong, [function("A*B - A*C")] * 3 + [function("C*B*A")])
    found = [run(lm, k=6, repeats=7, seed=seed).best for seed in range(2)]
    assert found == [35] * 2
    single = {run(lm, k=8, repeats=1, seed=seed).best for seed in range(8)}
    assert single == {35, 600}  # wrong in one way, twice over: no random number sees it


@needs_bubblewrap
def test_a_budget_leaves_the_consensus_until_then():
    lm = writer(["Answer = A*(B - C)", "Answer = A"], [function("A*B - A*C"), function("B")])
    whole = run(lm, k=30, repeats=6, seed=1)
    first = 2 * 6
    assert whole.cost.lm_calls > first
    cut = run(lm, k=30, repeats=6, seed=1, budget=ppl.Budget(calls=first + 1))
    assert cut.stopped == "budget"
    assert cut.cost.lm_calls <= first + 1
    assert cut.best == 35


@needs_bubblewrap
def test_model_written_code_runs_in_the_sandbox_only(tmp_path):
    mark = tmp_path / "mark"
    evil = f"def total(A, B, C):\n    open({str(mark)!r}, 'w').write('x')\n    return A*(B - C)"
    lm = writer(["Answer = A*B - A*C"], [evil])
    assert run(lm, k=1, repeats=1).best is None
    assert not mark.exists()


@needs_bubblewrap
def test_outside_of_searches_it_runs_forward():
    lm = writer(["Answer = A*(B - C)"], [function("A*B - A*C")])
    assert math_prompter(lm, QUESTION, repeats=1) == 35


def test_prompts_have_a_place_for_the_question():
    lm = writer(["x"], ["x"])
    with pytest.raises(ArgumentError, match="expression"):
        math_prompter(lm, QUESTION, expression="What?")
    with pytest.raises(ValueError, match="repeats"):
        math_prompter(lm, QUESTION, repeats=0)
    with pytest.raises(ValueError, match="different"):
        math_prompter(lm, QUESTION, different="text")
