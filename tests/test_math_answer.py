"""Answers compared as mathematics: the measured traps of math-verify 0.9, closed."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import pytest

import ppl
from ppl.errors import MathAnswerError
from ppl.verifiers import MathAnswer, MathComparer

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def comparer() -> Iterator[MathComparer]:
    with MathComparer(limit=120.0) as one:
        yield one


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        (r"$\frac{1}{3}$", "0.333333", True),
        (r"$\frac{1}{3}$", "0.3333", False),
        ("$1<x<2$", "$(1,2)$", True),
        ("$(1,2)$", "$1<x<2$", True),
        (r"$10\%$", "0.1", True),
        ("$x=5$", "5", True),
        ("1,000", "1000", True),
        (r"$\frac{\pi}{2}$", "1.5708", False),
        (r"\frac12", "0.5", True),
        ("$A$", "A", True),
        ("$A$", "B", False),
        ("12", "13", False),
        ("$(1,2)$", r"$\{1,2\}$", False),
        (r"$\text{east}$", "east", True),
        ("p - q", "p - q", True),
        # Unknown is not wrong.
        ("12", "hello there", None),
        ("12", "", None),
        ("$12$", r"\boxed{12} or rather \boxed{13}", None),
        # What only math-verify reads, where nothing in the two differs but order and spelling.
        (r"\sum_{k=1}^{3} (k+1)", r"$\displaystyle\sum_{k=1}^3 (1+k)$", True),
        (r"\sum_{k=1}^{3} k", r"\sum_{k=3}^{1} k", None),
        (r"\sum_{k=1}^{3} k", r"\sum_{k=1}^{4} k", None),
        (r"\sum_{k=1}^{3} k", "6", None),
        (r"\overline{CD}", r"\overline{CE}", None),
    ],
)
def test_golden_table(gold, answer, equal, comparer):
    assert comparer.equal(gold, answer) is equal


def test_a_gold_answer_without_content_is_an_error(comparer):
    for gold in ("", "???", "$$"):
        with pytest.raises(MathAnswerError, match="correct the data"):
            comparer.equal(gold, "12")
        with pytest.raises(MathAnswerError, match="correct the data"):
            MathAnswer(gold)


def test_without_the_extra_there_is_no_second_opinion(monkeypatch):
    from ppl.verifiers.exact import math_answer

    monkeypatch.setattr(math_answer.importlib.util, "find_spec", lambda name: None)
    with MathComparer(limit=120.0) as comparer:
        assert comparer.equal(r"\sum_{k=1}^{3} k", r"\sum_{k=1}^3 k ") is None
        assert comparer.equal("1/2", "0.5") is True


@pytest.mark.parametrize("gold", ["12", "-3/4", r"\sqrt{2}", "$x^2+1$", "(1, 2)", "10%", "C"])
def test_every_answer_equals_itself(gold, comparer):
    assert comparer.equal(gold, gold) is True


def test_other_threads_may_ask(comparer):
    found = []
    thread = threading.Thread(target=lambda: found.append(comparer.equal("1/2", "0.5")))
    thread.start()
    thread.join()
    assert found == [True]


SUM = r"\sum_{k=1}^{3} (k+1)", r"\sum_{k=1}^3 (1+k)"  # for math-verify to say
HUGE = r"\sum_{k=1}^{9^{9^{9^9}}} (k+1)", r"\sum_{k=1}^{9^{9^{9^9}}} (1+k)"


def test_hanging_is_unknown_and_the_next_answer_is_known(monkeypatch):
    with MathComparer(limit=120.0) as comparer:
        assert comparer.equal(*SUM) is True
        with monkeypatch.context() as patch:
            patch.setattr(comparer.worker, "ask", None)  # this takes no worker, and no time
            assert comparer.equal("4", "$9^{9^{9^{9}}}+1$") is None
        comparer.limit = 2.0
        assert comparer.equal(*HUGE) is None  # or it would go on for ever
        comparer.limit = 120.0
        assert comparer.equal(*SUM) is True


def test_a_hanging_worker_is_replaced(monkeypatch):
    hang = "print('ready', flush=True); import time; time.sleep(99)"
    with MathComparer(limit=0.3) as comparer:
        with monkeypatch.context() as patch:
            patch.setattr(comparer.worker, "program", hang)
            assert comparer.equal(*SUM) is None
            assert comparer.equal("4", "4") is True  # needs no worker
        comparer.limit = 120.0
        assert comparer.equal(*SUM) is True


def test_as_a_verifier(comparer):
    lm = ppl.TableLM({"$": 1.0}, symbols="^$12=+ ?", end="$")
    half = MathAnswer("12", comparer=comparer, unknown=0.25)

    def probability(string, finished=True):
        text = lm.prompt("^") + lm.continuation(string, finished=finished)
        return math.exp(half(text).log_probability)

    assert probability("12") == pytest.approx(1, abs=1e-5)
    assert probability("11+1") == pytest.approx(1, abs=1e-5)
    assert probability("21") == pytest.approx(0, abs=1e-5)
    assert probability("???") == pytest.approx(0.25)
    assert probability("12", finished=False) == pytest.approx(0, abs=1e-5)  # no answer yet


def test_unknown_is_a_probability():
    with pytest.raises(ValueError, match="unknown"):
        MathAnswer("1", unknown=2)
