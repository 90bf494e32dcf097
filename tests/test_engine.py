"""The Hugging Face engine: exact on every family, nothing computed twice, refusals by name."""

from __future__ import annotations

import functools
import gc
import os
import weakref
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st

import ppl
from ppl.errors import UnsupportedModelError
from ppl.language.cost import Account
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, ScoreRequest, Spec
from ppl.lm.engine import building, native
from ppl.lm.engine.attention import Span, _attend_shared, share, split
from ppl.lm.engine.compiled import CompiledStep
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.graphs import StepGraphs, keys_bucket, rows_bucket
from ppl.lm.engine.layout import Layout
from ppl.lm.engine.prefix import PrefixPool
from ppl.lm.engine.runs import common_prefix
from ppl.lm.engine.slots import Slots, Window
from ppl.lm.sampling import Warp

# Where the engine runs: `cuda` puts the exactness tests on a GPU (tests/benchmarks/gpu.sh does).
DEVICE = torch.device(os.environ.get("PPL_TEST_DEVICE", "cpu"))
ON_GPU = DEVICE.type == "cuda"

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEOX = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
FAMILIES = {
    "Llama": lambda: tf.LlamaConfig(**SMALL),
    "Qwen2": lambda: tf.Qwen2Config(**SMALL),
    "Qwen3": lambda: tf.Qwen3Config(**SMALL, head_dim=8),
    "Mistral": lambda: tf.MistralConfig(**SMALL, sliding_window=None),
    "Gemma": lambda: tf.GemmaConfig(**SMALL, head_dim=8),
    "Phi": lambda: tf.PhiConfig(**SMALL),
    "Phi3": lambda: tf.Phi3Config(**SMALL),
    "Granite": lambda: tf.GraniteConfig(**SMALL, logits_scaling=3.0),
    "GPT2": lambda: tf.GPT2Config(**GPT2),
    "GPTNeoX": lambda: tf.GPTNeoXConfig(**NEOX),
}


class Letters:
    """A tokenizer of 97 ids, each its own letter."""

    eos_token_id = 2
    chat_template = None

    def __len__(self) -> int:
        return 97

    def encode(self, string, add_special_tokens=False):
        return [ord(c) - 0x4E00 for c in string]

    def decode(self, tokens, **_):
        return "".join(chr(0x4E00 + t) for t in tokens if t != 2)

    def get_vocab(self):
        return {chr(0x4E00 + i): i for i in range(97)}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Models this small only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(config) -> object:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(config).eval().to(DEVICE)


def make(name: str = "Llama", **options) -> ppl.HFModel:
    return ppl.HFModel(random_model(FAMILIES[name]()), Letters(), name=name, **options)


def some_texts(seed: int = 0) -> list[tuple[int, ...]]:
    """Ragged texts with shared prefixes, forks, twins, and one inside another."""
    rng = np.random.default_rng(seed)
    root = tuple(rng.integers(3, 97, 17).tolist())
    branch = (*root, *rng.integers(3, 97, 11).tolist())
    other = tuple(rng.integers(3, 97, 5).tolist())
    return [root, branch, (*branch, 5, 6), (*branch, 5, 7, 8), other, branch, (*root[:9], 4, 4)]


def plain_log_probs(model, text: tuple[int, ...], new: tuple[int, ...]) -> float:
    ids = torch.tensor([text + new], device=DEVICE)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0].double()
    picked = torch.log_softmax(logits, -1)[len(text) - 1 : -1]
    return float(picked.gather(1, torch.tensor(new, device=DEVICE)[:, None]).sum())


def request(lm, text, seed=0, max_tokens=6, ledger=None, **warp) -> ContinueRequest:
    spec = Spec(text, StepRule(), max_tokens, Warp(**warp), None)
    return ContinueRequest(lm, spec, 1234567 + 7919 * seed, ledger=ledger)


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


@pytest.mark.parametrize("kv_bytes", [1 << 30, 40_000, 1])
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


# -- slots and prefix tree, under whatever happens -----------------------------------------------

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["open", "open", "step", "step", "step", "fork", "close", "read", "evict", "clear"]
        ),
        st.lists(st.integers(0, 999), min_size=1, max_size=4),
        st.lists(st.integers(3, 6), max_size=4).map(tuple),
    ),
    min_size=4,
    max_size=20,
)


