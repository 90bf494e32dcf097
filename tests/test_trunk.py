"""What rows begin with is one copy: what that takes, what forks copy, and that numbers stay."""

from __future__ import annotations

import functools

import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from engines import DEVICE, SMALL, Letters, make, random_model, request
from hypothesis import given, settings
from hypothesis import strategies as st

import ppl
from ppl.lm.engine import trunk
from ppl.lm.engine.layout import Layout
from ppl.lm.engine.prefix import PrefixPool
from ppl.lm.engine.runs import Held, Part, Piece, Segment, Slot, common_keys
from ppl.lm.engine.slots import Slots, bucket
from ppl.lm.engine.trunk import Mean, attended, groups_of, together

# -- attention in two parts ----------------------------------------------------------------------


def whole(query, key, value, seen, softcap=None, sinks=None):
    """Attention to all keys at once, in double precision."""
    scores = query.double() @ key.double().transpose(-1, -2) * 0.3
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        group = query.shape[2] // (sinks.numel() // query.shape[1])
        sink = sinks.double().view(1, query.shape[1], -1, 1).repeat_interleave(group, 2)
        scores = torch.cat([scores, sink.expand(len(query), -1, -1, -1)], -1)
    return torch.softmax(scores, -1)[..., : key.shape[2]] @ value.double()


@pytest.mark.parametrize("scale", [1.0, 300.0])  # also where one part has all of the weight
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("cut", [1, 13, 29])
def test_parts_of_attention_are_the_whole(scale, softcap, sinks, cut):
    torch.manual_seed(cut)
    query = scale * torch.randn(3, 2, 4, 8)
    key, value = torch.randn(3, 2, 30, 8), torch.randn(3, 2, 30, 5 if softcap else 8)
    seen = torch.rand(3, 1, 4, 30) < 0.6
    seen[..., -1] = True  # its own key
    seen[1, :, :, :cut] = False  # a window that ends behind the first part
    weights = torch.randn(4) if sinks else None
    bias = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
    first = attended(query, key[:, :, :cut], value[:, :, :cut], bias[..., :cut], 0.3, softcap,
                     sure=False)  # fmt: skip
    rest = attended(query, key[:, :, cut:], value[:, :, cut:], bias[..., cut:], 0.3, softcap,
                    weights)  # fmt: skip
    assert (first.mass[1] == -torch.inf).all()
    exact = whole(query, key, value, seen, softcap, weights)
    for mean in (first + rest, rest + first):
        torch.testing.assert_close(mean.values.double(), exact, rtol=2e-5, atol=2e-5)


def test_nothing_and_nothing_is_nothing():
    nothing = Mean(torch.zeros(1, 1, 2, 3), torch.full((1, 1, 2), -torch.inf))
    both = nothing + nothing
    assert (both.mass == -torch.inf).all()
    assert (both.values == 0).all()


def test_what_is_not_finite_is_seen():
    """A broken model is not hidden by a part that is sound."""
    sound = Mean(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1))
    broken = Mean(torch.full((1, 1, 1, 2), torch.nan), torch.full((1, 1, 1), torch.nan))
    assert (sound + broken).values.isnan().all()
    assert (broken + sound).values.isnan().all()


@pytest.mark.parametrize("most", [1 << 24, 40])
def test_rows_take_common_keys_together(most, monkeypatch):
    """Also in pieces, where all scores at once would be too many."""
    monkeypatch.setattr("ppl.lm.engine.trunk._MOST_SCORES", most)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 8), torch.randn(2, 9, 8), torch.randn(2, 9, 6)
    seen = torch.rand(3, 1, 4, 9) < 0.7
    bias = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
    for some in (None, bias):
        mean = together(query, key, value, some, 0.3, None)
        alike = [x[None].expand(3, -1, -1, -1) for x in (key, value)]
        looked = torch.ones_like(seen) if some is None else seen
        exact = whole(query, *alike, looked)
        torch.testing.assert_close(mean.values.double(), exact, rtol=1e-5, atol=1e-5)


def test_rows_are_grouped_by_what_they_stand_on():
    one, other = (("a", 0, 3),), (("a", 0, 3), ("b", 3, 5))
    groups = groups_of([one, (), other, one], torch.device("cpu"))
    assert [(g.trunk, g.rows.tolist()) for g in groups] == [(one, [0, 3]), (other, [2])]
    (group,) = groups_of([other, other], torch.device("cpu"))
    assert group.rows is None


