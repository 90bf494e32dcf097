"""Numbers that enter from outside."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked

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


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (64, 64),
        (np.int64(64), 64),
        (2e9, 2_000_000_000),
        ("64", 64),
        ("64B", 64),
        ("2KB", 2000),
        ("2KiB", 2048),
        ("512MB", 512_000_000),
        ("512 MiB", 512 << 20),
        (" 2GB ", 2_000_000_000),
        ("2GiB", 2 << 30),
        ("1.5 GiB", 3 << 29),
        ("1.001GB", 1_001_000_000),  # not a byte less, as floats have it
        ("1TB", 10**12),
        ("1TiB", 1 << 40),
    ],
)
def test_bytes_are_numbers_or_strings_with_a_unit(size, found):
    """As in accelerate: GB are 10^9, GiB 2^30."""
    assert checks.nbytes(kv_bytes=size) == found
    assert type(checks.nbytes(kv_bytes=size)) is int


@pytest.mark.parametrize(
    "bad",
    [
        *(None, True, [1], 1j, math.nan, math.inf, -math.inf, 0, -1, 2.5, b"2GB"),
        *("2G", "2Gb", "2gb"),  # a "Gb" may be bits, a "G" either; no unit is guessed
        *("", "GB", "2 parsecs", "2iB", "-1GB", "1e3MB", "2GB2", "0GB", "0.5", "1 000", "1_000"),
        "٢GB",
    ],
)
def test_other_bytes_are_refused_with_the_remedy(bad):
    with pytest.raises(ArgumentError, match=r"^kv_bytes=.*2 \* 1024\*\*3.*'2GiB'.*'2GB'"):
        checks.nbytes(kv_bytes=bad)
    with pytest.raises(ArgumentError, match="at least 64"):
        checks.nbytes(memory=63, least=64)


def test_a_bound_of_ones_own_and_words():
    checks.count(least=0, visits=0)
    with pytest.raises(ValueError, match="at least 2"):
        checks.count(least=2, visits=1)
    checks.one_of(("bfs", "dfs"), order="dfs")
    with pytest.raises(ValueError, match="order='best': one of 'bfs', 'dfs'"):
        checks.one_of(("bfs", "dfs"), order="best")


@checked
def takes(a: int, /, b: int = 0, *more: str, c: float = 0.0, **rest: int) -> tuple:
    return a, b, more, c, rest


@checked
def one(a: int) -> int:
    return a


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: takes(1.5), ArgumentError, "^a=1.5: "),
        (lambda: takes(1, "x"), ArgumentError, "^b='x': "),
        (lambda: takes(1, b="x"), ArgumentError, "^b='x': "),
        (lambda: takes(1, c="x"), ArgumentError, "^c='x': "),
        (lambda: takes(1.5, c="x"), ArgumentError, "^a=1.5: "),
        (lambda: takes(b="x"), TypeError, "takes.. missing 1 required positional"),
        (lambda: one("x", 2), TypeError, "one.. takes 1 positional argument"),
        (lambda: one("x", a="x"), TypeError, "one.. got multiple values"),
        (lambda: one("x", b=2), TypeError, "one.. got an unexpected keyword"),
        (one, TypeError, "one.. missing 1 required positional"),
    ],
)
def test_of_calls_that_are_none_python_tells(call, error, said):
    with pytest.raises(error, match=said) as raised:
        call()
    assert isinstance(raised.value, ArgumentError) is (error is ArgumentError)


def test_what_goes_to_any_number_of_arguments_is_taken_as_it_is():
    assert takes(1, 2, 3, a="x", z=2.5) == (1, 2, (3,), 0.0, {"a": "x", "z": 2.5})