@pytest.mark.parametrize(
    "way",
    [
        "sharing",
        "apart",
        "graphs",
        "standing",
        pytest.param("compiled", marks=needs_compiler),
        pytest.param("compiled standing", marks=needs_compiler),
    ],
)
@pytest.mark.parametrize("kv_bytes", [1, 60_000, 1 << 26])
@settings(max_examples=20, deadline=None)
@given(operations=OPERATIONS)
@torch.inference_mode()
def test_any_interleaving_equals_a_plain_forward(kv_bytes, way, operations):
    """Rows open anywhere in known texts, run on in any company, stop, are read and evicted."""
    engine = _engine(kv_bytes, compile="compiled" in way)
    engine.runner.price = 10**9 if way in ("apart", "graphs") else 0
    standing = "standing" in way
    engine.sharing.block, engine.sharing.price = (2, -1) if standing else (64, 10**9)
    engine.runner.graphs = step_graphs(engine) if way == "graphs" else None
    engine.pool.clear()
    interleaved(engine, operations, plain_states)


def interleaved(engine, operations, plain_states) -> None:
    """Does this with rows of an engine, and compares all that it says of them with another."""
    texts: list[tuple[int, ...]] = [(3,)]
    rows: list[tuple[object, tuple[int, ...], torch.Tensor]] = []
    for kind, numbers, suffix in operations:
        chosen = (
            [i % len(rows) for i in dict.fromkeys(n % len(rows) for n in numbers)] if rows else []
        )
        if kind == "open":
            # From anywhere inside a known text, then on in other words.
            asked = [texts[n % len(texts)] for n in numbers]
            asked = [t[: 1 + n % len(t)] + suffix for t, n in zip(asked, numbers, strict=True)]
            slots, hidden = engine.open(asked)
            for text, state in dict(zip(asked, hidden, strict=True)).items():
                rows.append((slots.get(text), text, state))
            # What was known needs a slot to go on from; twins get one each.
            seated = [i for i, (slot, *_) in enumerate(rows) if slot is None]
            wanted = [rows[i][1] for i in seated]
            for i, slot in zip(seated, engine.seat(wanted + wanted[:1]), strict=False):
                rows[i] = (slot, *rows[i][1:])
            for slot in engine.slots.busy:
                if all(slot is not s for s, *_ in rows):
                    engine.close(slot, wanted[0])
        elif kind == "fork":
            for i, slot in zip(chosen, engine.fork([rows[i][0] for i in chosen]), strict=True):
                rows.append((slot, *rows[i][1:]))
        elif kind == "step" and chosen:
            tokens = [3 + n % 5 for n in range(len(chosen))]
            longer = [(*rows[i][1], token) for i, token in zip(chosen, tokens, strict=True)]
            states = engine.step([rows[i][0] for i in chosen], longer)
            for i, text, state in zip(chosen, longer, states, strict=True):
                rows[i] = (rows[i][0], text, state)
        elif kind == "close":
            for i in chosen:
                engine.close(*rows[i][:2])
            rows = [row for i, row in enumerate(rows) if i not in chosen]
        elif kind == "read":
            asked = [texts[n % len(texts)] + suffix for n in numbers]
            first = [n % len(t) for n, t in zip(numbers, asked, strict=True)]
            for text, at, states in zip(asked, first, engine.hidden(asked, first), strict=True):
                assert_close(states, plain_states(text)[at:])
            texts += asked
        elif kind == "evict":
            before, engine.pool.capacity = engine.pool.capacity, 0
            engine.pool.trim()
            engine.pool.capacity = before
        elif kind == "clear":
            engine.pool.clear()
        texts += [text for _, text, _ in rows]
        for text in texts[-5:]:
            if (state := engine.known(text)) is not None:
                assert_close(state, plain_states(text)[-1])
        for _, text, state in rows:
            assert_close(state, plain_states(text)[-1])
        texts = [t for t in dict.fromkeys(texts) if len(t) < 60][-20:]
    for slot, text, _ in rows:
        engine.close(slot, text)


def emulated(step, device):
    """As on a GPU: a step is captured with its shapes, and what it returns is written over."""
    output = step().clone()
    return lambda: output.copy_(step())


def step_graphs(engine) -> StepGraphs:
    """Captured for good on a GPU, emulated elsewhere."""
    if ON_GPU:
        return StepGraphs(engine.runner.captured_pass, engine.device)
    return emulated_graphs(engine)


