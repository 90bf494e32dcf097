"""What a newcomer tries first, and what is said of it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest

import ppl
from ppl import errors
from ppl.searchers import MCTS, SMC, BestOfN
from ppl.verifiers import verifier


def test_names_of_rooms_are_found():
    with pytest.raises(AttributeError, match=r"no attribute 'SMC': it is in ppl\.searchers"):
        ppl.SMC  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'PRM': it is in ppl\.verifiers"):
        ppl.PRM  # noqa: B018
    with pytest.raises(AttributeError, match=r"no attribute 'nothing_of_ours'$"):
        ppl.nothing_of_ours  # noqa: B018
    assert ppl.tools.Python


def test_a_call_with_too_many_arguments_is_named():
    with pytest.raises(TypeError, match=r"load\(\) takes 1 positional argument but 2 were given"):
        ppl.tasks.load("lines/chain", 3)
    with pytest.raises(TypeError, match=r"verifier\(\) got an unexpected .*'aggregat'"):
        verifier(aggregat="prod")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"red": 0.5, "a": 0.5}, "'red' is none of the symbols '\\^a\\$'"),
        ({"a": 0.5, "$": 0.4}, "they add up to 0.9"),
        ({"a": 1.5, "$": -0.5}, "one of them is negative"),
    ],
)
def test_tables_that_are_no_law_say_why(table, said):
    lm = ppl.TableLM(table, symbols="^a$")
    with pytest.raises(ValueError, match=f"after '\\^' do not form a distribution: {said}"):
        lm(lm.prompt("^"), max_tokens=1).sample()


def test_the_dead_are_counted_in_the_searchers_words():
    def hopeless():
        pyro.sample("x", dist.Bernoulli(0.5))
        ppl.condition(False, "never")

    with pytest.raises(
        errors.AllParticlesDeadError, match=r"all 3 particles are dead.* particles,"
    ):
        SMC(3).run(hopeless)
    with pytest.raises(errors.AllParticlesDeadError, match="use more simulations"):
        MCTS(3).run(hopeless)
    with pytest.raises(errors.AllParticlesDeadError, match="the one particle left is dead"):
        BestOfN(1).run(hopeless)
