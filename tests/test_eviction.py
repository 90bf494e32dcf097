"""Heads that give tokens up after a delay: exact for that model, packed, named, never mixed."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
import transformers as tf
from compressed import PROMPT, estimates, evidence, sharp
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
)
from evicted import evicted, mapped, shortest
from hypothesis import given, settings
from safetensors.torch import save_file

import ppl
from ppl.errors import ObservationError, UnsupportedModelError
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, ScoreRequest, Spec
from ppl.lm.engine.kv import KV
from ppl.lm.engine.slots import bucket
from ppl.lm.eviction import DMS, Delayed
from ppl.lm.sampling import Warp


def random_dms(delay: int = 5, seed: int = 0, scale: float = 1.0) -> DMS:
    """Of the small models: heads that keep half, and not the same half."""
    generator = torch.Generator().manual_seed(seed)
    weights = [scale * torch.randn(2, 32, generator=generator) for _ in range(2)]
    return DMS(weights, [torch.tensor([0.3, -0.2]) for _ in range(2)], delay)


@dataclass(frozen=True)
class Longest:
    """An eviction of one's own: of two tokens, none, one or both stay, by their positions, too."""

    name: str = "longest"
    delay: int = 4
    group: int = 2
    most: int = 2

    def score(self, layer, inputs, keys, positions):
        return keys.norm(dim=-1) * (1.0 + (positions % 3 == layer))[:, None]

    def stays(self, scores):
        return scores >= scores.median(-1, keepdim=True).values * 1.2


def of_pairs(layer, head, inputs, keys):
    norms = [float(k.norm()) * (2 if j % 3 == layer else 1) for j, k in enumerate(keys)]
    whole = len(norms) // 2 * 2
    least = [1.2 * min(norms[j - j % 2 : j - j % 2 + 2]) for j in range(whole)]
    return [norms[j] >= least[j] for j in range(whole)] + [True] * (len(norms) - whole)


LAWS = {
    "delayed(4, 6)": ("delayed(4, 6)", 6, shortest(4)),
    "delayed(3, 3)": ("delayed(3, 3)", 3, shortest(3)),
    "dms": (random_dms(), 5, mapped(random_dms())),
    "longest": (Longest(), 4, of_pairs),
}


@functools.cache
def _model():
    return random_model(FAMILIES["Llama"]())


@functools.cache
def states_of(law: str, text: tuple[int, ...]) -> torch.Tensor:
    return evicted(_model(), *LAWS[law][1:], text)


@functools.cache
def _engine(law: str, kv_bytes: int):
    return make(kv=LAWS[law][0], kv_bytes=kv_bytes).engine


WAYS = [
    ("delayed(4, 6)", "plain", 60_000),
    ("delayed(4, 6)", "sharing", 1 << 26),
    ("delayed(4, 6)", "standing", 1 << 26),
    ("delayed(4, 6)", "sliding", 26_000),
    ("delayed(4, 6)", "sliding", 60_000),
    ("delayed(4, 6)", "sliding", 1 << 26),
    ("delayed(4, 6)", "sliding standing", 60_000),
    ("delayed(4, 6)", "sliding standing", 1 << 26),
    ("delayed(3, 3)", "sliding standing", 1 << 26),
    ("dms", "standing", 60_000),
    ("dms", "sliding standing", 60_000),
    ("dms", "sliding standing", 1 << 26),
    ("longest", "sliding standing", 1 << 26),
]


@pytest.mark.parametrize(("law", "way", "kv_bytes"), WAYS)
@settings(max_examples=8, deadline=None)
@given(operations=OPERATIONS)
@torch.inference_mode()
def test_any_interleaving_equals_one_pass_over_the_text(law, way, kv_bytes, operations):
    """Rows open anywhere in known texts, run on in any company, stop, are read and evicted."""
    engine = _engine(law, kv_bytes)
    engine.runner.price = 0 if way == "sharing" else 10**9
    standing = "standing" in way
    engine.sharing.block, engine.sharing.price = (5, 14) if standing else (64, 10**9)
    engine._memory.slides, engine._memory.most = "sliding" in way, 11
    engine.pool.clear()
    interleaved(engine, operations, functools.partial(states_of, law))


