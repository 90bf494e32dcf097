"""What is kept of keys and values: exact for the compressed model, named, never mixed."""

from __future__ import annotations

import functools

import families
import pyro
import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from compressed import PROMPT, Rounding, compressed, estimates, evidence, sharp, tilted
from engines import (
    DEVICE,
    FAMILIES,
    OPERATIONS,
    SMALL,
    Letters,
    interleaved,
    make,
    random_model,
    request,
    some_texts,
    step_graphs,
)
from hypothesis import given, settings

import ppl
from ppl.errors import ObservationError, UnsupportedModelError
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, ScoreRequest, Spec
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.kv import KV, restored, rounded
from ppl.lm.engine.slots import bucket
from ppl.lm.sampling import Warp
from ppl.searchers import BestOfN

KINDS = ["int8", "window(6, 2)", "int8+window(6, 2)"]


# -- how it is said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("full", KV()),
        ("int8", KV(int8=True)),
        ("window(512)", KV(window=512, sinks=4)),
        (" window( 512 ,sinks=0 ) ", KV(window=512)),
        ("window(window=8, 2)", KV(window=8, sinks=2)),
        ("int8+window(8, 2)", KV(True, 8, 2)),
        ("window(8, 2) + int8", KV(True, 8, 2)),
    ],
)
def test_what_is_kept_is_read_and_written(said, kept):
    assert KV.read(said) == kept
    assert KV.read(str(kept)) == kept


@pytest.mark.parametrize(
    "said",
    ["", "int4", "window", "window()", "window(1)", "window(-3)", "window(8, -1)", "int8+int8",
     "full+int8", "window(8)+window(9)", "window(8.5)", "window(8, 1, 2)", "int8+", None, 8],
)  # fmt: skip
def test_what_is_nothing_of_the_kind_is_refused(said):
    with pytest.raises((ValueError, TypeError), match="kv"):
        ppl.load("tiny", kv=said)
    with pytest.raises((ValueError, TypeError), match="kv"):
        make(kv=said)


