"""What the answer of a text is, and when two answers are equal."""

from __future__ import annotations

import pickle
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from work import LINEAR, calls, growth

import ppl
from ppl.language import classes
from ppl.language.answers import (
    Answer,
    Equality,
    equality,
    extract_answer,
    normal_form,
    readable,
    values,
)
from ppl.language.answers.notation import MAX_LENGTH
from ppl.language.classes import MOST_COMPARED, identity, tally

EQUAL, DIFFERENT, UNKNOWN = Equality.EQUAL, Equality.DIFFERENT, Equality.UNKNOWN

# -- extraction ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("string", "answer"),
    [
        ("The answer is: **42**", "42"),
        ("The answer is **42**.", "42"),
        ("**The answer is 42**", "42"),
        ("**Answer:** 42", "42"),
        ("ANSWER IS 42", "42"),
        ("Final Answer: The final answer is $42$. I hope it is correct.", "42"),
        ("The final answer is: \\[5\\]", "5"),
        (r"\fbox{42}", "42"),
        (r"$\boxed 42$ as wanted", "42"),
        (r"so $\boxed \frac{1}{2}$.", r"\frac{1}{2}"),
        (r"\boxed{}", None),
        ("The answer is \\boxed{}.", None),
        ("4\n\\boxed{}", None),
        (r"\boxed{4} or \boxed{ }", "4"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{3}}", "3"),
        ("## Final Answer\n\n42", "42"),
        ("**Final Answer**\n$x^2$.\n", "x^2"),
        ("$$\n42\n$$", "42"),
        ("\\[\nx = 5.\n\\]", "x = 5"),
        ("The answer is 3.5 apples. We checked it.", "3.5 apples"),
        ("The answer is Dr. Smith.", "Dr. Smith"),
        ("Answer: $3$ and $4$", "$3$ and $4$"),
        ("Answer: $42$ apples", "$42$ apples"),
        ("The result:\n17\n\nI hope this helps!", "17"),
        ("####\n####", None),
        ("...", None),
    ],
)
def test_the_answer_without_what_is_written_around_it(string, answer):
    assert extract_answer(string) == answer


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "\\boxed{1 ", "\\boxed ", "answer ", "answer:\n", "the answer is ", "####\n", "\n",
     "final ", " ", "$", "*", "**a", "{", "Mr. A", "I hope ", "\\", "\\(", "1,"],
)  # fmt: skip
def test_extraction_takes_linear_time(piece):
    assert growth(lambda size: extract_answer(piece * size), 10_000) < LINEAR


def test_an_answer_is_a_string_of_its_own_kind():
    answer = extract_answer(r"\boxed{1/2}")
    assert isinstance(answer, Answer)
    assert answer == "1/2"
    assert type(pickle.loads(pickle.dumps(answer))) is Answer


# -- equality ------------------------------------------------------------------------------------