def test_slots_on_other_trunks_have_no_keys_in_common():
    """At one place of them are keys of other positions."""
    segment = Segment(Piece((), torch.zeros(8, 1)), 0, Held(), trunk=True)
    text, one, other = tuple(range(20)), Slot(0), Slot(1)
    one.length = other.length = 20
    assert common_keys(one, text, other, text) == 20
    other.stand((Part(segment, 0, 8),))
    assert common_keys(one, text, other, text) == common_keys(other, text, one, text) == 0
    one.stand(other.trunk)
    assert common_keys(one, text, other, text) == 12


# -- memory --------------------------------------------------------------------------------------


def standing(lm: ppl.HFModel, block: int = 8) -> ppl.HFModel:
    """Shares as models of usual size do; the price of a product is that of a larger one."""
    assert lm.engine.sharing.able
    lm.engine.sharing.price, lm.engine.sharing.block = 0, block
    return lm


PROMPT = tuple(3 + (7 * i * i + 5 * i) % 90 for i in range(70))


@pytest.mark.parametrize("rows", [4, 16])
def test_rows_over_a_prompt_hold_it_once(rows):
    lm = standing(make())
    engine = lm.engine
    lm.sample_batch([request(lm, PROMPT, i, max_tokens=20) for i in range(rows)])
    token = engine._memory.bytes_per_token
    slots = len(engine.slots.all) * (bucket(20) + 1)
    assert len(engine.slots.all) <= 2 * rows
    assert engine.slots.nbytes == slots * token
    assert engine.pool.nbytes == len(PROMPT) * token
    # A trunk is made where it stays: at no time was there another copy of it. What the rows had
    # drawn was set aside once, when the slots became more.
    assert engine.peak_nbytes <= (slots + len(PROMPT) + rows) * token
    lm.engine.pool.clear()
    assert engine.pool.nbytes == 0
    assert not any(slot.trunk for slot in engine.slots.all)


