"""Whoever presses Ctrl-C while a model runs finds its memory and the thread as they were."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from types import CodeType

import pytest
import torch
from engines import Letters, make, request, some_texts

import ppl
from ppl.lm.engine import setting
from ppl.lm.engine.decoder import EngineDecoder
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.runs import Slot
from ppl.lm.engine.slots import Slots


def pressed_after(monkeypatch, kind: type, name: str) -> None:
    """Ctrl-C comes when the method has done its work, and nobody has its answer."""
    own = getattr(kind, name)

    def interrupted(self, *args, **kwargs):
        own(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, name, interrupted)


def pressed_in(
    function: Callable[[], object],
    inside: Callable[[CodeType], bool],
    count: int,
    *,
    first: bool = False,
) -> bool:
    """Calls it, and presses Ctrl-C after so many lines of what is inside; whether there were so
    many. The first line of a function counts where `first` says so."""
    left, pressed = count, False
    begun: set[object] = set()

    def trace(frame, event, arg):
        nonlocal left, pressed
        if not inside(frame.f_code):
            return trace
        if event == "line" and not first and frame not in begun:
            begun.add(frame)
        elif event == "line":
            if not left:
                sys.settrace(None)
                pressed = True
                raise KeyboardInterrupt
            left -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        assert pressed
    finally:
        sys.settrace(before)
        begun.clear()  # frames, and with them all that they know
    return pressed


@pytest.mark.parametrize("drafts", [None, "siblings"])
@pytest.mark.parametrize(
    "method", [(EngineDecoder, "join"), (Engine, "open"), (Engine, "seat"), (Engine, "fork")]
)
def test_slots_that_nobody_was_given_are_free_again(method, drafts, monkeypatch):
    lm, text = make(drafts=drafts), some_texts()[0]
    asked = [request(lm, text, seed=i) for i in range(3)]
    right = lm.sample_batch(asked)
    if method[1] != "seat":  # else rows have to leave what is known
        lm.fresh()
    other = [request(lm, text, seed=i) for i in range(5, 8)]
    with monkeypatch.context() as patch:
        pressed_after(patch, *method)
        with pytest.raises(KeyboardInterrupt):
            lm.sample_batch(other)
    assert not lm.engine.slots.busy
    again = lm.sample_batch(asked)
    assert [draw.value for draw in again] == [draw.value for draw in right]


def test_an_interrupt_anywhere_around_a_pass_leaves_the_thread_as_it_was():
    """At every line of what is set around passes: but for the first of a function, as nothing
    is done there yet, and nothing caught."""
    lines = 0
    while lines is not None:
        lines = _pressed_at(lines)
        assert not torch.is_inference_mode_enabled()
        assert not setting._inside.get()
    lm = ppl.HFModel(make().model, Letters(), name="after")
    assert lm.sample_batch([request(lm, some_texts()[0])])[0] is not None


def _pressed_at(count: int) -> int | None:
    """Presses Ctrl-C after so many lines; how many are next, None when there are no more."""

    def entered() -> None:
        with setting._Inferring():
            pass

    pressed = pressed_in(entered, lambda code: code.co_filename == setting.__file__, count)
    return count + 1 if pressed else None


def test_an_interrupt_anywhere_in_a_move_to_a_trunk_leaves_memory_as_it_can_be_used():
    """At every line of it: whoever goes on finds right numbers, and nothing is lost or held."""
    lines = 0
    while lines is not None:
        lines = _pressed_in_a_fork(lines)


@torch.inference_mode()
def _pressed_in_a_fork(count: int) -> int | None:
    engine = make().engine
    engine.sharing.price = 10**9
    text, other = (tuple(3 + (7 * i + k) % 40 for i in range(24)) for k in (0, 5))
    exact = {t: engine.runner.plainly(torch.tensor([t]))[0] for t in (text, other)}
    # The tree has runs in the slot that is moved.
    (slot,) = engine.open([text[:20]])[0].values()
    for end in (9, 20):
        engine.pool.insert(text[:end], slot)
    assert len(slot.edges) == 2
    engine.sharing.price, engine.sharing.block = -1, 2
    moving = (Slots.seal.__code__, Slot.stand.__code__)
    forks: list[Slot] = []
    fork = partial(engine.fork, [slot])
    pressed = pressed_in(lambda: forks.extend(fork()), moving.__contains__, count)
    for row in [slot, *forks]:
        engine.drop(row)
    assert not engine.slots.busy
    for row in engine.slots.all:
        assert all(edge.slot in (row, None) for edge in row.edges)
    # Others take the memory over, and what is known of the first is read again.
    for t in (other, text, other, text):
        torch.testing.assert_close(engine.hidden([t], [0])[0], exact[t], rtol=0, atol=1e-4)
    for row in engine.slots.all:
        engine.slots.empty(row)
    engine.pool.clear()
    gc.collect()
    assert engine.pool.held.nbytes == 0
    return count + 1 if pressed else None


def test_an_interrupt_anywhere_in_an_exchange_of_slots_leaves_both_rows_whole():
    """They may be rows of others, who never hear of it."""
    lines = 0
    while lines is not None:
        lines = _pressed_in_an_exchange(lines)


@torch.inference_mode()
def _pressed_in_an_exchange(count: int) -> int | None:
    engine = make().engine
    slots = engine.slots
    texts = tuple(3 + i for i in range(20)), tuple(40 - i for i in range(7))
    one, two = engine.open(texts)[0].values()
    held = [slots.content(row).clone() for row in (one, two)]
    swapping = {Slots._swap.__code__, *Slots._swap.__code__.co_consts}
    swap = partial(slots._swap, one, two)
    pressed = pressed_in(swap, swapping.__contains__, count, first=True)
    for row, was in zip((one, two), held, strict=True):
        assert slots.all[row.index] is row
        now = slots.content(row)
        for a, b in zip((*now.kv, now.states), (*was.kv, was.states), strict=True):
            assert torch.equal(a, b)
    return count + 1 if pressed else None
