"""Rollover budget forcing: the arithmetic of quotas on scripted rewards."""

from __future__ import annotations

import pyro
import pytest
from programs import TOY, toy

import ppl
from ppl.errors import AllParticlesDeadError
from ppl.searchers import RolloverBudgetForcing
from ppl.verifiers import FunctionVerifier


def scripted(rewards, steps: int = 3):
    """A program of so many steps, whose tries are worth what the script says, one after another."""
    script = iter(rewards)
    judge = FunctionVerifier(lambda text: next(script), name="script")

    def program():
        text = TOY.prompt("^")
        for t in range(steps):
            text += pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed=TOY.encode("ab")))
            pyro.sample(f"ok_{t}", judge(text), obs=True)
        return text.text

    return program


def grow(searcher, rewards, steps: int = 3):
    search = searcher.begin(scripted(rewards, steps), seed=0)
    posterior = search.run()
    notes = [(note["quota"], note["beats"]) for note in search.notes]
    parents = [n.parent.identity for n in search.tree.nodes[1:] if not n.simulated]
    return notes, parents, posterior


def test_unused_tries_roll_over():
    """Quota 3, rewards .2 | .1 .15 .3: taken at the first try, then at the third of five."""
    rewards = [0.2, 0.1, 0.15, 0.3, 0.25, 0.3, 0.28, 0.2, 0.1]
    notes, parents, posterior = grow(RolloverBudgetForcing(9, 3), rewards)
    assert notes[:4] == [(3, True), (5, False), (4, False), (3, True)]
    # Two were left again: five tries, none better than .3, so the best of them.
    assert notes[4:] == [(5, False), (4, False), (3, False), (2, False), (1, False)]
    assert parents == [0, 1, 1, 1, 4, 4, 4, 4, 4]
    assert posterior.best_sample.score == pytest.approx(0.3)
    assert [s.node for s in posterior.samples] == [5, 6, 7, 8, 9]


def test_a_used_up_quota_takes_the_best_and_rolls_nothing_over():
    rewards = [0.5, 0.2, 0.4, 0.3, 0.45, 0.1, 0.1, 0.1, 0.6]
    notes, parents, _ = grow(RolloverBudgetForcing(6, 3), rewards)
    # Quota 2, then 3 of which none beats .5: the third is no better, node 3 (.4) is; then 2.
    assert notes == [(2, True), (3, False), (2, False), (1, False), (2, False), (1, False)]
    assert parents == [0, 1, 1, 1, 3, 3]


def test_constant_rewards_use_every_quota():
    """Equal is not better: after the first step, which has nothing to beat, no try is saved."""
    notes, parents, _ = grow(RolloverBudgetForcing(20, 4), [0.6] * 20, steps=4)
    assert [quota for quota, _ in notes] == [
        5,
        *range(9, 0, -1),
        *range(5, 0, -1),
        *range(5, 0, -1),
    ]
    assert [beats for _, beats in notes] == [True] + [False] * 19
    assert parents == [0] + [1] * 9 + [2] * 5 + [11] * 5


def test_the_bar_is_the_best_ever_or_the_text_as_it_stands():
    rewards = [0.8, 0.2, 0.1, 0.3, 0.4, 0.35, 0.1, 0.1]
    notes, parents, _ = grow(RolloverBudgetForcing(8, 4), rewards, steps=4)
    assert [beats for _, beats in notes] == [True] + [False] * 7
    assert parents == [0, 1, 1, 1, 4, 4, 5, 5]
    notes, parents, _ = grow(RolloverBudgetForcing(8, 4, "parent"), rewards, steps=4)
    assert [n for n, (_, beats) in enumerate(notes, 1) if beats] == [1, 5]
    assert parents == [0, 1, 1, 1, 4, 5, 5, 5]


def test_rounding_beats_no_bar():
    """From .02 back to .24 by telescoping logarithms is a little more than .24."""
    notes, _, posterior = grow(RolloverBudgetForcing(3, 3), [0.24, 0.02, 0.24])
    assert [beats for _, beats in notes] == [True, False, False]
    assert posterior.best_sample.score == pytest.approx(0.24)


def test_tries_are_never_exceeded_and_the_best_is_run_on():
    for tries in range(1, 12):
        search = RolloverBudgetForcing(tries, 1).begin(toy, "last", seed=tries)
        posterior = search.run()
        drawn = [n for n in search.tree.nodes[1:] if not n.simulated]
        assert len(drawn) <= tries
        assert posterior.best is not None
    notes, parents, posterior = grow(RolloverBudgetForcing(3, 1), [0.2, 0.1, 0.15, 0.9, 0.7])
    assert notes == [(3, True), (5, False), (4, False)]
    assert parents == [0, 1, 1]
    assert posterior.samples[0].records[2].name == "s_1"
    assert posterior.best_sample.score == pytest.approx(0.9)  # two steps more, from node 3


def test_dead_tries_get_another_quota():
    notes, parents, _ = grow(RolloverBudgetForcing(8, 4), [0, 0, 0, 0.3, 0, 0.2, 0.1, 0.1], steps=2)
    assert notes == [(2, False), (1, False), (2, False), (1, True), (2, False), (1, False)]
    assert parents == [0, 0, 0, 0, 4, 4]
    with pytest.raises(AllParticlesDeadError, match="ok_0"):
        grow(RolloverBudgetForcing(4, 2), [0] * 9)


def test_a_stopped_search_gives_the_best_of_its_step():
    searcher = RolloverBudgetForcing(9, 3)
    posterior = searcher.run(scripted([0.5, 0.1, 0.3, 0.2]), seed=0, budget=ppl.Budget(tokens=4))
    assert posterior.stopped == "budget"
    assert [s.score for s in posterior.samples] == pytest.approx([0.3])


@pytest.mark.parametrize("wrong", [(0,), (5, 6), (5, 0), (5, 1, "never")])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="="):
        RolloverBudgetForcing(*wrong)
