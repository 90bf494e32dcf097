"""Forks, and what is particular to each searcher; what all obey is in test_laws.py."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from accuracy_vs_budget import solve
from programs import TOY, VERIFIERS, contents, toy, toy_guide

import ppl
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN
from ppl.verifiers import FunctionVerifier, Verifier


@pytest.mark.parametrize(
    "make",
    [
        lambda: BestOfN(0),
        lambda: SMC(0),
        lambda: SMC(4, ess_threshold=1.5),
        lambda: SMC(4, resampling="bogus"),
        lambda: BeamSearch(0, 1),
        lambda: MCTS(0),
        lambda: ppl.Budget(tokens=-1),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"="):
        make()


# -- forks -------------------------------------------------------------------------------------


def test_forks_call_no_model_for_what_the_parent_has():
    """Law 4, by counting calls: forking a node n times asks n times for the next step only."""
    asked = []

    def counted(text: ppl.Text) -> float:
        asked.append(text.text)
        return 0.5

    judge = FunctionVerifier(counted, name="counted")
    tree = ppl.Tree(_three_steps, (judge,), seed=0)
    first = tree.expand([tree.root])
    second = tree.expand(first)
    before = TOY.tokens_computed
    asked.clear()
    children = tree.expand(second, 7)
    assert len(children) == len(asked) == 7
    assert TOY.tokens_computed - before == 7
    assert tree.cost.lm_calls == 9
    assert len({c.choices for c in children}) > 1  # copies do not share randomness
    # The same node, expanded again later, is forked from its record alone.
    asked.clear()
    again = tree.expand(second, 2)
    assert len(asked) == len(again) == 2


def _three_steps(judge: ppl.Verifier) -> str:
    text = TOY.prompt("^") + "a"
    for t in range(3):
        text = text + pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed={1, 2}))
        pyro.sample(f"ok_{t}", judge(text), obs=True)
    return text.text


def test_forked_and_continued_particles_agree(tiny):
    """A fork by replay goes on exactly like the particle that never stopped."""
    lm, prm = tiny
    question = "Calculate ( 3 + 5 ) * 2 - 7."
    grown = []
    for pickled in (False, True):
        tree = ppl.Tree(solve, (question, lm, prm), seed=3)
        nodes = tree.expand([tree.root], 3)
        if pickled:  # loses the running particles: all children must be replayed
            tree.close()
        grown.append([n.step for n in tree.expand([n for n in nodes if n.open])])
    assert grown[0] == grown[1]


def test_no_two_nodes_have_one_number():
    tree = ppl.Tree(toy, ("prod",), seed=3)
    nodes = tree.expand([tree.root], 4)
    tree.expand([n for n in nodes if n.open], 2)
    tree.rollout([n for n in nodes if n.open])
    assert [n.identity for n in tree.nodes] == list(range(len(tree.nodes)))


def test_a_horizon_is_a_number_of_checkpoints():
    tree = ppl.Tree(_three_steps, (VERIFIERS["last"],))
    assert [tree.rollout([tree.root], n)[0].depth for n in (1, 2, 3)] == [1, 2, 3]


def test_scores_of_a_tree_are_potentials_of_all_steps():
    class Half(Verifier):
        name, aggregate = "half", "prod"

        def judge(self, requests):
            return [[math.log(0.5)] * len(r.text.step_ends) for r in requests]

    tree = ppl.Tree(_three_steps, (VERIFIERS["last"],))
    (node,) = tree.rollout([tree.root], 2)
    steps = len(node.text.step_ends)
    assert steps > 1
    assert tree.score([node], Half()) == pytest.approx([steps * math.log(0.5)])


def test_rollouts_finish_and_scores_are_the_likelihoods():
    tree = ppl.Tree(toy, ("prod",), seed=1)
    nodes = tree.expand([tree.root], 4)
    leaves = tree.rollout(nodes)
    assert all(leaf.finished for leaf in leaves)
    assert all(leaf.simulated or leaf in nodes for leaf in leaves)
    one = tree.rollout([n for n in nodes if n.open], horizon=1)
    assert {leaf.depth for leaf in one} == {2}
    scores = tree.score(nodes, VERIFIERS["last"])
    assert scores == [math.log(math.exp(n.log_likelihood)) for n in nodes]
    with pytest.raises(ppl.PPLError, match="no text"):
        tree.score([tree.root], VERIFIERS["last"])
    with pytest.raises(ValueError, match="cannot be expanded"):
        tree.expand([leaf for leaf in leaves if leaf.finished])


# -- particular searchers -----------------------------------------------------------------------


def test_smc_resamples_below_the_threshold_only():
    never = SMC(8, 0.0).run(toy, "prod", seed=1).history
    always = SMC(8, 1.0).run(toy, "prod", seed=1).history
    assert not any(h["resampled"] for h in never)
    assert any(h["resampled"] for h in always)
    assert not always[-1]["resampled"]
    for h in SMC(8, 0.7).run(toy, "prod", seed=2).history[:-1]:
        assert h["resampled"] == (h["ess"] < 0.7 * 8)


def test_a_rule_of_temperature_is_asked_for_rounds_from_one_on():
    asked = []

    def rule(log_weights, t):
        asked.append(t)
        return 1.0

    SMC(8, 1.0, resampling_temperature=rule).run(toy, "prod", seed=0)
    assert asked[:2] == [1, 2]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_tempered_rounds_compare_by_a_power_of_the_likelihood(power):
    search = SMC(8, tempering=(power,)).begin(toy, "prod", seed=0)
    search.step()
    first = [node for node in search.tree.nodes if node.depth == 1]
    weights = np.exp([power * node.log_likelihood for node in first])
    assert len(set(weights)) > 1 or power == 0
    assert search.notes[0]["ess"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_smc_spends_on_resampling_what_its_temperature_says():
    """A survivor keeps w / (N R) of its weight: all weights and draws of one round, by hand."""
    searcher = SMC(5, 1.0, "multinomial", resampling_temperature=2.0, tempering=(0.5,))
    search = searcher.begin(toy, "prod", seed=3)
    search.step()
    survivors, log_weights = search.state.nodes, search.state.weights.tolist()
    weights = [math.exp(child.log_weight) for child in search.tree.nodes[1:]]
    roots = [w**0.25 for w in weights]  # the toy's weight is its likelihood: w^(1/2 * 1/2)
    mean = sum(weights) / 5
    for node, log_weight in zip(survivors, log_weights, strict=True):
        w = math.exp(node.log_weight)
        expected = w / mean / (5 * w**0.25 / sum(roots))
        assert math.exp(log_weight) == pytest.approx(expected)


def test_smc_with_a_high_resampling_temperature_copies_evenly():
    """T to infinity: no weight is spent, everybody is copied once by a low-variance scheme."""
    hot = SMC(8, 1.0, resampling_temperature=1e9).run(toy, "prod", seed=1)
    plain = BestOfN(8).run(toy, "prod", seed=1)
    assert any(h["resampled"] for h in hot.history)
    assert [s.node for s in hot.samples] == [s.node for s in plain.samples]
    assert hot.marginal() == pytest.approx(plain.marginal(), abs=1e-5)
    assert hot.log_evidence == pytest.approx(plain.log_evidence, abs=1e-5)


def test_smc_without_resampling_is_importance_sampling():
    smc, best_of_n = SMC(8, 0.0).run(toy, "prod", seed=1), BestOfN(8).run(toy, "prod", seed=1)
    assert contents(smc) == contents(best_of_n)
    assert smc.log_evidence == pytest.approx(best_of_n.log_evidence)


def test_guided_smc_weights_are_likelihood_times_model_over_guide():
    posterior = SMC(6, 0.0).run(toy, "prod", seed=4, guide=toy_guide)
    table, proposer = dict(zip("ab$", (0.5, 0.3, 0.2), strict=True)), {"a": 0.6, "b": 0.3, "$": 0.1}
    for sample in posterior.samples:
        expected = sample.log_likelihood
        for record in sample.records:
            if record.kind == "choice":
                symbol = record.value.text or "$"
                expected += math.log(table[symbol] / proposer[symbol])
        assert sample.log_weight == pytest.approx(expected)


@pytest.mark.parametrize("which", ["toy", "tiny"])
def test_guides_on_the_same_text_are_weighed_without_a_pass_of_their_own(which):
    """Hotter, masked and narrower proposals: what the draw gives along is the true log-prob."""
    lm = TOY if which == "toy" else ppl.load("tiny")
    start = lm.prompt("^" if which == "toy" else "3")
    end = min(lm.codec.end_tokens)
    masked = {*lm.encode("ab" if which == "toy" else "123"), end}

    def steps(*settings):
        text = start
        for t, setting in enumerate(settings):
            step = pyro.sample(f"step_{t}", lm(text, **setting))
            if step.finished:
                return text
            text += step
        return text

    targets = {"max_tokens": 2}, {"max_tokens": 3, "top_k": 2}, {"max_tokens": 1, "min_p": 0.1}
    proposals = (
        {"max_tokens": 2, "temperature": 1.7},
        {"max_tokens": 3, "allowed": masked},
        {"max_tokens": 1, "top_p": 0.95},
    )
    guide = partial(steps, *proposals)
    posterior = BestOfN(24).run(partial(steps, *targets), seed=3, guide=guide)
    checked = 0
    for sample in posterior.samples:
        text = start
        for target, proposal, record in zip(targets, proposals, sample.records, strict=False):
            log_p = float(lm(text, **target).log_prob(record.value))
            log_q = float(lm(text, **proposal).log_prob(record.value))
            assert record.log_prior == pytest.approx(log_p, abs=1e-5)
            assert record.log_ratio == pytest.approx(log_p - log_q, abs=1e-5)
            checked += 1
            if not record.value.finished:
                text += record.value
    assert checked > 24
    assert posterior.cost.scored_tokens == 0
    assert posterior.cost.lm_calls == checked


def test_a_guide_of_another_model_after_the_same_text():
    table = {"a": 0.2, "b": 0.7, "$": 0.1}
    other = ppl.TableLM(table, symbols="^ab$", end="$", name="other")

    def guide():
        pyro.sample("s", other(other.prompt("^"), max_tokens=1))

    def model():
        return pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1)).text

    ratios = {"a": 0.5 / 0.2, "b": 0.3 / 0.7, "": 0.2 / 0.1}
    for sample in BestOfN(20).run(model, seed=0, guide=guide).samples:
        assert math.exp(sample.log_weight) == pytest.approx(ratios[sample.value])


def test_a_guide_that_stops_where_the_model_does_not_has_no_weight():
    def model():
        return pyro.sample("step", TOY(TOY.prompt("^"), until="b", max_tokens=3)).text

    def guide():
        pyro.sample("step", TOY(TOY.prompt("^"), max_tokens=1))

    posterior = BestOfN(20).run(model, seed=0, guide=guide)
    weights = {s.value or "$": s.log_weight for s in posterior.samples if s.log_weight > -math.inf}
    assert weights == pytest.approx({"b": 0.0, "$": 0.0})  # "a" goes on, were it the model's
    assert len(posterior.samples) >= len(weights)


def test_best_of_n_finds_the_best_as_often_as_it_should():
    """P(some text with more a than b among N) = 1 - .5^N on the toy."""
    n, seeds = 3, 800
    runs = BestOfN(n).run_many(toy, [("last",)] * seeds, seed=range(seeds))
    share = sum(r.best > 0 for r in runs) / seeds
    expected = 1 - 0.5**n
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / seeds)


def test_beam_with_full_width_finds_the_maximum():
    exact = ppl.enumerate_program(_likelihood_only)
    best = max(total for _, total in exact.values)
    posterior = BeamSearch(40, 20).run(_likelihood_only, seed=0)
    assert posterior.best[1] == pytest.approx(best)


def _likelihood_only() -> tuple[str, float]:
    """What is observed depends on every choice, and greedy is not best."""
    text, total = TOY.prompt("^"), 0.0
    for t in range(3):
        step = pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed={1, 2}))
        text = text + step
        reward = 0.7 * (step.text == "b") + 0.2 * (t - 1) * (step.text == "a")
        total += reward
        pyro.factor(f"r_{t}", torch.tensor(reward, dtype=torch.float64))
    return text.text, total


def test_the_first_round_of_beams_draws_as_many_as_the_others():
    posterior = BeamSearch(3, 2, drop_duplicates=False).run(toy, "prod", seed=0)
    assert posterior.history[0]["drawn"] == 6


def test_beam_of_one_is_greedy():
    posterior = BeamSearch(1, 60).run(toy, "prod", seed=0)
    assert posterior.best == 3  # a, then a, then a: the best of each step


def test_beam_follows_twists():
    def program(push: float) -> str:
        text = TOY.prompt("^")
        for t in range(2):
            text = text + pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed={1, 2}))
            ppl.twist(f"t_{t}", push * text.text.count("b"))
        return text.text

    # The twist of the last step ends with the program: only the first symbol is pushed.
    assert BeamSearch(1, 20).run(program, 1.0, seed=0).best.startswith("b")
    assert BeamSearch(1, 20).run(program, -1.0, seed=0).best.startswith("a")


def test_beam_keeps_finished_beams():
    posterior = BeamSearch(3, 12).run(_early_star, seed=0)
    assert "" in [s.value for s in posterior.samples]  # the text that ended at once, scored .95


def _early_star() -> str:
    text = TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"s_{t}", TOY(text, max_tokens=1))
        text = text + step
        pyro.factor(f"r_{t}", torch.tensor(math.log(0.95 if not text.text else 0.5)))
        if step.finished:
            break
    return text.text


def test_searchers_without_a_claim_give_no_evidence():
    for searcher in (BeamSearch(2, 2), MCTS(4)):
        assert searcher.run(toy, "prod", seed=0).log_evidence is None


def test_numpy_seeds_are_seeds():
    for run in (SMC(3).run_many, BestOfN(3).run_many):
        (numpys,) = run(toy, [("prod",)], seed=np.int64(3))
        (plain,) = run(toy, [("prod",)], seed=3)
        assert [s.value for s in numpys.samples] == [s.value for s in plain.samples]