def on(engine, slots, texts, steps: int):
    """Each row by so many tokens of its own."""
    for t in range(steps):
        texts = [(*text, 5 + (3 * t + 7 * i) % 40) for i, text in enumerate(texts)]
        states = engine.step(slots, texts)
    return texts, states


@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize("law", ["delayed(4, 6)", "dms"])
@torch.inference_mode()
def test_rows_go_on_from_what_others_have_packed(law, standing):
    """In their slot, in a copy of it while it runs on, and from the middle of it."""
    engine = make(kv=LAWS[law][0]).engine
    engine.sharing.block, engine.sharing.price = (5, 14) if standing else (64, 10**9)
    engine._memory.slides, engine._memory.most = True, 11
    start = PROMPT[:9]
    first = engine.open([start] * 4)[0][start]
    (second,) = engine.fork([first])
    slots, texts = [first, second], [start, start]
    texts, _ = on(engine, slots, texts, 19)
    slots.append(*engine.fork(slots[:1]))  # of a row that has packed
    texts, states = on(engine, slots, [*texts, texts[0]], 8)
    for text, state in zip(texts, states, strict=True):
        torch.testing.assert_close(state, states_of(law, text)[-1], rtol=0, atol=1e-4)
    assert all(slot.hole[1] >= 24 and slot.left for slot in slots)
    if law != "dms":  # one of four of what is behind
        assert all(slot.left == (slot.hole[1] - slot.hole[0]) // 4 for slot in slots)
        assert all(slot.tail <= 9 + 11 + 4 for slot in slots)
    for slot, text in zip(slots, texts, strict=True):
        engine.close(slot, text)
    # All go on from one text: one in its slot, the others in copies; nothing is computed again.
    before = engine.tokens_computed
    seats = engine.seat([texts[0]] * 3)
    assert engine.tokens_computed == before
    assert sum(slot is first for slot in seats) == 1
    longer, states = on(engine, seats, [texts[0]] * 3, 7)
    for text, state in zip(longer, states, strict=True):
        torch.testing.assert_close(state, states_of(law, text)[-1], rtol=0, atol=1e-4)
    for slot, text in zip(seats, longer, strict=True):
        engine.close(slot, text)
    for cut in (3, 9, 20, 27, 29, 31, 33, 35):  # cut back, and on in other words
        asked = [(*texts[1][:cut], 77, 78), texts[1][: cut + 1], texts[2]]
        for text, states in zip(asked, engine.hidden(asked, [cut] * 3), strict=True):
            torch.testing.assert_close(states, states_of(law, text)[cut:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("law", ["delayed(4, 6)", "dms"])
@torch.inference_mode()
def test_a_text_is_cut_back_to_where_some_is_packed_that_its_next_token_looks_at(law, alone):
    """It is computed anew, whatever of it is known; so is one that is known to its end."""
    engine = make(kv=LAWS[law][0]).engine
    engine._memory.slides, engine._memory.most = True, 11
    start = PROMPT[:9]
    first = engine.open([start] * 2)[0][start]
    slots = [first, *engine.fork([first])]
    texts, _ = on(engine, slots, [start] * 2, 19)
    slots.append(*engine.fork(slots[:1]))
    texts, _ = on(engine, slots, [*texts, texts[0]], 8)
    for slot, text in zip(slots, texts, strict=True):
        assert slot.hole[1] < 31 < slot.hole[1] + engine.slots.keeps.reach
        engine.close(slot, text)
    asked = [(*texts[1][:31], 77, 78), texts[1][:32], texts[0]][: 1 if alone else 3]
    for each, states in zip(asked, engine.hidden(asked, [31] * len(asked)), strict=True):
        torch.testing.assert_close(states, states_of(law, each)[31:], rtol=0, atol=1e-4)


def log_prob(lm, law: str, text: tuple[int, ...], new: tuple[int, ...]) -> float:
    states = evicted(lm.model, *LAWS[law][1:], (*text, *new))[len(text) - 1 : -1]
    of_all = torch.log_softmax(lm.logits(states).double(), -1)
    return float(of_all.gather(1, torch.tensor(new, device=DEVICE)[:, None]).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_teacher_forcing(family):
    for law in ("delayed(4, 6)", "dms")[: 2 if family in ("Llama", "GPT2", "GPTNeoX") else 1]:
        kv = LAWS[law][0]
        if family in ("GPT2", "GPTNeoX") and law == "dms":  # twice as many key-value heads
            kv = DMS([w.repeat(2, 1) for w in kv.weights], [b.repeat(2) for b in kv.biases], 5)
            LAWS["dms of 4 heads"] = kv, 5, mapped(kv)
            law = "dms of 4 heads"
        lm = make(family, kv=kv)
        texts = some_texts()
        for repeat in range(2):  # the second time from the pool
            requests = [request(lm, t, i + repeat, max_tokens=9) for i, t in enumerate(texts)]
            drawn = lm.sample_batch(requests)
            for text, draw in zip(texts, drawn, strict=True):
                exact = log_prob(lm, law, text, draw.value.tokens)
                assert draw.log_prob == pytest.approx(exact, abs=1e-4)
        scores = [ScoreRequest(lm, r.spec, d.value) for r, d in zip(requests, drawn, strict=True)]
        lm.engine.pool.clear()  # from nothing
        assert lm.score_batch(scores) == pytest.approx([d.log_prob for d in drawn], abs=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_where_nothing_is_given_up_not_a_bit_changes(shared):
    """Rate 1; a delay as long as the texts, or as all texts; an adapter that keeps everything."""
    keeps_all = DMS([torch.zeros(2, 32)] * 2, [torch.full((2,), -1.0)] * 2, 5)
    laws = ["full", "delayed(1, 4)", "delayed(4, 60)", "delayed(4, 128)", keeps_all]
    found = []
    for kv in laws:
        lm = make(kv=kv)
        lm.engine.sharing.block, lm.engine.sharing.price = (2, -1) if shared else (64, 10**9)
        texts = some_texts()
        asked = [request(lm, t, i, max_tokens=12) for i, t in enumerate(texts)]
        drawn = [(draw.value, draw.log_prob) for draw in lm.sample_batch(asked)]
        found.append((drawn, lm.engine.hidden(texts, [0] * len(texts))))
    for (drawn, states), kv in zip(found[1:], laws[1:], strict=True):
        assert drawn == found[0][0], kv
        assert all(torch.equal(a, b) for a, b in zip(states, found[0][1], strict=True)), kv


@torch.inference_mode()
def test_what_stays_may_be_in_eight_bits():
    engine = make(kv="int8+delayed(4, 6)").engine
    engine._memory.slides, engine._memory.most = True, 11
    (row,) = engine.open([PROMPT[:9]])[0].values()
    (text,), states = on(engine, [row], [PROMPT[:9]], 21)
    assert row.left == (row.hole[1] - row.hole[0]) // 4 > 2
    exact = evicted(_model(), 6, shortest(4), text, rounds=True)[-1]
    torch.testing.assert_close(states[0], exact, rtol=0, atol=1e-3)
    assert not torch.allclose(states[0], evicted(_model(), 6, shortest(4), text)[-1], atol=2e-3)


def test_the_delay_counts_the_token_itself():
    """With a delay of 3 a token sees itself and two before it, and nothing that was given up."""
    gives_all = DMS([torch.zeros(2, 32)] * 2, [torch.full((2,), 1.0)] * 2, 3)
    text = some_texts()[1]
    windowed = make(kv="window(3, 0)").engine.hidden([text], [0])[0]
    states = make(kv=gives_all).engine.hidden([text], [0])[0]
    torch.testing.assert_close(states, windowed, rtol=0, atol=1e-5)


def test_windows_of_the_model_and_what_heads_keep_are_both_kept():
    model = random_model(tf.MistralConfig(**SMALL, sliding_window=9))
    lm = ppl.HFModel(model, Letters(), name="slider", kv="delayed(2, 3)")
    assert not lm.engine._memory.slides  # what is kept of a hole has no position

    def within(layer, head, inputs, keys):
        return shortest(2)(layer, head, inputs, keys)

    text = PROMPT
    (states,) = lm.engine.hidden([text], [0])
    wide = evicted(model, 3, within, text[:9])
    torch.testing.assert_close(states[:9], wide, rtol=0, atol=1e-4)
    assert not torch.allclose(states[15:], evicted(model, 3, within, text)[15:], atol=1e-3)


# -- memory ---------------------------------------------------------------------------------------


def long(kv, **options) -> ppl.HFModel:
    model = random_model(tf.LlamaConfig(**{**SMALL, "max_position_embeddings": 512}))
    return ppl.HFModel(model, Letters(), name="long", kv=kv, **options)


def drawing(lm, text: tuple[int, ...], seed: int, tokens: int) -> ContinueRequest:
    """Of texts that do not end before."""
    spec = Spec(text, StepRule(), tokens, Warp(), range(3, 97))
    return ContinueRequest(lm, spec, 1234567 + 7919 * seed)


def test_rows_have_no_more_columns_than_their_heads_keep():
    lm = long("delayed(4, 16)")
    requests = [drawing(lm, PROMPT, i, 200) for i in range(3)]
    drawn = lm.sample_batch(requests)
    most = 200 // 4 + 16 + 4 + 32
    assert all(slot.tail <= most for slot in lm.engine.slots.all)
    assert lm.engine.slots.length <= bucket(lm.engine._memory.bounded(220)) < 220
    text, new = PROMPT, drawn[0].value.tokens
    states = evicted(lm.model, 16, shortest(4), text + new)[len(text) - 1 : -1]
    logits = lm.logits(states).double()
    logits[:, :3] = -torch.inf
    of_all = torch.log_softmax(logits, -1)
    exact = float(of_all.gather(1, torch.tensor(new, device=DEVICE)[:, None]).sum())
    assert drawn[0].log_prob == pytest.approx(exact, abs=1e-3)
    before = lm.engine.tokens_computed
    lm.sample_batch([drawing(lm, text + new, 9, 1)])  # going on computes one token
    assert lm.engine.tokens_computed == before + 1
    (score,) = lm.score_batch([ScoreRequest(lm, requests[0].spec, drawn[0].value)])
    assert score == pytest.approx(drawn[0].log_prob, abs=1e-3)
    assert lm.engine.tokens_computed >= before + 100  # what was packed is computed again


def test_rows_stay_within_the_bytes_to_their_ends():
    lm = long("delayed(4, 8)", kv_bytes=600_000)
    before = lm.most_rows([PROMPT] * 9, [180] * 9)
    assert before > long("full", kv_bytes=600_000).most_rows([PROMPT] * 9, [180] * 9)
    drawn = lm.sample_batch([drawing(lm, PROMPT, i, 140) for i in range(9)])
    ends = [PROMPT + draw.value.tokens for draw in drawn]
    # Of rows that have packed as of fresh ones.
    assert abs(lm.most_rows(ends, [180] * 9) - before) <= 1
    lm.sample_batch([drawing(lm, text, i, 20) for i, text in enumerate(ends)])
    assert lm.engine.peak_nbytes <= 600_000


def test_more_rows_fit_into_the_same_bytes():
    joined = {}
    for kv in ("full", "delayed(4, 16)"):
        lm = long(kv, kv_bytes=1_500_000)
        session = lm.session()
        for i in range(40):
            session.submit(drawing(lm, PROMPT, i, 300))
        for _ in range(4):
            session.step()
        session.close()
        joined[kv] = session.joined
        assert lm.engine.peak_nbytes <= 1_500_000
    assert joined["delayed(4, 16)"] >= 1.5 * joined["full"]


# -- said, named, refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("delayed(4, 256)", KV(evicts=Delayed(4, 256))),
        (" delayed( rate=2 ,delay=8 ) ", KV(evicts=Delayed(2, 8))),
        ("int8+delayed(2, 8)", KV(True, evicts=Delayed(2, 8))),
    ],
)
def test_it_is_read_and_written(said, kept):
    assert KV.read(said) == kept
    assert KV.read(str(kept)) == kept


@pytest.mark.parametrize(
    "said",
    ["delayed", "delayed(4)", "delayed(0, 4)", "delayed(4, 3)", "delayed(300, 400)",
     "window(8)+delayed(2, 8)", "delayed(2, 8)+window(8)", "delayed(2, 8)+delayed(2, 8)",
     Longest(delay=1), Longest(group=0), Longest(most=3)],
)  # fmt: skip
def test_what_is_nothing_of_the_kind_is_refused(said):
    with pytest.raises((ValueError, TypeError), match=r"kv=|delayed"):
        ppl.load("tiny", kv=said)


def test_names_say_which_weights_and_delay():
    assert random_dms().name == random_dms().name
    names = {random_dms(5, seed).name for seed in range(3)} | {random_dms(6).name}
    assert len(names) == 4
    lm = make(kv=random_dms())
    assert lm.name == f"Llama kv={random_dms().name}"
    assert lm.kv == random_dms().name


def test_a_score_of_a_draw_of_another_setting_is_refused():
    kinds = [
        "full",
        "delayed(4, 6)",
        "delayed(4, 7)",
        random_dms(),
        random_dms(6),
        random_dms(5, 1),
    ]
    models = [make(kv=kv) for kv in kinds]
    for lm in models:
        text = ppl.Text((5, 6, 7), lm.codec)
        value = lm(text, max_tokens=3).sample()
        assert value.kv == lm.kv
        for other in models:
            if other is lm:
                other(text, max_tokens=3).log_prob(value)
                continue
            with pytest.raises(ObservationError, match="another law"):
                other(text, max_tokens=3).log_prob(value)
    make(kv=random_dms())(text, max_tokens=3).log_prob(
        make(kv=random_dms())(text, max_tokens=3).sample()
    )


def test_what_cannot_be_done_is_refused_by_name(monkeypatch):
    wrong = DMS([torch.zeros(3, 32)] * 2, [torch.zeros(3)] * 2, 5)
    with pytest.raises(ValueError, match=r"layer 0 are \(3, 32\), the model has 2"):
        make(kv=wrong)
    with pytest.raises(ValueError, match="has 1 layers, the model has more"):
        make(kv=DMS([torch.zeros(2, 32)], [torch.zeros(2)], 5))
    with pytest.raises(UnsupportedModelError, match=r"evict.*plainly.*compile=False"):
        make(kv="delayed(4, 6)", compile=True)
    with pytest.raises(UnsupportedModelError, match=r"no drafts.*delayed"):
        make(kv="delayed(4, 6)", drafts="siblings")
    monkeypatch.setattr(tf.LlamaModel, "_supports_attention_backend", False)
    with pytest.raises(UnsupportedModelError, match=r"way of its own.*kv='delayed\(4, 6\)'"):
        make(kv="delayed(4, 6)")


def test_trained_weights_are_read_from_files(tmp_path):
    dms = random_dms()
    kinds = {"weight": dms.weights, "bias": dms.biases}
    tensors = {f"layers.{i}.{k}": ts[i] for k, ts in kinds.items() for i in range(2)}
    save_file(tensors, tmp_path / "eviction.safetensors", metadata={"delay": "5"})
    assert DMS.load(tmp_path).name == dms.name
    assert DMS.load(tmp_path / "eviction.safetensors", delay=7).name == random_dms(7).name
    save_file(tensors, tmp_path / "silent.safetensors")
    with pytest.raises(ValueError, match="says no delay"):
        DMS.load(tmp_path / "silent.safetensors")
    save_file({"layers.1.weight": dms.weights[1]}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"has not layers\.0\.weight"):
        DMS.load(tmp_path / "half.safetensors", delay=5)
    (tmp_path / "words.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        DMS.load(tmp_path / "words.safetensors", delay=5)
    with pytest.raises(FileNotFoundError):
        DMS.load(tmp_path / "none")
    with pytest.raises(ValueError, match="delay=0"):
        DMS(dms.weights, dms.biases, 0)


# -- unbiased, for that model ----------------------------------------------------------------------


def exact_evidence(delay: int) -> float:
    lm = sharp("delayed(4, 6)")
    return evidence(lm, lambda text: evicted(lm.model, delay, shortest(4), text))


def test_evidence_is_that_of_the_model_whose_heads_give_tokens_up():
    mean, error = estimates("delayed(4, 6)", 40)
    assert abs(mean - exact_evidence(6)) < 3.5 * error
    assert abs(mean - exact_evidence(100)) > 6 * error  # which that of the full model is not
