"""What MCTS makes of the values below: four backups against enumeration, and what they must not
mix up."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from decisions import DECISION, gamble, guess_the_coin, match_the_coin
from programs import TOY, toy
from scipy.special import logsumexp

import ppl
from ppl.errors import ArgumentError, ProgramError
from ppl.searchers import MCTS, check_searcher
from ppl.searchers.parse import parse, spell


def log_value(searcher, program, *args, seed=0):
    return searcher.run(program, *args, seed=seed).history[-1]["log_value"]


@pytest.mark.parametrize(
    ("program", "planning", "lucky"),
    [(gamble, 1.9059, 3.0), (match_the_coin, 1.0, 1.0), (guess_the_coin, 0.6201, 1.0)],
)
def test_expectimax_is_the_planning_value_and_max_is_more(program, planning, lucky):
    found = log_value(MCTS(64, 8, backup="expectimax"), program)
    assert found == pytest.approx(planning, abs=1e-4)
    assert found == pytest.approx(ppl.plan(program).value, abs=1e-6)
    # The largest R there is, whatever its probability: not even the MAP, which pays for luck.
    assert log_value(MCTS(400, 64, backup="max"), program) == pytest.approx(lucky)
    assert ppl.plan(program, kind="map").value < planning <= lucky


def two_stages(law, rewards, middle):
    """Decide, see, be paid, decide, be paid by chance: two checkpoints apart."""
    first = int(pyro.sample("first", dist.Bernoulli(0.5), infer=DECISION))
    state = int(pyro.sample("state", dist.Categorical(torch.tensor(law[first]))))
    pyro.factor("middle", torch.tensor(middle[first, state]))
    second = int(pyro.sample("second", dist.Categorical(torch.ones(3)), infer=DECISION))
    luck = int(pyro.sample("luck", dist.Bernoulli(0.25)))
    pyro.factor("reward", torch.tensor(rewards[first, state, second, luck]))
    return first, state, second, luck


def random_stages(seed):
    rng = np.random.default_rng(seed)
    law = rng.dirichlet(np.ones(3), size=2)
    return law, rng.normal(size=(2, 3, 3, 2)), rng.normal(size=(2, 3))


@pytest.mark.parametrize("leaves", [1, 5])
@pytest.mark.parametrize("selection", ["uct", "puct"])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.5])
def test_expectimax_is_exact_once_all_was_seen(temperature, selection, leaves):
    for seed in range(2):
        arguments = random_stages(seed)
        searcher = MCTS(
            500, selection=selection, leaves=leaves, backup="expectimax", temperature=temperature
        )
        posterior = searcher.run(two_stages, *arguments, seed=seed)
        plan = ppl.plan(two_stages, *arguments, temperature=temperature)
        assert posterior.history[-1]["log_value"] == pytest.approx(plan.value, abs=1e-5)
        assert MCTS.decided(posterior) == {"first": float(plan.decisions[()])}
        # It ends when nothing is left: 2 x 3 x 3 x 2 ends.
        assert len({s.value for s in posterior.samples}) == 36
        assert len(posterior.samples) < 100
        # No other kind of inference has this value.
        others = {
            k: ppl.plan(two_stages, *arguments, kind=k, temperature=temperature or 0.1).value
            for k in ("marginal", "marginal_map", "map", "uniform")
        }
        if temperature:
            assert all(abs(value - plan.value) > 1e-3 for value in others.values())


def test_values_on_the_way_are_those_of_each_decision():
    """Of every node of the finished tree: F is that of the program given what came before."""
    arguments = random_stages(7)
    search = MCTS(500, backup="expectimax").begin(two_stages, *arguments, seed=0)
    search.run()
    known, tree = search.state.statistics, search.tree
    for child in known[tree.root.identity].children:
        first, state = (float(v) for v in child.choices)
        given = ppl.do(
            two_stages, {"first": torch.tensor(first), "state": torch.tensor(int(state))}
        )
        exact = ppl.plan(given, *arguments).value
        assert known[child.identity].total == pytest.approx(exact, abs=1e-5)
        assert known[child.identity].closed
    assert known[tree.root.identity].visits == search.state.simulations


def test_values_converge_from_rollouts():
    """With few simulations the value is an estimate: closer the more there are."""
    errors = {}
    for simulations in (4, 24):
        gaps = []
        for seed in range(8):
            arguments = random_stages(seed)
            exact = ppl.plan(two_stages, *arguments).value
            searcher = MCTS(simulations, backup="expectimax")
            gaps.append(abs(log_value(searcher, two_stages, *arguments, seed=seed) - exact))
        errors[simulations] = np.mean(gaps)
    assert errors[4] > 2 * errors[24]


def writes(decides):
    """A letter, by chance or by decision; then luck."""
    law = TOY(TOY.prompt("^"), max_tokens=1)
    text = TOY.prompt("^") + pyro.sample("s", law, infer={"decision": decides})
    pyro.factor("seen", torch.tensor(0.1 * text.text.count("b")))
    win = float(pyro.sample("win", dist.Bernoulli({"a": 0.5, "b": 0.2}.get(text.text, 0.9))))
    pyro.factor("paid", torch.tensor(win))
    return text.text


@pytest.mark.parametrize("decides", [False, True])
def test_texts_are_drawn_and_then_averaged_or_decided(decides):
    exact = ppl.plan(writes, decides)
    posterior = MCTS(200, 40, backup="expectimax").run(writes, decides, seed=1)
    assert posterior.history[-1]["log_value"] == pytest.approx(exact.value, abs=1e-5)
    wanted = {"s": exact.decisions[()].text} if decides else {}
    assert MCTS.decided(posterior) == wanted
    other = ppl.plan(writes, not decides).value
    assert abs(other - exact.value) > 0.1


def test_what_was_not_drawn_goes_by_the_frequencies_of_what_was():
    """Two of three letters drawn: a twice (.5), b once (.3). The rest, .2, goes 2 : 1."""
    from ppl.searchers.trees.expectimax import Expectimax, Option
    from ppl.searchers.trees.ways import Way

    def option(p, drawn, worth):
        way = Way((), math.log(p) if p else math.nan, (0,), False, drawn)
        return Option(None, way, 1, worth, True)  # type: ignore[arg-type]

    rule = Expectimax(1.0, 4)
    options = [option(0.5, 2, 1.0), option(0.3, 1, -1.0)]
    w = 0.5 + 0.2 * 2 / 3, 0.3 + 0.2 / 3
    assert rule.shares(options) == pytest.approx(w)
    assert rule.worth(options) == pytest.approx(math.log(w[0] * math.e + w[1] / math.e))
    # Densities say nothing of masses: every draw counts the same.
    assert rule.shares([option(0, 1, 0.0), option(0, 3, 0.0)]) == [0.25, 0.75]


def noisy():
    """Half a unit surely, or a number around .8 with sd 1."""
    risky = pyro.sample("risky", dist.Bernoulli(0.5), infer=DECISION)
    noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
    pyro.factor("reward", 0.8 + noise if risky else torch.tensor(0.5))


def test_numbers_are_averaged_over_draws():
    """E exp(R) = exp(.8 + 1/2) at lambda = 1, E R = .8 at 0."""
    found = [
        [
            log_value(MCTS(200, 100, backup="expectimax", temperature=t), noisy, seed=s)
            for s in range(2)
        ]
        for t in (1.0, 0.0)
    ]
    # sd of a mean of 100: sqrt(e - 1) / 10 = .13 relative, .1.
    assert np.mean(found[0]) == pytest.approx(1.3, abs=4 * 0.13 / 1.4)
    assert np.mean(found[1]) == pytest.approx(0.8, abs=4 * 0.1 / 1.4)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 3.0])
def test_soft_is_the_log_mean_exp_of_all_simulations(temperature):
    search = MCTS(40, 3, backup="soft", temperature=temperature).begin(toy, "prod", seed=2)
    search.run()
    rewards = [node.log_likelihood for node in search.tree.nodes if node.finished]
    n = len(rewards)
    exact = (
        np.mean(rewards)
        if temperature == 0
        else (logsumexp(np.array(rewards) * temperature) - math.log(n)) / temperature
    )
    assert n == search.state.simulations
    assert search.notes[-1]["log_value"] == pytest.approx(exact)
    statistics = search.state.statistics
    for node in search.tree.nodes:
        below = statistics.get(node.identity)
        if below is not None and below.children and temperature:
            inner = [statistics[c.identity].total for c in below.children]
            assert below.total >= logsumexp(inner) - 1e-9


def test_soft_at_one_grows_the_tree_of_the_mean_and_tends_to_max():
    def grown(searcher):
        search = searcher.begin(two_stages, *random_stages(4), seed=4)
        search.run()
        return [(n.identity, n.parent.identity, n.choices) for n in search.tree.nodes[1:]]

    mean, soft = MCTS(30, 3, 0.1), MCTS(30, 3, 0.1, backup="soft")
    assert grown(mean) == grown(soft)
    assert grown(soft.with_(temperature=200.0)) == grown(mean.with_(backup="max"))
    assert grown(soft.with_(temperature=200.0)) != grown(mean)
    wide = soft.with_(width=40)
    values = [log_value(wide.with_(temperature=t), gamble) for t in (0.01, 1.0, 5.0, 300.0)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(3.0, abs=0.05)


def test_soft_over_independent_draws_is_the_value_of_deciding_by_lot():
    """All simulations at the root: (1/lambda) log E exp(lambda R) under the program's own law."""

    def even():
        arm = pyro.sample("arm", dist.Bernoulli(0.5), infer=DECISION)
        win = pyro.sample("win", dist.Bernoulli(0.3))
        pyro.factor("reward", 3.0 * win if arm else torch.tensor(1.0))

    for temperature in (0.0, 1.0):
        exact = ppl.plan(even, kind="uniform", temperature=temperature).value
        searcher = MCTS(1000, 1000, backup="soft", temperature=temperature)
        assert log_value(searcher, even) == pytest.approx(exact, abs=0.25)
        assert abs(exact - ppl.plan(even, temperature=temperature).value) > 0.04


