"""FOBAR end to end: its price, its limits, and what a near miss would give."""

from __future__ import annotations

import math
from collections import Counter

import pyro
import pytest

import ppl
from ppl import decide
from ppl.errors import ArgumentError, VerifierError
from ppl.language.cost import Account
from ppl.runtime.batch import BudgetExhausted
from ppl.searchers import BestOfN
from ppl.verifiers import FOBAR, fobar, forward_backward

SYMBOLS = "^x+=?\n/.0123456789$"
QUESTION = "3+2?"
OPTIONS = {"prompt": "{masked}={answer}", "temperature": 1.0}


class Back(ppl.TableLM):
    """Gives the masked number back with .75 from five, with .25 from six, and from nothing else."""

    def __init__(self) -> None:
        super().__init__(self._next, symbols=SYMBOLS, name="back")

    def chat(self, messages, **_):
        return self.prompt(f"{messages}\n")

    def _next(self, prefix):
        asked, _, said = prefix.rpartition("\n")
        if said:
            return {"$": 1.0}
        _, _, answer = asked.rpartition("=")
        number = "3" if "x+" in asked else "2"
        right = {"5": 0.75, "10/2": 0.75, "6": 0.25}.get(answer, 0.0)
        return {number: right, "7": 1 - right}


BACK = Back()
SOLVER = ppl.TableLM({"5": 0.3, "6": 0.5, "8": 0.2}, symbols=SYMBOLS, name="solver")


def solve():
    text = SOLVER.prompt(QUESTION)
    return pyro.sample("answer", SOLVER(text, max_tokens=1)).text


@pytest.mark.parametrize("particles", [12, 60, 240])
@pytest.mark.parametrize("masks", [1, None])
def test_the_price_is_candidates_times_masks_times_samples(particles, masks):
    posterior = BestOfN(particles).run(solve, seed=0)
    candidates = len({sample.value for sample in posterior.samples})
    found = fobar(posterior, QUESTION, BACK, samples=4, masks=masks, **OPTIONS)
    masked = masks or 2
    assert found.cost.lm_calls == candidates * masked * 4
    assert found.cost.models["back"].draws == candidates * masked * 4
    assert found.draws == masked * 4
    assert len(found) == candidates
    assert particles < 60 or candidates == 3


def test_one_class_of_answers_is_one_candidate():
    answers = [ppl.Answer(a) for a in ("5", "10/2", "5.0", "6", "5")]
    found = fobar(answers, QUESTION, BACK, samples=3, **OPTIONS)
    assert found.cost.lm_calls == 2 * 2 * 3
    assert found.forward == {"5": 0.8, "6": 0.2}
    apart = fobar([str(a) for a in answers], QUESTION, BACK, samples=3, **OPTIONS)
    assert apart.cost.lm_calls == 4 * 2 * 3


def test_alpha_one_is_the_vote_and_alpha_zero_ranks_by_z():
    for seed in range(20):
        posterior = BestOfN(9).run(solve, seed=seed)
        found = fobar(posterior, QUESTION, BACK, alpha=1.0, samples=4, seed=seed, **OPTIONS)
        flat = decide.shares(posterior, "flat")
        assert list(found) == [answer for answer, _ in flat]
        assert found == pytest.approx(dict(flat))
        assert found.best == decide.vote(posterior, "flat")
        zero = fobar(posterior, QUESTION, BACK, alpha=0.0, samples=4, seed=seed, **OPTIONS)
        assert zero.backward == found.backward
        z = [zero.backward[answer] for answer in zero]
        assert z == sorted(z, reverse=True)
        total = sum(z)
        assert list(zero.values()) == pytest.approx([v / total for v in z], abs=1e-6)


def test_the_backward_draws_turn_a_wrong_majority():
    """The most frequent answer is 6; the model finds the numbers back from 5."""
    posterior = BestOfN(400).run(solve, seed=1)
    found = fobar(posterior, QUESTION, BACK, samples=200, **OPTIONS)
    votes = Counter(sample.value for sample in posterior.samples)
    assert votes.most_common(1)[0][0] == "6"
    assert found.best == "5"
    error = 4 * math.sqrt(0.25 * 0.75 / 400)
    assert found.backward["5"] / 400 == pytest.approx(0.75, abs=error)
    assert found.backward["6"] / 400 == pytest.approx(0.25, abs=error)
    assert found.backward["8"] == 0
    assert 0 < found["8"] < 1e-3  # not ruled out
    expected = forward_backward(votes, found.backward)
    assert found == pytest.approx(expected)
    # The near misses: weights that are multiplied, and a backward share that is no share of all.
    product = {a: votes[a] * found.backward[a] for a in votes}
    assert found["5"] != pytest.approx(product["5"] / sum(product.values()), abs=0.02)


def test_a_candidate_that_is_never_found_back_leaves_the_order_of_the_others():
    two = fobar(["5", "6", "6"], QUESTION, BACK, samples=20, **OPTIONS)
    more = fobar(["5", "6", "6", "9"], QUESTION, BACK, samples=20, **OPTIONS)
    assert [a for a in more if a != "9"] == list(two)
    assert more.backward["9"] == 0


def test_a_count_is_public_and_remembered():
    judge, account = FOBAR(BACK, samples=5, **OPTIONS), Account()
    assert judge.draws(QUESTION) == 10
    first = judge.count(QUESTION, ["5", "6", "5"], account=account)
    assert account.cost.lm_calls == 20
    assert account.cost.verifier_tokens == 0
    again = judge.count(QUESTION, ["6", "5", "8"], account=account)
    assert account.cost.lm_calls == 30  # one more candidate
    assert {a: again[a] for a in first} == first
    text = SOLVER.prompt(QUESTION) + SOLVER.continuation("5", finished=True)
    (scores,) = judge.judge([ppl.JudgeRequest(judge, text, ledger=account)])
    assert account.cost.lm_calls == 30  # the verifier knows what was counted
    assert scores[0] == pytest.approx(math.log(first["5"] / 10))


def test_questions_and_answers_may_look_like_places():
    judge = FOBAR(ppl.load("tiny-lines"))
    ((number, asked),) = judge._masked(("Is {answer} 5?", "{masked}"), "a test")
    assert (number, asked.prompt.splitlines()[0]) == ("5", "Is {answer} x?")
    assert "answer to the question above is {masked}," in asked.prompt


def test_what_cannot_be_asked_is_refused():
    assert dict(fobar([None, None], QUESTION, BACK, **OPTIONS)) == {}
    assert fobar([], QUESTION, BACK, **OPTIONS).best is None
    with pytest.raises(VerifierError, match="no number to mask"):
        fobar(["5"], "x+x?", BACK, **OPTIONS)
    with pytest.raises(ArgumentError, match="cannot be told apart"):
        fobar([["5"], ["6"]], QUESTION, BACK, **OPTIONS)
    with pytest.raises(BudgetExhausted):
        FOBAR(BACK, **OPTIONS).count(QUESTION, ["5"], account=Account(ppl.Budget(calls=3)))
