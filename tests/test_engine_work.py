"""What the engine computes, keeps and gives up: nothing twice, within its memory, at any length."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from engines import (
    DEVICE,
    FAMILIES,
    SMALL,
    Letters,
    assert_close,
    make,
    plain_log_probs,
    random_model,
    request,
    some_texts,
)

import ppl
from ppl.language.cost import Account
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, ScoreRequest, Spec
from ppl.lm.engine.layout import Layout
from ppl.lm.engine.prefix import PrefixPool
from ppl.lm.engine.slots import Slots, Window
from ppl.lm.sampling import Warp


@pytest.mark.parametrize("kv_bytes", [1 << 30, 40_000, 25_000])
def test_batch_size_company_memory_and_reuse_do_not_matter(kv_bytes):
    lm = make(kv_bytes=kv_bytes)
    texts = some_texts(3)
    requests = [request(lm, t, i, max_tokens=50, temperature=0.9) for i, t in enumerate(texts)]
    together = lm.sample_batch(requests)
    assert lm.engine.pool.nbytes <= kv_bytes
    for r, d in zip(requests, together, strict=True):
        lm.engine.pool.clear()
        alone = lm.sample_batch([r])[0]
        assert alone.value == d.value
        assert alone.log_prob == pytest.approx(d.log_prob, abs=1e-4)


def test_evicted_runs_keep_what_others_hold():
    """A leaf goes before its parent; what was found stays whole after it is evicted."""
    pool = PrefixPool(capacity=16 * 6)  # six tokens of 16 bytes
    slots = Slots(Layout((((1, 1), (1, 1)),), 2), pool, torch.float32, torch.device("cpu"))
    pool.view = slots.view
    slots.rebuild(3, 10)
    for number, text in enumerate([(1, 2, 3, 4), (1, 2, 8, 9), (5,)]):
        slot = slots.take(slots.all[number])
        slot.length = len(text)
        for at, token in enumerate(text):
            piece = slots.view(slot, at, at + 1)
            piece.kv[0].fill_(token)
            piece.states.fill_(-token)
        pool.insert(text, slot)
        slots.leave(slot)
    assert pool.nbytes == 0  # all of it is in slots
    held = pool.match((1, 2, 3, 4))
    for slot in slots.all:
        slots.empty(slot)
        slots.kv[0][:, slot.index] = slots.states[slot.index] = 99.0
    assert pool.nbytes == 16 * 7  # the shared half is kept once
    pool.match((1, 2, 3, 4))
    pool.match((5,))
    pool.trim()
    assert pool.nbytes == 16 * 5
    assert pool.match((1, 2, 8, 9)).length == 2  # least recently used
    assert pool.match((1, 2, 3, 4)).length == 4
    read = [pool.read(edge, len(edge.tokens)).kv[0][0, 0, :, 0] for edge in held.runs]
    assert torch.cat(read).tolist() == [1, 2, 3, 4]
    assert pool.states(held, 1)[:, 0].tolist() == [-2, -3, -4]


def test_slots_that_hold_nothing_are_taken_first():
    """Emptied, or left by a row that failed: before one whose content would have to be moved."""
    pool = PrefixPool(capacity=1000)
    slots = Slots(Layout((((1, 1), (1, 1)),), 2), pool, torch.float32, torch.device("cpu"))
    pool.view = slots.view
    slots.rebuild(4, 10)
    kept, emptied, failed, halves = slots.all
    for text, slot in (((1, 2), kept), ((3, 4), emptied), ((5, 6), halves)):
        slots.take(slot).length = 2
        pool.insert(text, slot)
        slots.leave(slot)
    slots.empty(emptied)
    slots.take(failed).length = 3
    slots.drop(failed)
    assert slots.idle(set()) == [emptied, failed, kept, halves]
    # Of a row that failed the tree's part stays.
    slots.take(halves, 2).length = 5
    slots.drop(halves)
    assert halves.length == 2


def test_memory_is_made_before_it_is_needed(monkeypatch):
    """At no moment do slots and tree together hold more than the budget."""
    lm = make(kv_bytes=100_000)
    pool, most = lm.engine.pool, []
    settle = pool.settle

    def watched(edge):
        settle(edge)
        most.append(lm.engine.slots.nbytes + pool.nbytes)

    monkeypatch.setattr(pool, "settle", watched)
    for k in range(12):
        texts = [tuple(3 + (i * 7 + j * (k + 1)) % 90 for j in range(40)) for i in range(3)]
        lm.engine.hidden(texts, [39] * 3)
    assert len(most) > 12
    assert max(most) <= 100_000


WARPED = {"temperature": 0.7, "top_p": 0.9, "top_k": 5}


def warped_requests(lm, rows: int, ledger=None) -> list[ContinueRequest]:
    """Ragged prompts that share prefixes; half of the rows may draw only some tokens."""
    texts = some_texts(5)
    requests = []
    for i in range(rows):
        allowed = frozenset(range(2, 97, 3)) if i % 2 else None
        spec = Spec(texts[i % len(texts)], StepRule(), 12, Warp(**WARPED), allowed)
        requests.append(ContinueRequest(lm, spec, 31 + 104729 * i, ledger=ledger))
    return requests


def test_sixteen_rows_draw_what_each_draws_alone_cold_or_warm():
    lm = make()
    requests = warped_requests(lm, 16)
    together = lm.sample_batch(requests)
    assert len({d.value for d in together}) > 8
    warm = lm.sample_batch(requests)
    for r, first, second in zip(requests, together, warm, strict=True):
        lm.engine.pool.clear()
        cold = lm.sample_batch([r])[0]
        alone = lm.sample_batch([r])[0]
        assert first.value == second.value == cold.value == alone.value
        for other in (second, cold, alone):
            assert other.log_prob == pytest.approx(first.log_prob, abs=1e-5)
        if r.spec.allowed is not None:
            assert set(first.value.tokens) <= r.spec.allowed


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Phi", "Gemma"])
def test_recorded_log_probs_equal_teacher_forcing_under_warps(family):
    lm = make(family)
    requests = warped_requests(lm, 12)
    drawn = lm.sample_batch(requests)
    scored = [ScoreRequest(lm, r.spec, d.value) for r, d in zip(requests, drawn, strict=True)]
    expected = [d.log_prob for d in drawn]
    assert lm.score_batch(scored) == pytest.approx(expected, abs=1e-4)
    lm.engine.pool.clear()
    assert lm.score_batch(scored[::-1]) == pytest.approx(expected[::-1], abs=1e-4)
    # What a warp rules out has probability zero.
    spec = requests[1].spec
    outside = ppl.Continuation((4,) * 12, "", "length")  # 4 is not allowed here
    assert lm.score_batch([ScoreRequest(lm, spec, outside)]) == [-np.inf]


@pytest.mark.parametrize("tokens", [1, 5, 16])
@pytest.mark.parametrize("shared", [1, 100])
def test_long_prompts_in_chunks(tokens, shared, monkeypatch):
    """Chunks of columns, groups of rows, narrow buffers: all equal a plain forward."""
    monkeypatch.setattr("ppl.lm.engine.passes._PREFILL_TOKENS", tokens)
    monkeypatch.setattr("ppl.lm.engine.engine._CPU_MIN_SHARED", shared)
    monkeypatch.setattr("ppl.lm.engine.slots._BUCKET", 1)
    lm = make("GPTNeoX")
    for repeat in range(2):
        texts = some_texts(repeat)
        drawn = lm.sample_batch([request(lm, t, i, max_tokens=7) for i, t in enumerate(texts)])
        for text, draw in zip(texts, drawn, strict=True):
            exact = plain_log_probs(lm.model, text, draw.value.tokens)
            assert draw.log_prob == pytest.approx(exact, abs=1e-4)


@torch.inference_mode()
def test_hidden_states_equal_a_plain_forward_from_any_position():
    lm = make("Qwen2")
    texts = some_texts(9)
    plain = [
        lm.model.base_model(torch.tensor([t], device=DEVICE)).last_hidden_state[0] for t in texts
    ]
    for first in ([0] * 7, [len(t) - 1 for t in texts], [len(t) // 2 for t in texts], [0] * 7):
        for states, whole, at in zip(lm.engine.hidden(texts, first), plain, first, strict=True):
            assert states.shape == whole[at:].shape
            assert float((states - whole[at:]).abs().max()) < 1e-4


@pytest.mark.parametrize("family", ["Llama", "GPT2"])  # rotary and learned positions
def test_texts_up_to_the_last_place_of_the_context(family):
    lm = make(family)
    text = tuple(i % 90 + 3 for i in range(120))
    for draw in lm.sample_batch([request(lm, text, i, max_tokens=50) for i in range(4)]):
        assert draw.value.finished or len(draw.value.tokens) == 8
        exact = plain_log_probs(lm.model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)


def test_gemma2_with_its_windows_and_soft_capped_scores():
    for layers in ({"sliding_window": 8}, {"layer_types": ["full_attention"] * 2}):
        config = tf.Gemma2Config(**SMALL, head_dim=8, attn_logit_softcapping=0.5, **layers)
        lm = ppl.HFModel(random_model(config), Letters(), name="gemma2")
        text = tuple(range(20, 50))
        draw = lm.sample_batch([request(lm, text, 1)])[0]
        exact = plain_log_probs(lm.model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)


def test_eight_continuations_cost_the_prompt_once_even_in_small_batches():
    lm = make(kv_bytes=40_000)
    ledger = Account()
    prompt = tuple(range(3, 43))
    assert lm.batch_rows(46) < 8
    lm.sample_batch([request(lm, prompt, i, ledger=ledger) for i in range(8)])
    assert ledger.cost.prompt_tokens == 40
    assert ledger.cost.reused_tokens == 7 * 40


def test_scoring_what_was_just_drawn_computes_at_most_one_token():
    lm = make()
    drawn = lm.sample_batch([request(lm, tuple(range(3, 33)), 1)])[0]
    text = tuple(range(3, 33)) + drawn.value.tokens
    ledger = Account()
    lm.sample_batch([request(lm, text, 2, ledger=ledger)])
    assert ledger.cost.prompt_tokens <= 1
    assert ledger.cost.reused_tokens >= len(text) - 1


@pytest.mark.parametrize("kv_bytes", [100_000, 400_000])
def test_memory_stays_within_the_budget_whatever_is_asked(kv_bytes):
    """Rows wait, make room half-way, or are judged in parts; the result is that of any memory."""
    small, ample = make(kv_bytes=kv_bytes), make()
    texts = [tuple(3 + (i * 7 + j) % 90 for j in range(5 + i)) for i in range(24)]
    for _ in range(2):
        asked = [request(small, text, i, max_tokens=80) for i, text in enumerate(texts)]
        drawn = small.sample_batch(asked)
        expected = ample.sample_batch([replace(r, model=ample) for r in asked])
        assert [d.value for d in drawn] == [d.value for d in expected]
        small.engine.hidden(texts, [0] * len(texts))
        assert small.engine.peak_nbytes <= 1.15 * kv_bytes
        texts = [t + d.value.tokens for t, d in zip(texts, drawn, strict=True)]
        texts = [t[:40] for t in texts if 2 not in t]


def test_a_row_that_made_room_half_way_goes_on_as_if_nothing_had_been(monkeypatch):
    """Without max_tokens rows are admitted on a guess; when they grow, the youngest must wait."""
    monkeypatch.setattr("ppl.lm.row._USUAL_STEP", 4)
    small, ample = make(kv_bytes=150_000, context_length=128), make(context_length=128)
    rule = StepRule.of(lambda text: len(text) > 100)
    text = tuple(range(3, 23))
    asked = [ContinueRequest(small, Spec(text, rule, None, Warp(), None), i) for i in range(8)]
    drawn = small.sample_batch(asked)
    expected = ample.sample_batch([replace(r, model=ample) for r in asked])
    assert [d.value for d in drawn] == [d.value for d in expected]
    assert small.engine.peak_nbytes <= 1.15 * 150_000


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_leaves_nothing_to_the_garbage_collector(family, monkeypatch):
    """In a cycle of references, views of old slots would outlive them."""
    seen = []

    class Watched(Window):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(weakref.ref(self))

    lm = make(family)
    monkeypatch.setattr("ppl.lm.engine.slots.Window", Watched)
    gc.disable()
    try:
        text = tuple(range(3, 40))
        slots, _ = lm.engine.open([text])
        lm.engine.step(list(slots.values()), [(*text, 5)])
        assert len(seen) == 2
        assert all(window() is None for window in seen)
    finally:
        gc.enable()


@torch.inference_mode()
def test_texts_grown_token_by_token_stay_one_run_and_keep_every_state():
    lm = make()
    text, others = (5, 9, 11), (7,) * 4
    lm.engine.hidden([text, others], [2, 3])
    for t in range(30):
        text = (*text, 3 + t)
        lm.engine.hidden([text], [len(text) - 1])
    runs = lm.engine.pool.match(text).runs
    assert len(runs) == 1
    computed = lm.engine.tokens_computed
    inner = [text[:n] for n in range(3, len(text))]
    states = lm.engine.hidden(inner, [len(t) - 1 for t in inner])
    assert lm.engine.tokens_computed == computed  # every place where a text ended is remembered
    for known, state in zip(inner, states, strict=True):
        assert_close(
            state, lm.engine.base(torch.tensor([known], device=DEVICE)).last_hidden_state[0, -1:]
        )
    # Forks inside the run: what both share stays, what differs is computed once.
    forks = [(*text[:10], 90), (*text[:20], 91), (*text, 92)]
    lm.engine.hidden(forks, [len(t) - 1 for t in forks])
    assert lm.engine.tokens_computed == computed + 3
