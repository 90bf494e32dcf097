"""Decoders: rows that join, go on by tokens or by blocks, fork, rewind and leave, in any order."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from engines import FAMILIES, Letters, make, plain_log_probs, random_model, request, some_texts
from hypothesis import given, settings
from hypothesis import strategies as st

import ppl
from ppl.errors import PromptError
from ppl.language.cost import Account
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, ScoreRequest, Spec
from ppl.lm.decode import PlainDecoder
from ppl.lm.sampling import Warp


class Bigrams(ppl.LogitsModel):
    """A model of one's own, as the documentation shows it: logits of prefixes and nothing else."""

    def __init__(self) -> None:
        self.name, self.context_length = "bigrams", 64
        self.codec = ppl.TableLM({"a": 1.0}, symbols="^abc$").codec
        self.table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))

    def logits_along(self, prefixes, continuations, ledgers):
        for prefix, new in zip(prefixes, continuations, strict=True):
            yield self.table[[prefix[-1], *new[:-1]]]


@functools.cache
def model(kind):
    if kind == "bigrams":
        return Bigrams()
    family, kv_bytes = kind
    return make(family, kv_bytes=kv_bytes)


@functools.cache
def plain_logits(kind, text):
    """`[V]` after a text, by a plain forward pass."""
    lm = model(kind)
    if kind == "bigrams":
        return lm.table[text[-1]]
    with torch.inference_mode():
        return lm.model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]


KINDS = ["bigrams", ("Llama", 1 << 26), ("Llama", 40_000), ("GPT2", 42_000), ("Phi", 1 << 26)]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["join", "advance", "extend", "extend", "rewind", "leave"]),
        st.lists(st.integers(0, 99), min_size=1, max_size=4),
        st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple),
    ),
    min_size=2,
    max_size=9,
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=25, deadline=None)
@given(operations=OPERATIONS)
def test_any_interleaving_gives_the_logits_of_plain_forwards(kind, operations):
    lm = model(kind)
    decoder = lm.decoder()
    texts: list[tuple[int, ...]] = []

    def check(found, text):
        torch.testing.assert_close(found, plain_logits(kind, text), rtol=1e-4, atol=1e-4)

    for what, numbers, block in operations:
        keep = sorted({n % len(texts) for n in numbers}) if texts else []
        if what == "join":
            new = [block[: 1 + n % 3] for n in numbers]
            decoder.join(new, [None] * len(new))
            texts += new
        elif what == "advance" and keep:
            decoder.advance(keep, [1 + numbers[0] % 3] * len(keep))
            texts = [(*texts[row], 1 + numbers[0] % 3) for row in keep]
        elif what == "extend" and keep:
            # Blocks of other lengths: twins part, and some go on with what others have.
            blocks = [block[: 1 + row % len(block)] for row in keep]
            texts = [texts[row] + b for row, b in zip(keep, blocks, strict=True)]
            along = decoder.extend(keep, blocks)
            for text, b, logits in zip(texts, blocks, along, strict=True):
                assert len(logits) == len(b)
                for t, row in enumerate(logits):
                    check(row, text[: len(text) - len(b) + t + 1])
        elif what == "rewind" and texts:
            counts = [(i * numbers[0]) % len(t) for i, t in enumerate(texts)]
            decoder.rewind(counts)
            texts = [t[: len(t) - n] for t, n in zip(texts, counts, strict=True)]
        elif what == "leave":
            decoder.advance([], [])
            texts = []
        assert len(decoder.logits) == len(texts)
        for text, logits in zip(texts, decoder.logits, strict=True):
            check(logits, text)
    decoder.advance([], [])
    if kind != "bigrams":
        assert not lm.engine.slots.busy


def test_a_block_is_one_pass_and_costs_its_own_tokens():
    lm = make()
    prompts = [tuple(range(3, 30)), tuple(range(40, 60))]
    decoder = lm.decoder()
    decoder.join(prompts, [None, None])
    before = lm.engine.passes, lm.engine.tokens_computed
    decoder.extend([0, 1], [(5, 6, 7, 8), (9, 10)])
    assert (lm.engine.passes - before[0], lm.engine.tokens_computed - before[1]) == (1, 6)
    # What was rejected is known when it is drafted again.
    decoder.rewind([3, 0])
    decoder.extend([0, 1], [(6, 7), (11,)])
    assert lm.engine.tokens_computed - before[1] == 7
    decoder.advance([], [])


