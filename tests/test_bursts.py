"""Rows that are ahead of what they have shown, among others: of several batches, in little memory,
and where something else comes between."""

from __future__ import annotations

import random
from dataclasses import replace

import pyro
import pytest
import torch
from compiler import needs_compiler
from engines import make, random_model, request, some_texts
from laid_out import KINDS, needs_any, small
from programs import contents
from test_leading import assert_same, plainly, together, whole  # noqa: F401 (a fixture)

import ppl
from ppl.errors import PPLError
from ppl.language.codec import Codec
from ppl.language.cost import Account, Budget
from ppl.language.steps import StepRule
from ppl.lm import leading
from ppl.lm.base import ContinueRequest, Spec
from ppl.lm.engine.bursts import bursts_of
from ppl.lm.engine.engine import Engine
from ppl.lm.sampling import Warp
from ppl.lm.stopping import Stop
from ppl.searchers import SMC, BeamSearch, BestOfN, ParticleGibbs


def fussy(said: str) -> bool:
    if len(said) > 11:
        raise KeyError("twelve")
    return said.endswith(chr(0x4E00 + 40))


RULES = [StepRule(), StepRule((chr(0x4E00 + 20) + chr(0x4E00 + 31), chr(0x4E00 + 33)))]
RULES += [StepRule(tuple(chr(0x4E00 + i) for i in range(40, 46))), StepRule(predicate=fussy)]


def among_others(lm, seed: int) -> tuple[list, list[Account]]:
    """Requests of all kinds to batches that are stepped in turns of all lengths: what each step
    answered, and the bills after it."""
    rng = random.Random(seed)
    texts = some_texts()[:6]
    texts += [texts[0] * 3 + text for text in texts[:3]]
    texts += [tuple(3 + 7 * i % 90 for i in range(lm.context_length - 5))]
    accounts = [Account(Budget(tokens=most)) for most in (None, rng.choice([9, 40, 90]))]
    sessions, told = [lm.session()], []

    def step(session) -> None:
        told.extend(sorted(session.step().items()))
        costs = [account.cost for account in accounts]
        told.append([(c.lm_tokens, c.prompt_tokens, c.reused_tokens) for c in costs])

    for _ in range(rng.randrange(12, 30)):
        session, what = rng.choice(sessions), rng.random()
        if what < 0.35:
            warp = rng.choice([*[Warp()] * 5, Warp(0.5)])
            spec = Spec(rng.choice(texts), rng.choice(RULES), rng.randrange(1, 30), warp, None)
            under = replace(spec, warp=Warp(0.9)) if rng.random() < 0.1 else None
            ledger = rng.choice([None, *accounts])
            key = 7919 * rng.randrange(6)
            session.submit(ContinueRequest(lm, spec, key, "", ledger, under, rng.random() < 0.1))
        elif what < 0.42 and len(sessions) < 3:
            sessions.append(lm.session())
        else:
            for _ in range(rng.randrange(1, 9)):
                step(session)
    while any(session.running for session in sessions):
        for session in sessions:
            step(session)
    for session in sessions:
        session.close()
    assert not lm.engine.slots.busy
    return told, accounts


