"""The engine's memory in the long run: never over its budget, nothing left, whatever happens."""

from __future__ import annotations

import functools
import random
import threading

import pytest
import torch
from engines import DEVICE, make, request

import ppl
from ppl.lm.engine.runs import Held
from ppl.lm.engine.slots import bucket

WORDS = tuple(3 + (7 * i * i + 5 * i) % 90 for i in range(128))


def standing(capacity: int, price: int, block: int) -> ppl.HFModel:
    """Shares as models of usual size do."""
    lm = make(kv_bytes=capacity)
    assert lm.engine.sharing.able
    lm.engine.sharing.price, lm.engine.sharing.block = price, block
    return lm


@functools.lru_cache(4096)
@torch.inference_mode()
def plain(lm: ppl.HFModel, text: tuple[int, ...]) -> torch.Tensor:
    """Last hidden states of a forward pass without a cache."""
    ids = torch.tensor([text], device=DEVICE)
    return lm.engine.base(input_ids=ids, use_cache=False).last_hidden_state[0]


def assert_close(lm: ppl.HFModel, text: tuple[int, ...], states: torch.Tensor) -> None:
    torch.testing.assert_close(states, plain(lm, text)[-len(states) :], rtol=1e-4, atol=1e-4)


class Crash(Exception):
    """What no part of the library raises."""


def references_are_right(engine) -> None:
    """Rows that stand on a segment, bytes of all segments, and what lies in which slot."""
    rows: dict = {}
    for slot in engine.slots.all:
        assert 0 <= slot.tail <= engine.slots.length
        for part in slot.trunk:
            rows[part.segment] = rows.get(part.segment, 0) + 1
        for edge in slot.edges:
            assert edge.slot is slot
            assert slot.base <= edge.start < edge.stop <= slot.length
    held = {edge.segment for edge in engine.pool._edges() if edge.segment is not None} | set(rows)
    assert {segment.rows - rows.get(segment, 0) for segment in held} <= {0}
    assert engine.pool.nbytes == sum(segment.piece.nbytes for segment in held)


def nothing_is_left(engine) -> None:
    assert not engine.slots.busy
    engine.pool.clear()
    assert engine.pool.nbytes == 0
    assert not any(slot.trunk or slot.length for slot in engine.slots.all)


def test_slots_are_long_enough():
    assert [bucket(length) for length in (0, 1, 64, 65, 128)] == [64, 64, 64, 128, 128]


@pytest.mark.parametrize("busy", [False, True])
@torch.inference_mode()
def test_a_slot_with_a_beginning_that_is_a_trunk_by_now_does_not_grow_beyond_its_end(busy):
    """A text is known in a slot, rows come to stand on its beginning, and the text goes on: what
    it needs is counted from the trunk, so it must stand there, too. Where a row runs in that slot,
    the rest is copied out of it."""
    lm = standing(400_000, price=0, block=8)
    engine = lm.engine
    (row,) = engine.open([WORDS[:60]])[0].values()
    if not busy:
        engine.close(row, WORDS[:60])
    (slot,) = engine.seat([WORDS[:40]], [5])
    assert row.base == 0
    assert slot.base == 40
    assert engine.slots.length == 64
    computed = engine.tokens_computed
    (states,) = engine.hidden([WORDS[:100]], [0])
    assert engine.tokens_computed - computed == 40
    assert_close(lm, WORDS[:100], states)
    engine.close(slot, WORDS[:40])
    if busy:
        engine.close(row, WORDS[:60])
    references_are_right(engine)


@torch.inference_mode()
def test_what_forks_left_behind_as_one_copy_is_stood_on_again():
    engine = standing(400_000, price=0, block=8).engine
    text = WORDS[:40]
    engine.hidden([text], [0])
    (slot,) = engine.seat([text])
    assert slot.base == 0
    rows = [slot, *engine.fork([slot, slot])]
    assert {row.base for row in rows} == {40}
    for row in rows:
        engine.close(row, text)
    references_are_right(engine)  # who has left stands on it no more
    (again,) = engine.seat([text])
    assert again.base == 40
    engine.close(again, text)
    nothing_is_left(engine)


def watched(engine, monkeypatch) -> list[int]:
    """The most bytes of slots and segments together, from now on."""
    peak, add = [0], Held.add

    def adding(held: Held, nbytes: int) -> None:
        add(held, nbytes)
        peak[0] = max(peak[0], held.nbytes + engine.slots.nbytes)

    monkeypatch.setattr(Held, "add", adding)
    return peak