def test_a_model_of_ones_own_draws_and_scores_by_its_logits():
    lm = Bigrams()
    law = lm(lm.prompt("^"), max_tokens=4, temperature=0.7)
    drawn = lm.sample_batch([request(lm, (0,), i, max_tokens=4) for i in range(20)])
    plain = lm(lm.prompt("^"), max_tokens=4)
    for draw in drawn:
        assert float(plain.log_prob(draw.value)) == pytest.approx(draw.log_prob, abs=1e-5)
    assert law.log_prob(drawn[0].value) != plain.log_prob(drawn[0].value)
    assert isinstance(lm.decoder(), PlainDecoder)


def test_tokens_of_a_continuation_are_independent_draws():
    """All texts of four fair letters are equally frequent."""
    fair = ppl.TableLM({"a": 0.5, "b": 0.5}, symbols="^ab$")
    drawn = fair.sample_batch([request(fair, (0,), i, max_tokens=4) for i in range(1600)])
    counts = Counter(draw.value.text for draw in drawn)
    assert len(counts) == 16
    assert all(abs(count - 100) < 4 * math.sqrt(100) for count in counts.values())


def test_rows_go_on_as_if_alone_when_others_have_left():
    lm = Bigrams()
    requests = [request(lm, (0,), i, max_tokens=1 + 7 * i % 9) for i in range(12)]
    together = lm.sample_batch(requests)
    assert len({len(draw.value.tokens) for draw in together}) > 4
    assert together == [lm.sample_batch([r])[0] for r in requests]


def test_what_no_draw_returns_has_probability_zero():
    lm = Bigrams()
    text = lm.prompt("^")
    by_rule, cut = lm(text, until="b"), lm(text, max_tokens=2)
    both = lm(text, until="b", max_tokens=2)
    say = lm.continuation
    assert all(math.isfinite(by_rule.log_prob(say(s))) for s in ("b", "aab", "c$"))
    assert all(math.isfinite(cut.log_prob(say(s))) for s in ("aa", "bc", "a$"))
    assert all(math.isfinite(both.log_prob(say(s))) for s in ("ab", "aa", "b"))
    beyond_its_end, before_its_end, too_long = ("abab", "a$b"), ("a", "ac"), ("aab", "cc$")
    for law, values in (
        (by_rule, beyond_its_end),
        (by_rule, before_its_end),
        (cut, ("a",)),
        (both, too_long),
        (by_rule, ("a" * 63,)),  # the context is full and the step has not ended: an error
    ):
        assert all(float(law.log_prob(say(s))) == -math.inf for s in values)


def test_the_probability_of_a_long_continuation_is_the_product_of_its_tokens():
    """Thousands of float32 logarithms are added without losing digits on the way."""
    lm = Bigrams()
    lm.context_length = 4096
    value = lm.continuation("abccbaacb" * 440)
    steps = [((a,), (b,)) for a, b in itertools.pairwise((0, *value.tokens))]
    requests = [
        ScoreRequest(lm, Spec(before, StepRule(), 1, Warp(), None), lm.continuation(token))
        for before, token in steps
    ]
    whole = lm(lm.prompt("^"), max_tokens=len(value.tokens)).log_prob(value)
    assert float(whole) == pytest.approx(math.fsum(lm.score_batch(requests)), abs=2e-5)


def test_what_is_scored_is_booked_token_by_token():
    lm, ledger = Bigrams(), Account()
    values = [lm.continuation(s) for s in ("ab", "c")]
    lm.score_batch(
        [ScoreRequest(lm, Spec((0,), StepRule(), len(v.tokens), Warp(), None), v, ledger=ledger)
         for v in values]
    )  # fmt: skip
    assert ledger.cost == ppl.Cost(scored_tokens=3)


def test_a_rule_may_fill_one_mask_for_all_rows():
    """After an a only b may follow, and so on in a circle; rows stand at different letters."""
    lm, mask = Bigrams(), torch.zeros(5, dtype=torch.bool)

    def refilled(new):
        mask[:] = False
        mask[1 + new[-1] % 3 if new else [1, 2, 3]] = True
        return mask

    spec = Spec((0,), StepRule(), 6, Warp(), refilled)
    for draw in lm.sample_batch([ContinueRequest(lm, spec, 97 * i) for i in range(12)]):
        assert draw.value.text in "abcabcabc"
        assert lm.score_batch([ScoreRequest(lm, spec, draw.value)]) == pytest.approx(
            [draw.log_prob]
        )


