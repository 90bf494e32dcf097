"""RAIN: priors, selection, updates of similar siblings, commitment and what survives it."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pyro
import pytest
from programs import toy

import ppl
from ppl.searchers import RAIN
from ppl.searchers.trees.rain import Belief, scores, step_priors
from ppl.verifiers import FunctionVerifier

LETTERS = ppl.TableLM({"a": 0.4, "b": 0.35, "c": 0.25}, symbols="^abc$", end="$")
WORTH = {"a": 0.2, "b": 0.3, "c": 0.95}
judge = FunctionVerifier(lambda text: WORTH[text.text[-1]], name="last_letter", aggregate="last")


def letters(steps: int = 3) -> str:
    text = LETTERS.prompt("^")
    for t in range(steps):
        text = text + pyro.sample(f"s_{t}", LETTERS(text, max_tokens=1))
        pyro.sample(f"ok_{t}", judge(text), obs=True)
    return text.text


def apart(strings):
    """Every string in a direction of its own."""
    vectors = np.zeros((len(strings), 4096))
    for i, string in enumerate(strings):
        vectors[i, sum(ord(c) * 31**k for k, c in enumerate(string)) % 4096] = 1.0
    return vectors


def far_apart(strings):
    return 100 * apart(strings)


def alike(strings):
    return np.ones((len(strings), 3))


def test_the_greedy_step_gets_no_more_than_all_samples_and_no_less_than_two():
    # Samples .2, .1, .05: greedy .9 is cut to .35, greedy .21 raised to .25.
    cut, raised = (step_priors(np.log([g, 0.2, 0.1, 0.05])) for g in (0.9, 0.21))
    assert cut == pytest.approx(np.array([0.35, 0.2, 0.1, 0.05]) / 0.7)
    assert raised == pytest.approx(np.array([0.25, 0.2, 0.1, 0.05]) / 0.6)
    assert step_priors([-1e4]) == pytest.approx([1.0])
    assert step_priors([-1e4, -1e4 - 3]) == pytest.approx([0.5, 0.5])
    plain = step_priors(np.log([0.2, 0.1, 0.05]), greedy=False)
    assert plain == pytest.approx(np.array([0.2, 0.1, 0.05]) / 0.35)


def test_selection_by_rescaled_value_and_prior():
    below = [Belief(0.5, 2, 2.2, 0.6), Belief(0.3, 1, 1.0, -0.4), Belief(0.2, 0, 0.3, 0.0)]
    q = np.array([0.6, -0.4, 0.0])
    expected = (q + 0.4) / (1.0 + 1e-5)
    expected += 2 * np.array([0.5, 0.3, 0.2]) * math.sqrt(3.5) / (1 + np.array([2.2, 1.0, 0.3]))
    assert scores(below, 3.5, 2.0) == pytest.approx(expected)


def test_priors_of_the_root_are_mixed_with_a_quarter_of_uniform():
    search = RAIN(50, width=30).begin(letters, seed=0)
    search.step()
    search.step()
    beliefs, root = search.state.beliefs, search.tree.root
    inner = next(c for c in beliefs[root.identity].children if beliefs[c.identity].children)
    raw = step_priors(np.log([0.4, 0.35, 0.25]))
    for node, expected in ((root, 0.75 * raw + 0.25 / 3), (inner, raw)):
        children = beliefs[node.identity].children
        assert children[0].step == "a"  # the greedy one is first
        found = dict(zip("abc", expected, strict=True))
        assert [beliefs[c.identity].prior for c in children] == pytest.approx(
            [found[c.step] for c in children]
        )


@pytest.mark.parametrize("embed", [None, apart])
def test_without_similar_siblings_q_is_the_plain_mean(embed):
    search = RAIN(200, width=12, embed=embed).begin(letters, seed=1)
    values = defaultdict(list)
    for _ in range(60):
        before = {i: b.visits for i, b in search.state.beliefs.items()} if search.state else {}
        search.step()
        beliefs = search.state.beliefs
        passed = [i for i, b in beliefs.items() if b.visits > before.get(i, 0)]
        nodes = {n.identity: n for n in search.tree.nodes}
        leaf = max((nodes[i] for i in passed), key=lambda node: node.depth)
        for i in passed:
            values[i].append(2 * leaf.value - 1 if leaf.parent else 1.0)
    for i, seen in values.items():
        assert beliefs[i].q == pytest.approx(np.mean(seen))
        assert beliefs[i].weight == beliefs[i].visits == len(seen)


def test_similar_siblings_get_a_fifth():
    search = RAIN(200, width=12, enough_value=1.0, embed=alike).begin(letters, 1, seed=1)
    search.step()  # expands the root
    search.step()  # the first child: no other has a text yet
    beliefs = search.state.beliefs
    children = beliefs[0].children
    (first,) = [c for c in children if beliefs[c.identity].visits]
    assert beliefs[first.identity].weight == 1
    for _ in range(12):
        before = {
            c: (beliefs[c.identity].visits, beliefs[c.identity].weight, beliefs[c.identity].q)
            for c in children
        }
        search.step()
        beliefs = search.state.beliefs
        (passed,) = [c for c in children if beliefs[c.identity].visits > before[c][0]]
        v = 2 * passed.value - 1
        for other in (o for o in children if o is not passed and before[o][0]):
            _, n, q = before[other]
            own = beliefs[other.identity]
            assert own.weight == pytest.approx(n + 0.2)
            assert own.q == pytest.approx((q * n + 0.2 * v) / (n + 0.2))


@pytest.mark.parametrize(("cosine", "share"), [(0.94, 0.0), (0.96, 0.2 * 0.96)])
def test_siblings_read_alike_from_a_cosine_of_95_hundredths(cosine, share):
    """Each letter has a direction of its own, and any two letters the same cosine."""

    def embed(strings):
        own = np.eye(4)[["abc".index(string[-1]) for string in strings]]
        return own * math.sqrt(1 - cosine) + np.eye(4)[3] * math.sqrt(cosine)

    search = RAIN(200, width=12, enough_value=1.0, embed=embed).begin(letters, 1, seed=1)
    for _ in range(15):  # by then every child was passed
        search.step()
    children = search.state.beliefs[0].children
    assert len(children) == 3

    def known():
        below = [search.state.beliefs[child.identity] for child in children]
        return sum(b.visits for b in below), sum(b.weight for b in below)

    visits, weight = known()
    search.step()
    assert known() == (visits + 1, pytest.approx(weight + 1 + 2 * share))


def test_where_all_is_alike_and_bad_another_step_is_drawn():
    bad = FunctionVerifier(lambda text: 0.1, name="bad", aggregate="last")

    def hopeless():
        text = LETTERS.prompt("^")
        for t in range(2):
            text = text + pyro.sample(f"s_{t}", LETTERS(text, max_tokens=2))
            pyro.sample(f"ok_{t}", bad(text), obs=True)
        return text.text

    def children(searcher, seed):
        search = searcher.begin(hopeless, seed=seed)
        while not (search.notes):
            search.step()
        return len(search.state.beliefs[0].children)

    for seed in range(3):
        plain = children(RAIN(30, width=3), seed)
        assert plain <= 3 < children(RAIN(30, width=3, embed=alike), seed) <= 6
        assert children(RAIN(30, width=3, embed=far_apart), seed) == plain


def test_a_step_is_committed_when_it_is_good_enough_or_time_is_up():
    quick = RAIN(50, width=12).run(letters, 1, seed=0)
    assert quick.samples[0].value == "c"
    assert quick.history[0]["visits"] == 7  # more than six
    assert quick.history[0]["q"] > 0.8
    slow = RAIN(20, 4, width=12, enough_value=1.0).begin(letters, seed=0)
    limits, visits = [], []
    while not slow.over:
        root = slow.state.root.identity if slow.state else 0
        known = len(slow.notes)
        slow.step()
        if len(slow.notes) > known:
            visits.append(slow.state.beliefs[root].visits)
            limits.append(slow.state.limit)
    assert visits[0] == 20
    kept = slow.notes[0]["visits"]
    assert limits[0] == max(20, kept + 4) == visits[1]


def test_a_step_that_was_searched_already_gets_more_simulations_of_its_own():
    """Nearly all simulations passed the only good step; from there the search still looks on."""
    search = RAIN(20, 7, width=12, exploration=0.01, enough_value=1.0).begin(letters, seed=0)
    while not search.notes:
        search.step()
    root, kept = search.state.root.identity, search.notes[0]["visits"]
    assert kept > 15
    while len(search.notes) < 2:
        search.step()
    assert search.state.beliefs[root].visits == kept + 7


def test_what_is_known_below_the_committed_step_is_kept():
    search = RAIN(20, 4, width=6).begin(letters, seed=2)
    while not (search.notes):
        search.step()
    root = search.state.root
    known = search.state.beliefs[root.identity]
    assert known.children
    assert known.visits == search.notes[0]["visits"]
    before = {c.identity: search.state.beliefs[c.identity].visits for c in known.children}
    number = len(search.tree.nodes)
    search.step()
    after = {c.identity: search.state.beliefs[c.identity].visits for c in known.children}
    assert sum(after.values()) == sum(before.values()) + 1
    assert len(search.tree.nodes) - number <= 6  # nothing is drawn anew


def test_the_committed_text_comes_first():
    for seed in range(6):
        search = RAIN(12, 3, 4).begin(toy, "last", seed=seed)
        posterior = search.run()
        assert posterior.samples[0].node == search.state.root.identity
        assert posterior.samples[0].finished


def test_the_better_step_is_found_against_the_prior():
    """c is the rarest letter, a quarter of all, and the only good one."""
    texts = [RAIN(30, width=8).run(letters, seed=s).samples[0].value for s in range(20)]
    assert sum(text.count("c") for text in texts) / 60 > 0.25 + 3.5 * math.sqrt(0.25 * 0.75 / 60)


def never_a() -> str:
    """The greedy letter is forbidden; what begins with b is liked, and ends nowhere."""
    text = LETTERS.prompt("^")
    for t in range(3):
        text = text + pyro.sample(f"s_{t}", LETTERS(text, max_tokens=1))
        ppl.condition("a" not in text.text, f"no_a_{t}")
        ppl.condition(not text.text.startswith("b") or len(text.text) < 3, f"no_b_{t}")
        pyro.factor(f"likes_b_{t}", math.log(0.9 if text.text[-1] == "b" else 0.5))
    return text.text


def test_a_dead_greedy_step_leaves_the_others_their_priors():
    search = RAIN(50, width=30).begin(never_a, seed=0)
    search.step()
    beliefs = search.state.beliefs
    found = {c.step: beliefs[c.identity].prior for c in beliefs[0].children}
    assert found == pytest.approx({"b": 0.75 * 7 / 12 + 0.125, "c": 0.75 * 5 / 12 + 0.125})


def test_a_dead_end_that_was_committed_is_left_again():
    """b is liked and leads nowhere; the search goes back and finds c."""
    committed = 0
    for seed in range(5):
        posterior = RAIN(4, 2, 30, enough_visits=0, enough_value=0.5).run(never_a, seed=seed)
        committed += len(posterior.history)
        assert posterior.best.startswith("c")
    assert committed > 3 * 5  # more commitments than steps


@pytest.mark.parametrize(
    "bad", [{"simulations": 0}, {"more": 0}, {"width": 0}, {"exploration": -1.0}]
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"at least|zero or more"):
        RAIN(**bad)
