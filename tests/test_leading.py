"""Rows that draw several tokens at once draw what they draw token by token, and cost as much."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from compiler import needs_compiler
from engines import FAMILIES, Letters, assert_close, make, random_model, request, some_texts
from programs import contents
from test_several_adapters import Trio
from test_whole import KINDS, needs_any, needs_own, small

import ppl
from ppl.errors import ProgramError, WeightError
from ppl.language.cost import Account, Budget
from ppl.language.steps import StepRule
from ppl.lm import leading
from ppl.lm.base import ContinueRequest, Spec
from ppl.lm.decode import Session
from ppl.lm.engine import burst as burst_module
from ppl.lm.engine.bursts import bursts_of
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.leading import LeadingDecoder
from ppl.lm.engine.whole import WholeStep
from ppl.lm.leading import LeadingSession
from ppl.lm.sampling import Warp
from ppl.searchers import MCTS

A, B, C = (chr(0x4E00 + i) for i in (20, 31, 50))
RULES = [StepRule(), StepRule((A, B)), StepRule((C,))]


def whole(kind: str = "Llama", dtype=torch.float32, weights=None, **options) -> ppl.HFModel:
    """A model that makes several steps at once."""
    model = small(KINDS[kind](), dtype=dtype, weights=weights)
    lm = ppl.HFModel(model, Letters(), name="whole", **options)
    assert lm._bursts is not None
    return lm


BURSTS = {
    "float32": pytest.param(whole, marks=[needs_compiler, needs_any]),
    "Qwen3": pytest.param(partial(whole, "Qwen3"), marks=[needs_compiler, needs_any]),
    "bfloat16": pytest.param(
        partial(whole, "Qwen2", torch.bfloat16), marks=[needs_compiler, needs_own]
    ),
    "int8": pytest.param(
        partial(whole, dtype=torch.bfloat16, weights="int8"), marks=[needs_compiler]
    ),
}
bursts = pytest.mark.parametrize("made", BURSTS.values(), ids=BURSTS)
any_kind = pytest.mark.parametrize("made", [make, *BURSTS.values()], ids=["plain", *BURSTS])


@pytest.fixture
def together(monkeypatch) -> Counter:
    """Counts tokens that are drawn together with others."""
    counts: Counter = Counter()
    drawn_along, burst = leading._drawn_along, LeadingDecoder.burst

    def along(row, known, logits):
        drawn = drawn_along(row, known, logits)
        counts["runs"] += 1
        counts["drawn"] += len(drawn)
        counts["left"] += len(drawn) <= len(known)
        return drawn

    def counted(self, tokens, *rest):
        made = burst(self, tokens, *rest)
        if made is not None:
            counts["bursts"] += 1
            counts[f"bursts of {len(tokens)}"] += 1
            counts["steps"] += len(made[0])
        return made

    monkeypatch.setattr(leading, "_drawn_along", along)
    monkeypatch.setattr(LeadingDecoder, "burst", counted)
    return counts


def plainly(lm: ppl.HFModel) -> ppl.HFModel:
    """The model, whose batches draw token by token from now on."""
    lm.session = lambda: Session(lm)
    return lm


def one_by_one(lm, requests) -> list:
    """Each alone, with the tokens and logits that it has made the engine compute, and its steps."""
    found = []
    for asked in requests:
        session = lm.session()
        session.submit(asked)
        steps, done = 0, {}
        while session.running:
            done |= session.step()
            steps += 1
        session.close()
        (draw,) = done.values()
        found.append((draw, lm.engine.tokens_computed, steps))
    return found


def again_and_again(lm, ledger: Account | None = None) -> list[ContinueRequest]:
    """Rows that are sharp, so that they often draw what others drew before them, of all lengths."""
    made = []
    kinds = [(Warp(0.3), None), (Warp(), None), (Warp(0.7, top_k=2), None)]
    kinds += [(Warp(0.5), frozenset(range(3, 60)))]
    for i, (text, (warp, allowed)) in enumerate(itertools.product(some_texts()[:4], kinds * 4)):
        spec = Spec(text, RULES[i % 3], 3 + 9 * (i % 5), warp, allowed)
        under = replace(spec, warp=Warp(), allowed=None) if i % 4 == 0 else None
        # Every other key is drawn with twice: the second one follows the first as far as it goes.
        key = 99 + 7919 * (i // 8)
        made.append(ContinueRequest(lm, spec, key, "", ledger, under, i % 5 == 0))
    return made


def assert_same(one, two, within: float = 1e-5) -> None:
    assert one.value == two.value
    for a, b in ((one.log_prob, two.log_prob), (one.log_prob_under, two.log_prob_under)):
        assert a == pytest.approx(b, abs=within)
    assert (one.logits is None) == (two.logits is None)
    if one.logits is not None:
        np.testing.assert_allclose(one.logits.float(), two.logits.float(), atol=1e-5)


@any_kind
def test_draws_bills_steps_and_passes_are_those_of_a_token_a_step(made, together):
    plain, lm = plainly(made()), made()
    ours, usual = Account(), Account()
    there = one_by_one(plain, again_and_again(plain, usual))
    assert not together
    here = one_by_one(lm, again_and_again(lm, ours))
    assert together["runs"] > 20
    assert together["drawn"] > 2 * together["runs"]
    assert together["left"] > 3
    for (a, computed, steps), (b, computed_, steps_) in zip(there, here, strict=True):
        assert_same(a, b)
        assert (computed, steps) == (computed_, steps_)
    assert replace(ours.cost, seconds=0) == replace(usual.cost, seconds=0)
    assert ours.cost.reused_tokens > 0


@any_kind
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("tokens", range(1, 26, 4))
def test_a_row_is_given_up_after_as_many_tokens(tokens, known, made, together):
    lm = made()
    text = some_texts()[0]
    if known:
        lm.sample_batch([request(lm, text, max_tokens=24)])
    together.clear()
    before, ledger = lm.engine.tokens_computed, Account(Budget(tokens=tokens))
    (draw,) = lm.sample_batch([request(lm, text, max_tokens=24, ledger=ledger)])
    if known:
        assert together["drawn"] >= min(tokens, 23)
    elif lm._bursts is not None and tokens > 2:
        assert together["steps"] == min(tokens, 24) - 1
    assert (draw is None) == (tokens < 24)
    assert ledger.cost.lm_tokens == min(tokens, 24)
    if not known:  # the last token of a row that is done is not computed
        assert lm.engine.tokens_computed - before == len(text) + min(tokens, 23)


def side_by_side(lm, requests) -> tuple[list, int, list[int]]:
    """All at once; with the tokens that were computed, and how many were done after each step."""
    session, done, counts = lm.session(), {}, []
    tickets = [session.submit(asked) for asked in requests]
    while session.running:
        done |= session.step()
        counts.append(len(done))
    session.close()
    return [done[ticket] for ticket in tickets], lm.engine.tokens_computed, counts


@bursts
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("begin", ["apart", "alike", "trunk"])
def test_rows_side_by_side_are_those_of_a_token_a_step(rows, begin, made, together, monkeypatch):
    texts = some_texts()[:5]
    if begin == "alike":
        texts = [texts[0]] * 5
    elif begin == "trunk":
        texts = [texts[0] * 3 + text for text in texts]
    plain, lm = plainly(made()), made()
    for seed in range(0, 25, 5):
        found = []
        for model in (plain, lm):
            if begin == "trunk":
                monkeypatch.setattr(model.engine.sharing, "price", 1)
                assert model.engine.sharing.able
            asked = [request(model, t, seed=seed + i) for i, t in enumerate(texts[:rows])]
            warps = [Warp(), Warp() if model.engine.dtype == torch.bfloat16 else Warp(0.7)]
            for i, row in enumerate(asked):
                others = {"rule": RULES[i % 3], "max_tokens": 20 - 3 * i, "warp": warps[i % 2]}
                asked[i] = replace(row, spec=replace(row.spec, **others))
            found.append(side_by_side(model, asked))
        (there, computed, counts), (here, computed_, counts_) = found
        for a, b in zip(there, here, strict=True):
            # Of a trunk, what reads it together decides digits: a row that has paused still does.
            assert_same(a, b, 1e-5 if plain.engine.dtype == torch.float32 else 5e-3)
            assert a.log_prob == b.log_prob or begin == "trunk"
        assert (computed, counts) == (computed_, counts_)
    if begin != "trunk":
        assert together[f"bursts of {rows}"]
    assert together["bursts"]


@bursts
def test_what_a_burst_computed_is_what_is_known_afterwards(made, together):
    lm, text = made(), some_texts()[1]
    (draw,) = lm.sample_batch([request(lm, text, max_tokens=30)])
    assert together["bursts"] == 2
    new = text + draw.value.tokens[:-1]
    known = lm.engine.known_from(new, 0)
    fresh = made()
    (right,) = fresh.engine.hidden([new], [0])
    off = float((known - right).abs().max() / right.abs().max())
    assert off < (1e-5 if lm.engine.dtype == torch.float32 else 0.04)


@bursts
@pytest.mark.parametrize("threads", [1, 3])
def test_many_threads_and_batches_side_by_side(threads, made, together):
    lm = made()
    texts = some_texts()[:4]
    asked = [request(lm, text, seed=i, max_tokens=25) for i, text in enumerate(texts)]
    right = [plainly(made()).sample_batch([row])[0] for row in asked]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda row: lm.sample_batch([row])[0], asked))
    finally:
        torch.set_num_threads(before)
    # Beginnings that others have computed were computed in other passes.
    within = 1e-4 if lm.engine.dtype == torch.float32 else 0.1
    for a, b in zip(right, found, strict=True):
        assert_same(a, b, within)


@bursts
def test_rows_have_the_memory_that_they_need_and_no_more(made, together):
    text = some_texts()[0]
    lm = made(kv_bytes=60_000)
    asked = [request(lm, text, seed=i, max_tokens=40) for i in range(4)]
    for row in asked:
        lm.fresh()
        lm.sample_batch([row])
    one = lm.engine.peak_nbytes
    right = plainly(made()).sample_batch(asked)
    found = lm.sample_batch(asked)
    for a, b in zip(right, found, strict=True):
        assert_same(a, b)
    assert lm.engine.peak_nbytes <= max(60_000, one)


@bursts
@pytest.mark.parametrize("what", ["hook", "forward", "embedding", "norm", "warp", "rule"])
def test_steps_are_by_themselves_where_something_else_is_asked(what, made, together):
    lm, other = made(), made()
    text = some_texts()[0]
    for model in (lm, other):
        asked = request(model, text, max_tokens=12)
        head, base = model.model.get_output_embeddings(), model.engine.base
        if what == "hook":
            head.register_forward_hook(lambda layer, given, logits: 0.5 * logits)
        elif what == "forward":
            own = head.forward
            head.forward = lambda x, own=own: own(0.5 * x)
        elif what == "embedding":
            weight = base.embed_tokens.weight
            base.embed_tokens.weight = torch.nn.Parameter(weight.detach().flip(0), False)
        elif what == "norm":
            weight = base.norm.weight
            base.norm.weight = torch.nn.Parameter(2 * weight.detach(), False)
        elif what == "warp":
            halves = model.engine.dtype == torch.bfloat16
            warp = Warp(0.8) if halves else Warp(0.8, top_k=50)
            asked = replace(asked, spec=replace(asked.spec, warp=warp))
        else:
            rule = StepRule(predicate=lambda said: len(said) == 9)
            asked = replace(asked, spec=replace(asked.spec, rule=rule))
        if model is other:
            plainly(model)
        else:
            (ours,) = model.sample_batch([asked])
            assert not together["bursts"]
    (right,) = other.sample_batch([asked])
    assert_same(right, ours)


@needs_compiler
@needs_any
def test_bursts_that_are_not_the_steps_are_left_out(monkeypatch):
    model = small(KINDS["Llama"](), dtype=torch.float32)
    config, head = model.config, model.get_output_embeddings()
    engine = Engine(model, name="small", capacity=1 << 22)
    assert bursts_of(engine, config, head, head) is not None
    assert not engine.slots.busy
    assert engine.passes == engine.tokens_computed == 0
    begun = WholeStep.begun

    def turned(self, ids, positions):
        x, cosines, sines = begun(self, ids, positions)
        return x, cosines, sines * (positions.shape[1] == 1)

    monkeypatch.setattr(WholeStep, "begun", turned)
    assert bursts_of(engine, config, head, head) is None
    monkeypatch.undo()
    short = Engine(model, name="short", capacity=1 << 22, context_length=3)
    assert bursts_of(short, config, head, head) is None
    for name, value in ("final_logit_softcapping", 3.0), ("logit_scale", 2.0):
        reshaped = copy.deepcopy(config)
        setattr(reshaped, name, value)
        assert bursts_of(engine, reshaped, head, head) is None
    monkeypatch.setattr(burst_module, "_BYTES", 20_000)
    assert bursts_of(engine, config, head, head) is None


@bursts
def test_a_row_without_a_distribution_is_told_when_it_is_reached(made, together):
    lm = made()
    text = some_texts()[0]
    (draw,) = lm.sample_batch([request(lm, text, max_tokens=12)])
    lm.fresh()
    bad = draw.value.tokens[5]  # what is drawn after it has no distribution
    first = draw.value.tokens.index(bad)
    lm.engine.base.embed_tokens.weight.data[bad] = torch.nan
    session = lm.session()
    session.submit(request(lm, text, max_tokens=12))
    for _ in range(first + 1):
        assert session.step() == {}
    with pytest.raises(WeightError, match="not finite"):
        session.step()
    assert not lm.engine.slots.busy


@any_kind
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("after", range(0, 9, 2))
def test_others_may_join_a_row_on_its_way_and_it_may_be_cancelled(after, known, made, together):
    text, other = some_texts()[:2]
    plain, lm = plainly(made()), made()
    for model in (plain, lm):
        if known:
            model.sample_batch([request(model, text, max_tokens=20)])
        session = model.session()
        first = session.submit(request(model, text, max_tokens=20))
        for _ in range(after):
            assert session.step() == {}
        second = session.submit(request(model, other, seed=5, max_tokens=8))
        third = session.submit(request(model, text, seed=6, max_tokens=9))
        done = {}
        for step in itertools.count():
            if step == 3:
                session.cancel([third])
            if not session.running:
                break
            done |= session.step()
        session.close()
        assert set(done) == {first, second}
        model.found = done[first], done[second], model.engine.tokens_computed
    (one, two, computed), (one_, two_, computed_) = plain.found, lm.found
    # The one that is cancelled may have been ahead.
    assert 0 <= computed_ - computed <= (15 if together["bursts of 3"] else 0)
    assert_same(one, one_)
    assert_same(two, two_)


def test_a_row_that_is_cancelled_on_its_way_leaves_nothing(together):
    lm, text = make(), some_texts()[0]
    (known,) = lm.sample_batch([request(lm, text, max_tokens=20)])
    session = lm.session()
    ticket = session.submit(request(lm, text, max_tokens=20))
    for _ in range(3):
        session.step()
    session.cancel([ticket])
    assert session.step() == {}
    assert not session.running
    assert not lm.engine.slots.busy
    (again,) = lm.sample_batch([request(lm, text, max_tokens=20)])
    assert again.value == known.value


def test_what_is_known_may_be_forgotten_on_the_way(together):
    lm, text = make(), some_texts()[0]
    (known,) = lm.sample_batch([request(lm, text, max_tokens=30)])
    for after in range(1, 29, 3):
        session = lm.session()
        session.submit(request(lm, text, max_tokens=30))
        for _ in range(after):
            assert session.step() == {}
        lm.fresh()
        done = {}
        while session.running:
            done |= session.step()
        ((draw,),) = [list(done.values())]
        assert draw.value == known.value
        assert draw.log_prob == pytest.approx(known.log_prob, abs=1e-4)


def test_an_error_of_its_rule_comes_with_the_token_that_it_came_with():
    lm, text = make(), some_texts()[0]
    lm.sample_batch([request(lm, text, max_tokens=20)])

    def fussy(said: str) -> bool:
        if len(said) == 7:
            raise KeyError("seven")
        return False

    asked = request(lm, text, max_tokens=20)
    session = lm.session()
    ticket = session.submit(
        replace(asked, spec=replace(asked.spec, rule=StepRule(predicate=fussy)))
    )
    answers = [session.step() for _ in range(7)]
    assert answers[:6] == [{}] * 6
    assert isinstance(answers[6][ticket], ProgramError)
    assert not session.running


def test_a_row_that_has_an_adapter_follows_only_its_own(tmp_path, together):
    trio = Trio(random_model(FAMILIES["Llama"]()), tmp_path)
    text = some_texts()[0]
    for lm in trio.models.values():
        (draw,) = lm.sample_batch([request(lm, text, max_tokens=12)])
        assert not together["runs"]
        (again,) = lm.sample_batch([request(lm, text, max_tokens=12)])
        assert again.value == draw.value
        assert again.log_prob == pytest.approx(draw.log_prob, abs=1e-5)
        assert together.pop("drawn") == 11
        together.clear()


def test_a_search_of_trees_is_what_it_is_token_by_token(together):
    def walk(lm):
        text = lm.prompt("3 + 4 = ")
        for t in range(3):
            text = text + pyro.sample(f"step_{t}", lm(text, max_tokens=6, temperature=0.5))
            pyro.factor(f"ok_{t}", -0.1 * text.text.count("1"))
            if text.finished:
                break
        return text.text

    found = []
    for make_it in plainly, lambda lm: lm:
        lm = make_it(ppl.load("tiny"))
        search = MCTS(24).begin(walk, lm, seed=3)
        posterior = search.run()
        found.append((posterior, search, lm.engine.tokens_computed))
        assert bool(together["runs"]) == (make_it is not plainly)
    (one, search, computed), (two, other, computed_) = found
    assert computed == computed_
    assert search.tree.nodes[1].text.tokens
    assert [n.text for n in search.tree.nodes] == [n.text for n in other.tree.nodes]
    assert one.cost.lm_tokens == two.cost.lm_tokens
    for a, b in zip(contents(one), contents(two), strict=True):
        assert a[0] == b[0]
        assert a[1] == pytest.approx(b[1], abs=1e-5)


def test_rows_that_give_up_what_they_do_not_look_at_follow_nothing(together):
    lm = make("Llama", kv="window(16, 2)")
    assert isinstance(lm.session(), LeadingSession)
    text = some_texts()[0]
    for _ in range(2):
        lm.sample_batch([request(lm, text, max_tokens=20)])
    assert not together


def test_what_always_followed_is_known_up_to_where_texts_part():
    lm = make()
    pool, text = lm.engine.pool, some_texts()[0]
    long, parted = (*text, 5, 6, 7, 8), (*text, 5, 6, 9, 10, 11)
    assert pool.after(text, 16) is None
    (states,) = lm.engine.hidden([long], [0])
    tokens, found = pool.after(text, 16)
    assert tokens == (5, 6, 7, 8)
    assert_close(found, states[len(text) - 1 :])
    tokens, found = pool.after(text, 3)
    assert tokens == (5, 6, 7)
    assert_close(found, states[len(text) - 1 : -1])
    assert pool.after(long, 16) is None
    (other,) = lm.engine.hidden([parted], [0])
    assert pool.after(text, 16)[0] == (5, 6)
    assert pool.after((*text, 5, 6), 16) is None
    tokens, found = pool.after((*text, 5, 6, 9), 16)
    assert tokens == (10, 11)
    assert_close(found, other[-3:])
    assert pool.after((*text, 5, 7), 16) is None
