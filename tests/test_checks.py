"""Numbers that enter from outside."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppl.language import checks

NO_NUMBERS = [None, "3", True, [1], 1j]


@pytest.mark.parametrize("bad", [*NO_NUMBERS, math.nan, 2.0, 2.5, math.inf, 0, -1])
def test_a_count_is_an_int_of_at_least_one(bad):
    with pytest.raises(ValueError, match=r"^simulations=.*whole number.*at least 1"):
        checks.count(width=3, simulations=bad)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checks.count, [1, 2, 10**9, np.int64(3)], []),
        (checks.probability, [0, 1, 0.0, 0.5, 1.0], [-1e-9, 1.0000001, math.nan, math.inf]),
        (checks.positive, [1e-300, 1, 2.5], [0, 0.0, -1, math.nan, math.inf]),
        (checks.nonnegative, [0, 0.0, 7], [-1e-300, math.nan, math.inf]),
    ],
)
def test_what_each_check_takes(check, good, bad):
    for number in good:
        check(x=number)
    for number in [*NO_NUMBERS, *bad]:
        with pytest.raises(ValueError, match=r"^x="):
            check(x=number)


def test_a_bound_of_ones_own_and_words():
    checks.count(least=0, visits=0)
    with pytest.raises(ValueError, match="at least 2"):
        checks.count(least=2, visits=1)
    checks.one_of(("bfs", "dfs"), order="dfs")
    with pytest.raises(ValueError, match="order='best': one of 'bfs', 'dfs'"):
        checks.one_of(("bfs", "dfs"), order="best")