def emulated_graphs(engine) -> StepGraphs:
    def on_this_memory(step, device):
        replay, kv = emulated(step, device), engine.slots.kv

        def checked():
            assert engine.slots.kv is kv, "replayed on memory that is gone"
            return replay()

        return checked

    return StepGraphs(engine.runner.captured_pass, engine.device, on_this_memory)


@functools.cache
def _engine(kv_bytes: int, compile: bool = False):
    return make(kv_bytes=kv_bytes, compile=compile).engine


@functools.cache
def plain_states(text: tuple[int, ...]) -> torch.Tensor:
    return (
        _engine(1).base(torch.tensor([text], device=DEVICE), use_cache=False).last_hidden_state[0]
    )


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


def assert_close(ours: torch.Tensor, plain: torch.Tensor) -> None:
    assert ours.shape == plain.shape
    assert float((ours - plain).abs().max()) < 1e-4


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


# -- laws 3 and 5 under every warp at once -------------------------------------------------------

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


# -- paths that small models do not reach by themselves ----------------------------------------


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
    monkeypatch.setattr("ppl.lm.decode._USUAL_STEP", 4)
    small, ample = make(kv_bytes=150_000, context_length=128), make(context_length=128)
    rule = StepRule.of(lambda text: len(text) > 100)
    text = tuple(range(3, 23))
    asked = [ContinueRequest(small, Spec(text, rule, None, Warp(), None), i) for i in range(8)]
    drawn = small.sample_batch(asked)
    expected = ample.sample_batch([replace(r, model=ample) for r in asked])
    assert [d.value for d in drawn] == [d.value for d in expected]
    assert small.engine.peak_nbytes <= 1.15 * 150_000