def assert_known(lm, texts, draws) -> None:
    """What rows have left is what it was when they paused or parted."""
    further = [(*text, *draw.value.tokens, 5) for text, draw in zip(texts, draws, strict=True)]
    starts = [len(text) - 3 for text in further]
    states = [model.engine.hidden(further, starts) for model in (whole(), lm)]
    for one, two in zip(*states, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@needs_compiler
@needs_any
@pytest.mark.parametrize("rows", [2, 6, 12])
def test_rows_that_pause_wait_for_the_others(rows, together):  # noqa: F811
    """What they compute meanwhile is no more, all together, than a step of all of them."""
    plain, lm, rng = plainly(whole()), whole(), random.Random(rows)
    texts = [tuple(rng.randrange(3, 97) for _ in range(rng.randrange(3, 12))) for _ in range(rows)]
    found = []
    for model in (plain, lm):
        asked = [request(model, text, seed=i, max_tokens=30) for i, text in enumerate(texts)]
        for i, row in enumerate(asked):
            # Each character has a last byte of its own; some rows end soon, one by its limit.
            ends = tuple(chr(0x4E00 + at) for at in range(34, 37 if i % 4 else 60))
            given = {"rule": StepRule(ends), "max_tokens": 30 - i % 7 if i != 1 else 3}
            asked[i] = replace(row, spec=replace(row.spec, **given))
        together.clear()
        found.append(model.sample_batch(asked))
    for one, two in zip(*found, strict=True):
        assert_same(one, two)
        assert one.log_prob == two.log_prob
    longest = max(len(draw.value.tokens) for draw in found[0])
    assert together["bursts"] < longest / 2
    assert together["steps"] > longest / 2
    assert lm.engine.tokens_computed == plain.engine.tokens_computed
    assert lm.engine.passes == plain.engine.passes
    padded = lm.engine.tokens_padded - plain.engine.tokens_padded
    assert (rows > 2) <= padded <= together["bursts"] * rows
    assert_known(lm, texts, found[1])


@needs_compiler
@needs_any
@pytest.mark.parametrize("heat", [0.15, 0.5])
def test_rows_of_one_text_are_ahead_together_until_they_part(heat, together):  # noqa: F811
    """They are computed once, and a burst ends where two of them draw different tokens."""
    plain, lm = plainly(whole()), whole()
    text, other = (5, 17, 40, 8), (9, 3, 22)
    found = []
    for model in (plain, lm):
        asked = [
            # The last of each text is colder, has other ends or may draw less.
            replace(
                row,
                spec=replace(
                    row.spec,
                    warp=Warp(heat if i % 6 < 5 else heat / 2),
                    rule=StepRule((chr(0x4E00 + 38),) if i == 4 else ()),
                    max_tokens=9 if i == 10 else 30,
                ),
            )
            for i in range(12)
            for row in [request(model, text if i < 6 else other, seed=i)]
        ]
        together.clear()
        found.append(model.sample_batch(asked))
    for one, two in zip(*found, strict=True):
        assert_same(one, two)
    apart = {draw.value.tokens for draw in found[0]}
    assert len(apart) > 2
    assert lm.engine.tokens_computed == plain.engine.tokens_computed
    # Each parting ends one, and so does each row that is done; nothing else does.
    assert 0 < together["bursts"] <= len(apart) + 12
    assert together["steps"] > 20
    assert_known(lm, [text] * 6, found[1][:6])


@needs_compiler
@needs_any
def test_rows_that_forked_for_a_burst_that_is_none_are_where_they_were(together):  # noqa: F811
    plain, lm = plainly(whole()), whole()
    own, busy = lm._bursts, []

    class Moody:
        few, pausing, shares, takes = own.few, own.pausing, own.shares, own.takes

        def __call__(self, slots, texts, slot_of, asked):
            busy.append(len(lm.engine.slots.busy) - len(slots))
            return None if len(busy) % 2 else own(slots, texts, slot_of, asked)

    lm._bursts, found = Moody(), []
    for model in (plain, lm):
        together.clear()
        asked = [request(model, (5, 17, 40, 8), i, 40, temperature=0.3) for i in range(4)]
        found.append(model.sample_batch(asked))
    for one, two in zip(*found, strict=True):
        assert_same(one, two)
    assert 0 < together["bursts"] < len(busy)
    assert set(busy) == {0}
    assert not lm.engine.slots.busy
    assert lm.engine.tokens_computed == plain.engine.tokens_computed


@pytest.mark.parametrize("memory", [1 << 24, 120_000])
@needs_compiler
@needs_any
def test_batches_beside_each_other_are_those_of_a_token_a_step(memory, together):  # noqa: F811
    plain, lm = (whole(kv_bytes=memory) for _ in range(2))
    plainly(plain)
    together.clear()
    for seed in range(12):
        for model in (plain, lm):
            model.fresh()
        (there, _), (here, _) = among_others(plain, seed), among_others(lm, seed)
        assert len(there) == len(here)
        for a, b in zip(there, here, strict=True):
            if isinstance(a, list):
                assert a == b or memory == 120_000  # there what is known depends on who came first
                continue
            assert a[0] == b[0]
            if a[1] is None or isinstance(a[1], PPLError):
                assert str(a[1]) == str(b[1])
            else:
                assert_same(a[1], b[1], within=1e-4)
    assert together["bursts"] > 20


@needs_compiler
@needs_any
@pytest.mark.parametrize("fits", [2, 4])
def test_what_rows_are_ahead_counts_where_memory_is_divided(fits):
    """One row is ahead into memory of twice the length, of which fewer rows have room."""
    size = whole().engine._memory.bytes_per_token
    memory = 2 * fits * size * 65 + 10
    lm = whole(kv_bytes=memory)
    others = [lm.session() for _ in range(fits - 1)]
    for i, session in enumerate(others):
        asked = request(lm, tuple(range(60 - i, 95)), seed=i, max_tokens=25, top_k=50)
        session.submit(asked)
        session.step()
    ahead = lm.session()
    ahead.submit(request(lm, tuple(range(3, 58)), seed=9, max_tokens=60))
    while ahead.running or any(session.running for session in others):
        for session in (ahead, *others):
            if session.running:
                session.step()
    assert lm.engine.peak_nbytes <= memory


@needs_compiler
@needs_any
@pytest.mark.parametrize("known", [True, False])
def test_a_row_may_lose_its_memory_just_before_its_burst(known, monkeypatch):
    lm, text = whole(), some_texts()[0]
    (right,) = plainly(whole()).sample_batch([request(lm, text, max_tokens=30)])
    session, numbers, lost = lm.session(), leading.uniforms, []

    def lose(*args):
        if len(lost) < 2:  # as another batch does in a thread of its own
            lost.append(session.park(1))
            if known:  # which then has what it would go on with
                lm.engine.hidden([(*text, *right.value.tokens)], [0])
        return numbers(*args)

    monkeypatch.setattr(leading, "uniforms", lose)
    ticket = session.submit(request(lm, text, max_tokens=30))
    done = {}
    while session.running:
        done |= session.step()
    assert len(lost) == 2
    assert_same(right, done[ticket])


@needs_compiler
@needs_any
def test_a_layer_may_come_to_do_something_else_just_before_its_burst(monkeypatch):
    lm, text, hooks, numbers = whole(), some_texts()[0], [], leading.uniforms
    (right,) = plainly(whole()).sample_batch([request(lm, text, max_tokens=30)])

    def hooked(*args):
        if not hooks:  # as another thread does
            layer = lm.engine.base.layers[0]
            hooks.append(layer.register_forward_hook(lambda *_: None))
        return numbers(*args)

    monkeypatch.setattr(leading, "uniforms", hooked)
    (found,) = lm.sample_batch([request(lm, text, max_tokens=30)])
    assert hooks
    assert_same(right, found)


@needs_compiler
@needs_any
@pytest.mark.parametrize("outputs", [96, 97, 98])
def test_each_logit_has_to_have_an_embedding(outputs):
    """Nobody looks at bounds within a burst."""
    model = random_model(KINDS["Llama"]())
    model.lm_head = torch.nn.Linear(32, outputs, bias=False)
    model = small(model, dtype=torch.float32)
    engine = Engine(model, name="small", capacity=1 << 22)
    assert (bursts_of(engine, model.config, model.lm_head, model.lm_head) is None) == (outputs > 97)


@needs_compiler
@needs_any
def test_other_embeddings_in_the_place_of_those_that_were_there_are_read(together):  # noqa: F811
    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, ids):
            return 2 * self.inner(ids)

    found = []
    for lm in (plainly(whole()), whole()):
        lm.engine.base.embed_tokens = Doubled(lm.engine.base.embed_tokens)
        together.clear()  # those at loading
        found += lm.sample_batch([request(lm, some_texts()[0], max_tokens=12)])
    assert not together["bursts"]
    assert_same(*found)