SAME = [
    (r"\frac12", "0.5"),
    (r"\dfrac{1}{2}", "$1/2$"),
    (r"1\frac45", "9/5"),
    ("1 4/5", "1.8"),
    (r"0.\overline{3}", "1/3"),
    (r"$\frac{1}{3}$", "0.333333"),
    (r"\frac{\pi}{2}", "1.570796"),
    (r"\frac{1}{\sqrt3}", r"\frac{\sqrt{3}}{3}"),
    (r"\sqrt{8}", r"2\sqrt2"),
    (r"\sqrt[3]{-8}", "-2"),
    ("1,000", "1000"),
    (r"11,\! 111", "11111"),
    ("12 345", "12{,}345"),
    (r"10\%", "0.1"),
    ("10 percent", r"10\%"),
    (r"\$36", "36 dollars"),
    ("$36", r"\$36.00"),
    (r"30^\circ", "30 degrees"),
    (r"15\mbox{ cm}^2", r"15\ \text{cm}^{2}"),
    ("864 square inches", r"864 \mbox{ inches}^2"),
    ("$x=5$", "5"),
    (r"\text{Area} = 5", "5"),
    ("(x+3)(x-2)", "x^2+x-6"),
    ("6-5i", "-5i+6"),
    (r"i^2", "-1"),
    (r"\pm 3", "3, -3"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1-\sqrt5, 1+\sqrt5\}"),
    ("x=1 or x=2", "2, 1"),
    ("7, -2, \\text{ and } -5", "-5, 7, -2"),
    ("(1, 0.5)", r"\left(1,\frac{1}{2}\right)"),
    ("$1<x<2$", "(1,2)"),
    (r"x \in [-2,7]", r"-2 \le x \le 7"),
    (r"x \ge 3", r"[3,\infty)"),
    ("2x > 6", "x > 3"),
    ("-x < 1", "x > -1"),
    ("3x+4y=0", "6x = -8y"),
    ("y = 2x+3", "2x - y + 3 = 0"),
    (r"(3,4) \cup (0,1)", r"(0,1)\cup(3,4)"),
    ("2:3", "4:6"),
    ("40_9", "40_{9}"),
    (r"\text{(B)}", "B"),
    (r"\text{east}", "East"),
    (r"\begin{pmatrix} 1/5 \\ -3 \end{pmatrix}", r"\begin{bmatrix}0.2\\-3\end{bmatrix}"),
    (r"\binom{5}{2}", "10"),
    ("5!", "120"),
    (r"\sin^2 x + \cos^2 x", "1"),
    ("x²", "x^2"),
    ("−5", "-5"),
    ("3.5e-6", "0.0000035"),
    (r"5\text{ m}", "5"),
    ("(x, y) = (1, 2)", "(1,2)"),
    (r"\log_2 8", "3"),
    ("|x-1|", "|1-x|"),
    (r"x = 1, x = 2", "1, 2"),
]

OTHER = [
    (r"1+\sqrt{5}", r"1-\sqrt{5}"),
    ("6 - 5i", "6 + 5i"),
    (r"(1,\frac{1}{2})", r"(2,\frac{1}{2})"),
    ("5^{10}", "5^{11}"),
    ("3^{2007}", "3^{2008}"),
    ("1,2,3", "1,2,4"),
    ("1,2,3", "1,2"),
    ("x > 3", "x < 3"),
    (r"x \ge 3", "x > 3"),
    (r"(-\infty, 3]", r"(-\infty, 3)"),
    (r"(3,\infty)", r"(-\infty,3)"),
    ("3x+4y=0", "5x+7y=0"),
    ("2:3", "2:5"),
    ("-13x+3", "-13x+2"),
    ("40_9", "40_0"),
    ("40_9", "40_8"),
    ("- 5", "5"),
    ("1, 2", "2"),
    (r"\pm 3", "3"),
    ("p - q", "q - p"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", r"\{1,2\}"),
    ("x=5", "y=5"),
    ("1/3", "0.3333"),
    (r"\frac{\pi}{2}", "1.5708"),
    ("0.333333", "0.333334"),
    ("A", "B"),
    ("0.000000", r"\frac{1}{10^7}"),
    ("|x-10|", "10-x"),
    (r"x = 1, y = 2", "x = 2, y = 1"),
    ("east", "694"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "12"),
    (r"(0,9) \cup (9,36)", "9"),
    ("52_8", "324"),
    (r"\text{even}", "odd"),
    (r"15\text{ cm}^2", r"15\text{ cm}^3"),
    (r"2^{3^2}", "(2^3)^2"),
    (r"\frac{1}{10^{60}} + 1", "1"),
]

UNSURE = [
    ("12", "hello there"),
    ("12", "twelve"),
    ("90", "ninety"),
    ("0", "nothing"),
    ("x", "east"),
    ("2e-5", "0.00002"),
    (r"\log 100", "2"),
    (r"\log x", r"\ln x"),
    (r"\lfloor x \rfloor", r"\lfloor x + 0.001 \rfloor"),
    ("x = 1, y = 2", "1, 2"),
    ("(b)", "B"),
    ("12", ""),
    ("12", "12 or rather 13"),
    ("12", "about 12"),
    ("5", "5 million"),
    ("5%", "5"),
    ("5 cm", "5 km"),
    ("40_9", "36"),
    ("40_9", "44_8"),
    ("204_5", "204"),
    ("2:3", "2/3"),
    (r"30^\circ", r"\frac{\pi}{6}"),
    ("1/2x", "x/2"),
    (r"\sin(x)^2", r"\sin(x^2)"),
    (r"\sqrt{x^2}", "x"),
    ("(-8)^{1/3}", "-2"),
    ("1,2", "(1,2)"),
    ("x^2 = 4", "x = 2"),
    ("9^{9^{9^{9}}}", "4"),
    ("1/0", "1"),
    (r"\sqrt2\sqrt3-\sqrt6", "0"),
]


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [(a, b, e) for e, pairs in ((EQUAL, SAME), (DIFFERENT, OTHER), (UNKNOWN, UNSURE))
     for a, b in pairs],
)  # fmt: skip
def test_equality(a, b, found):
    assert equality(a, b) is found
    assert equality(b, a) is found
    assert equality(f"${a}$" if "$" not in a else a, b) is found  # bare and delimited alike
    assert equality(a, f"\\boxed{{{b}}}" if b else b) is found


