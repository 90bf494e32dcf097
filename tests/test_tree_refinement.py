"""Refinements of whole answers: order, threshold, budget, judgements, and where the search ends."""

from __future__ import annotations

import math
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import toy

import ppl
from ppl.errors import AllParticlesDeadError, VerifierError
from ppl.searchers import TreeRefinement
from ppl.verifiers import Cached, FunctionVerifier

LETTERS = 3


def _next(written: str) -> dict[str, float]:
    """An answer of three letters; after `?` the place of a b in it; after `!` that b mended."""
    answer, _, critique = written.rpartition("?")
    place, _, refined = critique.partition("!")
    if not answer:
        return {"a": 0.3, "b": 0.7}
    if not place:
        wrong = [i for i in range(LETTERS) if answer[i - LETTERS] == "b"] or [0]
        return {str(i): 1 / len(wrong) for i in wrong}
    kept = answer[len(refined) - LETTERS]
    return {"a" if len(refined) == int(place) else kept: 1.0}


WRITER = ppl.TableLM(_next, symbols="^ab?!012$", end="$", name="writer")
WORTH = (0.05, 0.2, 0.45, 0.9)  # by the number of a


def latest(text: ppl.Text) -> str:
    return text.text[-LETTERS:]


def worth(text: ppl.Text) -> float:
    return WORTH[latest(text).count("a")]


JUDGE = FunctionVerifier(worth, name="judge", meaning="outcome")


def writer(
    rounds: int = 3, judge: ppl.Verifier = JUDGE, content: float = 0.5, says: bool = False
) -> str:
    """Writes, is judged, and mends what the critique names until it is content; or says what it
    has before every judgement."""
    text = WRITER.prompt("^")
    text += pyro.sample("draft", WRITER(text, max_tokens=LETTERS))
    for t in range(rounds):
        if says:
            ppl.answer(latest(text))
        verdict = judge(text)
        pyro.sample(f"good_{t}", verdict, obs=True)
        if verdict.log_probability > math.log(content):
            return latest(text)
        text += "?"
        text += pyro.sample(f"critique_{t}", WRITER(text, max_tokens=1))
        text += "!"
        text += pyro.sample(f"refined_{t}", WRITER(text, max_tokens=LETTERS))
    pyro.sample("good", judge(text), obs=True)
    return latest(text)


def levels(value: float, jitter: float, rounds: int = 4) -> float:
    """Every answer is worth about `value`, as the draw says."""
    before, now = 1.0, 1.0
    for t in range(rounds):
        draw = int(pyro.sample(f"x_{t}", dist.Categorical(logits=torch.zeros(1000))))
        now = value + jitter * draw / 1000
        pyro.factor(f"judged_{t}", torch.tensor(math.log(now / before), dtype=torch.float64))
        before = now
    return now


def grow(searcher, *program, seed=0, **options):
    search = searcher.begin(*program, seed=seed, **options)
    return search, search.run()


def refined(search):
    """Identities of the nodes that were refined, in order."""
    return [note["node"] for note in search.notes]


@pytest.mark.parametrize("order", ["bfs", "dfs"])
def test_critique_and_refinement_reach_what_no_draft_has(order):
    """One letter is mended at a time: from any draft at most three refinements away."""
    for seed in range(20):
        search, posterior = grow(TreeRefinement(60, order=order), writer, seed=seed)
        assert posterior.best == "aaa"
        assert posterior.best_sample.score == pytest.approx(0.9)
        for node in search.tree.nodes[1:]:  # the judge's potentials telescope
            assert node.value == pytest.approx(worth(node.text))
        assert not any(node.simulated for node in search.tree.nodes)  # it ended by itself
        drafts = [n for n in search.tree.nodes if n.depth == 1]
        if not any(n.finished for n in drafts):
            last = search.tree.nodes[-1].parent
            assert last.depth <= 3
            assert refined(search)[-1] == last.identity  # stopped at once


@pytest.mark.parametrize(("value", "stops"), [(0.5, False), (0.5 + 1e-6, True)])
def test_the_threshold_is_strict(value, stops):
    search, _ = grow(TreeRefinement(100), levels, value, 0.0)
    assert len(refined(search)) == (1 if stops else 7)