@torch.inference_mode()
def test_a_tree_holds_every_stretch_once():
    engine = standing(make()).engine
    token = engine._memory.bytes_per_token
    slots, _ = engine.open([PROMPT] * 3)
    rows = [[slots[PROMPT], PROMPT]]
    for _ in range(2):
        forks = engine.fork([slot for slot, _ in rows for _ in range(2)])
        rows += [[slot, rows[i // 2][1]] for i, slot in enumerate(forks)]
        for t in range(10):
            for number, row in enumerate(rows):
                row[1] += (3 + (11 * number + t) % 90,)
            engine.step([slot for slot, _ in rows], [text for _, text in rows])
    assert len(rows) == 9
    # The prompt, and of each of the three branches the ten tokens that its forks share.
    assert engine.pool.nbytes == (70 + 3 * 10) * token
    assert sorted(slot.tail for slot, _ in rows) == [10] * 9
    assert {slot.length for slot, _ in rows} == {90}
    for slot, text in rows:
        engine.close(slot, text)
    # Closed, all of it is known, and in no other place than before.
    assert all(engine.known(text) is not None for _, text in rows)
    assert engine.pool.nbytes == (70 + 3 * 10) * token


@pytest.mark.parametrize(("tail", "copied"), [(5, 3 * 5), (8, 0), (40, 0)])
@torch.inference_mode()
def test_a_fork_copies_less_than_a_block(tail, copied, monkeypatch):
    engine = standing(make()).engine
    text = PROMPT[: 20 + tail]
    (slot,) = engine.open([text[:20]] * 2)[0].values()
    engine.extend([slot], [text])
    tokens, moved = [], []
    copy, clone = Piece.copy_, Piece.clone
    monkeypatch.setattr(Piece, "copy_", lambda a, b: tokens.append(len(b.states)) or copy(a, b))
    monkeypatch.setattr(Piece, "clone", lambda a: moved.append(len(a.states)) or clone(a))
    engine.slots.rebuild(4, 64)
    tokens.clear(), moved.clear()
    engine.fork([slot] * 3)
    assert sum(tokens) == copied
    assert moved == ([] if copied else [tail])  # once, however many the forks are


@torch.inference_mode()
def test_what_a_row_alone_computed_becomes_a_trunk_where_it_lies():
    """Known to the tree in a slot or outside: from then on it is in one place."""
    engine = standing(make()).engine
    token = engine._memory.bytes_per_token
    engine.hidden([PROMPT], [0])
    assert engine.pool.nbytes == 0
    computed = engine.tokens_computed
    texts = [(*PROMPT, 5, 6), (*PROMPT, 7)]
    slots, _ = engine.open(texts)
    assert engine.tokens_computed - computed == 3
    assert [slots[text].base for text in texts] == [70, 70]
    assert engine.pool.nbytes == 70 * token
    assert {p.segment.rows for slot in slots.values() for p in slot.trunk} == {2}


def test_more_rows_fit_that_begin_alike():
    lm = standing(make(kv_bytes=700_000))
    assert lm.batch_rows(80) < 12
    for repeat in range(2):  # unknown, and known
        session = lm.session()
        for i in range(12):
            session.submit(request(lm, PROMPT, i + 20 * repeat, max_tokens=9))
        while session.running:
            session.step()
        assert session.joined == 12
        assert lm.engine.peak_nbytes <= 700_000


@torch.inference_mode()
def test_a_segment_is_shortened_when_its_end_is_forgotten():
    pool = PrefixPool(capacity=1000)
    slots = Slots(Layout((((1, 1), (1, 1)),), 2), pool, torch.float32, torch.device("cpu"))
    pool.view = slots.view
    slots.rebuild(1, 10)
    (slot,) = slots.all
    slots.take(slot)
    slots.view(slot, 0, 6).states[:, 0] = torch.arange(6.0)
    slot.length = 6
    slots.seal(slot)
    pool.insert((1, 2, 3, 4, 5, 6), slot)
    pool.cut((1, 2, 3, 9))
    pool.cut((1, 2, 9))
    assert pool.nbytes == 6 * 16  # cut in three, and still one
    pool.capacity = 5 * 16
    pool.trim()
    assert pool.nbytes == 6 * 16  # a row stands on it, so that all of it goes only with the row
    slots.leave(slot)
    assert not slot.trunk
    assert pool.nbytes == 0
    # Where none does, only what is forgotten goes.
    slots.take(slot)
    slots.view(slot, 0, 6).states[:, 0] = torch.arange(6.0)
    slot.length = 6
    pool.insert((1, 2, 3, 4, 5, 6), slot)
    slots.leave(slot)
    slots.empty(slot)
    pool.cut((1, 2, 3, 9))
    pool.cut((1, 2, 9))
    pool.capacity = 9 * 16
    pool.trim(4 * 16)
    assert pool.nbytes == 3 * 16
    assert pool.states(pool.match((1, 2, 3, 4)), 0)[:, 0].tolist() == [0, 1, 2]
    # The old and the new were there at once, and never more than there is room for.
    assert pool.held.most == pool.held.beside + 9 * 16
    pool.cut((1, 2, 9))
    pool.capacity = 4 * 16
    pool.trim(2 * 16)
    assert pool.nbytes == 0


def test_attention_to_what_the_cache_does_not_keep_has_each_beginning_with_its_row():
    """Latent attention keeps something shorter than the keys and values that it looks at."""
    config = tf.JetMoeConfig(
        **{k: v for k, v in SMALL.items() if k != "num_attention_heads"},
        kv_channels=8,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    lm = ppl.HFModel(random_model(config), Letters(), name="repeats")
    assert not lm.engine.sharing.able
    slots, _ = lm.engine.open([PROMPT] * 9)
    assert not slots[PROMPT].trunk


def test_a_model_that_differs_on_trunks_has_none(monkeypatch):
    parts = trunk.trunk_means
    monkeypatch.setattr(trunk, "trunk_means", lambda *a: Mean(2 * (m := parts(*a)).values, m.mass))
    assert not make().engine.sharing.able


# -- exactness -----------------------------------------------------------------------------------

CONFIGS = {
    "windows": lambda: tf.MistralConfig(**SMALL, sliding_window=8),
    "soft caps": lambda: tf.Gemma2Config(
        **SMALL, head_dim=8, sliding_window=8, attn_logit_softcapping=0.5
    ),
    "learned positions": lambda: tf.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=2
    ),
}


@functools.cache
def model(kind):
    own = random_model(CONFIGS[kind.removeprefix("compiled ")]())
    settings = {"name": kind, "kv_bytes": 200_000, "compile": kind.startswith("compiled")}
    return ppl.HFModel(own, Letters(), **settings)


@functools.cache
def plain(kind, text):
    ids = torch.tensor([text], device=DEVICE)
    return model(kind).engine.base(input_ids=ids, use_cache=False).last_hidden_state[0]


def stood_on(rows) -> int:
    """Bytes of all trunks of some rows."""
    segments = {part.segment for slot, _ in rows for part in slot.trunk}
    return sum(segment.piece.nbytes for segment in segments)


PROGRAMS = st.lists(
    st.tuples(
        st.sampled_from(["open", "fork", "fork", "step", "extend", "back", "close", "evict"]),
        st.lists(st.integers(0, 99), min_size=1, max_size=4),
        st.lists(st.integers(3, 6), min_size=1, max_size=9).map(tuple),
    ),
    min_size=4,
    max_size=12,
)


@pytest.mark.parametrize(
    "kind",
    [*CONFIGS, *(pytest.param(f"compiled {kind}", marks=needs_compiler) for kind in CONFIGS)],
)
@settings(max_examples=25, deadline=None)
@given(program=PROGRAMS)
@torch.inference_mode()
def test_rows_standing_on_trunks_equal_a_plain_forward(kind, program):
    """Opened, forked, extended, taken back, closed and evicted in any order."""
    engine = standing(model(kind), block=3).engine
    engine.sharing.price, engine.runner.price = -1, 0
    stem = (5, 4, 3, 6, 6, 5, 4, 3, 7, 8, 9)
    rows: list[list] = []

    def check(state, text, first=-1):
        exact = plain(kind, text)[first:]
        scale = max(1.0, float(exact.abs().max()))
        assert float((state - exact).abs().max()) < 1e-4 * scale

    for what, numbers, block in program:
        chosen = [rows[i] for i in dict.fromkeys(n % len(rows) for n in numbers)] if rows else []
        if what == "open":
            asked = [stem[: 1 + n % len(stem)] + block[: n % 4] for n in numbers]
            asked += asked[:1]
            slots, states = engine.open(asked)
            for text, state in zip(asked, states, strict=True):
                check(state, text)
            texts = list(dict.fromkeys(asked))
            unknown = [text for text in texts if text not in slots]
            slots |= dict(zip(unknown, engine.seat(unknown, [2] * len(unknown)), strict=True))
            rows += [[slots[text], text] for text in texts]
        elif what == "fork":
            sources = [row for row in chosen for _ in range(2)]
            forks = engine.fork([slot for slot, _ in sources])
            rows += [[slot, row[1]] for slot, row in zip(forks, sources, strict=True)]
        elif what in ("step", "extend") and chosen:
            block = block if what == "extend" else block[:1]
            for i, row in enumerate(chosen):
                row[1] += block[i % len(block) :] or block
            slots, texts = [slot for slot, _ in chosen], [text for _, text in chosen]
            if what == "step":
                for text, state in zip(texts, engine.step(slots, texts), strict=True):
                    check(state, text)
            else:
                for text, states in zip(texts, engine.extend(slots, texts), strict=True):
                    check(states, text, -len(states))
        elif what == "back" and chosen:
            engine.close(*chosen[0])
            rows.remove(chosen[0])
            text = chosen[0][1]
            text = (*text[: max(1, len(text) - numbers[0] % 5)], 9)
            check(engine.hidden([text], [0])[0], text, 0)
        elif what == "close":
            for row in chosen:
                engine.close(*row)
                rows.remove(row)
        elif what == "evict":
            before, engine.pool.capacity = engine.pool.capacity, 0
            engine.pool.trim()
            engine.pool.capacity = before
        assert engine.pool.nbytes >= stood_on(rows)
        rows = [row for row in rows if len(row[1]) < 60 or engine.close(*row)][:12]
        for slot in engine.slots.busy:
            if all(slot is not s for s, _ in rows):
                engine.drop(slot)
    for slot, text in rows:
        engine.close(slot, text)
    assert not any(slot.busy for slot in engine.slots.all)
    engine.pool.clear()
    assert engine.pool.nbytes == 0


@torch.inference_mode()
def test_what_rows_stand_on_stays_whole_when_others_found_its_beginning():
    """Prompts of several questions begin alike with less than a block: each is one copy, its
    beginning too, though the tree knows that where it was founded last."""
    engine, generator = make().engine, torch.Generator().manual_seed(0)
    engine.sharing.price = 50

    def some(count):
        return tuple(torch.randint(3, 97, (count,), generator=generator).tolist())

    header = some(20)
    prompts = [header[:n] + some(70 - n) for n in (20, 12, 5, 20)]
    slots = engine.seat(prompts, [3] * 4)
    assert [slot.base for slot in slots] == [70] * 4
    assert engine.slots.length < 70
    again = engine.seat(prompts, [3] * 4)
    assert [slot.trunk for slot in again] == [slot.trunk for slot in slots]
    states = engine.step(slots, [(*prompt, 7) for prompt in prompts])
    for prompt, state in zip(prompts, states, strict=True):
        ids = torch.tensor([(*prompt, 7)], device=DEVICE)
        plain = engine.base(ids, use_cache=False).last_hidden_state[0, -1]
        torch.testing.assert_close(state, plain, rtol=1e-4, atol=1e-4)
