"""Functions of a request that run in the process of a replica: with the limits of who asks."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace

import pyro
import pytest
import unending
from work import until

import ppl
from ppl.language.steps import StepRule
from ppl.lm.base import ScoreRequest, Spec
from ppl.lm.calling import Calling
from ppl.lm.replica import Ask, Copy
from ppl.lm.sampling import Warp
from ppl.runtime import link
from ppl.searchers import BestOfN


@pytest.fixture(scope="module")
def one():
    model = ppl.load("tiny", replicas=1)
    yield model
    model.stop()


@pytest.fixture(scope="module")
def lm():
    return ppl.load("tiny")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(link, "PATIENCE", 0.4)


@pytest.fixture
def between_looks(monkeypatch):
    """Sets what is done, instead of letting time pass, before a call is looked at again."""

    def set_to(work):
        monkeypatch.setattr(link, "time", SimpleNamespace(sleep=lambda seconds: work()))

    return set_to


def pid(model):
    return model.link(0).process.process.pid


def writes(lm, question, **settings):
    return pyro.sample("s0", lm(lm.chat(question), **{"max_tokens": 40, **settings})).text


def test_a_function_that_does_not_return_ends_with_the_search(one, between_looks):
    """And who waits behind it is asked again."""
    before = BestOfN(2).run(writes, one, "2 + 3 =", seed=1)
    process, held = pid(one), one.link(0)

    def somebody_waits():
        with held._pending.lock:
            return held._pending.asked.keys() - held._left

    between_looks(lambda: until(somebody_waits))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seconds in (0.5, 5.0, 50.0):  # until it is asked within them
            limit = ppl.Budget(seconds=seconds)
            late = BestOfN(2).run(
                writes, one, "2 + 3 =", seed=1, budget=limit, allowed=unending.endless
            )
            if held._left:
                break
        after = BestOfN(2).run(writes, one, "2 + 3 =", seed=1)
    assert not late.samples
    assert [s.value for s in after.samples] == [s.value for s in before.samples]
    assert pid(one) != process
    said = [str(each.message) for each in caught]
    named = re.compile("'s0'.*in allowed=.*in until=.*replica 1 of 1 of tiny was ended.*give token")
    assert said
    assert all(named.search(each) for each in said)
    assert {each.endswith("asked again") for each in said} == {False, True}


def test_what_somebody_waits_for_may_take_its_time(one):
    process = pid(one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BestOfN(1).run(writes, one, "2 + 3 =", seed=1, allowed=unending.slower, max_tokens=2)
    assert pid(one) == process


@pytest.mark.parametrize("stands_still", [False, True])
def test_what_nobody_waits_for_may_call_as_long_as_its_calls_return(
    stands_still, one, between_looks
):
    """A score asks its function about each token before anything else is heard. Nor is it the
    function's fault that the machine stands still between two looks at one call of it."""
    process, held, looks = pid(one), one.link(0), []

    def it_returns():
        at = held._calling.now
        looks.append(at)
        if stands_still and at[0] and looks.count(at) < 2:
            return  # nothing has happened, however long it was
        until(lambda: held._calling.now != at or not at[0])

    between_looks(it_returns)
    value = ppl.Continuation((40,) * 30, "", "open", one.codec.identity)
    spec = Spec(one.chat("2 + 3 =").tokens, StepRule(), None, Warp(), unending.slow)
    session = one.session()
    session.submit(ScoreRequest(one, spec, value, "score"))
    while not held._calling.now[0]:
        session.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.close()
        assert until(lambda: not held._watching)
    assert pid(one) == process
    assert looks


def test_of_each_request_all_that_it_brings_along_is_seen_while_it_runs(lm):
    class Seen(Calling):
        def run(self, ticket, function, *args):
            tickets.append(ticket)
            return super().run(ticket, function, *args)

    def asked(ticket, allowed=None, rule=None, **others):
        spec = Spec(lm.chat("2 + 3 =").tokens, rule or StepRule(), None, Warp(), allowed)
        return Ask(ticket, spec, "here", 5, most=4, **others)

    pattern = StepRule(pattern=re.compile("never here"))
    under = Spec(lm.chat("2 + 3 =").tokens, StepRule(), None, Warp(), lambda new: (40, 41))
    for kind, ask, calls in (
        ("draw", asked(1, allowed=(40, 41)), 0),
        ("draw", asked(2, allowed=lambda new: (40, 41)), 4),
        ("draw", asked(3, allowed=(40, 41), rule=pattern), 4),
        ("draw", asked(4, allowed=(40, 41), rule=pattern, new=(40, 40)), 6),
        ("draw", asked(5, allowed=(40, 41), under=under), 4),
        ("score", asked(6, allowed=lambda new: (40, 41), value=(40, 41)), 2),
    ):
        tickets, answers = [], {}
        copy = Copy(lm, answers.update, Seen())
        copy.told([(kind, ask)])
        while copy.busy:
            copy.work()
        assert answers[ask.ticket].error is None
        assert tickets == [ask.ticket] * calls


def test_a_call_is_seen_while_it_runs():
    calling = Calling()
    assert calling.now == (0, 0)
    assert calling.run(7, lambda: calling.now) == (7, 1)
    with pytest.raises(ZeroDivisionError):
        calling.run(8, lambda: 1 / 0)
    assert calling.now == (0, 2)
