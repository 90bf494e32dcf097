"""Drawing and resampling: warps, inverse CDF, keyed uniforms, resampling schemes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from ppl.lm.sampling import Warp, inverse_cdf, warped_log_probs
from ppl.randomness import generator, key, uniforms
from ppl.searchers.resampling import SCHEMES, ess, normalised

LOGITS = torch.tensor([[1.0, 3.0, 2.0, 2.0, -1.0]], dtype=torch.float64)


def warped(warp: Warp, allowed=None) -> list[float]:
    return warped_log_probs(LOGITS, [warp], [allowed])[0].exp().tolist()


def test_temperature():
    expected = torch.softmax(LOGITS[0] / 0.5, -1).tolist()
    assert warped(Warp(temperature=0.5)) == pytest.approx(expected)


def test_temperature_zero_is_greedy():
    assert warped(Warp(temperature=0)) == [0, 1, 0, 0, 0]


def test_top_k_keeps_exactly_k_even_among_ties():
    probs = warped(Warp(top_k=2))
    assert [p > 0 for p in probs] == [False, True, True, False, False]
    assert warped(Warp(top_k=99)) == pytest.approx(torch.softmax(LOGITS[0], -1).tolist())


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.6, 0.9, 0.99])
def test_top_p_keeps_the_smallest_sufficient_set(top_p):
    plain = torch.softmax(LOGITS[0], -1)
    kept = [i for i, p in enumerate(warped(Warp(top_p=top_p))) if p > 0]
    mass = float(plain[kept].sum())
    assert mass >= top_p
    assert mass - float(plain[kept].min()) < top_p
    assert sum(warped(Warp(top_p=top_p))) == pytest.approx(1)


def test_allowed_tokens_are_renormalised():
    expected = torch.softmax(LOGITS[0, [0, 4]], -1).tolist()
    probs = warped(Warp(), {4, 0})
    assert [probs[0], probs[4]] == pytest.approx(expected)
    assert probs[1:4] == [0, 0, 0]


def test_rows_are_warped_each_by_its_own_rule():
    warps = [Warp(), Warp(temperature=0), Warp(top_k=1), Warp(temperature=2.0, top_p=0.7)]
    together = warped_log_probs(LOGITS.expand(4, -1), warps, [None] * 4)
    for row, warp in zip(together, warps, strict=True):
        assert torch.equal(row, warped_log_probs(LOGITS, [warp], [None])[0])


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}])
def test_bad_warps(bad):
    with pytest.raises(ValueError, match="must be"):
        Warp(**bad)


@pytest.mark.parametrize("size", [3, 256, 257, 1000, 49152])
def test_inverse_cdf_agrees_with_a_plain_cumulative_sum(size):
    rng = np.random.default_rng(size)
    probs = torch.as_tensor(rng.dirichlet(np.full(size, 0.3), 40))
    u = rng.random(40)
    expected = [
        int(np.searchsorted(np.cumsum(p) / p.sum(), x, side="right"))
        for p, x in zip(probs.numpy(), u, strict=True)
    ]
    assert inverse_cdf(probs, u).tolist() == expected


@pytest.mark.parametrize("total", [1.0, 1 - 3e-6, 1 + 3e-6])
def test_zero_probabilities_are_never_drawn(total):
    probs = torch.zeros(2, 700, dtype=torch.float32)
    probs[0, [3, 300]] = torch.tensor([0.25, 0.75]) * total
    probs[1, 10:20] = 0.1 * total
    edges = [2.0**-53, 0.25 - 1e-12, 0.25 + 1e-12, 1 - 2.0**-53, 1.0]
    for u in edges:
        first, second = inverse_cdf(probs, np.array([u, u])).tolist()
        assert first in (3, 300)
        assert 10 <= second < 20


def test_keyed_draws_follow_the_distribution():
    n = 40_000
    probs = torch.tensor([[0.1, 0.0, 0.6, 0.3]]).expand(n, -1)
    keys = np.array([key("seed", i) for i in range(n)], dtype=np.uint64)
    counts = np.bincount(inverse_cdf(probs, uniforms(keys, 5)).numpy(), minlength=4) / n
    for got, p in zip(counts, (0.1, 0.0, 0.6, 0.3), strict=True):
        assert abs(got - p) <= 4 * math.sqrt(p * (1 - p) / n)


def test_uniforms_are_uniform_reproducible_and_distinct():
    keys = np.array([key(0, i, "site") for i in range(20_000)], dtype=np.uint64)
    u = uniforms(keys, 0)
    assert kstest(u, "uniform").pvalue > 1e-4
    assert kstest(uniforms(keys[:1].repeat(20_000), np.arange(20_000)), "uniform").pvalue > 1e-4
    assert ((u > 0) & (u < 1)).all()
    assert np.array_equal(u, uniforms(keys, 0))
    assert abs(np.corrcoef(u, uniforms(keys, 1))[0, 1]) < 0.03
    # SplitMix64 started at 0: the first output is e220a8397b1dcdaf.
    expected = ((0xE220A8397B1DCDAF >> 12) + 0.5) * 2.0**-52
    assert uniforms(np.zeros(1, dtype=np.uint64), 0)[0] == expected


weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1.0)), min_size=1, max_size=12).filter(
    lambda w: sum(w) > 0
)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@every_scheme
@settings(max_examples=150, deadline=None)
@given(w=weights, seed=st.integers(0, 2**32))
def test_resampling_keeps_the_number_and_never_picks_zero(scheme, w, seed):
    with np.errstate(divide="ignore"):
        p = normalised(np.log(np.array(w)))
    n = len(w)
    ancestors = SCHEMES[scheme](p, n, generator(seed))
    assert len(ancestors) == n
    counts = np.bincount(ancestors, minlength=n)
    assert all(c == 0 for c, weight in zip(counts, w, strict=True) if weight == 0)
    if scheme == "systematic":
        assert (np.abs(counts - n * p) < 1 + 1e-9).all()
    if scheme == "residual":
        assert (counts >= np.floor(n * p - 1e-9)).all()
    assert 1 - 1e-9 <= ess(p) <= n + 1e-9


@every_scheme
def test_resampling_is_unbiased(scheme):
    p = np.array([0.5, 0.2, 0.0, 0.17, 0.13])
    draws = np.array(
        [np.bincount(SCHEMES[scheme](p, 5, generator(i)), minlength=5) for i in range(8000)]
    )
    error = np.abs(draws.mean(0) - 5 * p)
    assert (error <= 4 * draws.std(0) / math.sqrt(len(draws)) + 1e-12).all()


@every_scheme
def test_resampling_edges(scheme):
    assert SCHEMES[scheme](np.array([1.0]), 1, generator(0)).tolist() == [0]
    even = np.full(4, 0.25)
    if scheme != "multinomial":  # all fractional parts are zero
        assert sorted(SCHEMES[scheme](even, 4, generator(1)).tolist()) == [0, 1, 2, 3]
    # float32 weights that sum to less than one, nothing at the end
    short = np.array([0.1] * 9 + [0.0], dtype=np.float32).astype(np.float64)
    for seed in range(200):
        assert SCHEMES[scheme](short, 10, generator(seed)).max() < 9


@pytest.mark.parametrize("bad", [[-np.inf, -np.inf], [0.0, np.nan], [np.inf, 0.0], []])
def test_weights_that_cannot_be_resampled(bad):
    with pytest.raises(ValueError, match=r"weight"):
        normalised(np.array(bad))