def test_a_long_text_does_not_lengthen_the_slots_of_many_short_rows(monkeypatch):
    """Where all slots as long as it would be over the budget, it has memory of its own."""
    lm = standing(700_000, price=20, block=8)
    engine = lm.engine
    peak = watched(engine, monkeypatch)
    session = lm.session()
    for i in range(12):
        session.submit(request(lm, WORDS[i : i + 3], i, max_tokens=30))
    session.step()
    running = len(engine.slots.busy)
    assert running == 12
    assert (running + 1) * engine._memory._slot_nbytes(110) > engine.capacity // 2
    (states,) = engine.hidden([WORDS[:110]], [0])
    assert_close(lm, WORDS[:110], states)
    assert engine.slots.length < 110
    assert peak[0] <= engine.capacity
    while session.running:
        session.step()
    session.close()
    references_are_right(engine)
    nothing_is_left(engine)


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_no_byte_over_the_budget(seed, able, monkeypatch):
    """Slots, what is set aside while they grow, segments, and copies while both are there; of
    searches that follow each other, with all they draw, score and give up."""
    rng = random.Random(seed)
    capacity = rng.choice([110_000, 150_000, 250_000])
    lm = standing(capacity, rng.choice([-1, 20, 100]), rng.choice([1, 8]))
    engine = lm.engine
    engine.sharing.able = able
    peak = watched(engine, monkeypatch)
    texts = [tuple(rng.randrange(3, 90) for _ in range(rng.randrange(1, 40))) for _ in range(3)]
    texts += [text + texts[i - 1] for i, text in enumerate(texts)]
    for _ in range(8):
        session = lm.session()
        for i in range(rng.choice([2, 9])):
            session.submit(request(lm, rng.choice(texts), i, max_tokens=rng.choice([2, 12])))
        tickets = range(session._tickets)
        while session.running:
            for drawn in session.step().values():
                if drawn is not None and len(texts) < 40:
                    texts.append((rng.choice(texts) + drawn.value.tokens)[:100])
            session.cancel([ticket for ticket in tickets if rng.random() < 0.02])
            references_are_right(engine)
        session.close()
        scored = rng.sample(texts, 2)
        for text, states in zip(scored, engine.hidden(scored, [0, 0]), strict=True):
            assert_close(lm, text, states)
        assert peak[0] <= capacity
        assert engine.peak_nbytes >= peak[0]
    nothing_is_left(engine)


@pytest.mark.parametrize("seed", range(4))
def test_what_fails_half_way_leaves_the_count_right(seed):
    """Passes that fail before or after they have written, and memory that is not there."""
    rng = random.Random(seed)
    lm = standing(400_000, price=rng.choice([-1, 40]), block=rng.choice([1, 8]))
    engine, countdown = lm.engine, [0]

    def failing(what, late: float):
        def run(*args):
            countdown[0] -= 1
            if countdown[0] == 0:
                if rng.random() < late:
                    what(*args)
                raise Crash
            return what(*args)

        return run

    engine.runner._pass = failing(engine.runner._pass, 0.5)
    engine.slots.piece = failing(engine.slots.piece, 0.0)
    crashes = 0
    other, drawn = lm.session(), {}
    for i in range(6):
        other.submit(request(lm, WORDS[:50], i, max_tokens=40))
    for t in range(25):
        session = lm.session()
        countdown[0] = rng.randrange(1, 9)
        try:
            for i in range(5):
                text = WORDS[t : t + 20 + 5 * (i % 2)]
                session.submit(request(lm, text, 100 * t + i, max_tokens=6))
            while session.running:
                session.step()
        except Crash:
            crashes += 1
        countdown[0] = 0
        references_are_right(engine)
        drawn |= other.step()  # those of another search go on
    while other.running:
        drawn |= other.step()
    other.close()
    assert crashes >= 5
    assert len(drawn) == 6
    alone = make()
    for i, ticket in enumerate(sorted(drawn)):
        (same,) = alone.sample_batch([request(alone, WORDS[:50], i, max_tokens=40)])
        assert same.value.tokens == drawn[ticket].value.tokens
        assert abs(same.log_prob - drawn[ticket].log_prob) < 1e-3
    nothing_is_left(engine)


def test_two_threads_draw_what_each_draws_alone():
    lm = standing(600_000, price=-1, block=4)
    prompts = [WORDS[:30], (*WORDS[:30], 5, 6, 7), WORDS[40:90]]

    def drawn(model: ppl.HFModel, first: int) -> list:
        asked = [
            request(model, prompts[(i + first) % 3], 100 * first + i, max_tokens=12)
            for i in range(9)
        ]
        return [
            (d.value.tokens, round(d.log_prob, 3))
            for part in (asked[:5], asked[5:])
            for d in model.sample_batch(part)
        ]

    found: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: drawn(lm, n)})) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = make()
    for n in range(3):
        tokens = [t for t, _ in drawn(alone, n)]
        assert [t for t, _ in found[n]] == tokens
    references_are_right(lm.engine)
    nothing_is_left(lm.engine)
