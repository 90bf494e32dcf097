"""The Hugging Face engine: exact on every family, under any interleaving, refusals by name."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from engines import (
    DEVICE,
    FAMILIES,
    OPERATIONS,
    SMALL,
    Letters,
    assert_close,
    engine_of,
    interleaved,
    make,
    plain_log_probs,
    plain_states,
    random_model,
    request,
    some_texts,
    step_graphs,
)
from hypothesis import given, settings

import ppl
from ppl.errors import UnsupportedModelError
from ppl.language.cost import Account
from ppl.lm.base import ScoreRequest
from ppl.lm.engine.engine import Engine


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_equal_a_plain_forward(family):
    lm = make(family)
    texts = some_texts()
    for repeat in range(2):  # the second time from the pool
        drawn = lm.sample_batch([request(lm, t, i + repeat) for i, t in enumerate(texts)])
        for text, draw in zip(texts, drawn, strict=True):
            exact = plain_log_probs(lm.model, text, draw.value.tokens)
            assert draw.log_prob == pytest.approx(exact, abs=1e-4)
        scores = lm.score_batch(
            [
                ScoreRequest(lm, request(lm, t).spec, d.value)
                for t, d in zip(texts, drawn, strict=True)
            ]
        )
        assert scores == pytest.approx([d.log_prob for d in drawn], abs=1e-4)
    # and going on from what was drawn, as a search does
    longer = [t + d.value.tokens for t, d in zip(texts, drawn, strict=True) if not d.value.finished]
    for text, draw in zip(
        longer, lm.sample_batch([request(lm, t, 50 + i) for i, t in enumerate(longer)]), strict=True
    ):
        exact = plain_log_probs(lm.model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)


def test_prompts_are_computed_once_and_forks_compute_nothing_again():
    lm = make()
    prompt = tuple(range(3, 63))
    ledger = Account()
    drawn = lm.sample_batch([request(lm, prompt, i, ledger=ledger) for i in range(8)])
    assert ledger.cost.prompt_tokens == 60
    assert ledger.cost.reused_tokens == 7 * 60
    # Again from the prompt: its last hidden state is kept, so not one token is computed.
    again = Account()
    lm.sample_batch([request(lm, prompt, 9, ledger=again)])
    assert again.cost.prompt_tokens == 0
    # Four forks of one draw: only the token at which it stopped is new, and it is shared.
    fork = Account()
    child = prompt + drawn[0].value.tokens
    lm.sample_batch([request(lm, child, 20 + i, ledger=fork) for i in range(4)])
    assert fork.cost.prompt_tokens == 1
    # Different texts that share a prefix nobody has computed: computed once, not per row.
    before = lm.engine.tokens_computed
    fresh = tuple(range(60, 20, -1))
    lm.engine.hidden([(*fresh, 5), (*fresh, 6), (*fresh, 7)], [40, 40, 40])
    assert lm.engine.tokens_computed - before == 43
    # So it is booked: who computed the prefix is not told that he reuses it, too.
    ledger, other = Account(), tuple(range(50, 90))
    lm.sample_batch([request(lm, (*other, 5 + i), i, ledger=ledger) for i in range(3)])
    assert (ledger.cost.prompt_tokens, ledger.cost.reused_tokens) == (43, 80)


def test_windows_are_exact_beyond_their_length_and_within():
    config = tf.MistralConfig(**SMALL, sliding_window=8)
    text = tuple(range(5, 25))
    for context, prompt in ((None, text), (8, text[:3])):
        lm = ppl.HFModel(random_model(config), Letters(), name="slider", context_length=context)
        draw = lm.sample_batch([request(lm, prompt, 1, max_tokens=4)])[0]
        exact = plain_log_probs(lm.model, prompt, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)


def test_windows_that_cannot_be_reached_are_refused_by_name_or_exact(monkeypatch):
    """A model that attends in a way of its own makes masks of its own."""
    monkeypatch.setattr(tf.MistralModel, "_supports_attention_backend", False)
    config = tf.MistralConfig(**SMALL, sliding_window=8)
    with pytest.raises(UnsupportedModelError, match=r"slider.*way of its own.*context_length=8"):
        ppl.HFModel(random_model(config), Letters(), name="slider")
    lm = ppl.HFModel(random_model(config), Letters(), name="slider", context_length=8)
    draw = lm.sample_batch([request(lm, (5, 6, 7), 1, max_tokens=4)])[0]
    exact = plain_log_probs(lm.model, (5, 6, 7), draw.value.tokens)
    assert draw.log_prob == pytest.approx(exact, abs=1e-4)


def test_masks_by_place_in_the_pass_are_refused():
    """GPT-Neo masks by index in the pass: right as long as all rows begin at one position."""
    config = tf.GPTNeoConfig(
        vocab_size=97,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        eos_token_id=2,
    )
    with pytest.raises(UnsupportedModelError, match=r"neo: batched passes differ.*attention"):
        ppl.HFModel(random_model(config), Letters(), name="neo")


def test_models_that_fail_in_batched_passes_are_refused_by_name():
    size = {"vocab_size": 97, "hidden_size": 32, "eos_token_id": 2}
    bloom = tf.BloomConfig(**size, n_layer=2, n_head=4)
    with pytest.raises(UnsupportedModelError, match=r"bloom: a BloomModel takes no mask.*ValueErr"):
        ppl.HFModel(random_model(bloom), Letters(), name="bloom")


@torch.inference_mode()
def test_positions_that_change_with_the_length_are_refused_by_name_or_exact():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = random_model(
        tf.Phi3Config(
            **SMALL,
            rope_parameters={"rope_theta": 1e4, **rope, "original_max_position_embeddings": 64},
            original_max_position_embeddings=64,
        )
    )
    with pytest.raises(UnsupportedModelError, match=r"phi: .*LongRoPE.*context_length=64"):
        Engine(model, name="phi", capacity=1 << 20)
    text = tuple(range(3, 67))
    (states,) = Engine(model, name="phi", capacity=1 << 20, context_length=64).hidden([text], [0])
    plain = model.base_model(
        torch.tensor([text], device=DEVICE), use_cache=False
    ).last_hidden_state[0]
    assert_close(states, plain)


@pytest.mark.parametrize(
    "way",
    [
        "sharing",
        "apart",
        "graphs",
        "standing",
        pytest.param("compiled", marks=needs_compiler),
        pytest.param("compiled standing", marks=needs_compiler),
        pytest.param("whole", marks=needs_compiler),
        pytest.param("whole standing", marks=needs_compiler),
    ],
)
@pytest.mark.parametrize("kv_bytes", [25_000, 60_000, 1 << 26])
@settings(max_examples=20, deadline=None)
@given(operations=OPERATIONS)
@torch.inference_mode()
def test_any_interleaving_equals_a_plain_forward(kv_bytes, way, operations):
    """Rows open anywhere in known texts, run on in any company, stop, are read and evicted."""
    engine = engine_of(kv_bytes, compile="compiled" in way, pack="whole" in way)
    if "whole" in way and engine.runner.whole is None:
        pytest.skip("needs a processor with AVX512")
    engine.runner.price = 10**9 if way in ("apart", "graphs") else 0
    standing = "standing" in way
    engine.sharing.block, engine.sharing.price = (2, -1) if standing else (64, 10**9)
    engine.runner.graphs = step_graphs(engine) if way == "graphs" else None
    engine.pool.clear()
    interleaved(engine, operations, plain_states)


@torch.inference_mode()
def test_a_known_text_whose_run_is_split_by_its_company():
    """`(3, 6)` is known when it is asked for, and other texts of the same request go on from it."""
    engine = make().engine
    texts = [(3, 6, 6), (3, 6, 3, 3, 6), (3, 6), (3, 4, 5, 6)]
    _, states = engine.open(texts)
    for text, state in zip(texts, states, strict=True):
        assert_close(state, plain_states(text)[-1])


@torch.inference_mode()
def test_a_text_that_parts_within_a_run_and_says_the_same_after_it():
    """What is computed behind the run is of another text, though the words there are equal."""
    engine = make().engine
    engine.hidden([(3, 4, 5, 6, 7, 3), (3, 4, 5, 6, 8)], [0, 0])
    other = (3, 4, 6, 6, 7, 3)
    assert engine.pool.match(other).length == 2
    (states,) = engine.hidden([other], [0])
    assert_close(states, plain_states(other))