# -- what fails leaves nothing behind ------------------------------------------------------------


def broken(lm, monkeypatch, *, after=0):
    """The model raises after some passes; a function that mends it."""
    forward, calls = lm.engine.base.forward, []

    def fails(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise RuntimeError("no")
        return forward(*args, **kwargs)

    monkeypatch.setattr(lm.engine.base, "forward", fails)
    return lambda: monkeypatch.setattr(lm.engine.base, "forward", forward)


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_pass_that_fails_frees_its_slots_and_forgets_what_it_did_not_compute(after, monkeypatch):
    lm = make(kv_bytes=1 << 20)
    texts = some_texts()[:4]
    lm.sample_batch([request(lm, t, i) for i, t in enumerate(texts)])
    lm.engine.pool.clear()
    mend = broken(lm, monkeypatch, after=after)
    for attempt in range(4):
        with pytest.raises(RuntimeError, match="no"):
            lm.sample_batch([request(lm, t, 9 + attempt, max_tokens=9) for t in texts])
        assert not lm.engine.slots.busy
        with pytest.raises(RuntimeError, match="no"):
            lm.engine.hidden([(*range(40, 60 + attempt),)], [0])
        assert not lm.engine.slots.busy
    mend()
    for text, draw in zip(texts, lm.sample_batch([request(lm, t) for t in texts]), strict=True):
        exact = plain_log_probs(lm.model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("what", ["extend", "rewind", "advance"])
def test_a_decoder_that_fails_holds_nothing(what, monkeypatch):
    lm = make()
    decoder = lm.decoder()
    decoder.join([(3, 4, 5), (3, 4, 6), (7, 8)], [None] * 3)
    mend = broken(lm, monkeypatch)
    if what == "rewind":
        lm.engine.pool.clear()
        monkeypatch.setattr(lm.engine, "hidden", lambda *_: 1 / 0)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        {
            "extend": lambda: decoder.extend([0, 1], [(5, 6), (7,)]),
            "advance": lambda: decoder.advance([0, 1, 2], [9, 9, 9]),
            "rewind": lambda: decoder.rewind([1, 0, 0]),
        }[what]()
    assert not lm.engine.slots.busy
    assert len(decoder.logits) == 0
    mend()
    monkeypatch.undo()
    decoder.join([(3, 4, 5)], [None])
    want = lm.model(input_ids=torch.tensor([(3, 4, 5)])).logits[0, -1]
    torch.testing.assert_close(decoder.logits[0], want, rtol=1e-4, atol=1e-4)
    decoder.advance([], [])


def test_memory_that_cannot_be_had_leaves_an_engine_that_works(monkeypatch):
    lm = make()
    lm.sample_batch([request(lm, (3, 4, 5))])
    new_zeros = torch.Tensor.new_zeros

    def full(self, *shape, **kwargs):
        if len(shape) == 5 and shape[1]:
            raise torch.OutOfMemoryError("full")
        return new_zeros(self, *shape, **kwargs)

    texts = [tuple(range(3, 90)), tuple(range(5, 80))]
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_zeros", full)
        with pytest.raises(torch.OutOfMemoryError):
            lm.sample_batch([request(lm, t, max_tokens=20) for t in texts])
    assert lm.engine.known((3, 4, 5)) is None  # its memory has gone
    for text, draw in zip(texts, lm.sample_batch([request(lm, t) for t in texts]), strict=True):
        exact = plain_log_probs(lm.model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("strange", [1.5, -1, 97, 10**6])
def test_ids_that_the_model_does_not_have_are_refused_and_leave_nothing(strange):
    lm = make()
    for text in ((3, 4, strange), (strange,)):
        with pytest.raises(PromptError, match=r"token ids.*0 to 96.*lm\.prompt"):
            lm.sample_batch([request(lm, text)])
    assert not lm.engine.slots.busy


# -- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engines", [1, 2])
def test_threads_that_share_a_model_get_exact_numbers(engines):
    """Also two engines over one model: a pass sets the attention of its configuration."""
    base = random_model(FAMILIES["Llama"]())
    lms = [ppl.HFModel(base, Letters(), name=f"m{i}", kv_bytes=200_000) for i in range(engines)]
    rng = np.random.default_rng(0)
    items = [tuple(rng.integers(3, 97, rng.integers(3, 40)).tolist()) for _ in range(12)]
    values = [tuple(rng.integers(3, 97, 3).tolist()) for _ in items]
    want = [plain_log_probs(base, t, v) for t, v in zip(items, values, strict=True)]
    failures: list[object] = []

    def work(number: int) -> None:
        lm, mine = lms[number % engines], np.random.default_rng(number)
        try:
            for _ in range(25):
                i = int(mine.integers(len(items)))
                spec = request(lm, items[i], max_tokens=3).spec
                value = ppl.Continuation(values[i], "", "length")
                score = lm.score_batch([ScoreRequest(lm, spec, value)])[0]
                seed = int(mine.integers(1000))
                (draw,) = lm.sample_batch([request(lm, items[i], seed, max_tokens=4)])
                exact = plain_log_probs(base, items[i], draw.value.tokens)
                if abs(score - want[i]) > 1e-3 or abs(draw.log_prob - exact) > 1e-3:
                    failures.append((i, score, want[i], draw.log_prob, exact))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not any(lm.engine.slots.busy for lm in lms)


def test_ledgers_of_a_model_of_ones_own():
    lm, ledger = ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$"), Account()
    lm.sample_batch([request(lm, (0, 1), ledger=ledger, max_tokens=1)])
    assert (ledger.cost.reused_tokens, ledger.cost.prompt_tokens) == (2, 0)


class Cramped(Bigrams):
    """Room for `rows(length)` rows at a time; every prefix token is computed and booked."""

    def __init__(self, rows) -> None:
        super().__init__()
        self.batch_rows = rows
        self.table[:, 4] = -math.inf  # the text never ends

    def logits_along(self, prefixes, continuations, ledgers):
        for prefix, ledger in zip(prefixes, ledgers, strict=True):
            if ledger is not None:
                ledger.add(prompt_tokens=len(prefix))
        return super().logits_along(prefixes, continuations, ledgers)


def test_rows_that_wait_are_given_up_with_those_whose_ledger_they_share():
    lm = Cramped(lambda length: 2)
    ledger, other = Account(ppl.Budget(tokens=5)), Account()
    session = lm.session()
    mine = [session.submit(request(lm, (0, 1), i, ledger=ledger)) for i in range(3)]
    last = session.submit(request(lm, (0, 1), 3, ledger=other))
    answers = [session.step() for _ in range(3)]
    # Two rows drew twice; the fifth token would favour one of them, or the one that waited.
    assert answers == [{}, {}, dict.fromkeys(mine)]
    assert ledger.cost.lm_tokens == 4
    assert ledger.cost.prompt_tokens == 2 * 2  # it had no place, and computed nothing
    while session.running:
        answers.append(session.step())
    assert [a[last].value.reason for a in answers if last in a] == ["length"]
    assert other.cost.lm_tokens == 6


def test_rows_that_nobody_waits_for_any_more_pay_for_nothing():
    lm, ledger = Cramped(lambda length: 3), Account(ppl.Budget(tokens=4))
    session = lm.session()
    tickets = [session.submit(request(lm, (0, 1), i, ledger=ledger)) for i in range(3)]
    session.step()
    session.cancel(tickets[:2])
    assert session.step() == {}  # there is a fourth token for the row that is left
    assert ledger.cost.lm_tokens == 4


def test_a_row_that_rejoins_half_way_is_booked_once():
    # Room for two short texts, but for one only that has three tokens or more.
    lm = Cramped(lambda length: 2 if length < 3 else 1)
    ledgers = [Account(), Account()]
    session = lm.session()
    rule = StepRule.of(lambda text: len(text) >= 3)
    specs = [Spec((0,), rule, None, Warp(), None)] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl.lm.row._USUAL_STEP", 1)
        for i, (spec, ledger) in enumerate(zip(specs, ledgers, strict=True)):
            session.submit(ContinueRequest(lm, spec, i, ledger=ledger))
        while session.running:
            session.step()
    assert session.joined == 2
    for ledger in ledgers:
        assert (ledger.cost.prompt_tokens, ledger.cost.lm_tokens) == (1, 3)


def test_a_row_is_remembered_as_far_as_it_was_computed():
    engine, text = make().engine, (3, 4, 5)
    slots, _ = engine.open([text])
    engine.close(slots[text], (*text, 6))
    assert engine.known(text) is not None
    assert engine.known((*text, 6)) is None
