"""Texts of many tokens: no pair of tokens for nothing, no padding, and the numbers stay."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from engines import DEVICE, SMALL, Letters, make, make_trunks, random_model

import ppl
from ppl.lm.engine import attention, prefill
from ppl.lm.engine.prefill import Filling, Job, Packed, packed
from ppl.lm.engine.runs import Held, Part, Piece, Segment, independent

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
        make_trunks(engine, [TEXTS[0][:70], TEXTS[3][:20]])
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


# -- a program of our own -------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "group", "dim", "wide"),
    [(1, 1, 8, 8), (2, 3, 64, 64), (1, 7, 12, 10), (3, 2, 9, 16), (1, 50, 8, 8), (1, 5, 96, 48)],
)
@pytest.mark.parametrize(("softcap", "sinks"), [(0.0, False), (2.0, True)])
def test_tokens_look_at_all_before_them(heads, group, dim, wide, softcap, sinks, dtype):
    """Of texts of all lengths, from nothing, behind tokens of their own, and on trunks of parts."""
    torch.manual_seed(dim)
    layers, layer = 3, 2
    sizes = [
        (0, 0, 1),
        (0, 0, 70),
        (0, 33, 5),
        (50, 0, 40),
        (90, 17, 33),
        (0, 0, 300),
        (90, 140, 9),
    ]
    trunk: list[Part] = []
    for start, stop in ((0, 50), (50, 90)):
        kv = tuple(torch.randn(layers, heads, stop - start, n).to(dtype) for n in (dim, wide))
        piece = Piece(kv, torch.zeros(stop - start, 1))
        trunk.append(Part(Segment(piece, start, Held()), start, stop))
    jobs = []
    for base, column, new in sizes:
        kv = tuple(torch.randn(layers, heads, column + new + 3, n).to(dtype) for n in (dim, wide))
        on = tuple(part for part in trunk if part.stop <= base)
        jobs.append(Job((7,) * new, base + column, column, kv, torch.zeros(0), on))
    total = sum(new for *_, new in sizes)
    query = 3 * torch.randn(total, heads * group, 1, dim).to(dtype)
    key = torch.randn(total, heads, 1, dim).to(dtype)
    value = torch.randn(total, heads, 1, wide).to(dtype)
    weights = torch.randn(heads * group) if sinks else None
    before = [tuple(t.clone() for t in job.kv) for job in jobs]
    place = ((0, layer), (1, layer))
    out = Packed(jobs).attend(query, key, value, place, 0.3, softcap or None, weights)
    assert out.shape == (total, 1, heads * group, wide)
    done = 0
    for job, was in zip(jobs, before, strict=True):
        rows, fresh = slice(done, done + len(job.tokens)), slice(job.column, None)
        end = job.column + len(job.tokens)
        for old, new, given in zip(was, job.kv, (key, value), strict=True):
            old[layer, :, fresh][:, : len(job.tokens)] = given[rows, :, 0].transpose(0, 1)
            assert torch.equal(old, new)  # written where it should be, and nowhere else
        keys, values = (
            torch.cat([*(part.piece.kv[i][layer] for part in job.trunk), was[i][layer, :, :end]], 1)
            .double()
            .repeat_interleave(group, 0)
            for i in (0, 1)
        )
        scores = 0.3 * query[rows, :, 0].transpose(0, 1).double() @ keys.transpose(1, 2)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        at = job.start + torch.arange(len(job.tokens))
        scores.masked_fill_(torch.arange(keys.shape[1]) > at[:, None], -torch.inf)
        if weights is not None:
            sink = weights.double().view(-1, 1, 1).expand(-1, len(at), 1)
            scores = torch.cat([scores, sink], -1)
        exact = torch.softmax(scores, -1)[..., : keys.shape[1]] @ values
        tolerance = 5e-5 if dtype == torch.float32 else 2e-2
        found = out[rows, 0].transpose(0, 1).double()
        torch.testing.assert_close(found, exact, rtol=tolerance, atol=tolerance)
        done = rows.stop


@needs_compiler
def test_other_keys_than_those_of_the_memory_are_refused():
    kv = (torch.zeros(1, 2, 4, 8),)
    packed_ = Packed([Job((1, 2), 0, 0, kv, torch.zeros(0), ())])
    good, wide = torch.zeros(2, 2, 1, 8), torch.zeros(2, 2, 1, 16)
    asked, about = torch.zeros(2, 4, 1, 8), (((0, 0), (0, 0)), 1.0, None)
    assert packed_.attend(asked, good, good, *about, torch.zeros(4)).shape == (2, 1, 4, 8)
    for new in ((good, wide), (wide, good), (good.bfloat16(), good), (good[:, :1], good)):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"one kind with the cache"):
                packed_.attend(asked, *new, *about, None)
    three = torch.zeros(3, 4, 1, 8)
    for query, key, value, sinks in (
        (asked.bfloat16(), good, good, None),
        (asked[:, :3], good, good, None),
        (torch.zeros(2, 4, 1, 16), good, good, None),
        (three[:1], good, good, None),
        (asked, three[:1, :2], good, None),
        (asked, good, three[:1, :2], None),
        (three, three[:, :2], three[:, :2], None),
        (asked, good, good, torch.zeros(3)),
    ):
        with pytest.raises(RuntimeError, match=r"not of one kind: "):
            packed_.attend(query, key, value, *about, sinks)


# -- prompts to stand on --------------------------------------------------------------------------


def test_who_waits_for_whom():
    """A text that begins with another, or with more of it than is known, waits for it."""
    long, short, sibling, other = (1, 2, 3, 4, 5), (1, 2, 3), (1, 2, 9, 9), (7, 7, 7, 7)
    nothing = dict.fromkeys((short, other, sibling, long), 0)
    assert independent(nothing) == [short, other]
    assert independent({**nothing, sibling: 2}) == [short, other, sibling]
    assert independent({**nothing, long: 3}) == [short, other]  # it stands on the short one
    assert independent(dict.fromkeys((other, (8, 8, 8, 8, 8)), 0)) == [other, (8, 8, 8, 8, 8)]


@pytest.fixture(scope="module")
def sharer():
    """A model whose rows stand on any common beginning."""
    lm = ppl.HFModel(random_model(tf.LlamaConfig(**SMALL)), Letters(), name="sharer", compile=True)
    lm.engine.sharing.price, lm.engine.sharing.block = -1, 4
    return lm


PROMPTS = [
    tuple(3 + (5 * k + 7 * i * i + 11 * i * k + k) % 90 for i in range(size))
    for k, size in enumerate((40, 9, 75, 23, 61, 40, 8, 33))
]


@needs_compiler
@pytest.mark.parametrize("most", [4096, 100, 289, 7])
def test_prompts_to_stand_on_share_passes(sharer, most, monkeypatch):
    engine = sharer.engine
    monkeypatch.setattr(engine.runner, "_at_once", most)
    engine.pool.clear()
    engine.runner.forget()
    total = sum(map(len, PROMPTS))
    assert len({prompt[0] for prompt in PROMPTS}) == len(PROMPTS)
    _, states = engine.open([prompt for prompt in PROMPTS for _ in range(3)])
    assert engine.tokens_computed == total
    assert engine.tokens_padded == 0
    assert engine.passes == -(-total // most)
    slots = engine.seat(PROMPTS)
    assert all(slot.trunk and slot.base == len(p) for slot, p in zip(slots, PROMPTS, strict=True))
    longer = [(*prompt, 5) for prompt in PROMPTS]
    after = engine.step(slots, longer)
    for i, (prompt, text) in enumerate(zip(PROMPTS, longer, strict=True)):
        with torch.inference_mode():
            exact = engine.base(input_ids=torch.tensor([text])).last_hidden_state[0]
        torch.testing.assert_close(states[3 * i], exact[-2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after[i], exact[-1], rtol=1e-4, atol=1e-4)
        engine.drop(slots[i])
        known = engine.known_from(prompt, 0)
        torch.testing.assert_close(known, exact[:-1], rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("budget", [1 << 30, 150_000, 60_000])
def test_siblings_and_nested_prompts(sharer, budget):
    """Prompts that share a part, or are the beginning of others, known or not, also where there is
    no room for all of them; rows fork off them while others wait."""
    engine = ppl.HFModel(
        sharer.model, Letters(), name="sharer", compile=True, kv_bytes=budget
    ).engine
    engine.sharing.price, engine.sharing.block = -1, 4
    head = PROMPTS[2][:30]
    texts = [*PROMPTS, (*head, 5, 6, 7, 8, 9), (*head, 50, 51, 52, 53), PROMPTS[2][:50], head]
    texts += [(*PROMPTS[2], 4, 5, 6, 7, 8), (*PROMPTS[3][:2], *PROMPTS[5])]
    texts = [text for text in texts for _ in range(3)]
    for _ in range(2):  # the second time, what there was room for is known
        for text, states in zip(texts, engine.hidden(texts, [0] * len(texts)), strict=True):
            with torch.inference_mode():
                exact = engine.base(input_ids=torch.tensor([text])).last_hidden_state[0]
            torch.testing.assert_close(states, exact, rtol=1e-4, atol=1e-4)
        assert engine.peak_nbytes <= budget
    if budget == 1 << 30:
        assert engine.tokens_computed == len({t[:n] for t in texts for n in range(1, len(t) + 1)})
    for at in range(0, len(texts), 9):
        some = texts[at : at + 9]
        slots = engine.seat(some)
        twins = engine.fork(slots)
        grown = [(*t, 11) for t in some] + [(*t, 12) for t in some]
        states = engine.step([*slots, *twins], grown)
        for slot, text, state in zip([*slots, *twins], grown, states, strict=True):
            with torch.inference_mode():
                exact = engine.base(input_ids=torch.tensor([text])).last_hidden_state[0, -1]
            torch.testing.assert_close(state, exact, rtol=1e-4, atol=1e-4)
            engine.close(slot, text)
