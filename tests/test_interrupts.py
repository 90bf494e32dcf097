"""Whoever presses Ctrl-C while a model runs finds its memory and the thread as they were."""

from __future__ import annotations

import sys

import pytest
import torch
from engines import Letters, make, request, some_texts

import ppl
from ppl.lm.engine import setting
from ppl.lm.engine.decoder import EngineDecoder
from ppl.lm.engine.engine import Engine


def pressed_after(monkeypatch, kind: type, name: str) -> None:
    """Ctrl-C comes when the method has done its work, and nobody has its answer."""
    own = getattr(kind, name)

    def interrupted(self, *args, **kwargs):
        own(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, name, interrupted)


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
    left = count
    begun: set[object] = set()

    def trace(frame, event, arg):
        nonlocal left
        if frame.f_code.co_filename != setting.__file__:
            return None
        if event == "line" and frame not in begun:
            begun.add(frame)
        elif event == "line":
            if not left:
                sys.settrace(None)
                raise KeyboardInterrupt
            left -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with setting._Inferring():
            pass
    except KeyboardInterrupt:
        return count + 1
    finally:
        sys.settrace(before)
    return None
