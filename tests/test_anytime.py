"""The best so far is an answer: whatever ends a search, it shows the best it has paid for."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, toy

import ppl
from ppl import Budget
from ppl.decide import best
from ppl.searchers import (
    ABMCTSA,
    ABMCTSM,
    MCTS,
    SMC,
    AliveParticleFilter,
    AStar,
    BeamSearch,
    BestFirst,
    BestOfN,
    Greedy,
    Hedged,
    LookaheadSearch,
    MultiPerspective,
    PhiDecoding,
    ResampleMove,
    TreeRefinement,
)
from ppl.verifiers import FunctionVerifier

WALK = ppl.TableLM({"a": 0.5, "b": 0.5}, symbols="^ab$", end="$", name="walk")


def long_walk(steps: int = 6, mark: bool = True) -> str:
    """Nothing ends before its last step."""
    text = WALK.prompt("^")
    for t in range(steps):
        text += pyro.sample(f"s_{t}", WALK(text, max_tokens=1))
        if mark:
            liked = 0.9 if text.text.count("a") >= text.text.count("b") else 0.3
            pyro.factor(f"ok_{t}", math.log(liked))
    return text.text


# -- samples -------------------------------------------------------------------------------------


def test_a_limit_buys_as_many_samples_as_it_pays_for():
    """Every sample costs six tokens: a limit of 6 k gives k of 64, in lock-step it gave none."""
    for k in (1, 2, 5, 11):
        posterior = BestOfN(64).run(long_walk, seed=1, budget=Budget(tokens=6 * k))
        assert posterior.stopped == "budget"
        assert posterior.cost.lm_tokens <= 6 * k
        assert sum(s.finished for s in posterior.samples) == k
        assert posterior.best is not None
        assert len(posterior.samples) <= k + 1  # those that have not begun are none
    posterior = BestOfN(64).run(long_walk, seed=1, budget=Budget(calls=13))
    assert sum(s.finished for s in posterior.samples) == 2


def test_of_samples_of_one_step_and_any_length_a_limit_gives_some():
    geometric = ppl.TableLM({"a": 0.9, "$": 0.1}, symbols="^a$", end="$", name="geometric")

    def program() -> int:
        return len(pyro.sample("all", geometric(geometric.prompt("^"), max_tokens=30)).tokens)

    whole = BestOfN(64).run(program, seed=0)
    for share in (0.1, 0.3, 0.6):
        limit = int(share * whole.cost.lm_tokens)
        part = BestOfN(64).run(program, seed=0, budget=Budget(tokens=limit))
        assert part.cost.lm_tokens <= limit
        assert sum(s.finished for s in part.samples) > 0.4 * share * 64


def test_a_limit_that_suffices_changes_nothing():
    free = BestOfN(20).run(toy, "prod", seed=4)
    for budget in (Budget(tokens=2 * free.cost.lm_tokens), Budget(calls=2 * free.cost.calls)):
        limited = BestOfN(20).run(toy, "prod", seed=4, budget=budget)
        assert [(s.node, s.value) for s in limited.samples] == [
            (s.node, s.value) for s in free.samples
        ]
        assert limited.log_evidence == free.log_evidence
    # One that just suffices completes all, in whatever order.
    tight = BestOfN(20).run(long_walk, seed=4, budget=Budget(tokens=120))
    assert tight.stopped == "done"
    assert sum(s.finished for s in tight.samples) == 20


# -- searches that end before anything has finished ------------------------------------------------


@pytest.mark.parametrize(
    "searcher",
    [
        AStar(3, 2),
        AStar(3, 2, cost="value"),
        BestFirst(3, 2),
        MultiPerspective(3, 2),
        MCTS(3, evaluation="verifier"),
        ABMCTSA(3),
    ],
    ids=repr,
)
def test_a_search_that_is_over_has_an_answer(searcher):
    posterior = searcher.run(long_walk, seed=0)
    queue = isinstance(searcher, AStar | BestFirst | MultiPerspective)
    assert posterior.stopped == ("expansions" if queue else "done")
    assert len(posterior.best) == 6
    # It is the search's own best node that was run on.
    for limit in range(1, 16):
        part = searcher.run(long_walk, seed=0, budget=Budget(tokens=limit))
        assert part.cost.lm_tokens <= limit
        assert part.best is not None or part.stopped == "budget"


@pytest.mark.parametrize("searcher", [AStar(4, 4), BestFirst(2, 2)], ids=repr)
def test_queue_searches_complete_greedily_and_pay_for_it(searcher):
    """The completion is what the model likes best, the same for every seed from one beginning."""
    lm = ppl.TableLM({"a": 0.55, "b": 0.45}, symbols="^ab$", end="$", name="close")

    def program() -> str:
        text = lm.prompt("^")
        for t in range(9):
            text = text + pyro.sample(f"s_{t}", lm(text, max_tokens=1))
            pyro.factor(f"f_{t}", torch.tensor(-0.1 * t))
        return text.text

    for seed in range(6):
        search = searcher.begin(program, seed=seed)
        posterior = search.run()
        assert posterior.stopped == "expansions"
        made = [node for node in search.tree.nodes if node.simulated]
        begun = made[0].parent.depth
        assert posterior.best[begun:] == "a" * (9 - begun)
        drawn = searcher.simulations * searcher.expansions
        assert posterior.cost.lm_tokens == drawn + 9 - begun


@pytest.mark.parametrize("searcher", [BestFirst(1, 8), AStar(1, 8)], ids=repr)
def test_the_best_open_node_is_completed_and_where_that_is_a_dead_end_the_next_best(searcher):
    def program(limit: int) -> int:
        draft = int(pyro.sample("draft", dist.Categorical(logits=torch.zeros(100))))
        pyro.factor("liked", math.log(0.01 * (1 + draft)))
        pyro.sample("more", dist.Bernoulli(0.5))
        ppl.condition(draft < limit, "short")
        return draft

    search = searcher.begin(program, 100, seed=1)
    posterior = search.run()
    drafts = [int(node.choices[0]) for node in search.tree.nodes if node.depth == 1]
    *_, third, second, first = sorted(set(drafts))
    assert posterior.best == first
    assert searcher.run(program, first, seed=1).best == second
    assert searcher.run(program, second, seed=1).best == third
    with pytest.raises(ppl.errors.AllParticlesDeadError, match="short"):
        searcher.run(program, 0, seed=1)


@pytest.mark.parametrize("searcher", [LookaheadSearch(2, 3), PhiDecoding(2, 3, 2)], ids=repr)
def test_a_stopped_search_shows_its_best_answer_also_one_that_it_gave_up(searcher):
    given_up = 0
    for seed in range(4):
        for limit in (8, 12, 16, 24):
            search = searcher.begin(toy, "prod", seed=seed, budget=Budget(tokens=limit))
            posterior = search.run()
            answers = [n.log_likelihood for n in search.tree.nodes if n.answered]
            if answers:
                assert posterior.best_sample.log_likelihood == max(answers)
            if answers and search.state is not None:
                held = searcher.result(search.tree, search.state).nodes
                given_up += posterior.best_sample.node not in {n.identity for n in held}
    assert given_up > 0  # or the test says nothing


@pytest.mark.parametrize(
    "searcher", [AliveParticleFilter(4, max_proposals=100), ResampleMove(4, 1.0, last=2, moves=2)]
)
def test_a_stopped_sampler_shows_its_particles_and_nothing_else(searcher):
    """Their weights follow a law: a better answer that was resampled away has no place there."""
    better = 0
    for seed in range(8):
        for limit in (12, 16, 24):
            search = searcher.begin(toy, "prod", seed=seed, budget=Budget(tokens=limit))
            posterior = search.run()
            if posterior.stopped != "budget" or posterior.best is None or search.state is None:
                continue
            particles = searcher.result(search.tree, search.state).nodes
            if any(n.answered for n in particles):
                assert [s.node for s in posterior.samples] == [n.identity for n in particles]
                best = max(n.log_likelihood for n in search.tree.nodes if n.answered)
                better += best > posterior.best_sample.log_likelihood
    assert better > 0  # or the test says nothing


def test_no_answer_is_never_the_best_while_there_is_one():
    """Neither of what a search shows, nor of what it had given up when it was stopped."""

    def program():
        step = pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
        pyro.factor("liked", torch.tensor({"a": -1.0, "b": -2.0}.get(step.text, 0.0)))
        return step.text or None

    blanks = 0
    for searcher in (BestOfN(12), MCTS(8), LookaheadSearch(2, 4), BeamSearch(1, 6)):
        for limit, seed in itertools.product((3, 5, None), range(4)):
            search = searcher.begin(program, seed=seed, budget=Budget(calls=limit))
            found = search.run()
            if found.stopped == "done" and isinstance(searcher, BeamSearch):
                continue  # it ends with its beam
            values = {node.answer for node in search.tree.nodes if node.finished}
            assert best(found) == found.best == min(values - {None}, default=None)
            blanks += None in values and len(values) > 1
    assert blanks > 10  # or the test says nothing
    # Where there are only blanks, one of them is shown.
    blank = BestOfN(2).run(lambda: pyro.factor("f", torch.tensor(-1.0)))
    assert (blank.best, blank.best_sample.log_likelihood) == (None, -1.0)


def test_what_is_left_of_a_budget_completes_the_best_open_node():
    """Width 4 costs 16 tokens a round; 2 rounds leave 9, of which the best needs 4."""
    posterior = BeamSearch(4, 4, drop_duplicates=False).run(
        long_walk, seed=0, budget=Budget(tokens=41)
    )
    assert posterior.stopped == "budget"
    assert posterior.cost.lm_tokens == 36
    assert len(posterior.best) == 6
    assert BeamSearch(4, 4).run(long_walk, seed=0, budget=Budget(tokens=3)).best is None


# -- searches over whole answers -------------------------------------------------------------------


def _next_symbol(written: str) -> dict[str, float]:
    answer, _, rest = written.rpartition("?")
    place, _, _ = rest.partition("!")
    if not answer:
        return {"a": 0.5, "b": 0.5}
    if not place:
        wrong = [i for i in range(3) if answer[-3:][i] == "b"] or [0]
        return {str(i): 1 / len(wrong) for i in wrong}
    return {"a": 0.3, "b": 0.7}  # refining mostly spoils


WRITER = ppl.TableLM(_next_symbol, symbols="^ab?!012$", end="$", name="writer")
JUDGE = FunctionVerifier(
    lambda text: (0.05, 0.2, 0.45, 0.9)[text.text[-3:].count("a")], name="judge", meaning="outcome"
)


def refine(rounds: int = 2) -> str:
    """Refines whatever it has, also what is good; says what it has."""
    text = WRITER.prompt("^")
    text += pyro.sample("draft", WRITER(text, max_tokens=3))
    for t in range(rounds):
        pyro.sample(f"good_{t}", JUDGE(text), obs=True)
        ppl.answer(text.text[-3:])
        text += "?"
        text += pyro.sample(f"critique_{t}", WRITER(text, max_tokens=1))
        text += "!"
        text += pyro.sample(f"refined_{t}", WRITER(text, max_tokens=3))
    pyro.sample("good", JUDGE(text), obs=True)
    return text.text[-3:]


@pytest.mark.parametrize(
    "searcher",
    [ABMCTSA(30), ABMCTSA(30, "beta"), ABMCTSM(12), TreeRefinement(30, threshold=0.95)],
    ids=repr,
)
@pytest.mark.parametrize("budget", [None, Budget(calls=30)], ids=["free", "limited"])
def test_no_answer_is_worse_than_one_that_is_held(searcher, budget):
    provisional = 0
    for seed in range(12):
        search = searcher.begin(refine, seed=seed, budget=budget)
        posterior = search.run()
        best = posterior.best_sample
        held = [n.log_likelihood for n in search.tree.nodes[1:] if not n.dead]
        assert best.log_likelihood == max(held)
        assert posterior.best == best.text.text[-3:]
        provisional += not best.finished
    assert provisional > 0  # or the test says nothing


def test_weighted_searchers_take_provisional_answers_only_when_stopped():
    assert all(s.finished for s in SMC(8).run(refine, seed=0).samples)
    stopped = SMC(8).run(refine, seed=0, budget=Budget(tokens=40))
    assert stopped.best is not None
    assert not stopped.best_sample.finished
    assert stopped.log_evidence is None
    exact = ppl.enumerate_program(refine).log_evidence
    estimates = [
        math.exp(p.log_evidence) for p in SMC(8).run_many(refine, [()] * 200, seed=range(200))
    ]
    mean = sum(estimates) / 200
    spread = math.sqrt(sum((z - mean) ** 2 for z in estimates) / 199 / 200)
    assert abs(mean - math.exp(exact)) < 4.5 * spread


def test_answers_on_the_way_change_no_finished_search():
    def saying(say):
        value = None
        for t in range(3):
            value = float(pyro.sample(f"x_{t}", dist.Bernoulli(0.4)))
            if say:
                ppl.answer(value)
            pyro.factor(f"f_{t}", torch.tensor(0.3 * value))
        return value

    said, silent = (SMC(20, 1.0).run(saying, say, seed=4) for say in (True, False))
    assert said.log_evidence == silent.log_evidence
    assert said.marginal() == silent.marginal()
    early = SMC(6, 0.0).begin(saying, True, seed=4)
    early.step()
    early.step()
    law = early.posterior().marginal()  # each particle has said two answers, and has one vote
    assert sum(law.values()) == pytest.approx(1)
    assert len(early.posterior().samples) == 6


def test_an_answer_outside_of_a_search_is_said_to_nobody():
    ppl.answer(3)
    with pyro.poutine.trace() as tracer:
        ppl.answer(4)
    assert not tracer.trace.nodes


# -- programs without steps ------------------------------------------------------------------------


@pytest.mark.parametrize("searcher", [SMC(4), BeamSearch(2, 3), MCTS(4), PhiDecoding(2, 3)])
def test_a_program_that_marks_no_step_is_told_how(searcher):
    with pytest.warns(UserWarning, match=r"marks no steps, so .* ppl.twist\(name, 0.0\)") as caught:
        searcher.run(partial(long_walk, 3), mark=False, seed=0)
    assert len(caught) == 1
    code = long_walk.__code__
    assert (caught[0].filename, caught[0].lineno) == (code.co_filename, code.co_firstlineno)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searcher.run(long_walk, 3, seed=0)
        for plain in (BestOfN(3), Greedy()):
            plain.run(long_walk, 3, mark=False, seed=0)


def test_a_beam_notes_what_it_really_drew():
    """Two symbols: of sixteen draws two are left, and the next round draws for these."""
    for drop in (True, False):
        search = BeamSearch(16, 4, drop_duplicates=drop).begin(long_walk, seed=0)
        search.run()
        depths = Counter(node.depth for node in search.tree.nodes[1:])
        drawn = [note["drawn"] for note in search.notes]
        assert drawn == [depths[d] for d in sorted(depths)]
        assert (drawn[1] == 8) == drop


# -- names of other libraries ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"), [("stop", "until="), ("max_new_tokens", "max_tokens="), ("n", "BestOfN")]
)
def test_a_model_called_with_others_words_says_ours(theirs, ours):
    with pytest.raises(TypeError, match=rf"lm\(text, ...\) has no argument '{theirs}'.*{ours}"):
        TOY(TOY.prompt("^"), **{theirs: 1})


def test_a_sample_that_was_cut_off_has_one_vote_however_often_it_has_answered():
    toy = ppl.TableLM({"a": 1.0}, symbols="^a$", end="$", name="one letter")

    def program():
        text = toy.prompt("^")
        for t in range(4):
            text = text + pyro.sample(f"step_{t}", toy(text, max_tokens=1))
            ppl.answer(text.text)
            ppl.twist(f"said_{t}", 0.0)
        return text.text

    for searcher in (Hedged(3), Greedy()):
        posterior = searcher.run(program, seed=0, budget=ppl.Budget(tokens=3))
        assert [s.value for s in posterior.samples] == ["aaa"]
