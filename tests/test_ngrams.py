"""What followed the last few tokens of texts is remembered, and guessed by a row's number."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ppl.lm.ngrams import Ngrams, leading, share_of
from ppl.lm.sampling import inverse_cdf


def test_shares_are_where_numbers_draw():
    rng = np.random.default_rng(0)
    for size in (5, 300, 3000):
        logits = torch.tensor(3 * rng.standard_normal((4, size)), dtype=torch.float32)
        probs = torch.softmax(logits, -1)
        for row, law in enumerate(leading(probs)):
            assert law
            likely = sorted(probs[row].tolist(), reverse=True)[:4]
            assert len(law) == sum(p >= 0.02 for p in likely)
            for token, low, high in law:
                inside = [low + (high - low) * part for part in (0.01, 0.5, 0.99)]
                drawn, _ = inverse_cdf(
                    probs[row].expand(3, -1), torch.tensor(inside, dtype=torch.float64)
                )
                assert drawn.tolist() == [token] * 3
                assert high - low == pytest.approx(float(probs[row, token]), rel=1e-4)


def test_the_longest_context_that_says_something_counts():
    store = Ngrams(3)
    store.note([1, 2, 3], [(7, 0.0, 0.6)])
    store.note([9, 2, 3], [(8, 0.2, 1.0)])
    assert store.guess([5, 1, 2, 3], 0.3).token == 7
    assert store.guess([5, 9, 2, 3], 0.3).token == 8
    assert store.guess([0, 2, 3], 0.3).token == 8  # the last of those that fit
    assert store.guess([1, 2, 3], 0.8).token == 8  # of less text, as it is not the other
    assert store.guess([3, 4], 0.5) is None
    kinds = [
        store.guess(*each).kind for each in (([1, 2, 3], 0.3), ([1, 2, 3], 0.8), ([0, 2, 3], 0.3))
    ]
    assert len(set(kinds)) == 3
    assert max(kinds) < store.kinds


def test_texts_that_nobody_drew_are_guessed_and_yield_to_laws():
    store = Ngrams(2)
    store.read([1, 2, 3, 4, 1, 2, 5])
    assert store.guess([3, 4], 0.99).token == 1
    assert store.guess([2, 3], 0.01).token == 4
    size = len(store)
    store.read([1, 2, 3, 4, 1, 2, 5])
    assert len(store) == size
    store.note([3, 4], [(6, 0.0, 0.5)])
    store.read([3, 4, 1])
    assert store.guess([3, 4], 0.2).token == 6


def test_no_more_contexts_are_kept_than_asked_for():
    store = Ngrams(3, most=50)
    rng = np.random.default_rng(0)
    for i in range(500):
        store.note(rng.integers(0, 9, 3).tolist(), [(i, 0.0, 1.0)])
    assert len(store) == 50
    assert all(at < 50 for where in store._where for at in where.values())
    assert sum(map(len, store._where)) <= 150
    # What is there is of the context it is told for.
    for where, size in zip(store._where, (1, 2, 3), strict=True):
        for key, at in where.items():
            assert store._keys[at][size - 1] == key


def test_a_share_that_is_not_known_exactly_has_its_number_in_it():
    for log_prob, number in itertools.product((-3.0, -0.1, 0.0), (1e-9, 0.3, 1 - 1e-9)):
        token, low, high = share_of(5, log_prob, number)
        assert token == 5
        assert 0 <= low <= number <= high + 1e-12
        assert high <= 1 + 1e-12
        assert high - low == pytest.approx(math.exp(log_prob))
