"""Adaptive sampling: how many it draws, what it prunes, and who is the answer."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, toy

import ppl
from ppl.searchers import AdaptiveSampling, BestOfN, check_searcher
from ppl.searchers.parse import parse, spell
from ppl.verifiers import Judge, verifier


def rewarded() -> float:
    """A reward uniform on [0, 1]: its own distribution function, so that q is exact."""
    reward = float(pyro.sample("reward", dist.Uniform(0.0, 1.0)))
    pyro.factor("q", math.log(reward))
    return reward


def test_an_exact_q_is_accepted_as_often_as_it_says():
    """E[samples] = 1 / (1 - tau) one by one, without a limit that matters."""
    runs, tau = 1500, 0.8
    searcher = AdaptiveSampling(200, tau, batches=(1,))
    found = searcher.run_many(rewarded, [()] * runs, seed=range(runs))
    drawn = np.array([len(one.samples) for one in found])
    error = drawn.std(ddof=1) / math.sqrt(runs)
    assert abs(drawn.mean() - 5.0) < 3 * error
    assert error < 0.15
    # A draw is accepted with probability 1 - tau, whatever came before: a geometric law.
    assert np.mean(drawn == 1) == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / runs))
    for one in found:
        assert one.best == max(s.value for s in one.samples) >= tau
        assert sum(s.value >= tau for s in one.samples) == 1
        assert one.log_evidence is None


def test_batches_grow_and_samples_are_no_more_than_n():
    sizes = Counter()
    for seed in range(60):
        posterior = AdaptiveSampling(16, 0.93).run(rewarded, seed=seed)
        sizes[len(posterior.samples)] += 1
        if len(posterior.samples) < 16:
            assert posterior.best >= 0.93
    assert set(sizes) <= {1, 2, 4, 8, 16}
    assert len(sizes) >= 4
    capped = AdaptiveSampling(11, 1.0).run(rewarded, seed=0)
    assert len(capped.samples) == 11
    assert [note["batch"] for note in capped.history] == [0, 1, 2, 3, 4]


def test_a_bar_that_is_met_exactly_is_met():
    """exp(log(.35)) is a little less than .35."""

    def program():
        pyro.factor("worth", torch.tensor(0.35, dtype=torch.float64).log())
        return "x"

    assert len(AdaptiveSampling(16, 0.35).run(program, seed=0).samples) == 1
    assert len(AdaptiveSampling(16, 0.3501).run(program, seed=0).samples) == 16


def test_the_threshold_of_weitzman_is_the_best_one():
    """Rewards .9 with probability .3, else .4; a sample costs .06. E max(0, R - r) = .06 at r = .7:
    the large reward is worth waiting for, and at .2 a sample (r = .35) it is not."""

    def worth(accept: float, cost: float) -> float:
        searcher = AdaptiveSampling(60, accept, batches=(1,))
        found = searcher.run_many(two_point, [()] * 300, seed=range(300))
        return float(np.mean([one.best - cost * len(one.samples) for one in found]))

    for cost, reserve in ((0.06, 0.7), (0.2, 0.35)):
        gain = 0.3 * max(0.0, 0.9 - reserve) + 0.7 * max(0.0, 0.4 - reserve)
        assert gain == pytest.approx(cost, abs=1e-9)
        at_reserve, other = worth(reserve, cost), worth(0.7 if reserve < 0.4 else 0.35, cost)
        assert at_reserve > other + 0.02
    # Under the rule, the price of the search is the reserve price for what may be better.
    assert worth(0.7, 0.06) == pytest.approx(0.9 - 0.06 / 0.3, abs=0.06)


def two_point() -> float:
    reward = 0.9 if float(pyro.sample("large", dist.Bernoulli(0.3))) else 0.4
    pyro.factor("q", math.log(reward))
    return reward


LETTERS = ppl.TableLM(dict.fromkeys("abcd", 0.25), symbols="^abcd$", end="$", name="letters")


def lettered(judged: bool = False) -> str:
    """Four letters, in four steps; liked for the first, if anybody is asked."""
    text = LETTERS.prompt("^")
    for t in range(4):
        text = text + pyro.sample(f"s_{t}", LETTERS(text, max_tokens=1))
        if judged:
            pyro.sample(f"ok_{t}", first_letter(text), obs=True)
        else:
            ppl.twist(f"ok_{t}", 0.0)
    return text.text


@verifier(aggregate="last")
def first_letter(text):
    return {"a": 0.8, "b": 0.6, "c": 0.4, "d": 0.2}[text.text[0]]


def test_pruning_keeps_the_best_share_and_saves_the_rest():
    searcher = AdaptiveSampling(8, 0.99, batches=(8,), prune_at=(1, 3), keep=0.5)
    for seed in range(20):
        search = searcher.begin(lettered, True, seed=seed)
        posterior = search.run()
        firsts = sorted(n.text.text for n in search.tree.nodes if n.depth == 1)
        assert [s.value[0] for s in posterior.samples] == firsts[:2]
        assert posterior.cost.lm_tokens == 8 * 1 + 4 * 2 + 2 * 1
        assert search.state.pruned == 6
        assert sum(note["pruned"] for note in posterior.history) == 6


def test_where_q_says_nothing_a_uniform_subset_is_kept():
    """Every letter is as frequent among those that are kept as among all: pruning looks at q."""
    searcher = AdaptiveSampling(4, 0.0, batches=(4,), prune_at=(2,), keep=0.5)
    kept: Counter[int] = Counter()
    for seed in range(300):
        search = searcher.begin(lettered, seed=seed)
        search.run()
        second = [n for n in search.tree.nodes if n.depth == 2]
        going = {n.parent.identity for n in search.tree.nodes if n.depth == 3}
        places = [i for i, node in enumerate(second) if node.identity in going]
        assert len(places) == 2
        kept.update(places)
    expected = 150
    chi2 = sum((kept[i] - expected) ** 2 / (expected / 2) for i in range(4)) * 3 / 4
    assert chi2 < 16.3  # of three degrees of freedom, one in a thousand


def test_another_judge_is_asked_and_its_favourite_comes_first():
    @verifier(aggregate="last")
    def likes_d(text):
        return text.text.count("d") / 4

    searcher = AdaptiveSampling(8, 0.7, likes_d, batches=(8,), prune_at=(2,), keep=0.25)
    for seed in range(10):
        search = searcher.begin(lettered, seed=seed)
        posterior = search.run()
        half = sorted(n.text.text.count("d") for n in search.tree.nodes if n.depth == 2)
        assert len(posterior.samples) == 2
        count = [s.value.count("d") for s in posterior.samples]
        assert count == sorted(count, reverse=True)
        assert [s.value[:2].count("d") for s in posterior.samples] == [
            s.value[:2].count("d") for s in posterior.samples
        ]
        assert sum(s.value[:2].count("d") for s in posterior.samples) == sum(half[-2:])
        assert posterior.cost.verifier_calls == 8 + 2
        logs = [math.log(c / 4) if c else -math.inf for c in count]
        assert [s.log_weight for s in posterior.samples] == pytest.approx(logs)


# Says yes (no new start gives more) the surer, the more of its letters are a.
SAYS = {"y": 1.0, "n": 0.0}
TEACHER = ppl.TableLM(
    lambda prefix: {"y": (q := 0.1 + 0.2 * prefix.count("a")), "n": 1 - q},
    symbols="^abcd?yn$",
    end="$",
    name="teacher",
)


def test_a_judge_of_one_word_is_asked_half_way_and_at_the_end():
    judge = Judge(TEACHER, lambda lm, text: lm.prompt(f"^{text.text}?"), verdicts=SAYS)
    searcher = AdaptiveSampling(8, 0.65, judge, batches=(4,), prune_at=(2,))
    for seed in range(10):
        search = searcher.begin(lettered, seed=seed)
        posterior = search.run()
        count = [s.value.count("a") for s in posterior.samples]
        assert count == sorted(count, reverse=True)
        assert [math.exp(s.log_weight) for s in posterior.samples] == pytest.approx(
            [0.1 + 0.2 * k for k in count]
        )
        batches = search.state.batch + 1
        assert len(count) == 2 * batches
        assert batches == 2 or count[0] >= 3  # one with q = .7 has ended the search
        # Four half-way and two at the end, at the judge's own cost.
        assert posterior.cost.verifier_calls == 6 * batches
        assert posterior.cost.lm_tokens == (4 * 2 + 2 * 2) * batches
        assert posterior.cost.verifier_reused_tokens > 0


def warm() -> tuple[float, str]:
    temperature = float(pyro.sample("temperature", dist.Uniform(0.0, 2.0)))
    text = TOY.prompt("^")
    text = text + pyro.sample("s", TOY(text, max_tokens=1, temperature=temperature))
    ppl.condition(True)
    return round(temperature, 4), text.text


def test_later_batches_are_warmer():
    searcher = AdaptiveSampling(8, 1.0, batches=(1, 1, 2, 4), temperatures=(0.1, 1.0))
    # Nothing is observed, q is 1: a judge that is never content keeps it going.
    never = searcher.with_(restart=nobody)
    found = sorted(s.value[0] for s in never.run(warm, seed=0).samples)
    assert found == pytest.approx([0.1, 0.4, 0.7, 0.7, 1.0, 1.0, 1.0, 1.0])
    assert len(searcher.run(warm, seed=0).samples) == 1
    assert torch.is_tensor(dist.Uniform(0.0, 2.0).sample())


@verifier(aggregate="last")
def nobody(text):
    return 0.5


def test_one_sample_is_plain_and_laws_hold_with_a_judge_of_its_own():
    one, plain = AdaptiveSampling(1).run(toy, "prod", seed=5), BestOfN(1).run(toy, "prod", seed=5)
    assert one.best == plain.best
    checked = check_searcher(AdaptiveSampling(6, 0.95, nobody, prune_at=(1,)))
    assert checked == ["value", "notes", "seed", "batch", "weighed once", "limits"]  # no text
    assert parse(spell(AdaptiveSampling(8, prune_at=()))) == AdaptiveSampling(8, prune_at=())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"n": 0}, "n=0"),
        ({"accept": 1.2}, "accept=1.2"),
        ({"keep": -0.1}, "keep=-0.1"),
        ({"batches": ()}, "batches"),
        ({"batches": (0,)}, "batches=0"),
        ({"prune_at": (3, 2)}, "ascending"),
        ({"prune_at": (0,)}, "prune_at=0"),
        ({"temperatures": (1.0,)}, "temperatures"),
        ({"temperatures": (0.0, 1.0)}, "temperatures=0.0"),
        ({"restart": 3}, "restart=3"),
    ],
)
def test_bad_settings_are_named(wrong, told):
    with pytest.raises(ValueError, match=told):
        AdaptiveSampling(**wrong)