def test_rounding_does_not_lift_a_value_above_the_threshold():
    """0.01 and then 0.5, as a sum of logarithms, is a little more than 0.5."""

    def program():
        for t, step in enumerate((0.01, 0.5 / 0.01, 1.0)):
            pyro.sample(f"x_{t}", dist.Categorical(logits=torch.zeros(1000)))
            pyro.factor(f"judged_{t}", torch.tensor(math.log(step), dtype=torch.float64))

    search, _ = grow(TreeRefinement(100), program)
    assert max(node.value for node in search.tree.nodes[1:]) > 0.5
    assert len(refined(search)) == 5


@pytest.mark.parametrize("seed", range(3))
def test_breadth_first_refines_the_best_of_every_level(seed):
    search, posterior = grow(TreeRefinement(100), levels, 0.1, 0.2, seed=seed)
    nodes = search.tree.nodes
    expected = [0]
    for depth in range(1, 4):
        level = [n for n in nodes if n.depth == depth and not n.simulated]
        assert len(level) == (3 if depth == 1 else 6)
        level.sort(key=lambda n: -n.value)
        expected += [n.identity for n in level[:2]]
    assert refined(search) == expected
    assert sum(not n.simulated for n in nodes[1:]) == 3 + 3 * 6
    assert posterior.best is not None


@pytest.mark.parametrize("seed", range(3))
def test_depth_first_refines_the_best_child_before_its_siblings(seed):
    search, _ = grow(TreeRefinement(100, order="dfs"), levels, 0.1, 0.2, seed=seed)
    expected = []

    def visit(node):
        expected.append(node.identity)
        children = [n for n in search.tree.nodes if n.parent is node and n.open]
        for child in sorted(children, key=lambda n: -n.value)[:2]:
            if child.depth <= 3 and not child.simulated:
                visit(child)

    visit(search.tree.root)
    assert refined(search) == expected
    assert len(expected) == 1 + 2 + 4 + 8


def test_depth_limits_the_refinements_of_a_draft():
    search, _ = grow(TreeRefinement(100, depth=1), levels, 0.1, 0.2)
    assert max(n.depth for n in search.tree.nodes if not n.simulated) == 2
    search, _ = grow(TreeRefinement(100, depth=0), levels, 0.1, 0.2)
    assert refined(search) == [0]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("order", ["bfs", "dfs"])
def test_the_number_of_answers_is_kept(most, order):
    search, posterior = grow(TreeRefinement(most, order=order), levels, 0.1, 0.2)
    written = [n for n in search.tree.nodes[1:] if not n.simulated]
    assert len(written) == most
    assert posterior.stopped == "done"


def test_the_best_answer_is_run_on_to_the_programs_end():
    search, posterior = grow(TreeRefinement(7), levels, 0.1, 0.2)
    best = max((n for n in search.tree.nodes[1:] if not n.simulated), key=lambda n: n.value)
    assert best.open
    end = search.tree.nodes[-1]
    assert best in end.path
    assert end.finished
    assert [sample.node for sample in posterior.samples] == [end.identity]
    assert all(n in end.path for n in search.tree.nodes if n.simulated)


def test_of_equal_answers_one_that_is_complete_ends_the_search_for_nothing():
    """Where the program is content with one of the best, no other is run on to an end."""

    def program():
        draft = int(pyro.sample("draft", dist.Categorical(logits=torch.zeros(6))))
        pyro.factor("judged", math.log(0.3))
        if draft < 3:
            pyro.sample("more", dist.Bernoulli(0.5))
        return draft

    completed = 0
    for seed in range(6):
        search, posterior = grow(TreeRefinement(5, depth=0), program, seed=seed)
        drafts = [node for node in search.tree.nodes[1:] if not node.simulated]
        if drafts[0].open and any(node.finished for node in drafts):
            completed += 1
            assert len(search.tree.nodes) == 1 + len(drafts)
            assert posterior.best >= 3
    assert completed >= 2