def test_equality_is_no_boolean():
    with pytest.raises(TypeError, match="three values"):
        bool(equality("1", "1"))


@pytest.mark.parametrize(
    "hostile",
    [
        "9^{9^{9^{9}}}",
        "10^{400000000000}",
        "(" * 900 + "1" + ")" * 900,
        "{" * 1900,
        "^" * 1900,
        "-" * 1900,
        "1" + "!" * 900,
        "1" * 1900,
        "+".join(f"1/{n}^{{999}}" for n in range(3, 170)),
        "+".join(f"\\frac{{1}}{{{n}^{{2000}}}}" for n in range(3, 90)),
        "*".join(["3000!"] * 300),
        r"\cdot ".join(["3000!"] * 150),
        "+".join(["x^{99}"] * 280),
        "(x+1)^{2000}(x+2)^{2000}(x+3)^{2000}",
        r"\sqrt{" * 40 + "2" + "}" * 40,
        r"\frac1" * 300 + "2",
        r"\tan(" * 30 + "x" + ")" * 30,
        ", ".join(map(str, range(400))),
        ", ".join(f"x+{n}" for n in range(200)),
        ", ".join(f"x+{n}" for n in range(50)),
        "\\text{" * 300,
        "__import__('os').system('true')",
        "2^" * 900 + "2",
        "\\left" * 300,
        "$" * 1999,
        "1," * 900,
        "\u0000\ud800",
    ],
)
def test_no_answer_takes_long(hostile, monkeypatch):
    assert len(hostile) <= MAX_LENGTH  # or nothing of it is read
    bits, value = [0], values._value

    def watched(tree, point):
        found = value(tree, point)
        if isinstance(found, Fraction):
            bits.append(found.numerator.bit_length() + found.denominator.bit_length())
        return found

    monkeypatch.setattr(values, "_value", watched)
    for other in (hostile[::-1], hostile[:-1] + "1", "1"):
        assert calls(lambda other=other: equality(hostile, other)) < 1_000_000
    assert max(bits) <= 160_000


