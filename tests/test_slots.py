"""Where the rows of a pass lie, and what moves to bring them side by side."""

from __future__ import annotations

import pytest
import torch
from engines import assert_close, make, plain_states, some_texts

from ppl.lm.engine.layout import Layout
from ppl.lm.engine.prefix import PrefixPool
from ppl.lm.engine.slots import Slots

LAYOUT = Layout((((2, 3), (2, 3)), ((2, 3), (1, 4))), 5)


def filled(tails: list[int]) -> Slots:
    """Slots that hold so many tokens each, all numbers of which are the slot's own."""
    slots = Slots(LAYOUT, PrefixPool(1 << 20), torch.float32, torch.device("cpu"))
    slots.rebuild(len(tails), 8)
    for slot, tail in zip(slots.all, tails, strict=True):
        slot.length = tail
        for part in (*slots.content(slot).kv, slots.content(slot).states):
            part.fill_(slot.index + 1)
    return slots


@pytest.mark.parametrize(
    ("wanted", "busy", "low", "swaps"),
    [
        ([4, 5, 6, 10], [], 3, 1),  # three stay
        ([0, 3, 6, 9], [], 0, 2),  # nowhere else are more of them than at the front
        ([6, 7, 8, 11], [0, 1], 5, 1),
        ([0, 3, 4, 11], [1, 2], 2, 2),  # behind so many as run on
    ],
)
def test_rows_are_brought_to_where_most_of_them_are(wanted, busy, low, swaps):
    slots = filled([3, 0, 5, 2, 1, 4, 3, 2, 5, 1, 6, 2])
    rows = [slots.all[i] for i in wanted]
    for i in (*wanted, *busy):
        slots.all[i].busy = True
    before = {slot: (slot.index + 1, slot.tail) for slot in slots.all}
    assert slots.gather(rows, 0.0) == (low, low + 4)
    assert slots.swaps == swaps
    assert sorted(slot.index for slot in rows) == list(range(low, low + 4))
    for slot, (number, tail) in before.items():
        assert slots.all[slot.index] is slot
        content = slots.content(slot)
        assert len(content.states) == tail
        assert all((part == number).all() for part in (*content.kv, content.states))


def test_a_few_that_compute_along_are_not_worth_an_exchange():
    slots = filled([1] * 8)
    assert slots.gather([slots.all[i] for i in (1, 2, 4)], 1 / 3) == (1, 5)
    assert slots.swaps == 0


@torch.inference_mode()
def test_who_interrupts_a_run_that_moves_leaves_it_right(monkeypatch):
    """It is in its slot as long as the slot knows of it, and would move it again."""

    def interrupted(*_):
        raise KeyboardInterrupt

    engine, text = make().engine, some_texts()[0]
    engine.hidden([text], [0])
    (slot,) = (slot for slot in engine.slots.all if slot.edges)
    with monkeypatch.context() as patch:
        patch.setattr(engine.pool, "segment", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.slots.take(slot)
    engine.slots.take(slot)
    engine.slots.columns(slot, 0, len(text)).states.zero_()
    state = engine.known(text)
    assert state is not None
    assert_close(state, plain_states(text)[-1])
