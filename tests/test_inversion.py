"""The draw of our own gives what the library's gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from engines import DEVICE, SMALL, Letters, make, random_model, request

import ppl
from ppl.errors import WeightError
from ppl.lm import sampling
from ppl.lm.engine import inversion
from ppl.lm.sampling import Warp, warp_of

pytestmark = [needs_compiler, pytest.mark.skipif(DEVICE.type != "cpu", reason="of a CPU")]

PLAIN = warp_of(1.0, 1.0, None, 0.0)


def drawn(logits, u):
    """By the library."""
    return sampling.draw(logits, [PLAIN] * len(u), [None] * len(u), u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 5, 97, 256, 2049, 5000])
@pytest.mark.parametrize("scale", [0.0, 0.1, 2.0, 30.0])  # 0: all are alike
def test_tokens_and_log_probabilities(size, scale, dtype):
    rows = 40
    logits = (scale * torch.randn(rows, size, generator=torch.manual_seed(size))).to(dtype)
    logits[0, 1:] = -torch.inf  # certain
    logits[1, : size // 2] = -torch.inf
    logits[2, ::2] = 5.0  # ties
    logits[3] += 1000
    u = np.random.default_rng(size).random(rows)
    u[4] = 1e-12
    tokens, log_probs = inversion.inverted(logits, u)
    expected = drawn(logits, u)
    assert tokens == expected[0]
    assert log_probs == pytest.approx(expected[1], abs=2e-5)
    assert tokens[0] == 0
    # Rows that are not one behind the other, and columns that are not.
    wider = torch.cat([logits, logits], 1)[:, :size]
    assert inversion.inverted(wider, u) == (tokens, log_probs)
    assert inversion.inverted(logits.t().contiguous().t(), u) == (tokens, log_probs)


def test_the_ends_of_the_distribution():
    """Nothing that cannot be is drawn, however near the uniform is to 1; and the last that can."""
    logits = torch.full((3, 1000), -torch.inf)
    logits[:, [7, 300, 700]] = torch.tensor([0.0, 1.0, 2.0])
    tokens, _ = inversion.inverted(logits, np.array([1e-300, 0.5, 1 - 2.0**-53]))
    assert tokens == [7, 700, 700]
    mass = torch.softmax(logits[0].double(), 0)
    for edge, before, after in ((mass[7], 7, 300), (mass[7] + mass[300], 300, 700)):
        u = np.array([float(edge) - 1e-6, float(edge) + 1e-6])
        assert inversion.inverted(logits[:2], u)[0] == [before, after]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_distribution_has_no_log_probability(dtype):
    logits = torch.randn(4, 700).to(dtype)
    logits[0, 650] = torch.nan
    logits[1] = -torch.inf
    logits[2, 3] = torch.inf
    _, log_probs = inversion.inverted(logits, np.full(4, 0.5))
    assert np.isnan(log_probs).tolist() == [True, True, True, False]


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("size", [1, 5, 514, 2048])
@pytest.mark.parametrize("scale", [0.0, 0.1, 5.0, 30.0])
def test_of_a_small_vocabulary_every_digit_is_the_librarys(size, rows, scale):
    generator = torch.Generator().manual_seed(size + rows)
    logits = scale * torch.randn(rows, size, generator=generator)
    logits[0, 1:] = -torch.inf
    logits[-1, ::2] += 1000
    u = np.random.default_rng(size).random(rows)
    u[rows // 2] = 1 - 2.0**-53
    assert inversion.invert_alike(logits, u) == drawn(logits, u)
    wider = torch.cat([logits, logits], 1)[:, :size]
    assert inversion.invert_alike(wider, u) == drawn(logits, u)
    assert inversion.invert_alike(logits.t().contiguous().t(), u) == drawn(logits, u)


def test_a_row_of_a_small_vocabulary_without_a_distribution():
    logits = torch.randn(4, 700)
    logits[0, 650] = torch.nan
    logits[1] = -torch.inf
    logits[2, 3] = torch.inf
    u = np.full(4, 0.5)
    tokens, log_probs = inversion.invert_alike(logits, u)
    assert np.isnan(log_probs).tolist() == [True, True, True, False]
    assert tokens == drawn(logits, u)[0]


@pytest.mark.parametrize(
    "logits", [torch.randn(3, 2049), torch.randn(3, 50).bfloat16(), torch.randn(3, 50).double()]
)
def test_what_is_not_small_or_not_float32_is_left_to_the_library(logits):
    assert inversion.invert_alike(logits, np.full(3, 0.4)) is None


@pytest.mark.parametrize("why", ["no compiler", "other digits"])
def test_where_the_small_program_does_not_serve(monkeypatch, why):
    logits, u = torch.randn(3, 50), np.full(3, 0.4)
    if why == "no compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    else:
        own = inversion.inverted_alike
        off = lambda logits, u: (own(logits, u)[0], [p + 1e-15 for p in own(logits, u)[1]])  # noqa: E731
        monkeypatch.setattr(inversion, "inverted_alike", off)
    for cached in (inversion._same_digits, inversion._built_alike):
        cached.cache_clear()
    try:
        assert inversion.invert_alike(logits, u) is None
    finally:
        inversion._same_digits.cache_clear()


def test_where_the_program_does_not_serve(monkeypatch):
    logits, u = torch.randn(3, 50), np.full(3, 0.4)
    assert inversion.invert(logits, u) == inversion.inverted(logits, u)
    assert inversion.invert(logits.double(), u) is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    for cached in (inversion.draws_alike, inversion.program):
        cached.cache_clear()
    assert inversion.invert(logits, u) is None
    inversion.draws_alike.cache_clear()


def test_a_program_that_draws_something_else_is_not_used(monkeypatch):
    own = inversion.inverted
    shifted = lambda logits, u: ([t + 1 for t in own(logits, u)[0]], own(logits, u)[1])  # noqa: E731
    monkeypatch.setattr(inversion, "inverted", shifted)
    inversion.draws_alike.cache_clear()
    try:
        assert inversion.invert(torch.randn(3, 50), np.full(3, 0.4)) is None
    finally:
        inversion.draws_alike.cache_clear()


def test_only_laws_of_which_nothing_is_left_out_are_inverted_by_it():
    """Masks are: they leave fewer tokens, of the same shape. Logits are divided by temperatures."""
    asked = []

    def watch(logits, u):
        asked.append(logits.clone())
        return inversion.invert(logits, u)

    logits, u = torch.randn(2, 300), np.array([0.3, 0.8])
    mask = torch.arange(300) % 3 == 1
    found = sampling.draw(logits, [PLAIN] * 2, [mask, None], u, watch)
    expected = sampling.draw(logits, [PLAIN] * 2, [mask, None], u)
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], abs=1e-5)
    assert (asked[0][0].isfinite() == mask).all()
    hot = [PLAIN, warp_of(0.7, 1.0, None, 0.0)]
    found = sampling.draw(logits, hot, [None] * 2, u, watch)
    assert len(asked) == 2
    assert torch.equal(asked[1][0], logits[0])
    assert torch.equal(asked[1][1], logits[1] / torch.tensor(0.7))
    exact = sampling.warped_log_probs(logits, hot, [None] * 2)[[0, 1], found[0]]
    assert found[1] == pytest.approx(exact.tolist(), abs=1e-5)
    halves = logits.bfloat16()
    sampling.draw(halves, hot, [None] * 2, u, watch)
    assert torch.equal(asked[2], halves.float() / torch.tensor([[1.0], [0.7]]))
    for other in Warp(top_p=0.9), Warp(top_k=5), Warp(min_p=0.1), Warp(0.0):
        sampling.draw(logits, [PLAIN, other], [None] * 2, u, watch)
    assert len(asked) == 3


def test_compiled_models_draw_with_it_what_others_draw():
    compiled = ppl.HFModel(
        random_model(tf.LlamaConfig(**SMALL)), Letters(), name="Llama", compile=True
    )
    plain = make("Llama")
    assert compiled.invert is inversion.invert
    assert plain.invert is inversion.invert_alike
    calls = []
    compiled.invert = lambda logits, u: calls.append(len(u)) or inversion.invert(logits, u)
    ask = [[request(lm, (5, 6, 7 + s), s) for s in range(12)] for lm in (compiled, plain)]
    ours, theirs = compiled.sample_batch(ask[0]), plain.sample_batch(ask[1])
    assert [d.value.tokens for d in ours] == [d.value.tokens for d in theirs]
    assert [d.log_prob for d in ours] == pytest.approx([d.log_prob for d in theirs], abs=1e-4)
    assert calls[0] == 12
    compiled._head = lambda hidden: torch.full((len(hidden), 97), torch.nan)
    with pytest.raises(WeightError, match="not finite"):
        compiled.sample_batch([request(compiled, (5, 6, 7, 8))])