class Bytes(Codec):
    """A token for each of some strings of bytes, which may be parts of characters."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces, self.size, self.name = pieces, len(pieces), "bytes"
        self.end_tokens = frozenset({0})

    def encode(self, string):
        raise NotImplementedError

    def piece(self, token):
        return self.pieces[token]


@pytest.mark.parametrize(
    "strings", [("a",), ("é",), ("xa", "b"), ("yé",), ("€",), ("\ufffd",), ("a\ufffd",)]
)
@pytest.mark.parametrize("before", [(), (3,)])
def test_a_token_at_which_no_row_may_end_ends_none(strings, before):
    codec = Bytes(b"", b"a", b"xay", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"b", b"\xa9\xe2")
    rng, rule = random.Random(0), StepRule(strings)
    ended = set()
    for _ in range(400):
        stop = Stop(codec, rule, before, "")
        pauses = None if stop.asked else stop.pauses(codec.size + 3)
        for _ in range(12):
            token = rng.randrange(codec.size)
            if stop.after(token) is not None:
                ended.add(token)
                assert pauses is None or pauses[token]
                break
    assert len(ended) > 1
    # Only where it has to be asked it is: what is no character is shown by any other token.
    assert (pauses is None) == any("\ufffd" in string for string in strings)
    if pauses is not None:
        assert pauses[codec.size :].sum() == 0
        assert pauses.sum() < codec.size


def test_what_rows_follow_is_in_use():
    """It is not the first to be forgotten."""
    lm = make()
    pool, text = lm.engine.pool, some_texts()[0]
    lm.engine.hidden([(*text, 5, 6, 7)], [0])
    pool.cut(text)
    other = (9, 9, 9)
    lm.engine.hidden([other], [0])
    assert pool.after(text, 16)[0] == (5, 6, 7)
    known = {edge.tokens: edge.used for edge in pool._edges()}
    assert known[5, 6, 7] > known[other]


@pytest.mark.parametrize("budget", [None, 7, 40])
@pytest.mark.parametrize(
    "searcher",
    [SMC(4), SMC(2), BeamSearch(3), BestOfN(3), ParticleGibbs(3, 2)],
    ids=lambda searcher: type(searcher).__name__,
)
def test_searches_are_what_they_are_token_by_token(searcher, budget, together):  # noqa: F811
    def walk(lm):
        text = lm.prompt("3 + 4 = ")
        for t in range(3):
            text = text + pyro.sample(f"step_{t}", lm(text, max_tokens=7, until="\n"))
            pyro.factor(f"ok_{t}", -0.3 * text.text.count("1"))
            if text.finished:
                break
        return text.text

    found = []
    for lm in (plainly(ppl.load("tiny")), ppl.load("tiny")):
        search = searcher.begin(walk, lm, seed=5, budget=Budget(tokens=budget))
        posterior = search.run()
        cost = replace(posterior.cost, seconds=0, models={})
        found.append((contents(posterior), cost, lm.engine.tokens_computed))
    (one, cost, computed), (two, cost_, computed_) = found
    assert (cost, computed) == (cost_, computed_)
    assert [each[0] for each in one] == [each[0] for each in two]
    assert [each[1] for each in one] == pytest.approx([each[1] for each in two], abs=1e-5)
