"""Running batches of one model in one memory: within its budget, and none waits forever."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from engines import make, request
from test_engine_memory import WORDS, nothing_is_left, references_are_right, standing, watched

from ppl.language.cost import Account
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
        thread.join(120)
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
    thread.join(120)
    assert not failed
    assert scored
    assert [drawn[t].value.tokens for t in sorted(drawn)] == alone(0, 40)
    assert peak[0] <= CAPACITY
    nothing_is_left(lm.engine)
