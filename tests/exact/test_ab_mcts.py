"""AB-MCTS: conjugate updates in closed form, the mixed model against dense integration."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import toy
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from scipy.stats import norm

import ppl
from ppl.errors import WeightError
from ppl.searchers import ABMCTSA, ABMCTSM
from ppl.searchers.trees.ab_mcts import CONT, GEN, Branch
from ppl.searchers.trees.arms import (
    _S_A,
    _S_Y,
    Arms,
    draw_beta,
    draw_gaussian,
    draw_mixed,
    gaussian_posterior,
    mixed_posterior,
)


def sums(*groups):
    """Of an arm per group of scores."""
    arms = Arms.without_scores()
    for number, group in enumerate(groups):
        arms = arms.append()
        for score in group:
            arms = arms.add(number, score)
    return arms.sums


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.5,), (0.25, 2, 2, 0.1125)),
        ((1.0, 0.0), (1 / 3, 3, 3, 0.255556)),
        ((0.8, 0.8, 0.8), (0.6, 4, 4, 0.145)),
        ((), (0.0, 1, 1, 0.1)),
    ],
)
def test_gaussian_posteriors_in_numbers(values, expected):
    got = [float(x[0]) for x in gaussian_posterior(sums(values))]
    assert got == pytest.approx(expected, abs=1e-6)


def test_draws_follow_their_posteriors():
    rng, n = np.random.default_rng(0), 20_000
    arm = sums((0.5, 0.7, 0.9))
    m, kappa, nu, tau2 = (float(x[0]) for x in gaussian_posterior(arm))
    drawn = draw_gaussian(np.tile(arm, n), rng)
    spread = math.sqrt(nu * tau2 / (nu - 2) / kappa)  # of a Student t
    assert abs(drawn.mean() - m) < 4 * spread / math.sqrt(n)
    assert drawn.std() == pytest.approx(spread, rel=0.1)
    betas = draw_beta(np.tile(arm, n), rng)
    assert betas.mean() == pytest.approx(2.6 / 4, abs=0.01)
    assert betas.var() == pytest.approx(2.6 * 1.4 / (16 * 5), rel=0.05)


# Scores of five children; sizes occur once and more than once.
GROUPS = [(0.2, 0.3, 0.25), (0.8,), (0.6, 0.9), (0.1, 0.4), (0.7,)]


def test_mixed_model_agrees_with_dense_integration():
    """Posterior of the scales by brute force: multivariate normal densities on a fine grid."""
    everything = np.concatenate([np.array(g) for g in GROUPS])
    member = np.repeat(np.arange(len(GROUPS)), [len(g) for g in GROUPS])
    same = (member[:, None] == member).astype(float)
    fine = (np.arange(150) + 0.5) / 150 * 1.5
    joint = np.zeros((150, 150))
    for i, s_a in enumerate(fine):
        for j, s_y in enumerate(fine):
            covariance = 0.04 + s_a**2 * same + s_y**2 * np.eye(len(everything))
            _, log_det = np.linalg.slogdet(covariance)
            off = everything - 0.5
            joint[i, j] = -(log_det + off @ np.linalg.solve(covariance, off)) / 2
            joint[i, j] += norm.logpdf(s_a, scale=0.2) + norm.logpdf(s_y, scale=0.3)
    joint = np.exp(joint - joint.max())
    joint /= joint.sum()
    ours = mixed_posterior(sums(*GROUPS))[0]
    for dense, grid in ((joint.sum(1), _S_A), (joint.sum(0), _S_Y)):
        assert float(ours @ grid) == pytest.approx(float(dense @ fine), rel=0.02)
        assert float(ours @ grid**2) == pytest.approx(float(dense @ fine**2), rel=0.03)


def test_mixed_draws_have_the_predictive_mean():
    """Groups are drawn towards mu as the closed form says, averaged over the scales; one without
    scores is a new one, and says nothing of the others."""
    groups = sums(*GROUPS, ())
    probabilities, centre, _ = mixed_posterior(groups)
    counts, totals, _ = groups
    for without, found in zip(mixed_posterior(sums(*GROUPS)), mixed_posterior(groups), strict=True):
        assert found == pytest.approx(without)
    means = totals / np.maximum(counts, 1)
    shrink = _S_Y[:, None] ** 2 / (_S_Y[:, None] ** 2 + counts * _S_A[:, None] ** 2)
    expected = probabilities @ (shrink * centre[:, None] + (1 - shrink) * means)
    rng, n = np.random.default_rng(1), 6000
    drawn = [draw_mixed(groups, rng) for _ in range(n)]
    own, new = np.array([d[0] for d in drawn]), np.array([d[1] for d in drawn])
    assert np.all(np.abs(own.mean(0) - expected) < 4 * own.std(0) / math.sqrt(n))
    assert abs(new.mean() - probabilities @ centre) < 4 * new.std() / math.sqrt(n)
    assert new.std() > own.std(0).min()  # a new group is less certain than an old one


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_mixed_draws_agree_with_hamiltonian_monte_carlo():
    """First and second moments of a new score in each group and in a new one, as the published code
    finds them: the model as a program, and NUTS."""
    low, high = (0.2, 0.3, 0.25, 0.4, 0.1), (0.7, 0.5, 0.75, 0.6, 0.45)
    groups = [low, (0.8,), (0.6, 0.9, 0.7), (0.1, 0.4, 0.35), high, (0.5,)]
    member = torch.tensor([j for j, group in enumerate(groups) for _ in group])
    observed = torch.tensor([score for group in groups for score in group])

    def model():
        mu = pyro.sample("mu", dist.Normal(0.5, 0.2))
        s_a = pyro.sample("s_a", dist.HalfNormal(0.2))
        s_y = pyro.sample("s_y", dist.HalfNormal(0.3))
        with pyro.plate("groups", len(groups)):
            e = pyro.sample("e", dist.Normal(0.0, 1.0))
        with pyro.plate("scores", len(observed)):
            pyro.sample("r", dist.Normal((mu + s_a * e)[member], s_y), obs=observed)

    pyro.set_rng_seed(0)
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True, max_tree_depth=4)
    chain = MCMC(kernel, num_samples=500, warmup_steps=150, disable_progbar=True)
    chain.run()
    found = chain.get_samples()
    mu, s_a, s_y = (found[name][:, None] for name in ("mu", "s_a", "s_y"))
    # Given the state of the chain: alpha_j of each group, mu for a new one; and their squares.
    centres = torch.cat([mu + s_a * found["e"], mu], 1)
    spreads = torch.cat([s_y.expand(-1, len(groups)), (s_a**2 + s_y**2).sqrt()], 1)
    rng = np.random.default_rng(0)
    drawn = np.array([np.append(*draw_mixed(sums(*groups), rng)) for _ in range(5000)])
    for theirs, ours in ((centres, drawn), (centres**2 + spreads**2, drawn**2)):
        of_chain = theirs.var(0) / effective_sample_size(theirs[None])
        error = np.sqrt(of_chain.numpy() + ours.var(0) / len(ours))
        assert np.all(error < 0.012)
        assert np.all(np.abs(theirs.mean(0).numpy() - ours.mean(0)) < 4 * error)


@pytest.mark.parametrize("searcher", [ABMCTSA(60), ABMCTSA(60, "beta"), ABMCTSM(60)], ids=repr)
def test_memories_are_the_scores_below(searcher):
    search = searcher.begin(toy, "last", seed=2)
    search.run()
    assert len(search.tree.nodes) == 61
    for node in search.tree.nodes:
        children = [n for n in search.tree.nodes if n.parent is node]
        assert (node.identity in search.state.branches) == bool(children)
        if not children:
            continue
        here = search.state.branches[node.identity]
        assert here.children == children
        assert [children[i] for i in here.open] == [n for n in children if n.open]
        deeper = [n for n in search.tree.nodes if node in n.path[:-1] and n.parent is not node]
        for arm, members in ((GEN, children), (CONT, deeper)):
            assert here.ways.number[arm] == len(members)
            assert here.ways.total[arm] == pytest.approx(sum(n.value for n in members))
        for i, child in enumerate(children):
            subtree = [n.value for n in search.tree.nodes if child in n.path]
            assert here.below.number[i] == len(subtree)
            assert here.below.squares[i] == pytest.approx(sum(v**2 for v in subtree))
            assert here.commonest[i] == max(Counter(round(100 * v) for v in subtree).values())


def test_a_settled_child_is_passed_over_for_the_next_best():
    """Four scores, three of them equal, and the best by far: nothing new is to be expected there.
    One whose scores differ is gone on with, and a new child only sometimes."""
    here, root = Branch(), ppl.Node(0, None)
    scores = (0.9, 0.9, 0.9, 0.8), (0.5, 0.6, 0.7, 0.4), (0.1, 0.2, 0.15, 0.05)
    for child, group in enumerate(scores):
        here = here.append(ppl.Node(child + 1, root))
        for score in group:
            here = here.back_up(GEN, child, score)
    rng = np.random.default_rng(0)
    chosen = Counter(ABMCTSM(20).choose(here, rng) for _ in range(300))
    assert chosen[0] == 0
    assert chosen[1] > chosen[2]
    assert chosen[1] + chosen[2] > 150
    # With a score that differs more, the best is settled no longer.
    here = here.back_up(GEN, 0, 0.85)
    assert Counter(ABMCTSM(20).choose(here, rng) for _ in range(100))[0] > 50


def _second_tries(good: float):
    """A first try is worth some 0.1; a second one, made from it, some `good`."""

    def program():
        first = pyro.sample("first", dist.Categorical(logits=torch.zeros(20)))
        early = 0.1 + 0.005 * int(first)
        pyro.factor("judged", math.log(early))
        second = pyro.sample("second", dist.Categorical(logits=torch.zeros(20)))
        pyro.factor("again", math.log((good + 0.01 * int(second)) / early))
        third = pyro.sample("third", dist.Categorical(logits=torch.zeros(20)))
        return int(first), int(second), int(third)

    return program


@pytest.mark.parametrize("searcher", [ABMCTSA(60), ABMCTSA(60, "beta"), ABMCTSM(60)], ids=repr)
def test_it_goes_deep_where_depth_pays_and_wide_where_it_does_not(searcher):
    def width(good: float) -> float:
        searches = [searcher.begin(_second_tries(good), seed=s) for s in range(6)]
        for search in searches:
            search.run()
        return float(np.mean([len(s.state.branches[0].children) for s in searches]))

    assert width(0.75) < 0.8 * width(0.01)


def test_scores_out_of_range_are_named():
    def program():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("too much", 1.0)

    with pytest.raises(WeightError, match=r"node 1 has the score 2.718; prior='beta' needs"):
        ABMCTSA(3, "beta").run(program, seed=0)
    assert ppl.searchers.ABMCTSA is ABMCTSA


# -- batches -------------------------------------------------------------------------------------


def test_a_batch_of_one_is_the_search_of_before_and_wider_ones_are_wider():
    """The golden trees hold the first; in the first round all of a batch are children of the
    root."""
    for batch in (1, 2, 5):
        search = ABMCTSA(21, batch=batch).begin(toy, "prod", seed=3)
        search.step()
        assert [node.parent for node in search.tree.nodes[1:]] == [search.tree.root] * batch
        search.run()
        assert len(search.tree.nodes) - 1 == 21  # also where the batch does not divide it
    for make in (ABMCTSA, ABMCTSM):
        with pytest.raises(ValueError, match="batch=6: from 1 to 5"):
            make(10, batch=6)


@pytest.mark.parametrize("make", [ABMCTSA, ABMCTSM])
def test_after_a_batch_memories_are_those_of_its_results_one_by_one(make):
    search = make(20, batch=5).begin(toy, "last", seed=1)
    search.run()
    branches = search.state.branches
    for number in branches:
        branch = branches[number]
        own = [child.value for child in branch.children]
        # GEN has exactly the direct children's scores, CONT those of all that are deeper.
        assert branch.ways.number[GEN] == len(own)
        assert branch.ways.total[GEN] == pytest.approx(sum(own))
        deeper = [
            node.value
            for node in search.tree.nodes
            if node.depth > branch.children[0].depth
            and number in {above.identity for above in node.path}
        ]
        assert branch.ways.number[CONT] == len(deeper)
        assert branch.ways.total[CONT] == pytest.approx(sum(deeper))


def test_the_order_in_which_results_are_told_does_not_matter():
    tree = ppl.Tree(toy, ("prod",), seed=0)
    nodes = tree.expand([tree.root], 3)
    told = []
    for order in ((0, 1, 2), (2, 0, 1)):
        branch = Branch()
        for child in nodes:
            branch = branch.append(child)
        for i in order:
            branch = branch.back_up(GEN, i, nodes[i].value)
        told.append(branch)
    assert told[0].ways.sums == pytest.approx(told[1].ways.sums)
    assert told[0].below.sums == pytest.approx(told[1].below.sums)


@pytest.mark.parametrize("searcher", [ABMCTSA(4), ABMCTSM(4)], ids=repr)
def test_scores_that_overflow_are_refused(searcher):
    """Their squares are infinite, and a posterior of infinite ones decides nothing."""

    def program() -> None:
        pyro.factor("reward", torch.tensor(400.0, dtype=torch.float64))

    with pytest.raises(WeightError, match="overflows"):
        searcher.run(program, seed=0)
