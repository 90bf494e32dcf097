"""First Finish Search: who wins, what it costs, and what it is in law."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pytest

import ppl
from ppl.runtime.enumeration import enumerate_program
from ppl.searchers import BestOfN, FirstFinish, check_searcher
from ppl.verifiers import verifier


# Texts a.., b, c, d. of probability .5, .2, .2, .1 and lengths 3, 1, 1, 2.
def after(prefix: str) -> dict[str, float]:
    nexts = {"^a": "x", "^ax": "$", "^d": "$"}
    return {nexts[prefix]: 1.0} if prefix in nexts else {"a": 0.5, "b": 0.2, "c": 0.2, "d": 0.1}


FOUR = ppl.TableLM(after, symbols="^abcdx$", end="$", name="four")
LENGTHS = {"a": 3, "b": 1, "c": 1, "d": 2}


def four(steps: bool = False) -> str:
    """One of the four, in one draw or in a step a token."""
    text = FOUR.prompt("^")
    for t in range(3 if steps else 1):
        step = pyro.sample(f"s_{t}", FOUR(text, max_tokens=1 if steps else 3, until=["b", "c"]))
        text = text + step
        if steps:
            ppl.twist(f"here_{t}", 0.0)
        if step.finished or text.text[-1] in "bc":
            break
    return text.text[0]


@pytest.mark.parametrize("steps", [False, True])
def test_the_law_of_the_shortest_of_three(steps):
    runs = 1000
    found = FirstFinish(3).run_many(four, [(steps,)] * runs, seed=range(runs))
    for text, p in {"a": 0.125, "b": 0.392, "c": 0.392, "d": 0.091}.items():
        share = sum(one.best == text for one in found) / runs
        assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / runs))


@pytest.mark.parametrize("steps", [False, True])
def test_it_costs_n_times_the_shortest_length(steps):
    for seed in range(60):
        each = [LENGTHS[s.value] for s in BestOfN(3).run(four, steps, seed=seed).samples]
        race = FirstFinish(3).run(four, steps, seed=seed)
        winner = LENGTHS[race.best]
        assert race.cost.lm_tokens == 3 * winner
        assert race.stopped == "done"
        assert race.log_evidence is None
        if not steps:  # the same draws: with steps, later ones are numbered by arrival
            assert winner == min(each)
            assert race.history[0]["ties"] == each.count(winner)
            assert race.history[0]["cancelled"] == 3 - each.count(winner)


def test_ties_are_drawn_and_not_won_by_the_first_row():
    races = [FirstFinish(3).run(four, seed=seed) for seed in range(200)]
    tied = [race.history[0]["node"] for race in races if race.history[0]["ties"] == 3]
    assert len(tied) > 8
    assert {1, 2, 3} == set(tied)


def blank(steps: int = 4) -> str | None:
    """Ends with nothing as soon as it says b."""
    text = FOUR.prompt("^")
    text = text + pyro.sample("s_0", FOUR(text, max_tokens=3, until=["b", "c"]))
    return None if text.text in ("b", "c") else text.text[0]


def test_a_blank_early_text_does_not_win():
    for seed in range(30):
        answers = [s.value for s in BestOfN(4).run(blank, seed=seed).samples]
        race = FirstFinish(4).run(blank, seed=seed)
        known = [a for a in answers if a is not None]
        assert race.best == (min(known, key=lambda a: LENGTHS[a]) if known else None)
        quick = FirstFinish(4, answered=False).run(blank, seed=seed)
        assert (quick.best is None) == (None in answers)


def test_verdicts_choose_nothing_and_dead_samples_never_win():
    @verifier(aggregate="last")
    def likes_long(text):
        return 0.9 if len(text.text) > 1 else 0.1

    def judged(banned: str) -> str:
        text = FOUR.prompt("^")
        text = text + pyro.sample("s_0", FOUR(text, max_tokens=3, until=["b", "c"]))
        pyro.sample("ok", likes_long(text), obs=True)
        ppl.condition(text.text[0] not in banned, "banned")
        return text.text[0]

    for seed in range(20):
        assert (
            FirstFinish(3).run(judged, "", seed=seed).best
            == FirstFinish(3).run(four, seed=seed).best
        )
        assert FirstFinish(12).run(judged, "bc", seed=seed).best in ("a", "d")
    with pytest.raises(ppl.PPLError, match="banned"):
        FirstFinish(3).run(judged, "abcd", seed=0)


def test_a_limit_shows_how_far_it_came():
    whole = FirstFinish(4).run(four, True, seed=5)
    for tokens in range(whole.cost.lm_tokens):
        part = FirstFinish(4).run(four, True, seed=5, budget=ppl.Budget(tokens=tokens))
        assert part.cost.lm_tokens <= tokens
        assert part.stopped == "budget"


def test_one_sample_is_the_program_and_the_laws_hold():
    assert enumerate_program(four).log_evidence == pytest.approx(0.0)
    assert check_searcher(FirstFinish(3), [partial(four, True), partial(four, False)])[:6] == [
        "value",
        "notes",
        "seed",
        "batch",
        "weighed once",
        "limits",
    ]
    for wrong in ({"n": 0}, {"n": 2, "answered": 1}):
        with pytest.raises(ValueError, match=next(reversed(wrong))):
            FirstFinish(**wrong)