def test_the_mean_says_nothing_new():
    posterior = MCTS(6).run(toy, "prod", seed=0)
    assert posterior.history == []
    assert repr(MCTS(6)).endswith("leaves=1)")
    assert MCTS.decided(posterior) == {}


def test_settings_are_checked_and_spelled():
    for wrong, told in (
        ({"backup": "median"}, "backup='median'"),
        ({"backup": "max", "temperature": 2.0}, "temperature=2.0"),
        ({"backup": "soft", "temperature": -1.0}, "temperature=-1.0"),
    ):
        with pytest.raises(ValueError, match=told):
            MCTS(4, **wrong)
    searcher = MCTS(4, backup="expectimax", temperature=0.5)
    assert parse(spell(searcher)) == searcher
    assert parse(repr(searcher)) == searcher
    assert "backup" not in spell(MCTS(4))


@pytest.mark.parametrize(
    "searcher",
    [
        MCTS(12, 3, backup="max", leaves=2),
        MCTS(12, 3, backup="soft", temperature=2.0, evaluation="verifier"),
        MCTS(12, 3, backup="expectimax", leaves=3, selection="puct"),
    ],
    ids=repr,
)
def test_the_laws_of_searchers_hold(searcher):
    assert len(check_searcher(searcher)) >= 6


