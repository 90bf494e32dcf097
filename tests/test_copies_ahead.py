"""A copy of a model in another process is ahead as the model is: same draws, same bills."""

from __future__ import annotations

import pytest
import torch
from compiler import needs_compiler
from engines import some_texts
from laid_out import needs_any
from test_leading import plainly, together, whole

from ppl.errors import NoAllowedTokenError
from ppl.language.steps import StepRule
from ppl.lm.base import Spec
from ppl.lm.calling import Calling
from ppl.lm.replica import Ask, Copy, Drawing
from ppl.lm.sampling import Warp

assert together  # a fixture
pytestmark = [needs_compiler, needs_any]


def told(lm, left: int) -> tuple[dict, Copy]:
    """What a copy answers of which one row is left on its way, and asked for again."""
    answers: dict = {}
    copy = Copy(lm, answers.update, Calling())

    def ask(ticket: int, row: int, new: tuple[int, ...] = ()) -> None:
        spec = Spec(some_texts()[row], StepRule((chr(0x4E00 + 20),)), 40, Warp(), None)
        copy.told([("draw", Ask(ticket, spec, "", key=row + 5, new=new, most=40 - len(new)))])

    for row in range(3):
        ask(row + 1, row)
    for _ in range(left):
        copy.work()
    copy.told([("leave", [2])])
    ask(4, 1, answers[2].tokens)
    while copy.busy:
        copy.work()
    assert not lm.engine.slots.busy
    return answers, copy


@pytest.mark.parametrize("left", [1, 2, 7, 11])
def test_a_copy_draws_and_bills_what_it_does_token_by_token(left, together):
    there, _ = told(plainly(whole()), left)
    together.clear()
    here, _ = told(whole(), left)
    assert together["bursts"] > 2
    assert len(here[2].tokens) == here[2].costs["lm_tokens"] == left
    assert here.keys() == there.keys() == {1, 2, 3, 4}
    for ticket, answer in here.items():
        assert answer.tokens == there[ticket].tokens
        assert answer.log_probs == pytest.approx(there[ticket].log_probs, abs=1e-5)
        assert answer.costs["lm_tokens"] == there[ticket].costs["lm_tokens"]


def test_who_failed_beside_rows_that_were_ahead_is_found(together, monkeypatch):
    right, _ = told(whole(), 3)
    lm, broken = whole(), []
    step = type(lm.session()).step

    def breaks(self):
        if together["bursts"] and not broken:
            broken.append(together["bursts"])
            raise RuntimeError("once")
        return step(self)

    together.clear()
    monkeypatch.setattr(type(lm.session()), "step", breaks)
    answers: dict = {}
    copy = Copy(lm, answers.update, Calling())
    for row in (0, 2):
        spec = Spec(some_texts()[row], StepRule((chr(0x4E00 + 20),)), 40, Warp(), None)
        copy.told([("draw", Ask(row + 1, spec, "", key=row + 5, most=40))])
    while copy.busy:
        copy.work()
    assert broken
    for ticket in (1, 3):
        assert answers[ticket].tokens == right[ticket].tokens
        assert answers[ticket].costs["lm_tokens"] == len(right[ticket].tokens)
    assert not lm.engine.slots.busy


def test_rows_that_cannot_go_on_leave_no_memory_busy(monkeypatch):
    """Also where one fails for which nothing is allowed, alone or beside another."""
    lm, answers, take = whole(), {}, Drawing.take

    def anew(self, ask):  # else a row whose text is known takes no memory
        lm.fresh()
        take(self, ask)

    monkeypatch.setattr(Drawing, "take", anew)
    copy = Copy(lm, answers.update, Calling())
    for ticket in range(1, 7):
        allowed = frozenset({5}) if ticket % 2 else torch.zeros(97, dtype=torch.bool)
        spec = Spec(some_texts()[ticket % 3], StepRule(), 4, Warp(), allowed)
        copy.told([("draw", Ask(ticket, spec, "", key=ticket, most=4))])
        while copy.busy and ticket != 3:  # together with the next one
            copy.work()
        assert ticket == 3 or not lm.engine.slots.busy
    assert [answers[ticket].tokens for ticket in (1, 3, 5)] == [(5, 5, 5, 5)] * 3
    assert all(isinstance(answers[ticket].error, NoAllowedTokenError) for ticket in (2, 4, 6))
