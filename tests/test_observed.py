"""Observed continuations: whole, as beginnings, and what no draw could be."""

from __future__ import annotations

import math

import pyro
import pytest
from programs import TOY

import ppl
from ppl.errors import ObservationError
from ppl.searchers import SMC, BestOfN


def seen(value, **settings):
    def program():
        text = TOY.prompt("^")
        pyro.sample("said", TOY(text, **settings), obs=value)

    return program


def evidence(value, **settings):
    program = seen(value, **settings)
    exact = ppl.enumerate_program(program).log_evidence
    assert SMC(2).run(program).log_evidence == pytest.approx(exact)
    return math.exp(exact)


def test_a_beginning_a_step_and_a_whole_text_are_three_things():
    beginning = TOY.continuation("ab", finished=False)
    assert (beginning.reason, beginning.finished) == ("open", False)
    assert TOY.continuation("ab").reason == "until"
    assert evidence(beginning, until="bb") == pytest.approx(0.5 * 0.3)
    assert evidence(TOY.continuation("ab", finished=True), until="bb") == pytest.approx(0.03)
    assert evidence(TOY.continuation("abb"), until="bb") == pytest.approx(0.5 * 0.09)
    assert evidence(TOY.continuation("ab"), max_tokens=2) == pytest.approx(0.15)
    # A beginning may be all of a step, too.
    assert evidence(TOY.continuation("abb", finished=False), until="bb") == pytest.approx(0.045)
    assert evidence(TOY.continuation("a", finished=False), max_tokens=2) == pytest.approx(0.5)


def test_the_probability_of_a_beginning_is_that_of_all_that_begin_so():
    law = TOY(TOY.prompt("^"), until="b", max_tokens=4)
    for said in ("a", "aa", "aaa", "b", "ab"):
        mine = float(law.log_prob(TOY.continuation(said, finished=False)).exp())
        begun = TOY.encode(said)
        total = sum(
            math.exp(p) for value, p in law.support() if value.tokens[: len(begun)] == begun
        )
        assert mine == pytest.approx(total)


@pytest.mark.parametrize(
    ("value", "settings", "message"),
    [
        (TOY.continuation("a"), {}, r"'said' of particle 1: obs=a ends where no draw .*finished="),
        (TOY.continuation("a"), {"until": "b"}, r"until 'b'.*finished=False.*finished=True"),
        (TOY.continuation("aba"), {"until": "b"}, r"after 2 of 3 tokens"),
        (TOY.continuation("aba", finished=False), {"until": "b"}, r"after 2 of 3 tokens"),
        (TOY.continuation("aaa"), {"max_tokens": 2}, r"3 tokens, a draw has 2 at most"),
        (TOY.continuation(""), {"until": "b"}, "is empty"),
        (TOY.continuation("", finished=False), {"until": "b"}, "is empty"),
    ],
)
def test_what_no_draw_could_be_is_an_error_and_no_silent_zero(value, settings, message):
    program = seen(value, **settings)
    with pytest.raises(ObservationError, match=message):
        BestOfN(1).run(program)
    with pytest.raises(ObservationError, match="site 'said'"):
        ppl.enumerate_program(program)
    assert float(TOY(TOY.prompt("^"), **settings).log_prob(value)) == -math.inf


def test_what_could_be_drawn_and_never_is_has_probability_zero():
    lm = ppl.TableLM({"a": 1.0}, symbols="^ab$")
    posterior_is_dead = pytest.raises(ppl.errors.AllParticlesDeadError, match="said")

    def program():
        pyro.sample("said", lm(lm.prompt("^"), max_tokens=1), obs=lm.continuation("b"))

    with posterior_is_dead:
        BestOfN(1).run(program)


def test_a_beginning_goes_on_and_is_stored(tmp_path):
    def program():
        text = TOY.prompt("^")
        text = text + pyro.sample("said", TOY(text), obs=TOY.continuation("ab", finished=False))
        text = text + pyro.sample("rest", TOY(text, max_tokens=3))
        return text.text

    posterior = BestOfN(3).run(program, seed=0)
    assert all(s.value.startswith("ab") for s in posterior.samples)
    posterior.save(tmp_path / "p.ppl")
    assert ppl.Posterior.load(tmp_path / "p.ppl").samples[0].records[0].value.reason == "open"
    with pytest.raises(ValueError, match="finished"):
        TOY.continuation("a", finished=3)