def test_a_limit_leaves_what_was_found_and_what_would_be_decided():
    def asks(decides):
        first = pyro.sample("tool", dist.Bernoulli(0.5), infer=DECISION)
        pyro.factor("seen", torch.tensor(0.0))
        law = TOY(TOY.prompt("^"), max_tokens=1)
        text = TOY.prompt("^") + pyro.sample("s", law, infer={"decision": decides})
        pyro.factor("paid", torch.tensor(float(first) * text.text.count("a") - 0.5))
        return text.text

    searcher = MCTS(400, 20, backup="expectimax")
    stopped = searcher.run(asks, True, seed=0, budget=ppl.Budget(tokens=9))
    assert stopped.stopped == "budget"
    assert stopped.cost.lm_tokens <= 9
    assert len(stopped.samples) > 2
    assert set(MCTS.decided(stopped)) == {"tool", "s"}
    whole = searcher.run(asks, True, seed=0)
    assert MCTS.decided(whole) == {"tool": 1.0, "s": "a"}
    assert whole.history[-1]["log_value"] == pytest.approx(ppl.plan(asks, True).value)
    assert MCTS.decided(searcher.run(asks, False, seed=0)) == {"tool": 1.0}


def test_what_cannot_be_decided_is_refused():
    def late():
        text = TOY.prompt("^") + pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
        arm = pyro.sample("arm", dist.Bernoulli(0.5), infer=DECISION)
        pyro.factor("r", arm)
        return text.text

    with pytest.raises(ProgramError, match=r"'arm' comes after 's'.*ppl.twist"):
        MCTS(8, backup="expectimax").run(late, seed=0)

    def unclear():
        pyro.sample("arm", dist.Bernoulli(0.5), infer={"decision": 1})
        pyro.factor("r", torch.tensor(0.0))

    with pytest.raises(ArgumentError, match="site 'arm': infer="):
        MCTS(8, backup="expectimax").run(unclear, seed=0)

    with pytest.raises(ArgumentError, match="guide"):
        MCTS(8, backup="expectimax").run(gamble, guide=gamble, seed=0)


def test_a_search_that_was_saved_goes_on(tmp_path):
    arguments = random_stages(1)
    searcher = MCTS(60, leaves=2, backup="expectimax")
    whole = searcher.begin(two_stages, *arguments, seed=3)
    for _ in range(9):
        whole.step()
    whole.save(tmp_path / "s.ppl")
    resumed = ppl.searchers.Search.load(tmp_path / "s.ppl")
    found, again = whole.run(), resumed.run()
    assert found.history == again.history
    assert [s.node for s in found.samples] == [s.node for s in again.samples]