NOTATION = st.lists(
    st.sampled_from(
        [*"0123456789xyABie+-*/^_=<>()[]{},.:;!|$%'\" ", "\\frac", "\\dfrac", "\\sqrt", "\\pi",
         "\\left", "\\right", "\\text{cm}", "\\text{and}", "\\cup", "\\infty", "\\pm", "\\{",
         "\\}", "\\\\", "\\circ", "\\,", "\\!", "\\$", "\\%", "{2}", "{3}", "12", "1,000", "cat",
         "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\le", "\\in", "²", "√", "°", "dollars", "~"]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(NOTATION | st.text(max_size=20))
@example("\\frac123")
@example("3 .140")
@example("\\text{ a  b }")
def test_a_normal_form_is_its_own(string):
    form = normal_form(string)
    assert normal_form(form) == form
    assert equality(string, form) is EQUAL
    assert equality(string, string) is EQUAL


@settings(max_examples=400, deadline=None)
@given(NOTATION, NOTATION)
@example("1/3", "0.333333")
@example("1<x<2", "(1,2)")
def test_equality_is_symmetric(a, b):
    assert equality(a, b) is equality(b, a)


@settings(max_examples=200, deadline=None)
@given(st.fractions(), st.fractions())
def test_numbers_are_equal_as_numbers_are(a, b):
    wanted = EQUAL if a == b else DIFFERENT
    assert equality(str(a), f"\\frac{{{b.numerator}}}{{{b.denominator}}}") is wanted


# -- votes ---------------------------------------------------------------------------------------


def posterior(*values, weights=None):
    weights = weights or [0.0] * len(values)
    samples = [
        ppl.Sample(
            value=v, log_weight=w, log_likelihood=0.0, finished=True, node=i, text=None, records=()
        )
        for i, (v, w) in enumerate(zip(values, weights, strict=True))
    ]
    return ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())


def test_answers_vote_by_what_they_say():
    told = [Answer(a) for a in ("7", r"\frac12", "0.5", "7", "1/2", r"\dfrac{1}{2}")]
    found = posterior(*told)
    assert found.vote() == r"\frac12"  # 4 of 6; said twice in this form, however it is typed
    assert found.marginal() == pytest.approx({r"\frac12": 4 / 6, "7": 2 / 6})
    # Other strings vote by their letters, unless they are read as answers.
    plain = posterior(*map(str, told))
    assert plain.vote() == "7"
    assert plain.vote(key=Answer) == r"\frac12"
    assert len(plain.marginal()) == 5


def test_what_cannot_be_read_is_a_class_of_its_own():
    found = posterior(*[Answer(a) for a in ("who knows", "12", "who  knows", "what now?")])
    assert found.vote() == "who knows"
    assert found.marginal() == pytest.approx({"who knows": 0.5, "12": 0.25, "what now?": 0.25})


def test_classes_are_the_same_in_any_order():
    # 0.333333 and 0.3333333 are different, and each is equal to 1/3: one class by union-find.
    told = [Answer(a) for a in ("0.333333", "0.3333333", "1/3", "2")]
    assert equality(told[0], told[1]) is DIFFERENT
    for order in (told, told[::-1], told[2:] + told[:2]):
        assert sorted(w for w, _ in tally(order, [1.0] * 4)) == [1.0, 3.0]


def test_many_different_answers_take_little_time(monkeypatch):
    told = [Answer(f"{n} + {n}/7") for n in range(1, 2001)] + [Answer("0")] * 3
    compared = []
    monkeypatch.setattr(classes, "equality", lambda *pair: compared.append(pair) or equality(*pair))
    found = tally(told, [1.0] * len(told))
    assert len(compared) == MOST_COMPARED * (MOST_COMPARED - 1) // 2
    assert max(found) == (3.0, 2000)
    assert len(found) == 2001
    assert MOST_COMPARED < 2000


def test_answers_made_to_be_slow_end_the_comparison(monkeypatch):
    now, compared = [0.0], []

    def slow(*pair):
        now[0] += 1.0
        return compared.append(pair) or DIFFERENT

    monkeypatch.setattr(classes, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(classes, "equality", slow)
    monkeypatch.setattr(classes, "MOST_SECONDS", 30.5)
    assert len(tally([Answer(str(k)) for k in range(60)], [1.0] * 60)) == 60
    assert len(compared) == 31
    monkeypatch.setattr(classes, "equality", equality)
    monkeypatch.setattr(classes, "MOST_SECONDS", -1.0)
    assert len(tally([Answer("1/2"), Answer("0.5"), Answer(" 1/2")], [1.0] * 3)) == 2


def test_equal_tensors_are_equal_results():
    one, other = torch.tensor([1.0, float("nan")]), torch.tensor([2.0, 0.0])
    found = posterior(one, other, one.clone(), weights=[0.0, 0.4, 0.0])
    assert found.vote() is one
    assert list(found.marginal().values()) == pytest.approx([0.5727, 0.4273], abs=1e-3)
    assert posterior((1, one), (1, other), (1, one.clone())).vote()[1] is one
    assert identity(one) != identity(one[None])
    assert identity(torch.ones(2, dtype=torch.bfloat16)) == identity(torch.ones(2))
    assert posterior([1, 2], [3], [1, 2]).vote() == [1, 2]
    with pytest.raises(TypeError, match="key="):
        posterior(bytearray(b"x")).vote()


def test_an_enumerated_marginal_counts_the_same_way():
    import pyro
    import pyro.distributions as dist

    def program():
        return torch.tensor([float(pyro.sample("a", dist.Bernoulli(0.3))), 1.0]) * 0

    assert list(ppl.enumerate_program(program).marginal().values()) == pytest.approx([1.0])


def test_readable_says_what_is_known_here():
    assert readable("x > 3")
    assert not readable("1/2x")