def test_if_the_best_answer_cannot_be_finished_the_next_best_is():
    def program():
        draw = int(pyro.sample("draft", dist.Categorical(logits=torch.zeros(100))))
        pyro.factor("judged", math.log(0.001 * (1 + draw)))
        pyro.sample("more", dist.Bernoulli(0.5))
        ppl.condition(draw < limit, "short")
        return draw

    limit = 100
    drafts = [s.value for s in TreeRefinement(3, depth=0).run(program, seed=1).samples]
    everything, _ = grow(TreeRefinement(3, depth=0), program, seed=1)
    values = sorted(round(1000 * n.value) - 1 for n in everything.tree.nodes[1:4])
    assert drafts == [values[-1]]
    limit = values[-1]  # the best one dies
    assert TreeRefinement(3, depth=0).run(program, seed=1).best == values[-2]
    limit = 0
    with pytest.raises(AllParticlesDeadError, match="short"):
        TreeRefinement(3, depth=0).run(program, seed=1)


def test_a_stopped_search_gives_the_texts_of_all_answers_the_best_first():
    drafts = ppl.Budget(tokens=3 * LETTERS + 1)  # no refinement is paid for
    _, posterior = grow(TreeRefinement(20), writer, 3, seed=3, budget=drafts)
    assert posterior.stopped == "budget"
    assert posterior.best is None
    scores = [sample.score for sample in posterior.samples]
    assert scores == sorted(scores, reverse=True)
    assert [worth(sample.text) for sample in posterior.samples] == pytest.approx(scores)


def test_kept_nodes_are_drawn_by_value():
    values, runs = (0.1, 0.2, 0.4), 4000
    nodes = [ppl.Node(i, None, log_likelihood=math.log(v)) for i, v in enumerate(values)]
    searcher = TreeRefinement(9, select="sample")
    kept = [searcher._kept(ppl.Tree(toy, seed=s), nodes, 3) for s in range(runs)]
    counts = Counter(tuple(n.identity for n in pair) for pair in kept)
    assert len(counts) == 6
    for (i, j), count in counts.items():
        p = values[i] / 0.7 * values[j] / (0.7 - values[i])
        assert abs(count / runs - p) < 4 * math.sqrt(p * (1 - p) / runs)
    best = TreeRefinement(9)._kept(ppl.Tree(toy), nodes, 3)
    assert [n.identity for n in best] == [2, 1]


def test_an_answer_judged_before_costs_no_judgement():
    asked = []

    def counted(text):
        asked.append(latest(text))
        return worth(text)

    judge = Cached(FunctionVerifier(counted, name="judge", meaning="outcome"), key=latest)
    search, posterior = grow(TreeRefinement(30), writer, 3, judge, 0.95, seed=2)
    plain, same = grow(TreeRefinement(30), writer, 3, JUDGE, 0.95, seed=2)
    assert len(asked) == len(set(asked)) == judge.misses
    assert set(asked) == {latest(n.text) for n in search.tree.nodes[1:]}
    assert judge.hits == len(search.tree.nodes) - 1 - judge.misses > 0
    assert [n.value for n in search.tree.nodes] == [n.value for n in plain.tree.nodes]
    assert [s.value for s in posterior.samples] == [s.value for s in same.samples]


def test_equal_answers_to_other_questions_are_other_answers():
    judge = Cached(FunctionVerifier(lambda text: text.prompt == "a", name="right"), key=latest)
    texts = [WRITER.prompt(question) + "bab" for question in "ab"]
    assert [judge(text).log_probability for text in texts] == [0.0, -math.inf]
    assert judge.misses == 2


def test_a_key_needs_a_verifier_of_whole_texts():
    class Steps(FunctionVerifier):
        def judge(self, requests):
            return [[-0.1] * len(r.text.step_ends) for r in requests]

    judge = Cached(Steps(worth, name="steps"), key=latest)
    with pytest.raises(VerifierError, match="one number for the text"):
        TreeRefinement(30).run(writer, 3, judge, 0.95, seed=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"simulations": 0},
        {"branch": 0},
        {"keep": 0},
        {"depth": -1},
        {"order": "best"},
        {"select": "worst"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="="):
        TreeRefinement(**{"simulations": 5} | wrong)
