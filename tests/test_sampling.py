"""Warps, inverse CDF and keyed uniforms against plain references."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from ppl.language.randomness import _AHEAD, Uniforms, generator, key, uniforms
from ppl.lm.masks import as_mask
from ppl.lm.sampling import Warp, draw, inverse_cdf, warped_log_probs


def indices(probs: torch.Tensor, u: np.ndarray) -> torch.Tensor:
    return inverse_cdf(probs, torch.from_numpy(u))[0]


def reference(logits: list[float], warp: Warp, allowed: set[int] | None) -> np.ndarray | None:
    """Token by token, as the documentation says: allowed, temperature, top-k, top-p, min-p.

    None where top-p or min-p is met so narrowly that rounding decides.
    """
    ids = [i for i in range(len(logits)) if allowed is None or i in allowed]
    ids.sort(key=lambda i: (-logits[i], i))  # most likely first, ties by id
    if warp.temperature == 0:
        ids = ids[:1]
    ids = ids[: warp.top_k or len(ids)]
    scale = warp.temperature or 1.0
    weights = np.exp(np.array([logits[i] for i in ids]) / scale - logits[ids[0]] / scale)
    weights /= weights.sum()
    if warp.top_p < 1:
        mass = [math.fsum(weights[:n]) for n in range(1, len(ids) + 1)]
        if min(abs(m - warp.top_p) for m in mass) < 1e-9:
            return None
        size = next(n for n, m in enumerate(mass, 1) if m > warp.top_p)
        ids, weights = ids[:size], weights[:size] / weights[:size].sum()
    share = weights / weights.max()
    if any(0 < abs(s - warp.min_p) < 1e-9 for s in share):
        return None
    keep = share >= warp.min_p
    ids, weights = [i for i, k in zip(ids, keep, strict=True) if k], weights[keep]
    probs = np.zeros(len(logits))
    probs[ids] = weights / weights.sum()
    return probs


rows = st.lists(st.sampled_from([-4.0, -1.0, 0.0, 0.5, 2.0, 3.25]), min_size=1, max_size=9)
warps = st.builds(
    Warp,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 2.5]),
    top_p=st.sampled_from([1e-6, 0.2, 0.55, 0.9, 0.99, 1.0]),
    top_k=st.sampled_from([None, 1, 2, 3, 5, 40]),
    min_p=st.sampled_from([0.0, 0.03, 0.4, 1.0]),
)


# -- warps ---------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(logits=rows, warp=warps, data=st.data())
def test_every_combination_of_warps_equals_the_reference(logits, warp, data):
    allowed = data.draw(
        st.none() | st.sets(st.integers(0, len(logits) - 1), min_size=1), label="allowed"
    )
    expected = reference(logits, warp, allowed)
    assume(expected is not None)
    row = torch.tensor([logits], dtype=torch.float64)
    mask = None if allowed is None else as_mask(allowed, len(logits), len(logits))
    got = warped_log_probs(row, [warp], [mask])[0].exp().numpy()
    assert np.array_equal(got > 0, expected > 0)
    assert got == pytest.approx(expected, abs=1e-12)


LOGITS = torch.tensor([[1.0, 3.0, 2.0, 2.0, -1.0]], dtype=torch.float64)


def test_rows_are_warped_each_by_its_own_rule():
    warps = [Warp(), Warp(temperature=0), Warp(top_k=1), Warp(temperature=2.0, top_p=0.7)]
    together = warped_log_probs(LOGITS.expand(4, -1), warps, [None] * 4)
    for row, warp in zip(together, warps, strict=True):
        assert torch.equal(row, warped_log_probs(LOGITS, [warp], [None])[0])


def test_a_row_without_a_cut_keeps_all_beside_one_that_is_cut():
    logits = torch.tensor([[0.0, -1.0, -30.0]] * 2)
    plain, cut = warped_log_probs(logits, [Warp(), Warp(top_p=0.5)], [None, None])
    assert torch.isfinite(plain).all()
    assert torch.isfinite(cut).tolist() == [True, False, False]


def test_sums_over_many_tokens_are_exact_enough_to_cut():
    (row,) = warped_log_probs(torch.zeros(1, 40_000), [Warp(top_p=0.5)], [None])
    assert int(torch.isfinite(row).sum()) == 20_000


def test_the_total_of_a_row_is_added_up_in_float64():
    probs = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0))
    _, total = inverse_cdf(probs, torch.tensor([0.5], dtype=torch.float64))
    assert float(total) == pytest.approx(float(probs.double().sum()), rel=1e-13)


def test_warps_leave_the_callers_logits_alone():
    logits = torch.randn(2, 11, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    warped_log_probs(logits, [Warp(0.5, 0.5, 3), Warp(0)], [before[0] > 0, None])
    assert torch.equal(logits, before)


def test_ties_in_a_wide_row_keep_the_lowest_ids():
    logits = torch.zeros(1, 5000)
    logits[0, 1::2] = 1.0
    kept = warped_log_probs(logits, [Warp(top_k=7)], [None])[0].isfinite().nonzero()[:, 0]
    assert kept.tolist() == [1, 3, 5, 7, 9, 11, 13]


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}])
def test_warps_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Warp(**bad)


# -- inverse CDF ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 255, 256, 257, 1000, 49152])
@pytest.mark.parametrize("kind", ["dense", "peaked", "sparse"])
def test_inverse_cdf_equals_a_plain_search(size, kind):
    rng = np.random.default_rng(size)
    logits = rng.normal(scale=1.0 if kind == "dense" else 6.0, size=(40, size))
    probs = torch.softmax(torch.tensor(logits), -1)
    if kind == "sparse":
        holes = torch.tensor(rng.random((40, size)) < 0.97)
        holes[:, rng.integers(size)] = False
        probs = probs.masked_fill(holes, 0.0)
        probs /= probs.sum(-1, keepdim=True)
    u = rng.random(40)
    edges = np.cumsum(probs.numpy(), axis=1)
    got = indices(probs, u).numpy()
    for i, index in enumerate(got):
        low = edges[i, index - 1] if index else 0.0
        assert probs[i, index] > 0
        assert low - 1e-12 <= u[i] * edges[i, -1] <= edges[i, index] + 1e-12


@pytest.mark.parametrize("total", [1.0, 1 - 3e-6, 1 + 3e-6])
def test_zero_probabilities_are_never_drawn(total):
    probs = torch.zeros(2, 700, dtype=torch.float32)
    probs[0, [3, 300]] = torch.tensor([0.25, 0.75]) * total
    probs[1, 10:20] = 0.1 * total
    edges = [2.0**-53, 0.25 - 1e-12, 0.25 + 1e-12, 1 - 2.0**-53, 1.0]
    for u in edges:
        first, second = indices(probs, np.array([u, u])).tolist()
        assert first in (3, 300)
        assert 10 <= second < 20


@pytest.mark.parametrize("size", [1000, 49152])
@pytest.mark.parametrize("scale", [1 - 1e-5, 1.0, 1 + 1e-5])
def test_no_impossible_token_at_the_edges_of_float32_rows(size, scale):
    """Zeros first, last, and at both ends of a block; sums a little off one."""
    probs = torch.softmax(torch.randn(1, size, generator=torch.Generator().manual_seed(1)), -1)
    for gap in (slice(0, 300), slice(512, 769), slice(size - 400, size)):
        probs[:, gap] = 0
    probs *= scale / probs.sum()
    possible = probs[0] > 0
    first, last = int(possible.nonzero()[0]), int(possible.nonzero()[-1])
    u = np.concatenate(
        [[2.0**-53, 1 - 2.0**-53], np.random.default_rng(0).random(500), 1 - np.logspace(-16, -4)]
    )
    got = indices(probs.expand(len(u), -1), u)
    assert possible[got].all()
    assert (int(got[0]), int(got[1])) == (first, last)


def test_a_uniform_at_a_cumulative_edge_starts_the_next_token():
    probs = torch.tensor([[0.25, 0.25, 0.0, 0.5]], dtype=torch.float64)
    u = np.array([0.25 - 2**-50, 0.25, 0.5 - 2**-50, 0.5])
    assert indices(probs.expand(4, -1), u).tolist() == [0, 1, 1, 3]


def test_greater_uniforms_never_give_smaller_indices():
    probs = torch.softmax(torch.randn(1, 5000, generator=torch.Generator().manual_seed(2)), -1)
    u = np.sort(np.random.default_rng(3).random(2000))
    got = indices(probs.expand(len(u), -1), u)
    assert (got.diff() >= 0).all()


def test_only_proportions_matter():
    """Rows that rounding leaves off one are drawn from as if they summed to it."""
    probs = torch.softmax(torch.randn(1, 900, generator=torch.Generator().manual_seed(5)), -1)
    u = np.random.default_rng(6).random(300)
    once, twice, half = (indices((f * probs).expand(300, -1), u) for f in (1.0, 2.0, 0.5))
    assert torch.equal(once, twice)
    assert torch.equal(once, half)


def test_warped_draws_have_the_warped_frequencies():
    n = 30_000
    logits = torch.randn(1, 600, generator=torch.Generator().manual_seed(4)) * 2
    warp = Warp(temperature=0.7, top_p=0.8, top_k=12)
    probs = warped_log_probs(logits, [warp], [None]).exp()
    keys = np.array([key(7, i, "step") for i in range(n)], dtype=np.uint64)
    counts = np.bincount(indices(probs.expand(n, -1), uniforms(keys, 0)), minlength=600)
    p = reference(logits[0].double().tolist(), warp, None)
    assert p is not None
    assert (counts[p == 0] == 0).all()
    kept = p > 0
    assert (np.abs(counts / n - p)[kept] <= 4 * np.sqrt(p * (1 - p) / n)[kept]).all()
    assert chisquare(counts[kept], n * p[kept] / p[kept].sum()).pvalue > 1e-4


# -- randomness ----------------------------------------------------------------------------------


def test_uniforms_are_splitmix64():
    """The first outputs of the published generator from state 0."""
    outputs = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)
    zero = np.zeros(1, dtype=np.uint64)
    for position, output in enumerate(outputs):
        assert uniforms(zero, position)[0] == ((output >> 12) + 0.5) * 2.0**-52


def test_rows_side_by_side_get_the_uniforms_of_their_own_positions():
    keys, begun = [7, 2**64 - 1, 123456789, 5], [0, 3, 100, 0]
    running = Uniforms(keys, begun)
    rows = [0, 1, 2, 3]
    for step in range(2 * _AHEAD + 5):  # past what is made at once, twice
        if step in (5, _AHEAD + 3):
            running.keep([0, 2] if step == 5 else [1])
            rows = [rows[0], rows[2]] if step == 5 else [rows[1]]
        expected = [
            float(uniforms(np.array([keys[row]], dtype=np.uint64), begun[row] + step)[0])
            for row in rows
        ]
        assert running.next().tolist() == expected
    running.keep([])
    assert running.next().shape == (0,)


def test_uniforms_are_uniform_reproducible_and_distinct():
    keys = np.array([key(0, i, "site") for i in range(20_000)], dtype=np.uint64)
    u = uniforms(keys, 0)
    assert kstest(u, "uniform").pvalue > 1e-4
    assert kstest(uniforms(keys[:1].repeat(20_000), np.arange(20_000)), "uniform").pvalue > 1e-4
    assert ((u > 0) & (u < 1)).all()
    assert np.array_equal(u, uniforms(keys, 0))
    assert abs(np.corrcoef(u, uniforms(keys, 1))[0, 1]) < 0.03


def test_positions_may_differ_per_key():
    keys = np.array([1, 2**64 - 1, 12345], dtype=np.uint64)
    together = uniforms(keys, np.array([0, 3, 10**6]))
    alone = [float(uniforms(keys[i : i + 1], p)[0]) for i, p in enumerate((0, 3, 10**6))]
    assert together.tolist() == alone


def test_keys_are_a_published_hash_of_their_parts():
    digest = hashlib.blake2b(b"3\x1f17\x1fstep_2", digest_size=8).digest()
    assert key(3, 17, "step_2") == int.from_bytes(digest, "little")
    near = {key(3, 17), key(31, 7), key(17, 3), key("3", "1", "7"), key(3), key(3, 17, "")}
    assert len(near) == 6


def test_many_keys_and_positions_never_collide():
    keys = np.array([key(0, i, f"s{i % 7}") for i in range(3000)], dtype=np.uint64)
    u = np.stack([uniforms(keys, p) for p in range(20)])
    assert len(np.unique(u)) == u.size
    assert kstest(u.ravel(), "uniform").pvalue > 1e-4
    # and neighbouring keys or positions are not correlated
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 4 / math.sqrt(u.size)
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 4 / math.sqrt(u.size)


def test_generators_are_keyed():
    assert generator(1, "a").random(5).tolist() == generator(1, "a").random(5).tolist()
    assert generator(1, "a").random() != generator(1, "b").random()
    assert generator(1, "a").random() != generator(2, "a").random()


@pytest.mark.parametrize("size", [5, 1000, 49152])
def test_plain_rows_take_a_shorter_way_to_the_same_draw(size):
    logits = torch.randn(16, size, generator=torch.Generator().manual_seed(size)) * 3
    u = np.random.default_rng(size).random(16)
    tokens, log_probs = draw(logits, [Warp()] * 16, [None] * 16, u)
    log_softmax = torch.log_softmax(logits.double(), -1)
    assert tokens == indices(log_softmax.exp(), u).tolist()
    assert log_probs == pytest.approx(log_softmax[range(16), tokens].tolist(), abs=1e-5)
    # One row that is not plain makes all of them go the general way.
    mixed, others = draw(logits, [Warp()] * 15 + [Warp(top_k=3)], [None] * 16, u)
    assert mixed[:15] == tokens[:15]
    assert others[:15] == pytest.approx(log_probs[:15], abs=1e-5)


# -- masses that are reached exactly -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("probs", "top_p", "kept"),
    [
        ([0.4, 0.3, 0.2, 0.1], 0.7, 2),
        ([0.5, 0.3, 0.1, 0.1], 0.8, 2),
        ([0.1] * 10, 0.3, 3),
        ([0.6, 0.2, 0.2], 0.6, 1),
        ([0.6, 0.2, 0.2], 0.61, 2),
        ([0.6, 0.2, 0.2], 0.59, 1),
    ],
)
def test_top_p_keeps_what_is_needed_and_no_more(probs, top_p, kept, dtype):
    row = torch.tensor([probs], dtype=dtype).log()
    found = warped_log_probs(row, [Warp(top_p=top_p)], [None])[0]
    assert int(found.isfinite().sum()) == kept
    assert float(found[0].exp()) == pytest.approx(probs[0] / sum(probs[:kept]), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_min_p_keeps_what_is_at_the_floor(dtype):
    for share in (0.1, 0.3, 0.7, 0.9):
        row = torch.tensor([[1.0, share, share * 0.99]], dtype=dtype).log()
        found = warped_log_probs(row, [Warp(min_p=share)], [None])[0]
        assert found.isfinite().tolist() == [True, True, False]