@given(reach=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_spans_cover_every_row_and_all_that_it_needs(reach):
    spans = split(reach)
    if spans is None:
        return
    assert [row for s in spans for row in range(s.start, s.stop)] == list(range(len(reach)))
    assert all(reach[row] <= s.keys for s in spans for row in range(s.start, s.stop))
    assert sum(s.keys * (s.stop - s.start) for s in spans) < max(reach) * len(reach)


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
def test_captured_steps_are_replayed_for_other_rows_and_lengths():
    lm, plain = make(), make()
    lm.engine.runner.graphs = step_graphs(lm.engine)
    texts = [tuple(3 + (i * j) % 90 for j in range(1, 6 + i)) for i in range(1, 6)]
    slots = [list(m.engine.open(texts)[0].values()) for m in (lm, plain)]
    for t in range(60):
        rows = range(5) if t % 2 else range(3)
        texts = [(*text, 3 + t) if i in rows else text for i, text in enumerate(texts)]
        asked = [texts[i] for i in rows]
        ours = lm.engine.step([slots[0][i] for i in rows], asked)
        theirs = plain.engine.step([slots[1][i] for i in rows], asked)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # 4 and 8 rows, twice: memory is allocated anew when the texts outgrow it.
    assert lm.engine.runner.graphs.captured <= 4


@torch.inference_mode()
def test_steps_are_not_captured_again_where_the_same_rows_lie_elsewhere():
    engine = make().engine
    engine.runner.graphs = step_graphs(engine)
    texts = [tuple(range(3 + i, 12 + i)) for i in range(24)]
    slots = list(engine.open(texts)[0].values())
    for first in range(16):  # eight neighbours, which begin at every place in turn
        part = slice(first, first + 8)
        texts[part] = [(*text, 50) for text in texts[part]]
        engine.step(slots[part], texts[part])
    assert engine.runner.graphs.captured <= 5


def test_captured_steps_share_a_pool_until_all_of_them_are_dropped(monkeypatch):
    """A pool whose last graph is gone takes no new one (torch: `use_count > 0`)."""
    alive, pools = weakref.WeakSet(), {}

    class Replay:
        def __call__(self):
            return None

    def capture(step, device, pool):
        assert pool not in pools or any(r in alive for r in pools[pool]), "a pool that is closed"
        replay = Replay()
        alive.add(replay)
        pools.setdefault(pool, weakref.WeakSet()).add(replay)
        return replay

    class Table:
        shape = (3, 2, 1)

        def to(self, device, copy):
            return self

        def copy_(self, other, non_blocking):
            return self

    handles = iter(range(9))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr("ppl.lm.engine.graphs.cuda_graph", capture)
    graphs = StepGraphs(lambda *_: None, torch.device("cuda"))
    for memory in (0, 0, 1, 2):
        for low in (0, 1):
            graphs.run(memory, low, 128, Table())
    assert graphs.captured == 6
    assert len(pools) == 3


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match="need a GPU"):
        Engine(make().model, name="small", capacity=1 << 20, graphs=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_are_checked_at_loading(family, monkeypatch):
    monkeypatch.setattr("ppl.lm.engine.graphs.cuda_graph", emulated)
    model = make(family).model
    engine = Engine(model, name="small", capacity=1 << 20, graphs=True)
    assert engine.runner.graphs.captured == 1
    monkeypatch.setattr("ppl.lm.engine.graphs.cuda_graph", lambda step, device: lambda: 2 * step())
    with pytest.raises(UnsupportedModelError, match="differ"):
        Engine(model, name="small", capacity=1 << 20, graphs=True)

    def fails(step, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("ppl.lm.engine.graphs.cuda_graph", fails)
    with pytest.raises(UnsupportedModelError, match=r"not permitted.*graphs=False"):
        Engine(model, name="small", capacity=1 << 20, graphs=True)


@needs_compiler
@pytest.mark.parametrize("family", ["Llama", "Gemma", "Phi", "GPT2"])
def test_compiled_steps_give_the_log_probs_of_a_plain_forward(family):
    lm = make(family, compile=True)
    texts = some_texts()
    for some in (texts, texts[:1], texts * 3):  # one program for any number of rows
        requests = [request(lm, t, i, max_tokens=20) for i, t in enumerate(some)]
        for text, draw in zip(some, lm.sample_batch(requests), strict=True):
            exact = plain_log_probs(lm.model, text, draw.value.tokens)
            assert draw.log_prob == pytest.approx(exact, abs=1e-4)


@needs_compiler
def test_compiled_steps_are_those_of_their_own_model(monkeypatch):
    """Nothing checks for which model a program was made: programs must be kept apart."""
    calls = []
    step = CompiledStep.__call__
    monkeypatch.setattr(CompiledStep, "__call__", lambda *a: calls.append(a[0]) or step(*a))
    one = make(compile=True)
    alike = random_model(tf.LlamaConfig(**SMALL, hidden_act="gelu"))  # the same but for this
    other = ppl.HFModel(alike, Letters(), name="other", compile=True)
    calls.clear()
    text = some_texts()[0]
    for lm in (one, other, one):
        (draw,) = lm.sample_batch([request(lm, text, max_tokens=9)])
        exact = plain_log_probs(lm.model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)
    assert [c is one.engine.runner.compiled for c in calls] == [True] * 8 + [
        False
    ] * 8  # then all was known
    try:
        with torch._dynamo.config.patch(recompile_limit=1):
            for threads in (2, 3):  # each needs another program
                torch.set_num_threads(threads)
                one.engine.pool.clear()
                again = one.sample_batch([request(one, text, max_tokens=9)])[0]
                assert again.log_prob == pytest.approx(draw.log_prob, abs=1e-4)
    finally:
        torch.set_num_threads(1)


@needs_compiler
@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_compiled_steps_run_with_attention_of_the_library(family, monkeypatch):
    """As on a GPU, where there is none of our own."""
    monkeypatch.setattr("ppl.lm.engine.native.attend", None)
    never = property(lambda _: False, lambda *_: None)
    monkeypatch.setattr(CompiledStep, "native", never, raising=False)
    lm = make(family, compile=True)
    texts = some_texts()
    drawn = lm.sample_batch([request(lm, t, i, max_tokens=20) for i, t in enumerate(texts)])
    for text, draw in zip(texts, drawn, strict=True):
        exact = plain_log_probs(lm.model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)


@needs_compiler
def test_compiled_steps_run_packed_layers():
    lm, plain = ppl.load("tiny", compile=True), ppl.load("tiny")
    text = lm.prompt("12 + 7 * 3\n")
    drawn = lm.sample_batch([request(lm, text.tokens, i, max_tokens=12) for i in range(8)])
    again = plain.sample_batch([request(plain, text.tokens, i, max_tokens=12) for i in range(8)])
    assert [d.value.tokens for d in drawn] == [d.value.tokens for d in again]
    assert [d.log_prob for d in drawn] == pytest.approx([d.log_prob for d in again], abs=1e-4)


@needs_compiler
@torch.inference_mode()
def test_compiled_steps_in_other_surroundings():
    """What the process has set meanwhile is kept out, or refused: never a pointer to elsewhere."""
    engine = make(compile=True).engine
    text = some_texts()[0]
    slots, _ = engine.open([text])
    torch.set_default_device("meta")
    try:
        states = engine.step([slots[text]], [(*text, 7)])
    finally:
        torch.set_default_device(None)
    assert_close(states[0], plain_states((*text, 7))[-1])
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match=r"one kind with the cache.*bfloat16.*float32"),
    ):
        engine.step([slots[text]], [(*text, 7, 8)])


