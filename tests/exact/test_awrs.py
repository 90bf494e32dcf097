"""Adaptive weighted rejection sampling: its weights by enumeration of everything it may draw."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pyro
import pytest
from programs import TOY

import ppl
from ppl.lm.base import Drawn
from ppl.searchers import SMC, BestOfN

FOUR = ppl.TableLM({"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}, symbols="^abcd$", end="$")


def valid_in(letters: str):
    return lambda text: text.text[-1:] in letters if text.text else "$" in letters


def enumerated(proposal: ppl.AWRS) -> dict[str, float]:
    """E[w 1{v}] per token v: the sum over everything the sampler may draw, each way once."""
    lm, totals = proposal.proposal.model, {}
    pending = [()]
    while pending:
        script = pending.pop()
        assert len(script) <= len("abcd$")  # no token is proposed twice, so this comes to an end
        used = iter(script)
        probability = 1.0

        def ask(spec, number, used=used, script=script):
            nonlocal probability
            support = lm.support(lm(proposal.proposal.text, max_tokens=1, allowed=spec.allowed))
            choice = next(used, None)
            if choice is None:
                pending.extend((*script, i) for i in range(len(support)))
                raise StopIteration
            value, log_prob = support[choice]
            probability *= math.exp(log_prob)
            return Drawn(value, log_prob)

        try:
            value, log_q = proposal.propose(ask)
        except StopIteration:
            continue
        # The model multiplies by p(v) / q(v), and rules invalid tokens out.
        text = proposal.proposal.text + value
        log_p = float(proposal.proposal.log_prob(value))
        weight = math.exp(log_p - log_q) if proposal.valid(text) else 0.0
        symbol = value.text or "$"
        totals[symbol] = totals.get(symbol, 0.0) + probability * weight
    return totals


@pytest.mark.parametrize("letters", ["bd", "a", "d", "abcd", "bcd", ""])
def test_every_valid_token_has_its_own_probability_in_expectation(letters):
    proposal = ppl.AWRS(FOUR(FOUR.prompt("^"), max_tokens=1), valid_in(letters))
    found = enumerated(proposal)
    table = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
    for symbol, p in table.items():
        assert found.get(symbol, 0.0) == pytest.approx(p if symbol in letters else 0.0)


def balanced(text: ppl.Text) -> bool:
    """No prefix with more b than a, and no end but at a tie."""
    lead = text.text.count("a") - text.text.count("b")
    return lead == 0 if text.finished else lead >= 0


def model(temperature: float = 1.0) -> str:
    text = TOY.prompt("^")
    for t in range(4):
        step = pyro.sample(f"s_{t}", TOY(text, max_tokens=1))
        text = text + step
        ppl.condition(balanced(text))
        if step.finished:
            break
    return text.text


def guide(temperature: float = 1.0) -> None:
    text = TOY.prompt("^")
    for t in range(4):
        proposal = TOY(text, max_tokens=1, temperature=temperature)
        step = pyro.sample(f"s_{t}", ppl.AWRS(proposal, balanced))
        text = text + step
        if step.finished:
            break


@pytest.mark.parametrize("searcher", [BestOfN(2), SMC(3, 1.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_evidence_of_a_constrained_program(searcher, temperature):
    exact = ppl.enumerate_program(model)
    runs = searcher.run_many(model, [temperature] * 500, guide=guide, seed=range(500))
    estimates = np.exp([r.log_evidence for r in runs])
    error = estimates.std() / math.sqrt(len(runs))
    assert abs(estimates.mean() - math.exp(exact.log_evidence)) < 4 * error
    assert all(s.log_weight > -math.inf for r in runs for s in r.samples)  # no draw is wasted


def test_candidates_are_paid_for_and_budgets_kept():
    whole = SMC(4).run(model, guide=guide, seed=1)
    assert whole.cost.lm_tokens > sum(len(s.text.text) for s in whole.samples)
    for tokens in range(1, whole.cost.lm_tokens, 7):
        part = SMC(4).run(model, guide=guide, seed=1, budget=ppl.Budget(tokens=tokens))
        assert part.cost.lm_tokens <= tokens
        assert part.stopped == "budget"


def test_one_seed_one_result_in_any_company():
    together = SMC(3).run_many(model, [1.0, 2.0], guide=guide, seed=[5, 6])
    for posterior, temperature, seed in zip(together, (1.0, 2.0), (5, 6), strict=True):
        alone = SMC(3).run(model, temperature, guide=guide, seed=seed)
        assert [str(s.text) for s in posterior.samples] == [str(s.text) for s in alone.samples]
        assert posterior.log_evidence == alone.log_evidence


def test_giving_up_kills_the_particle():
    never = partial(ppl.AWRS, TOY(TOY.prompt("^"), max_tokens=1), lambda text: False)

    def program() -> None:
        pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
        ppl.condition(False, "never")

    for limit, tokens in ((None, 3), (2, 2)):
        with pytest.raises(ppl.PPLError, match="dead") as caught:
            BestOfN(1).run(program, guide=lambda n=limit: pyro.sample("s", never(max_candidates=n)))
        assert caught.value.posterior.cost.lm_tokens == tokens


def test_outside_a_search_it_draws_a_valid_token():
    proposal = ppl.AWRS(TOY(TOY.prompt("^"), max_tokens=1), valid_in("b"))
    assert {proposal().text for _ in range(5)} == {"b"}
    with pytest.raises(NotImplementedError, match="random weight"):
        proposal.log_prob(TOY.continuation("b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "one token"), ({"max_tokens": 1, "top_p": 0.5}, "whole"), ({"max_tokens": 2}, "one")],
)
def test_what_it_cannot_propose_from_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ppl.AWRS(TOY(TOY.prompt("^"), **options), balanced)
