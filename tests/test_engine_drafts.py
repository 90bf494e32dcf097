"""Guesses of next tokens change no draw: what rows draw, what it costs, and what is forgotten."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import families
import numpy as np
import pyro
import pytest
import torch
from compiler import needs_compiler
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
from scipy.stats import chisquare
from test_several_adapters import Trio
from test_whole import needs_own
from test_whole import small as in_bfloat16

import ppl
from ppl.errors import ProgramError, UnsupportedModelError
from ppl.language.cost import Account, Budget
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, Spec
from ppl.lm.drafts import Drafts
from ppl.lm.guessing import Drafting
from ppl.lm.ngrams import Guess
from ppl.lm.sampling import Warp
from ppl.searchers import SMC

ALWAYS = Drafts(switch="always")
COMPILED = [False, pytest.param(True, marks=needs_compiler)]


def odd_then_even(new: tuple[int, ...]) -> set[int]:
    """A mask that depends on what was drawn."""
    return set(range(3 + len(new) % 2, 97, 2))


KINDS = [
    (Warp(), None),
    (Warp(0.4), None),
    (Warp(0.0), None),
    (Warp(top_k=3), None),
    (Warp(0.7, top_p=0.8), frozenset(range(3, 30))),
    (Warp(), odd_then_even),
]
RULES = [StepRule(), StepRule((chr(0x4E00 + 20), chr(0x4E00 + 31))), StepRule((chr(0x4E00 + 50),))]


def mixed(lm: ppl.HFModel, seed: int = 0, ledger: Account | None = None) -> list[ContinueRequest]:
    """Rows of all kinds: warped, masked, with another law beside, of every length, twins."""
    made = []
    for i, (text, (warp, allowed)) in enumerate(itertools.product(some_texts()[:4], KINDS * 2)):
        spec = Spec(text, RULES[i % 3], 1 + 4 * (i % 5), warp, allowed)
        under = replace(spec, warp=Warp(), allowed=None) if i % 4 == 0 else None
        key = 99 + 7919 * seed + i // 2
        made.append(ContinueRequest(lm, spec, key, "", ledger, under, i % 5 == 0))
    return made


def poisoned(monkeypatch, truth: dict, seed: int = 0) -> None:
    """Guesses are what comes, with random errors: any token, those of no probability too."""
    rng = np.random.default_rng(seed)

    def guesses(self, row, ahead, depth):
        if depth <= 0:
            return []
        key = row.request.key, row.request.spec
        comes = truth[key][len(row.new) :][: rng.integers(0, depth + 1)]
        return [Guess(int(t if rng.random() < 0.8 else rng.integers(0, 97)), 0) for t in comes]

    monkeypatch.setattr(Drafting, "_from_store", guesses)


def drawn_by(lm: ppl.HFModel, requests) -> dict:
    draws = lm.sample_batch(requests)
    return {(r.key, r.spec): d.value.tokens for r, d in zip(requests, draws, strict=True)}


def assert_same(draws, others) -> None:
    for a, b in zip(draws, others, strict=True):
        assert a.value.tokens == b.value.tokens
        assert a.value == b.value
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)
        assert (a.log_prob_under is None) == (b.log_prob_under is None)
        if a.log_prob_under is not None:
            assert a.log_prob_under == pytest.approx(b.log_prob_under, abs=1e-4)
        assert (a.logits is None) == (b.logits is None)
        if a.logits is not None:
            assert_close(a.logits, b.logits)


@pytest.mark.parametrize("compile", COMPILED)
def test_draws_and_bills_are_those_without_guesses(compile, monkeypatch):
    plain, lm = make(), make(compile=compile, drafts=ALWAYS)
    for seed in range(2):
        bills = Account(), Account()
        usual = plain.sample_batch(mixed(plain, seed, bills[0]))
        truth = {
            (r.key, r.spec): d.value.tokens for r, d in zip(mixed(plain, seed), usual, strict=True)
        }
        poisoned(monkeypatch, truth, seed)
        assert_same(usual, lm.sample_batch(mixed(lm, seed, bills[1])))
        assert bills[0].cost.lm_tokens == bills[1].cost.lm_tokens
        assert bills[0].cost.prompt_tokens == bills[1].cost.prompt_tokens
        assert bills[0].cost.reused_tokens == bills[1].cost.reused_tokens
        found = lm.drafts
        assert 0.3 < found.acceptance < 0.95
        wasted = found.tokens_drafted - found.tokens_accepted
        assert lm.engine.tokens_computed - wasted == plain.engine.tokens_computed
        assert lm.engine.passes < plain.engine.passes
    assert not lm.engine.slots.busy


@pytest.mark.parametrize(
    ("family", "stands", "compile"),
    [
        ("Llama", False, False),
        ("Llama", True, False),
        ("GPT2", True, False),
        pytest.param("Llama", True, True, marks=needs_compiler),
    ],
)
def test_what_was_guessed_wrongly_is_forgotten(family, stands, compile, monkeypatch):
    """Of texts, of later forks of them, and of every beginning, against a forward from nothing."""
    lm = make(family, compile=compile, drafts=ALWAYS)
    engine = lm.engine
    if stands:
        engine.sharing.price, engine.sharing.block = -1, 4
    if compile:  # guesses of one slot read what is before them together
        engine.runner.price = 0
    texts = some_texts() * 2
    for turn in range(3):
        requests = [
            request(lm, text, 31 * turn + i // 2, max_tokens=5 + i) for i, text in enumerate(texts)
        ]
        truth = drawn_by(make(family), requests)
        poisoned(monkeypatch, truth, turn)
        for text, draw in zip(texts, lm.sample_batch(requests), strict=True):
            exact = plain_log_probs(lm.model, text, draw.value.tokens)
            assert draw.log_prob == pytest.approx(exact, abs=1e-4)
        grown = [t + truth[r.key, r.spec] for t, r in zip(texts, requests, strict=True)]
        with torch.inference_mode():
            for text in grown[:6]:
                for size in range(1, len(text) + 1, 3):
                    if (state := engine.known(text[:size])) is not None:
                        ids = torch.tensor([text[:size]], device=DEVICE)
                        exact = engine.base(ids, use_cache=False).last_hidden_state[0, -1]
                        assert_close(state, exact)
        # On from where they are, from within, and from where they were.
        texts = [text[: len(text) - i % 3] for i, text in enumerate(grown) if len(text) < 60]
    assert lm.drafts.tokens_accepted > 20
    assert not engine.slots.busy


@needs_compiler
@needs_own
@pytest.mark.parametrize("rows", [1, 4])
def test_bits_are_those_without_guesses_where_steps_are_one_program(rows, monkeypatch):
    """Guesses go through the program of a step, each by itself, as long as that is no more to
    read; so results do not depend on when it was thought that guesses pay."""
    found = []
    config = FAMILIES["Llama"]()
    for drafts in (None, ALWAYS):
        lm = ppl.HFModel(in_bfloat16(config), Letters(), name="whole", drafts=drafts)
        assert lm.engine.runner.whole is not None
        asked = [request(lm, some_texts()[i % 2], i, max_tokens=30) for i in range(rows)]
        if drafts:
            truth = {(r.key, r.spec): d.value.tokens for r, d in zip(asked, found[0], strict=True)}
            lm.drafts.settings = replace(ALWAYS, depth=3)  # so many tokens a pass are one program
            poisoned(monkeypatch, truth)
        found.append(lm.sample_batch(asked))
    assert lm.drafts.tokens_accepted > 8 * rows
    assert lm.engine.tokens_padded == 0
    for a, b in zip(*found, strict=True):
        assert (a.value.tokens, a.log_prob) == (b.value.tokens, b.log_prob)


def test_siblings_are_guessed_from_what_they_drew():
    plain, lm = make(), make(drafts=ALWAYS)
    for model in (plain, lm):
        model.model.lm_head.weight.data *= 30  # surer of itself
    for turn in range(3):
        usual = [request(plain, some_texts()[1], 10 * turn + i, max_tokens=30) for i in range(6)]
        lm.drafts.tokens_drafted = lm.drafts.tokens_accepted = 0
        before = plain.engine.passes, lm.engine.passes
        draws = lm.sample_batch([replace(each, model=lm) for each in usual])
        assert_same(plain.sample_batch(usual), draws)
    passes = plain.engine.passes - before[0], lm.engine.passes - before[1]
    assert lm.drafts.acceptance > 0.35
    assert passes[1] < 0.6 * passes[0]


def test_answers_come_in_the_order_in_which_they_come_without(monkeypatch):
    orders = []
    for drafts in (None, ALWAYS):
        lm = make(drafts=drafts)
        truth = drawn_by(make(), mixed(lm))
        if drafts:
            poisoned(monkeypatch, truth)
        session, order = lm.session(), []
        waiting = mixed(lm)
        while waiting or session.running:
            for one in waiting[:7]:  # some come later
                session.submit(one)
            del waiting[:7]
            order.append(sorted(session.step()))
        session.close()
        orders.append(order)
    assert orders[0] == orders[1]
    assert lm.drafts.tokens_accepted > 20


@pytest.mark.parametrize("tokens", [0, 50, 111])
def test_budgets_end_rows_as_they_do_without(tokens, monkeypatch):
    found = []
    for drafts in (None, ALWAYS):
        lm = make(drafts=drafts)
        if drafts:
            poisoned(monkeypatch, drawn_by(make(), mixed(lm)))
        ledger = Account(Budget(tokens=tokens))
        draws = lm.sample_batch(mixed(lm, ledger=ledger))
        found.append(([d and d.value.tokens for d in draws], ledger.cost.lm_tokens))
        assert not lm.engine.slots.busy
    assert found[0] == found[1]
    assert None in found[0][0]


def test_cancelled_rows_leave_nothing(monkeypatch):
    lm = make(drafts=ALWAYS)
    requests = [request(lm, text, i, max_tokens=20) for i, text in enumerate(some_texts())]
    truth = drawn_by(make(), requests)
    poisoned(monkeypatch, truth)
    session = lm.session()
    tickets = [session.submit(each) for each in requests]
    done = dict(session.step()) | dict(session.step())
    session.cancel(tickets[1::2])
    while session.running:
        done |= session.step()
    session.close()
    assert sorted(done) == tickets[::2]
    for number, each in zip(tickets, requests, strict=True):
        assert number not in done or done[number].value.tokens == truth[each.key, each.spec]
    assert not lm.engine.slots.busy


@pytest.mark.parametrize("kv_bytes", [200_000, 40_000, 25_000])
def test_memory_is_no_more_than_without(kv_bytes, monkeypatch):
    plain, lm = make(kv_bytes=kv_bytes), make(kv_bytes=kv_bytes, drafts=ALWAYS)
    usual = [request(plain, t, i, max_tokens=40) for i, t in enumerate(some_texts(3))]
    truth = drawn_by(plain, usual)
    poisoned(monkeypatch, truth)
    found = drawn_by(lm, [replace(each, model=lm) for each in usual])
    assert list(found.values()) == list(truth.values())
    assert lm.engine.pool.nbytes <= kv_bytes
    if kv_bytes > 25_000:
        assert lm.engine.peak_nbytes <= max(kv_bytes, plain.engine.peak_nbytes)


def test_the_law_is_the_models(monkeypatch):
    """Draws with guesses from earlier draws against enumeration."""
    lm = make(drafts=ALWAYS)
    lm.model.lm_head.weight.data *= 6
    text, letters = some_texts()[0], (3, 40, 77)
    spec = Spec(text, StepRule(), 3, Warp(0.8), frozenset(letters))
    counts: Counter = Counter()
    for seed in range(200):
        requests = [ContinueRequest(lm, spec, 1 + 7907 * (6 * seed + i)) for i in range(6)]
        lm.engine.pool.clear()  # else all texts there are would be known
        counts.update(d.value.tokens for d in lm.sample_batch(requests))
    law = {}
    with torch.inference_mode():
        for new in itertools.product(letters, repeat=3):
            ids = torch.tensor([text + new], device=DEVICE)
            logits = (
                lm.model(ids, use_cache=False).logits[0, len(text) - 1 : -1, letters].double() / 0.8
            )
            picked = torch.log_softmax(logits, -1)[range(3), [letters.index(t) for t in new]]
            law[new] = float(picked.sum().exp())
    assert sum(law.values()) == pytest.approx(1)
    assert lm.drafts.tokens_accepted > 100
    expected = [1200 * law[new] for new in law]
    assert chisquare([counts[new] for new in law], expected).pvalue > 1e-3


def test_errors_of_rows_come_when_they_would_without(monkeypatch):
    """A row that is ahead meets an error before it shows the tokens in front of it."""

    def fails(new):
        if len(new) == 6:
            raise RuntimeError("no more")

    usual = make()
    text = some_texts()[0]
    truth = drawn_by(usual, [request(usual, text, max_tokens=6)])
    lm = make(drafts=ALWAYS)
    spec = Spec(text, StepRule(), 9, Warp(), fails)
    (tokens,) = truth.values()
    row = ContinueRequest(lm, spec, request(lm, text).key)
    poisoned(monkeypatch, {(row.key, spec): tokens}, 5)
    with pytest.raises(ProgramError, match=r"no more.*after 6 new tokens"):
        lm.sample_batch([row])
    assert lm.sample_batch([replace(row, ledger=Account(Budget(tokens=6)))]) == [None]
    session = lm.session()
    session.submit(row)
    for _ in range(6):
        assert session.step() == {}
    with pytest.raises(ProgramError):
        session.step()
    session.close()
    assert not lm.engine.slots.busy


def test_failing_passes_leave_no_slot(monkeypatch):
    lm = make(drafts=ALWAYS)
    requests = [request(lm, text, i, max_tokens=9) for i, text in enumerate(some_texts())]
    poisoned(monkeypatch, drawn_by(make(), requests))
    monkeypatch.setattr(lm.engine.runner, "extend", lambda rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lm.sample_batch(requests)
    monkeypatch.undo()
    assert not lm.engine.slots.busy
    assert len(lm.sample_batch(requests)) == len(requests)


# -- a smaller model that guesses -----------------------------------------------------------------


def test_a_smaller_model_guesses_with_the_rows_own_numbers():
    plain = make()
    for small, least, most in ((make(), 0.9, 1.0), (make("GPT2"), 0.0, 0.6)):
        lm = make(drafts=Drafts(small, depth=3, switch="always"))
        for seed in range(2):
            assert_same(plain.sample_batch(mixed(plain, seed)), lm.sample_batch(mixed(lm, seed)))
        assert least <= lm.drafts.acceptance <= most
        assert not small.engine.slots.busy
    lm = make(drafts=make())  # as it is measured to pay
    assert_same(plain.sample_batch(mixed(plain, 5)), lm.sample_batch(mixed(lm, 5)))


@pytest.mark.parametrize("wanting", ["context", "ids", "more ids", "memory"])
def test_a_smaller_model_guesses_as_far_as_it_can(wanting):
    """It may be smaller in all that it has; rows that it cannot follow draw without it."""
    config = {"context": FAMILIES["GPT2"](), "memory": FAMILIES["Llama"]()}.get(wanting)
    if wanting == "context":
        config.n_positions = 32
    elif config is None:
        config = type(FAMILIES["Llama"]())(
            **{**SMALL, "vocab_size": 90 if wanting == "ids" else 128}
        )
    kv_bytes = 60_000 if wanting == "memory" else 2 << 30
    small = ppl.HFModel(random_model(config), Letters(), name="small", kv_bytes=kv_bytes)
    plain, lm = make(), make(drafts=Drafts(small, switch="always"))

    def asked(model: ppl.HFModel) -> list[ContinueRequest]:
        odd = torch.arange(97) % 2 == 1
        spec = Spec(tuple(range(3, 20)), StepRule(), 40, Warp(), odd)
        masked = ContinueRequest(model, spec, 7, "")
        texts = [tuple(range(i, i + 20)) for i in range(3, 13)]
        return [masked, *(request(model, t, i, max_tokens=40) for i, t in enumerate(texts))]

    assert_same(plain.sample_batch(asked(plain)), lm.sample_batch(asked(lm)))
    assert lm.drafts.tokens_drafted
    assert small.engine.peak_nbytes <= kv_bytes
    assert not small.engine.slots.busy


def test_measured_switches_change_no_draw():
    plain, lm = make(), make(drafts="siblings")
    for seed in (0, 1, 0):  # what has been drawn before is guessed, if that pays
        assert_same(plain.sample_batch(mixed(plain, seed)), lm.sample_batch(mixed(lm, seed)))
    lm.drafts.forget()
    assert lm.drafts.tokens_drafted == len(lm.drafts.store) == 0


# -- what cannot be -------------------------------------------------------------------------------


def test_what_cannot_go_back_is_refused_by_name():
    lfm2 = families.random_model(families.config_of("lfm2"))
    with pytest.raises(UnsupportedModelError, match="lfm2: no drafts: its recurrent layers"):
        ppl.HFModel(lfm2, Letters(), name="lfm2", drafts="siblings")
    with pytest.raises(UnsupportedModelError, match=r"no drafts: with kv='window\(16, 4\)'"):
        make(kv="window(16)", drafts="siblings")
    with pytest.raises(ValueError, match=r"'siblings', or a model: drafts=ppl.load"):
        make(drafts="cousins")
    with pytest.raises(ValueError, match="switch='maybe'"):
        Drafts(switch="maybe")
    with pytest.raises(ValueError, match="depth"):
        Drafts(depth=0)
    with pytest.raises(ValueError, match="replicas= and drafts="):
        ppl.load("tiny", replicas=2, drafts="siblings")
    with pytest.raises(UnsupportedModelError, match="another tokenizer than Llama"):
        make(drafts=ppl.load("tiny"))


def test_windows_of_the_models_own_are_no_hindrance(monkeypatch):
    config = FAMILIES["Mistral"]()
    config.sliding_window = 8
    plain = ppl.HFModel(random_model(config), Letters(), name="windows")
    lm = ppl.HFModel(random_model(config), Letters(), name="windows", drafts=ALWAYS)
    truth = drawn_by(plain, mixed(plain))
    poisoned(monkeypatch, truth)
    assert list(drawn_by(lm, mixed(lm)).values()) == list(truth.values())
    assert lm.drafts.tokens_accepted > 20


def test_eight_bit_keys_are_no_hindrance(monkeypatch):
    plain, lm = make(kv="int8"), make(kv="int8", drafts=ALWAYS)
    truth = drawn_by(plain, mixed(plain))
    poisoned(monkeypatch, truth)
    assert list(drawn_by(lm, mixed(lm)).values()) == list(truth.values())


def test_rows_with_adapters_beside_the_weights_guess_for_themselves(tmp_path, monkeypatch):
    trio = Trio(random_model(FAMILIES["Llama"]()), tmp_path, drafts=ALWAYS)
    asked = [(which, text) for which in ("one", "alone", "two") for text in some_texts()[:3]]
    requests = [request(trio.models[w], t, i, max_tokens=12) for i, (w, t) in enumerate(asked)]
    base = trio.models["alone"]
    truth = drawn_by(base, requests)
    base.engine.pool.clear()
    poisoned(monkeypatch, truth)
    for (which, text), draw in zip(asked, base.sample_batch(requests), strict=True):
        exact = trio.exact(which, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)
    assert base.drafts.tokens_accepted > 20


def test_searches_give_what_they_give_without():
    """Steps, weights, forks, and another question after another."""
    results = []
    for drafts in (None, ALWAYS):
        lm = ppl.load("tiny", drafts=drafts)

        def program(question, lm=lm):
            text = lm.chat(question)
            for t in range(2):
                text = text + pyro.sample(f"step_{t}", lm(text, max_tokens=9))
                ppl.twist(f"short_{t}", -0.1 * len(text.tokens))
                if text.finished:
                    break
            return text.text

        found = [
            SMC(8).run(program, f"Calculate 4 - {number} + 6.", seed=number) for number in range(6)
        ]
        results.append([(sorted(s.value for s in f.samples), f.log_evidence) for f in found])
    assert lm.drafts.tokens_accepted > 5
    for (texts, evidence), (others, other) in zip(*results, strict=True):
        assert texts == others
        assert evidence == pytest.approx(other, abs=1e-4)