@needs_compiler
def test_keys_repeated_before_attention_are_refused_by_compiled_steps():
    config = tf.JetMoeConfig(
        **{k: v for k, v in SMALL.items() if k != "num_attention_heads"},
        kv_channels=8,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    ppl.HFModel(random_model(config), Letters(), name="repeats")
    with pytest.raises(UnsupportedModelError, match=r"keep the keys.*\(2, 8\).*\(4, 8\)"):
        ppl.HFModel(random_model(config), Letters(), name="repeats", compile=True)


@needs_compiler
def test_steps_that_cannot_be_compiled_are_refused_at_loading(monkeypatch, tmp_path):
    model = random_model(FAMILIES["Llama"]())
    with monkeypatch.context() as patch:
        patch.setattr(tf.LlamaModel, "_supports_attention_backend", False)
        model.set_attn_implementation("eager")
        with pytest.raises(UnsupportedModelError, match=r"attn_implementation='sdpa'.*'eager'"):
            Engine(model, name="small", capacity=1 << 20, compile=True)
    model.set_attn_implementation("sdpa")

    attend = native.attend
    monkeypatch.setattr("ppl.lm.engine.native.attend", lambda *args: 2 * attend(*args))
    with pytest.raises(UnsupportedModelError, match="differ"):
        Engine(model, name="small", capacity=1 << 20, compile=True)

    monkeypatch.setattr("ppl.lm.engine.native.attend", attend)
    for compiler, said in (
        ("g+++", r"no C\+\+ compiler 'g\+\+\+'.*CXX"),
        ("g++ -nothing", "nothing"),
    ):
        native._built.cache_clear()
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(UnsupportedModelError, match=said + r".*compile=False"):
            Engine(model, name="small", capacity=1 << 20, compile=True)
    monkeypatch.delenv("CXX")

    def read_only():
        raise OSError("Read-only file system")

    native._built.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("PPL_CACHE", str(tmp_path))  # where nothing is kept
        patch.setattr(building.tempfile, "TemporaryDirectory", read_only)
        with pytest.raises(UnsupportedModelError, match=r"Read-only.*compile=False"):
            Engine(model, name="small", capacity=1 << 20, compile=True)


@needs_compiler
def test_steps_are_compiled_where_they_can_be(monkeypatch):
    assert make(compile="auto").engine.runner.compiled is not None
    assert make().engine.runner.compiled is None
    native._built.cache_clear()
    monkeypatch.setenv("CXX", "g+++")
    try:
        with pytest.warns(UserWarning, match=r"uncompiled: Llama.*no C\+\+ compiler 'g\+\+\+'"):
            lm = make(compile="auto")
    finally:
        native._built.cache_clear()
    assert lm.engine.runner.compiled is None
    text = some_texts()[0]
    (draw,) = lm.sample_batch([request(lm, text)])
    exact = plain_log_probs(lm.model, text, draw.value.tokens)
    assert draw.log_prob == pytest.approx(exact, abs=1e-4)
    with pytest.raises((TypeError, ValueError), match="compile='always'"):
        make(compile="always")


@needs_compiler
def test_compiled_steps_need_no_argument_that_older_releases_of_torch_lack(monkeypatch):
    compile = torch.compile
    given = []

    def older(step, *, fullgraph, options):
        given.append(step.__code__)
        return compile(step, fullgraph=fullgraph, options=options)

    monkeypatch.setattr(torch, "compile", older)
    for _ in range(2):
        Engine(make().model, name="small", capacity=1 << 20, compile=True)
    assert given[0] is not given[1]  # programs are kept with the code


@pytest.mark.parametrize(
    ("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (64, 64), (65, 72)]
)
def test_row_buckets(rows, bucket):
    assert rows_bucket(rows) == bucket


def test_key_buckets_end_where_the_memory_does():
    assert [keys_bucket(n, 300) for n in (1, 128, 129, 256, 257, 300)] == [
        128,
        128,
        256,
        256,
        300,
        300,
    ]


TEXTS = st.lists(
    st.tuples(st.sampled_from([(), (1, 2, 3), (1, 2, 3, 4, 5)]), st.lists(st.integers(6, 8))).map(
        lambda parts: (*parts[0], *parts[1], 9)
    ),
    min_size=1,
    max_size=30,
)


@given(texts=TEXTS, idle=st.sets(st.integers(0, 29), max_size=6), price=st.integers(0, 12))
def test_shared_beginnings_are_those_of_all_rows_and_pay(texts, idle, price):
    """`idle` rows compute for nobody."""
    real = [row for row in range(len(texts)) if row not in idle]
    common = [common_prefix(texts[a], texts[b]) for a, b in pairwise(real)]
    reach = [1 if row in idle else len(text) for row, text in enumerate(texts)]
    before = split(reach) or [Span(0, len(texts), max(reach))]
    spans = share(before, real, common, price)
    assert [row for s in spans for row in range(s.start, s.stop)] == list(range(len(texts)))
    for span in spans:
        rows = [row for row in real if span.start <= row < span.stop]
        assert all(reach[row] <= span.keys for row in rows)
        if span.shared:
            assert span.source in rows
            assert len({texts[row][: span.shared] for row in rows}) == 1
            assert (len(rows) - 1) * span.shared > price
    if len(before) == 1 and len(real) == len(texts):  # what all have in common is found
        least = (len(texts) - 1) * common_prefix(min(texts), max(texts))
        assert sum((s.stop - s.start - 1) * s.shared for s in spans) >= least - price


def test_questions_in_one_pass_share_their_own_beginnings():
    rows = [*range(3), *range(4, 10)]  # row 3 computes for nobody
    spans = share([Span(0, 10, 50)], rows, [40, 40, 5, 30, 30, 30, 30, 30], 20)
    assert spans == [Span(0, 4, 50, 40, 0), Span(4, 10, 50, 30, 4)]


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_common_beginning_is_read_once_with_the_same_result(family, monkeypatch):
    lm = make(family)
    monkeypatch.setattr(lm.engine.runner, "price", 0)
    called = []
    monkeypatch.setattr(
        "ppl.lm.engine.attention._attend_shared",
        lambda *args: called.append(args[6].shape[1]) or _attend_shared(*args),
    )
    start = tuple(3 + i % 90 for i in range(20))
    texts = [(*start, *range(30 + n, 30 + 2 * n)) for n in (1, 4, 9)]
    slots, _ = lm.engine.open(texts)
    longer = [(*text, 5) for text in texts]
    states = lm.engine.step([slots[text] for text in texts], longer)
    shared = lm.model.config._attn_implementation == "sdpa"
    layers = len(lm.engine.slots.layout.layers)
    assert called == [20] * (2 * layers if shared else 0)  # their own ends, and the step
    # Other rows in the same slots: nothing that was known of the first ones is taken as known.
    for text, slot in slots.items():
        lm.engine.close(slot, text)
    others = [(*range(40 + n, 60), 3) for n in (1, 2, 3)]
    slots, _ = lm.engine.open(others)
    longer += [(*text, 5) for text in others]
    states = [*states, *lm.engine.step([slots[text] for text in others], longer[3:])]
    for text, mine in zip(longer, states, strict=True):
        ids = torch.tensor([text], device=DEVICE)
        plain = lm.engine.base(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_short_rows_beside_a_long_one_attend_on_their_own(family, monkeypatch):
    lm = make(family)
    texts = [tuple(3 + (i * j) % 90 for j in range(1, n)) for i, n in enumerate((9, 100, 7, 12), 1)]
    seen = []
    monkeypatch.setattr(
        "ppl.lm.engine.passes.split", lambda reach: seen.append(split(reach)) or split(reach)
    )
    slots, _ = lm.engine.open(texts)
    longer = [(*text, token) for text, token in zip(texts, [4, 5, 6, 7], strict=True)]
    states = lm.engine.step([slots[text] for text in texts], longer)
    assert seen[-1] is not None
    assert max(s.keys for s in seen[-1]) == 100
    for text, mine in zip(longer, states, strict=True):
        ids = torch.tensor([text], device=DEVICE)
        plain = lm.engine.base(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


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
