"""Texts of many tokens: no pair of tokens for nothing, no padding, and the numbers stay."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from engines import DEVICE, SMALL, Letters, make, random_model

import ppl
from ppl.lm.engine import attention, prefill
from ppl.lm.engine.prefill import Filling, Job, packed

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="of a CPU")

TEXTS = [
    tuple(3 + (7 * i * i + 5 * i + 11 * k) % 90 for i in range(size))
    for k, size in enumerate((100, 60, 35, 120, 3))
]


@torch.inference_mode()
def assert_exact(lm: ppl.HFModel, stands: bool) -> None:
    """Of texts some of which are known in part, or stand on a trunk."""
    engine = lm.engine
    engine.pool.clear()
    engine.hidden([text[: len(text) // 3] for text in TEXTS], [0] * len(TEXTS))
    if stands:
        engine.sharing.price, engine.sharing.block = -1, 4
        slots = engine.seat([TEXTS[0][:70], TEXTS[3][:20]], [3, 3])
        assert all(slot.trunk for slot in slots)
        for slot in slots:
            engine.drop(slot)
    for text, states in zip(TEXTS, engine.hidden(TEXTS, [0] * len(TEXTS)), strict=True):
        exact = engine.base(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(states, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stands", [False, True])
@pytest.mark.parametrize("family", ["Llama", "GPT2", "GPTNeoX"])
def test_rows_of_unlike_lengths_attend_each_apart(family, stands, monkeypatch):
    used = []
    own = Filling.own_means
    monkeypatch.setattr(
        Filling, "own_means", lambda self, *args: used.append(self.rows) or own(self, *args)
    )
    masked = []
    plain = attention._attend
    monkeypatch.setattr(
        attention, "_attend", lambda q, *args: masked.append(q.shape[2]) or plain(q, *args)
    )
    assert_exact(make(family), stands)
    assert used
    assert max(masked, default=0) < prefill.LEAST  # nothing long was attended with a mask


def test_masks_of_the_models_own_are_heeded():
    """Where a layer is given another mask than the pass has made, that is what counts."""
    mask = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril_()
    filling = Filling([(0, 0, 40)], mask)
    key = torch.zeros(1, 2, 40, 8)
    assert filling.takes(mask, key, key, None, None)
    assert filling.takes(mask[:, :, :, :40], key, key, None, None)
    assert not filling.takes(mask.clone(), key, key, None, None)
    assert not filling.takes(mask[:, :, :, :30], key, key, None, None)
    assert not filling.takes(mask, key, key, 2.0, None)
    assert not filling.takes(mask, key, key, None, torch.zeros(4))
    assert not filling.takes(mask, key, key[..., :4], None, None)
    assert not Filling([(0, 0, 40)]).takes(mask, key, key, None, None)


@pytest.mark.parametrize("most", [1, 4, 7, 1000])
def test_packs_hold_every_token_once_and_in_order(most):
    jobs = [
        Job(text, 10 + k, k, (), torch.zeros(0), ())
        for k, text in enumerate([(1, 2, 3, 4, 5), (6,), (), (7, 8)])
    ]
    found = list(packed(jobs, most))
    assert [len(b) > 0 and sum(len(j.tokens) for j in b) for b in found[:-1]] == [most] * (
        len(found) - 1
    )
    assert [t for batch in found for job in batch for t in job.tokens] == [1, 2, 3, 4, 5, 6, 7, 8]
    first = [job for batch in found for job in batch if job.tokens[0] <= 5]
    for job in first:
        assert job.start == 10 + job.tokens[0] - 1
        assert job.column == job.tokens[0] - 1


@needs_compiler
@pytest.mark.parametrize("kind", ["Llama", "soft caps"])
def test_compiled_texts_are_packed(kind, monkeypatch):
    """Through the program of a step, with nothing padded, also where a pass ends within a text."""
    configs = {
        "Llama": lambda: tf.LlamaConfig(**SMALL),
        "soft caps": lambda: tf.Gemma2Config(
            **SMALL, head_dim=8, attn_logit_softcapping=0.5, layer_types=["full_attention"] * 2
        ),
    }
    model = random_model(configs[kind]())
    lm = ppl.HFModel(model, Letters(), name=kind, compile=True)
    engine = lm.engine
    for most, stands in ((4096, False), (4096, True), (50, True)):
        monkeypatch.setattr("ppl.lm.engine.passes._PREFILL_TOKENS", most)
        engine.runner.forget()
        assert_exact(lm, stands)
        assert engine.tokens_padded == 0