def test_what_a_server_keeps_is_its_own_affair():
    with pytest.raises(ValueError, match=r"kv= are for models in this process"):
        ppl.load("http://localhost:1/v1", kv="int8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_eight_bits_are_off_by_at_most_half_of_a_unit(dtype):
    torch.manual_seed(0)
    numbers = (torch.randn(50, 3, 16) * torch.logspace(-6, 4, 50)[:, None, None]).to(dtype)
    numbers[7] = 0
    codes, scales = rounded(numbers)
    back = restored(codes, scales)
    assert codes.dtype == torch.int8
    assert back.dtype == scales.dtype == dtype
    most = numbers.double().abs().amax(-1, keepdim=True)
    off = (back.double() - numbers.double()).abs()
    assert bool((off <= most * (1 / 254 + 2 * torch.finfo(dtype).eps)).all())
    assert off.max() > 0
    assert bool((back[7] == 0).all())
    again, _ = rounded(back)
    assert torch.equal(again, codes)


# -- exact, of the compressed model ---------------------------------------------------------------


def log_prob(lm, kv: str, text: tuple[int, ...], new: tuple[int, ...]) -> float:
    states = compressed(lm.model, kv, (*text, *new))[len(text) - 1 : -1]
    of_all = torch.log_softmax(lm.logits(states).double(), -1)
    return float(of_all.gather(1, torch.tensor(new, device=DEVICE)[:, None]).sum())


@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_the_compressed_model(family, kv):
    lm = make(family, kv=kv)
    texts = some_texts()
    for repeat in range(2):  # the second time from the pool
        requests = [request(lm, t, i + repeat, max_tokens=9) for i, t in enumerate(texts)]
        drawn = lm.sample_batch(requests)
        for text, draw in zip(texts, drawn, strict=True):
            exact = log_prob(lm, kv, text, draw.value.tokens)
            assert draw.log_prob == pytest.approx(exact, abs=1e-4)
    scores = [ScoreRequest(lm, r.spec, d.value) for r, d in zip(requests, drawn, strict=True)]
    lm.engine.pool.clear()  # by teacher forcing, from nothing
    assert lm.score_batch(scores) == pytest.approx([d.log_prob for d in drawn], abs=1e-4)


@functools.cache
def _engine(kv: str, kv_bytes: int, compile: bool = False):
    return make(kv=kv, kv_bytes=kv_bytes, compile=compile).engine


@functools.cache
def states_of(kv: str, text: tuple[int, ...]) -> torch.Tensor:
    return compressed(_model(), kv, text)


@functools.cache
def _model():
    return random_model(FAMILIES["Llama"]())


WAYS = [
    ("int8", "sharing", 60_000),
    ("int8", "graphs", 60_000),
    ("int8", "standing", 1 << 26),
    ("window(6, 2)", "graphs", 1 << 26),
    ("window(6, 2)", "sharing", 25_000),
    ("window(6, 2)", "sliding", 25_000),
    ("window(6, 2)", "sliding", 60_000),
    ("window(6, 2)", "sliding", 1 << 26),
    ("window(6, 2)", "sliding standing", 60_000),
    ("window(6, 2)", "sliding standing", 1 << 26),
    ("window(5, 0)", "sliding standing", 1 << 26),
    ("int8+window(6, 2)", "sliding standing", 60_000),
    *(
        pytest.param(*way, marks=needs_compiler)
        for way in [
            ("int8", "compiled standing", 60_000),
            ("window(6, 2)", "compiled", 1 << 26),
            ("window(6, 2)", "compiled sliding", 60_000),
            ("window(6, 2)", "compiled sliding standing", 60_000),
            ("window(5, 0)", "compiled sliding standing", 1 << 26),
            ("window(4, 9)", "compiled sliding standing", 1 << 26),
            ("int8+window(6, 2)", "compiled sliding standing", 60_000),
        ]
    ),
]


@pytest.mark.parametrize(("kv", "way", "kv_bytes"), WAYS)
@settings(max_examples=12, deadline=None)
@given(operations=OPERATIONS)
@torch.inference_mode()
def test_any_interleaving_equals_one_pass_of_the_compressed_model(kv, way, kv_bytes, operations):
    """Rows open anywhere in known texts, run on in any company, stop, are read and evicted."""
    engine = _engine(kv, kv_bytes, compile="compiled" in way)
    engine.runner.price = 10**9 if way == "graphs" else 0
    standing = "standing" in way
    engine.sharing.block, engine.sharing.price = (5, 14) if standing else (64, 10**9)
    engine.runner.graphs = step_graphs(engine) if way == "graphs" else None
    engine._memory.slides, engine._memory.most = "sliding" in way, 11
    engine.pool.clear()
    # Where the last place is open, a number may go to the other of its eight bits.
    within = 2e-3 if "int8" in kv else 1e-4
    interleaved(engine, operations, functools.partial(states_of, kv), within)


@pytest.mark.parametrize("standing", [False, True])
@torch.inference_mode()
def test_texts_go_on_from_anywhere_in_what_rows_have_left_behind(standing):
    kv = "window(6, 2)"
    engine = _engine(kv, 1 << 26)
    engine.sharing.block, engine.sharing.price = (5, 14) if standing else (64, 10**9)
    engine._memory.slides, engine._memory.most = True, 11
    for cut in (3, 9, 20, 27, 29, 31, 33, 34, 36, 39):
        engine.pool.clear()
        rows = {PROMPT[:8]: engine.open([PROMPT[:8]] * 4)[0][PROMPT[:8]]}
        (fork,) = engine.fork(list(rows.values()))
        texts, slots = [PROMPT[:8], (*PROMPT[:8],)], [*rows.values(), fork]
        for t in range(32):
            texts = [(*text, 5 + (3 * t + i) % 40) for i, text in enumerate(texts)]
            engine.step(slots, texts)
            if t == 20:  # a fork of a row that has left something behind
                slots.append(*engine.fork(slots[:1]))
                texts.append(texts[0])
        assert all(slot.tail <= 11 and slot.hole[1] >= 28 for slot in slots)
        for slot, text in zip(slots, texts, strict=True):
            engine.close(slot, text)
        # Cut back, and on in other words; and what follows a position of what is known.
        asked = [(*texts[0][:cut], 77, 78), texts[1][: cut + 1], texts[0], texts[2]]
        first = [cut] * 4
        for text, at, states in zip(asked, first, engine.hidden(asked, first), strict=True):
            assert states.shape[0] == len(text) - at
            torch.testing.assert_close(states, states_of(kv, text)[at:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Gemma"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_window_that_holds_all_of_a_text_changes_not_a_bit(family, shared):
    for kv in ("window(128, 0)", "window(60, 4)", "window(40, 30)"):
        full, windowed = make(family), make(family, kv=kv)
        texts = [t[:60] for t in some_texts()]
        for lm in (full, windowed):
            lm.engine.sharing.block, lm.engine.sharing.price = (2, -1) if shared else (64, 10**9)
        drawn = [
            lm.sample_batch([request(lm, t, i, max_tokens=12) for i, t in enumerate(texts)])
            for lm in (full, windowed)
        ]
        for one, other in zip(*drawn, strict=True):
            assert one.value == other.value
            assert one.log_prob == other.log_prob
        ours, theirs = (lm.engine.hidden(texts, [0] * len(texts)) for lm in (full, windowed))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize(("window", "sinks"), [(20, 3), (4, 3), (5, 0)])
def test_windows_of_the_model_and_of_ours_are_both_kept(window, sinks, compile):
    model = random_model(tf.MistralConfig(**SMALL, sliding_window=9))
    text = tuple(range(5, 45))
    kv = f"window({window}, {sinks})"
    lm = ppl.HFModel(model, Letters(), name="slider", kv=kv, compile=compile)
    rows = {text[:3]: lm.engine.open([text[:3]])[0][text[:3]]}
    for n in range(4, len(text) + 1):
        lm.engine.step(list(rows.values()), [text[:n]])
    lm.engine.close(rows[text[:3]], text)
    (states,) = lm.engine.hidden([text], [0])
    at = torch.arange(len(text))
    # Sinks are seen as long as the model looks so far back.
    seen = (at <= at[:, None]) & (at > at[:, None] - 9)
    seen &= (at > at[:, None] - window) | (at < sinks)
    mask = torch.zeros(1, 1, 40, 40).masked_fill_(~seen, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        plain = model.base_model(
            input_ids=torch.tensor([text], device=DEVICE), attention_mask=mask.to(DEVICE)
        ).last_hidden_state[0]
    torch.testing.assert_close(states, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["gemma2", "gpt_oss", "deepseek_v3", "gemma3n_text", "lfm2", "qwen3_next"]
)
def test_eight_bits_of_models_of_other_kinds(name):
    """Windows, sinks, latent attention, layers that keep nothing, states beside keys."""
    config = families.config_of(name)
    model = families.random_model(config)
    text = tuple(3 + (7 * i * i + 5 * i) % 90 for i in range(24))
    engine = Engine(model, name=name, capacity=1 << 24, keeps=KV(int8=True))
    engine.hidden([text[:11]], [10])
    (states,) = engine.hidden([text], [0])
    with torch.inference_mode():
        plain, full = (
            model.base_model(
                input_ids=torch.tensor([text]), past_key_values=cache, use_cache=True
            ).last_hidden_state[0]
            for cache in (Rounding(config=config), None)
        )
    # A number that is rounded to the other side in another pass moves a state by some 3e-4.
    assert float((states - plain).abs().max()) < 6e-4 * float(plain.abs().max())
    assert float((full - plain).abs().max()) > 1e-3 * float(plain.abs().max())


def test_windows_are_refused_where_they_do_not_reach(monkeypatch):
    monkeypatch.setattr(tf.LlamaModel, "_supports_attention_backend", False)
    with pytest.raises(UnsupportedModelError, match=r"Llama kv=window.*way of its own.*'int8'"):
        make(kv="window(8)")
    make(kv="window(200)")  # holds every text


# -- memory ---------------------------------------------------------------------------------------


def long(kv: str, **options) -> ppl.HFModel:
    model = random_model(tf.LlamaConfig(**{**SMALL, "max_position_embeddings": 512}))
    return ppl.HFModel(model, Letters(), name="long", kv=kv, **options)


def drawing(lm, text: tuple[int, ...], seed: int, tokens: int) -> ContinueRequest:
    """Of texts that do not end before."""
    spec = Spec(text, StepRule(), tokens, Warp(), range(3, 97))
    return ContinueRequest(lm, spec, 1234567 + 7919 * seed)


def test_eight_bits_take_a_byte_a_number_and_a_number_a_head():
    engines = {kv: make(kv=kv).engine for kv in ("full", "int8")}
    # Two layers, keys and values, two heads of eight numbers; and 32 of the last hidden state.
    kept = {kv: engine._memory.bytes_per_token for kv, engine in engines.items()}
    assert kept == {"full": 8 * 8 * 4 + 32 * 4, "int8": 8 * (8 + 4) + 32 * 4}
    for kv, engine in engines.items():
        engine.open([PROMPT])
        slots = engine.slots
        assert slots.nbytes == len(slots.all) * (slots.length + 1) * kept[kv]
        piece = slots.content(slots.busy[0])
        assert piece.nbytes == len(PROMPT) * kept[kv]


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("kv", ["window(16, 2)", "int8+window(16, 2)"])
def test_rows_keep_no_more_than_their_window(kv, compile):
    lm = long(kv, compile=compile)
    assert lm.engine._memory.slides
    requests = [drawing(lm, PROMPT, i, 200) for i in range(4)]
    drawn = lm.sample_batch(requests)
    assert lm.engine.slots.length == bucket(16 + 2 + 32)  # and not 220
    assert all(slot.tail <= 64 for slot in lm.engine.slots.all)
    for draw in drawn[:2]:
        states = compressed(lm.model, kv, PROMPT + draw.value.tokens)[len(PROMPT) - 1 : -1]
        logits = lm.logits(states).double()
        logits[:, :3] = -torch.inf
        new = torch.tensor(draw.value.tokens, device=DEVICE)[:, None]
        exact = float(torch.log_softmax(logits, -1).gather(1, new).sum())
        assert draw.log_prob == pytest.approx(exact, abs=1e-3)
    # Going on computes one token; what was left behind is computed again where it is asked for.
    longer = PROMPT + drawn[0].value.tokens
    before = lm.engine.tokens_computed
    lm.sample_batch([drawing(lm, longer, 9, 1)])
    assert lm.engine.tokens_computed == before + 1
    (score,) = lm.score_batch([ScoreRequest(lm, requests[0].spec, drawn[0].value)])
    assert score == pytest.approx(drawn[0].log_prob, abs=1e-3)
    assert lm.engine.tokens_computed >= before + 150
    before = lm.engine.tokens_computed
    lm.score_batch([ScoreRequest(lm, requests[0].spec, drawn[0].value)])
    assert lm.engine.tokens_computed == before


def test_more_rows_fit_into_the_same_bytes():
    joined = {}
    for kv in ("full", "int8", "window(32, 2)", "int8+window(32, 2)"):
        lm = long(kv, kv_bytes=1_500_000)
        session = lm.session()
        for i in range(40):
            session.submit(drawing(lm, PROMPT, i, 150))
        for _ in range(4):
            session.step()
        session.close()
        joined[kv] = session.joined
        assert lm.engine.peak_nbytes <= 1_500_000
    assert joined["int8"] >= 1.5 * joined["full"]
    assert joined["window(32, 2)"] >= 1.5 * joined["full"]
    assert joined["int8+window(32, 2)"] >= 2.4 * joined["full"]


# -- named, and never mixed -----------------------------------------------------------------------


def two_steps(lm):
    def program(said):
        text = lm.prompt(said)
        for t in range(2):
            text = text + pyro.sample(f"step_{t}", lm(text, max_tokens=3))
        return text.text

    return program


def test_the_model_is_named_wherever_its_numbers_go(tmp_path):
    lm = ppl.load("tiny", kv=" int8 ")
    assert repr(lm) == "HFModel('tiny kv=int8')"
    posterior = BestOfN(2).run(two_steps(lm), "4 - 9 =", seed=0)
    assert list(posterior.cost.models) == ["tiny kv=int8"]
    assert posterior.models[0]["name"] == "tiny kv=int8"
    posterior.save(tmp_path / "one.ppl")
    stored = ppl.Posterior.load(tmp_path / "one.ppl")
    assert stored.models[0]["name"] == "tiny kv=int8"
    assert KV.read(stored.models[0]["loaded"]["settings"]["kv"]) == KV(int8=True)
    record = stored.samples[0].records[0]
    assert record.value.kv == "int8"
    full = ppl.load("tiny")
    with pytest.raises(ObservationError, match=r"drawn with kv='int8'.*kv='full'.*by hand"):
        full(full.prompt("4 - 9 ="), max_tokens=3).log_prob(record.value)


def test_a_score_of_a_draw_of_another_setting_is_refused():
    models = {kv: make(kv=kv) for kv in ("full", "int8", "window(6, 2)")}
    for kv, lm in models.items():
        text = ppl.Text((5, 6, 7), lm.codec)
        value = lm(text, max_tokens=3).sample()
        lm(text, max_tokens=3).log_prob(value)
        for other, model in models.items():
            if other == kv:
                continue
            with pytest.raises(ObservationError, match="another law"):
                model(text, max_tokens=3).log_prob(value)

            def observed(model=model, value=value, text=text):
                pyro.sample("x", model(text, max_tokens=3), obs=value)

            with pytest.raises(ObservationError, match=r"site 'x'.*another law"):
                BestOfN(1).run(observed, seed=0)
            by_hand = model.continuation(value.tokens)
            assert model(text, max_tokens=3).log_prob(by_hand) < 0
        # Another of the same setting, and a setting that says the same, are no other law.
        same = make(kv=f" {kv} ".replace(",", " ,"))
        same(text, max_tokens=3).log_prob(value)


# -- unbiased, for the compressed model -----------------------------------------------------------


@functools.cache
def exact_evidence(kv: str) -> float:
    lm = sharp(kv)
    return evidence(lm, lambda text: compressed(lm.model, kv, text))


@pytest.mark.parametrize("kv", KINDS)
def test_evidence_is_that_of_the_compressed_model(kv):
    mean, error = estimates(kv, 40)
    assert abs(mean - exact_evidence(kv)) < 3.5 * error
    if "window" in kv:  # which that of the full model is not
        assert abs(mean - exact_evidence("full")) > 6 * error


def test_what_a_compressed_model_proposes_is_weighed_by_both_laws():
    """A guide may keep less: the evidence is that of the full model."""
    mean, error = estimates("full", 40, tilted(sharp("window(6, 2)"), factors=False))
    assert abs(mean - exact_evidence("full")) < 3.5 * error
    assert abs(mean - exact_evidence("window(6, 2)")) > 6 * error
