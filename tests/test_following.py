"""A row that follows a known text draws what it would draw token by token, and costs as much."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pyro
import pytest
from engines import FAMILIES, assert_close, make, random_model, request, some_texts
from programs import contents
from test_several_adapters import Trio

import ppl
from ppl.errors import ProgramError
from ppl.language.cost import Account, Budget
from ppl.language.steps import StepRule
from ppl.lm import following
from ppl.lm.base import ContinueRequest, Spec
from ppl.lm.decode import Session
from ppl.lm.following import FollowingSession
from ppl.lm.sampling import Warp
from ppl.searchers import MCTS

RULES = [StepRule(), StepRule((chr(0x4E00 + 20), chr(0x4E00 + 31))), StepRule((chr(0x4E00 + 50),))]


@pytest.fixture
def together(monkeypatch) -> Counter:
    """Counts tokens that are drawn together with others."""
    counts: Counter = Counter()
    drawn_along = following._drawn_along

    def counted(row, known, logits):
        drawn = drawn_along(row, known, logits)
        counts["runs"] += 1
        counts["drawn"] += len(drawn)
        counts["left"] += len(drawn) <= len(known)
        return drawn

    monkeypatch.setattr(following, "_drawn_along", counted)
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


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPT2"])
def test_draws_bills_steps_and_passes_are_those_of_a_token_a_step(name, together):
    plain, lm = plainly(make(name)), make(name)
    ours, usual = Account(), Account()
    there = one_by_one(plain, again_and_again(plain, usual))
    assert not together
    here = one_by_one(lm, again_and_again(lm, ours))
    assert together["runs"] > 20
    assert together["drawn"] > 2 * together["runs"]
    assert together["left"] > 3
    for (a, computed, steps), (b, computed_, steps_) in zip(there, here, strict=True):
        assert a.value == b.value
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-5)
        assert a.log_prob_under == pytest.approx(b.log_prob_under, abs=1e-5)
        assert (a.logits is None) == (b.logits is None)
        if a.logits is not None:
            np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)
        assert (computed, steps) == (computed_, steps_)
    assert replace(ours.cost, seconds=0) == replace(usual.cost, seconds=0)
    assert ours.cost.reused_tokens > 0


@pytest.mark.parametrize("tokens", range(1, 26, 4))
def test_a_row_is_given_up_after_as_many_tokens(tokens, together):
    lm = make()
    text = some_texts()[0]
    lm.sample_batch([request(lm, text, max_tokens=24)])
    ledger = Account(Budget(tokens=tokens))
    (draw,) = lm.sample_batch([request(lm, text, max_tokens=24, ledger=ledger)])
    assert together["drawn"] >= min(tokens, 23)
    assert (draw is None) == (tokens < 24)
    assert ledger.cost.lm_tokens == min(tokens, 24)


@pytest.mark.parametrize("after", range(9))
def test_others_may_join_a_row_on_its_way_and_it_may_be_cancelled(after, together):
    text, other = some_texts()[:2]
    plain, lm = plainly(make()), make()
    for model in (plain, lm):
        model.sample_batch([request(model, text, max_tokens=20)])
        session = model.session()
        first = session.submit(request(model, text, max_tokens=20))
        computed = model.engine.tokens_computed
        for _ in range(after):
            session.step()
        assert model.engine.tokens_computed == computed
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
    assert (one.value, two.value, computed) == (one_.value, two_.value, computed_)
    assert one.log_prob == pytest.approx(one_.log_prob, abs=1e-5)
    assert two.log_prob == pytest.approx(two_.log_prob, abs=1e-5)


def test_a_row_that_is_cancelled_on_its_way_leaves_nothing(together):
    lm = make()
    text = some_texts()[0]
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
    lm = make()
    text = some_texts()[0]
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
    lm = make()
    text = some_texts()[0]
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
    for make_it in (plainly, lambda lm: lm):
        lm = make_it(ppl.load("tiny"))
        search = MCTS(24).begin(walk, lm, seed=3)
        posterior = search.run()
        found.append((posterior, search, lm.engine.tokens_computed))
        assert bool(together["runs"]) == (make_it is not plainly)
    (one, search, computed), (two, other, computed_) = found
    assert computed == computed_
    assert [n.text for n in search.tree.nodes] == [n.text for n in other.tree.nodes]
    assert one.cost.lm_tokens == two.cost.lm_tokens
    for a, b in zip(contents(one), contents(two), strict=True):
        assert a[0] == b[0]
        assert a[1] == pytest.approx(b[1], abs=1e-5)


def test_rows_that_give_up_what_they_do_not_look_at_follow_nothing(together):
    lm = make("Llama", kv="window(16, 2)")
    assert isinstance(lm.session(), FollowingSession)
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
