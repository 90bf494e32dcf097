"""Running batches of one model in one memory: within its budget, and none waits forever."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import pytest
from engines import make, request
from test_engine_memory import WORDS, nothing_is_left, references_are_right, standing, watched

from ppl.language.cost import Account
from ppl.lm.company import Company, Member
from ppl.lm.drafts import Drafts

CAPACITY = 520_000  # ten rows of the lengths below


def asked(lm, first: int, count: int, tokens: int = 12) -> list:
    texts = [WORDS[i : i + 20] for i in range(first, first + count)]
    return [request(lm, text, first + i, max_tokens=tokens) for i, text in enumerate(texts)]


def beginning(lm, first: int, count: int, tokens: int = 12):
    session = lm.session()
    for one in asked(lm, first, count, tokens):
        session.submit(one)
    return session


def alone(first: int, count: int, tokens: int = 12) -> list:
    lm = make()
    return [d.value.tokens for d in lm.sample_batch(asked(lm, first, count, tokens))]


def within(engine) -> None:
    assert engine.slots.nbytes <= engine.capacity // 2
    fitting = engine.batch_rows(max((slot.tail for slot in engine.slots.busy), default=1))
    assert len(engine.slots.busy) <= fitting


def test_what_threads_run_together_stays_within_the_budget(monkeypatch):
    lm = standing(CAPACITY, price=10**9, block=64)
    peak = watched(lm.engine, monkeypatch)
    found: dict[int, list] = {}
    failed: list[BaseException] = []
    together = threading.Barrier(4)

    def search(n: int) -> None:
        try:
            together.wait()
            session, drawn = beginning(lm, 5 * n, 14), {}
            while session.running:
                drawn |= session.step()
                with lm.engine.lock:
                    within(lm.engine)
            session.close()
            found[n] = [drawn[ticket].value.tokens for ticket in sorted(drawn)]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=search, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not failed
    assert found == {n: alone(5 * n, 14) for n in range(4)}
    assert peak[0] <= CAPACITY
    references_are_right(lm.engine)
    nothing_is_left(lm.engine)


@pytest.mark.parametrize("capacity", [50_000, CAPACITY])
def test_who_is_asked_in_the_middle_of_a_batch_waits_for_nobody(capacity, monkeypatch):
    """Nobody steps the first batch until the second is done, as where a judge asks its model."""
    lm = standing(capacity, price=10**9, block=64)
    peak = watched(lm.engine, monkeypatch)
    first, drawn = beginning(lm, 0, 30, tokens=16), {}
    for _ in range(5):
        drawn |= first.step()
    busy = len(lm.engine.slots.busy)
    assert busy == lm.engine.batch_rows(36) == (1 if capacity < CAPACITY else busy)
    (states,) = lm.engine.hidden([WORDS[:36]], [0])  # and so does a reward model beside it
    assert len(states) == 36
    assert len(lm.engine.slots.busy) == busy - 1
    within(lm.engine)
    drawn |= first.step()
    assert len(lm.engine.slots.busy) == busy
    second = lm.sample_batch(asked(lm, 40, 3))
    within(lm.engine)
    while first.running:
        drawn |= first.step()
        within(lm.engine)
    assert [d.value.tokens for d in second] == alone(40, 3)
    assert [drawn[t].value.tokens for t in sorted(drawn)] == alone(0, 30, tokens=16)
    assert peak[0] <= capacity
    nothing_is_left(lm.engine)


def test_who_comes_late_gets_a_share():
    lm = standing(CAPACITY, price=10**9, block=64)
    first = beginning(lm, 0, 60)
    first.step()
    fitting = len(lm.engine.slots.busy)
    assert fitting == 10
    second, ended = beginning(lm, 60, 20), {}
    steps = 0
    while first.running or second.running:
        for name, session in (("first", first), ("second", second)):
            session.step()
            within(lm.engine)
            if not session.running:
                ended.setdefault(name, steps)
        steps += 1
        assert steps < 400
    assert ended["second"] < ended["first"]
    assert second.joined >= fitting // 2
    first.close()
    second.close()
    nothing_is_left(lm.engine)


def test_one_row_is_handed_to_and_fro_where_only_one_fits():
    lm = standing(50_000, price=10**9, block=64)
    assert lm.engine.batch_rows(32) == 1
    sessions, drawn = [beginning(lm, 10 * n, 2) for n in range(3)], [{}, {}, {}]
    while any(session.running for session in sessions):
        for session, mine in zip(sessions, drawn, strict=True):
            mine |= session.step()
            assert len(lm.engine.slots.busy) <= 1
    for n, mine in enumerate(drawn):
        assert [mine[t].value.tokens for t in sorted(mine)] == alone(10 * n, 2)
    nothing_is_left(lm.engine)


@pytest.mark.parametrize("capacity", [50_000, CAPACITY])
def test_with_guesses_rows_that_give_way_pay_for_what_they_draw(capacity):
    lm = make(kv_bytes=capacity, drafts=Drafts(switch="always"))
    accounts, sessions, drawn = [Account(), Account()], [lm.session(), lm.session()], [{}, {}]
    for n, session in enumerate(sessions):
        for one in asked(lm, 10 * n, 8, tokens=30):
            session.submit(replace(one, ledger=accounts[n]))
    while any(session.running for session in sessions):
        for session, mine in zip(sessions, drawn, strict=True):
            mine |= session.step()
            within(lm.engine)
    for n, (mine, account) in enumerate(zip(drawn, accounts, strict=True)):
        tokens = [mine[t].value.tokens for t in sorted(mine)]
        assert tokens == alone(10 * n, 8, tokens=30)
        assert account.cost.lm_tokens == sum(map(len, tokens))
    nothing_is_left(lm.engine)


def test_nobody_parks_rows_of_a_batch_that_is_about_to_drop_some(monkeypatch):
    """What the decoder has and what is held are dropped as one; nothing of them is left."""
    lm = make(drafts=Drafts(switch="always"))
    session, entered, lock = beginning(lm, 0, 6, tokens=20), [], lm.engine.lock
    settle = session._decoder.settle

    def watching() -> None:
        if lock.acquire(timeout=0.01):
            entered.append(True)
            lock.release()

    def settled(keep, lengths):
        settle(keep, lengths)
        other = threading.Thread(target=watching)
        other.start()
        other.join()

    monkeypatch.setattr(session._decoder, "settle", settled)
    session.step()
    waiting = session.submit(asked(lm, 20, 1)[0])
    session.cancel([1, 3, waiting])
    session.step()
    assert len(session.held) == len(session._rows) == 4
    assert set(session._aheads) == {2, 4, 5, 6}
    while session.running:
        session.step()
    assert not session._aheads
    assert not entered
    session.close()
    nothing_is_left(lm.engine)


def test_a_batch_that_failed_or_is_forgotten_holds_nothing(monkeypatch):
    lm = standing(CAPACITY, price=10**9, block=64)
    kept = beginning(lm, 0, 40)
    monkeypatch.setattr(lm.engine.runner, "_pass", None)
    with pytest.raises(TypeError):
        kept.step()
    monkeypatch.undo()
    assert not lm.engine.slots.busy
    other = beginning(lm, 0, 40)
    other.step()
    assert len(other.held) == lm.engine.batch_rows(32)
    other.close()
    nothing_is_left(lm.engine)


def test_a_judge_beside_its_generator_stays_within_the_budget(monkeypatch):
    lm = standing(CAPACITY, price=10**9, block=64)
    peak = watched(lm.engine, monkeypatch)
    stop, failed, scored = threading.Event(), [], []

    def scoring() -> None:
        try:
            i = 0
            while not stop.is_set():
                texts = [WORDS[(7 * i + j) % 60 : (7 * i + j) % 60 + 40] for j in range(6)]
                scored.append(len(lm.engine.hidden(texts, [39] * 6)))
                with lm.engine.lock:
                    within(lm.engine)
                i += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=scoring)
    thread.start()
    session, drawn = beginning(lm, 0, 40), {}
    while session.running:
        drawn |= session.step()
    stop.set()
    thread.join(300)
    assert not failed
    assert scored
    assert [drawn[t].value.tokens for t in sorted(drawn)] == alone(0, 40)
    assert peak[0] <= CAPACITY
    nothing_is_left(lm.engine)


def test_a_judge_in_the_middle_of_a_full_batch_reads_half_as_many_texts_at_once():
    """And what gives way for that is not computed again."""
    lm, other = (standing(CAPACITY, price=10**9, block=64) for _ in range(2))
    texts = [WORDS[40 + i : 70 + i] for i in range(12)]
    session = beginning(lm, 0, 30)
    session.step()
    half = lm.engine.batch_rows(32) // 2
    assert len(lm.engine.slots.busy) == 2 * half
    before = lm.engine.passes
    lm.engine.hidden(texts, [0] * 12)
    assert lm.engine.passes - before <= -(-12 // half) + 1  # and one for what some begin with
    assert len(session.held) == half
    while session.running:
        session.step()
    session.close()
    plain = beginning(other, 0, 30)
    while plain.running:
        plain.step()
    plain.close()
    other.engine.hidden(texts, [0] * 12)
    assert lm.engine.tokens_computed <= other.engine.tokens_computed
    nothing_is_left(lm.engine)


def test_who_has_given_way_goes_on_before_others_join():
    lm = standing(CAPACITY, price=10**9, block=64)
    first = beginning(lm, 0, 30)
    first.step()
    fitting = lm.engine.batch_rows(32)
    assert len(first.held) == first.joined == fitting
    second = beginning(lm, 40, 1, tokens=1)
    second.step()
    assert not second.running
    assert len(first.held) == fitting - 1
    waiting = len(first._waiting)
    first.step()
    assert len(first.held) == fitting
    assert len(first._waiting) == waiting
    assert first.joined == fitting
    for session in (first, second):
        session.close()
    nothing_is_left(lm.engine)


def test_a_small_model_guesses_for_as_many_rows_as_its_own_leave_room(monkeypatch):
    small = make(kv_bytes=CAPACITY)
    lm = make(drafts=Drafts(small, switch="always"))
    peak, guessing = watched(small.engine, monkeypatch), []
    own, guessed, drawn = beginning(small, 0, 12), beginning(lm, 40, 12, tokens=30), {}
    own.step()
    decoder = small.decoder

    def counted():
        made = decoder()
        join = made.join

        def joining(prefixes, ledgers):
            join(prefixes, ledgers)
            within(small.engine)
            guessing.append(len(prefixes))

        monkeypatch.setattr(made, "join", joining)
        return made

    monkeypatch.setattr(small, "decoder", counted)
    drawn |= guessed.step()
    assert len(own.held) == small.engine.batch_rows(32)
    assert sum(guessing) == 0  # its memory is full of its own
    while own.running:
        own.step()
        drawn |= guessed.step()
        within(small.engine)
    own.close()
    while guessed.running:
        drawn |= guessed.step()
    assert max(guessing) > len(drawn) // 2
    assert [drawn[t].value.tokens for t in sorted(drawn)] == alone(40, 12, tokens=30)
    assert peak[0] <= CAPACITY
    nothing_is_left(small.engine)


@dataclass
class Rows:
    """A batch of which so many rows run and so many wait, as others see it."""

    running: int
    waiting: int


@pytest.mark.parametrize(
    ("batches", "joining"),
    [
        ([Rows(6, 5), Rows(2, 5)], [0, 2]),  # of ten: who has more than half takes none
        ([Rows(6, 5), Rows(2, 0)], [2, 0]),  # nobody waits beside it: all that is free
        ([Rows(3, 9), Rows(3, 9), Rows(2, 9)], [0, 0, 1]),  # a third each
        ([Rows(5, 9), Rows(1, 1), Rows(0, 9)], [0, 1, 3]),
        ([Rows(4, 1), Rows(4, 1)], [1, 1]),  # both fit
    ],
)
def test_where_all_want_more_than_fits_each_joins_up_to_an_equal_share(batches, joining):
    class Ten:
        def most_rows(self, texts, lengths):
            return 10

    class Row:
        text, expected_length = (5,), 9

    company, members = Company(threading.RLock()), []
    for batch in batches:
        member = Member()
        member.held, member._waiting = [Row()] * batch.running, [Row()] * batch.waiting
        company.add(member)
        members.append(member)
    for member, count in zip(members, joining, strict=True):
        assert company.joining(member, Ten(), member._waiting) == count
