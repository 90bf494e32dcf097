"""The agent of the examples, with its scripted writer."""

from __future__ import annotations

import agent
import pytest

from ppl.searchers import SMC


def test_the_agent_calls_tools_and_search_finds_the_sum(capsys):
    found = agent.main(["--width", "8", "--seed", "0"])
    printed = capsys.readouterr().out
    assert printed.count("(8)") == 3
    assert found["MCTS(8)"].best == 98
    assert all(p.cost.tool_calls > 0 for p in found.values())
    assert {"look_up", "calculate"} <= found["SMC(8)"].cost.models.keys()
    calls = [
        r for s in found["BestOfN(8)"].samples for r in s.records if r.name.startswith("call_")
    ]
    # A tool that fails (there is no price of a sofa) is part of the record, too.
    assert {r.value.error for r in calls} == {None, "KeyError: 'sofa'"}


def test_particles_that_are_told_everything_keep_the_sum():
    posterior = SMC(12).run(agent.agent, agent.QUESTION, agent.writer(), seed=2)
    for sample in posterior.samples:
        results = [r.value.result for r in sample.records if r.name.startswith("call_")]
        if sample.value == 98:
            assert results == [12, 31, 98] or results == [31, 12, 98]
    assert 98 in {s.value for s in posterior.samples}


@pytest.mark.parametrize(("expression", "value"), [("3*12+2*31", 98), ("7", 7), ("2*(1-3)", -4)])
def test_the_calculator(expression, value):
    assert agent.calculate(expression) == value


@pytest.mark.parametrize("expression", ["", "x", "2**9", "f(1)", "1.5", "'a'*9"])
def test_what_the_calculator_refuses(expression):
    with pytest.raises((ValueError, SyntaxError)):
        agent.calculate(expression)
