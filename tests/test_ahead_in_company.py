"""Rows that are ahead, in several batches of one memory and one account: as token by token."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from compiler import needs_compiler
from engines import make, request, some_texts
from test_leading import RULES, assert_same, plainly, together, whole
from test_whole import needs_any

from ppl.language.cost import Account, Budget
from ppl.language.steps import StepRule
from ppl.lm.base import Drawn
from ppl.lm.sampling import Warp

assert together  # a fixture
HEAT = [1.0, 1.0, 0.5, 1e-8, 1e8, 0.0]


def lived(lm, seed: int, forgets: bool) -> tuple[list, list]:
    """What two batches show, step by step, and what it costs."""
    rng = random.Random(seed)
    accounts = [Account(), Account(Budget(tokens=rng.randrange(5, 80)))]
    lm.fresh()
    sessions = [lm.session(), lm.session()]
    begun: dict[tuple[int, int], tuple[int, ...]] = {}
    texts, shown = some_texts(seed)[:4], []
    for at in range(400):
        if not any(session.running for session in sessions) and at > 80:
            break
        number, chance = rng.randrange(2), rng.random()
        if chance < 0.15 and at < 80:
            text = rng.choice(texts)
            key, most, heat = rng.randrange(5), rng.choice([2, 9, 25]), rng.choice(HEAT)
            ledger = rng.choice(accounts)
            asked = request(lm, text, key, most, ledger)
            rule = rng.choice([*RULES, StepRule(predicate=lambda said: len(said) == 9)])
            asked = replace(asked, spec=replace(asked.spec, rule=rule, warp=Warp(heat)))
            begun[number, sessions[number].submit(asked)] = text
        elif chance < 0.18 and forgets:
            lm.fresh()
        elif sessions[number].running:
            done = sessions[number].step()
            spent = [account.cost.lm_tokens for account in accounts]
            shown.append((number, sorted(done.items()), spent))
            for ticket, drawn in done.items():
                if isinstance(drawn, Drawn):
                    longer = begun[number, ticket] + drawn.value.tokens
                    texts += [longer[: rng.randrange(17, 60)]]
    assert not lm.engine.slots.busy
    return shown, [replace(account.cost, seconds=0) for account in accounts]


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize(
    "made", [make, pytest.param(whole, marks=[needs_compiler, needs_any])], ids=["plain", "whole"]
)
def test_batches_of_one_memory_and_account_are_those_of_a_token_a_step(made, forgets, together):
    """Where what is known is forgotten on the way, bills differ in what of a prompt was known."""
    plain, lm = plainly(made()), made()
    for seed in range(12):
        (there, bills), (here, bills_) = (lived(model, seed, forgets) for model in (plain, lm))
        assert [(n, s) for n, _, s in there] == [(n, s) for n, _, s in here]
        for (_, one, _), (_, two, _) in zip(there, here, strict=True):
            assert [ticket for ticket, _ in one] == [ticket for ticket, _ in two]
            for (_, a), (_, b) in zip(one, two, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert_same(a, b, 2e-4)
        if forgets:
            bills, bills_ = (
                [replace(b, prompt_tokens=b.prompt_tokens + b.reused_tokens, reused_tokens=0)
                 for b in each]
                for each in (bills, bills_)
            )  # fmt: skip
        assert bills == bills_
    assert together["runs"] > 3 or together["bursts"] > 3
