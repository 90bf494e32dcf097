"""What deciding is worth: the five kinds of inference on two gambles, and what must order them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from decisions import DECISION, gamble, guess_the_coin, match_the_coin

import ppl
from ppl.errors import ArgumentError, PPLError

KINDS = ("marginal", "planning", "marginal_map", "map", "uniform")


@pytest.mark.parametrize(
    ("program", "values"),
    [
        (gamble, (2.2454, 1.9059, 1.9059, 1.7960, math.log((math.e + 6.7257) / 2))),
        (match_the_coin, (1.3133, 1.0, 0.6201, 0.3069, 0.6201)),
        (guess_the_coin, (1.3133, 0.6201, 0.6201, 0.3069, 0.6201)),
    ],
    ids=["gamble", "match", "guess"],
)
def test_values_at_temperature_one(program, values):
    found = [ppl.plan(program, kind=kind).value for kind in KINDS]
    assert found == pytest.approx(values, abs=1e-4)


def test_only_planning_lets_what_was_seen_decide():
    seen = ppl.plan(match_the_coin).decisions
    assert {history[0][1].item(): int(said) for history, said in seen.items()} == {0.0: 0, 1.0: 1}
    assert int(ppl.plan(gamble).decisions[()]) == 1
    assert set(ppl.plan(match_the_coin, kind="marginal_map").decisions) == {"said"}
    lucky = ppl.plan(gamble, kind="map").decisions
    assert {name: int(value) for name, value in lucky.items()} == {"arm": 1}
    assert ppl.plan(gamble, kind="marginal").decisions == {}


def test_without_risk_the_sure_arm_is_taken():
    calm = ppl.plan(gamble, temperature=0.0)
    assert calm.value == pytest.approx(1.0)
    assert int(calm.decisions[()]) == 0
    assert ppl.plan(gamble, kind="uniform", temperature=0.0).value == pytest.approx(0.95)
    assert ppl.plan(gamble, temperature=1e-3).value == pytest.approx(1.0, abs=1e-3)
    near = ppl.plan(guess_the_coin, kind="marginal_map", temperature=0.0)
    assert near.value == pytest.approx(0.5)
    # So it tends to the expected reward, though probabilities are of single precision.
    for temperature in (1e-4, 1e-7, 1e-10):
        for kind, value in {"planning": 1.0, "uniform": 0.95}.items():
            found = ppl.plan(gamble, kind=kind, temperature=temperature).value
            assert found == pytest.approx(value, abs=temperature + 1e-6)
    # Where risk is neither sought nor shunned: 1 = log(.3 e^(3 t) + .7) / t at t = .1365.
    bold = [int(ppl.plan(gamble, temperature=t).decisions[()]) for t in (0.1, 0.2)]
    assert bold == [0, 1]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_bounds_are_ordered_and_planning_is_the_best_policy(seed, temperature):
    rng = np.random.default_rng(seed)
    law, rewards = rng.dirichlet(np.ones(3), size=2), rng.normal(size=(2, 3, 2))

    def program():
        first = int(pyro.sample("first", dist.Bernoulli(0.5), infer=DECISION))
        state = int(pyro.sample("state", dist.Categorical(torch.tensor(law[first]))))
        second = int(pyro.sample("second", dist.Bernoulli(0.5), infer=DECISION))
        pyro.factor("reward", torch.tensor(rewards[first, state, second]))

    found = {k: ppl.plan(program, kind=k, temperature=temperature).value for k in KINDS}
    assert found["marginal"] >= found["planning"] >= found["marginal_map"] >= found["map"]
    assert found["planning"] >= found["uniform"]
    policies = itertools.product((0, 1), itertools.product((0, 1), repeat=3))
    gains = np.exp(temperature * rewards)
    best = max(
        sum(law[first][s] * gains[first, s, seconds[s]] for s in range(3))
        for first, seconds in policies
    )
    assert found["planning"] == pytest.approx(math.log(best) / temperature)


def test_without_chance_planning_and_map_are_one():
    def program():
        digits = [int(pyro.sample(f"d{i}", dist.Bernoulli(0.3), infer=DECISION)) for i in range(3)]
        pyro.factor("reward", torch.tensor(digits[0] - 2.0 * digits[1] + 0.5 * digits[2]))

    values = [ppl.plan(program, kind=k).value for k in ("planning", "marginal_map", "map")]
    assert values == pytest.approx([1.5] * 3)


def test_texts_are_decided_too():
    lm = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", end="$")

    def program(decides):
        word = pyro.sample("w", lm(lm.prompt("^"), max_tokens=1), infer={"decision": decides})
        pyro.factor("liked", torch.tensor({"a": 0.0, "b": 2.0}.get(word.text, -1.0)))

    best = ppl.plan(program, True)
    assert (best.value, best.decisions[()].text) == (2.0, "b")
    by_chance = ppl.plan(program, False).value
    assert by_chance == pytest.approx(math.log(0.5 + 0.3 * math.e**2 + 0.2 / math.e))
    assert by_chance == pytest.approx(ppl.enumerate_program(program, False).log_evidence)


def test_what_is_never_drawn_is_no_option():
    def program(law):
        move = int(pyro.sample("move", law, infer=DECISION))
        pyro.factor("reward", torch.tensor(float(move)))

    for law in (
        dist.Categorical(torch.tensor([0.5, 0.5, 0.0])),
        dist.Categorical(logits=torch.tensor([0.0, 0.0, -math.inf])),
    ):
        for kind in KINDS[1:]:
            if kind != "uniform":
                assert ppl.plan(program, law, kind=kind).value == 1.0
        assert ppl.plan(program, law, kind="uniform", temperature=0.0).value == 0.5


def test_chance_that_never_happens_is_worth_nothing():
    def program():
        law = dist.Categorical(logits=torch.tensor([0.0, -math.inf]))
        pyro.factor("reward", torch.tensor([2.0, 9.0])[pyro.sample("luck", law)])

    for kind in KINDS:
        assert ppl.plan(program, kind=kind).value == pytest.approx(2.0)


def test_a_plan_that_fits_no_run_is_none():
    """What the second decision offers depends on the first."""

    def program():
        first = int(pyro.sample("first", dist.Bernoulli(0.5), infer=DECISION))
        offers = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])[first]
        second = int(pyro.sample("second", dist.Categorical(offers), infer=DECISION))
        pyro.factor("reward", torch.tensor([1.0, 2.0, 4.0, 3.0])[second])

    for kind in ("planning", "marginal_map", "map"):
        assert ppl.plan(program, kind=kind).value == pytest.approx(4.0)
    best = ppl.plan(program, kind="marginal_map").decisions
    assert {name: int(value) for name, value in best.items()} == {"first": 1, "second": 2}


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ArgumentError, match="temperature=0: kind='map'"):
        ppl.plan(gamble, kind="map", temperature=0.0)
    with pytest.raises(PPLError, match="more than 3 choice sequences"):
        ppl.plan(gamble, most=3)

    def unclear():
        pyro.sample("x", dist.Bernoulli(0.5), infer={"decision": "yes"})

    with pytest.raises(ArgumentError, match="site 'x': infer="):
        ppl.plan(unclear)
