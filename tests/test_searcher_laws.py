"""`check_searcher`: every searcher here obeys the laws, and one that breaks one is told which."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import SEARCHERS, branching, toy

import ppl
from ppl.errors import SearchStateError
from ppl.language.randomness import generator
from ppl.searchers import (
    SMC,
    BestOfN,
    Frontier,
    Greedy,
    ResampleMove,
    Result,
    Searcher,
    State,
    VectorizedSMC,
    Weights,
    check_searcher,
)

ALWAYS = ["value", "notes", "seed", "batch", "weighed once", "limits", "resumed"]


@pytest.mark.parametrize("searcher", [*SEARCHERS, Greedy()], ids=repr)
def test_every_searcher_obeys_the_laws(searcher):
    checked = check_searcher(searcher, [partial(toy, "prod"), branching], runs=200)
    assert checked[:7] == ALWAYS
    claims = searcher.run(toy, "prod", seed=0).log_evidence is not None
    assert ("evidence" in checked) == claims


def test_the_laws_come_with_a_program_of_their_own():
    assert check_searcher(SMC(3), runs=50) == [*ALWAYS, "evidence"]
    with pytest.raises(ValueError, match="at least one program"):
        check_searcher(SMC(3), [])


@pytest.mark.parametrize(
    "searcher",
    [*SEARCHERS, SMC(4, 1.0), ResampleMove(4, 1.0, moves=2), VectorizedSMC(8, ess_threshold=1.0)],
    ids=repr,
)
def test_no_two_draws_of_a_search_share_their_randomness(searcher, monkeypatch):
    keys = []

    def recorded(*parts):
        keys.append(parts)
        return generator(*parts)

    for name, module in list(sys.modules.items()):
        if name.startswith("ppl.searchers.") and getattr(module, "generator", None) is generator:
            monkeypatch.setattr(module, "generator", recorded)
    if isinstance(searcher, VectorizedSMC):
        searcher.run(four_rows, seed=0)
    else:
        searcher.run(toy, "prod", seed=0)
    assert len(set(keys)) == len(keys)
    if isinstance(searcher, SMC | VectorizedSMC) and searcher.ess_threshold == 1.0:
        assert len(keys) > 1


def four_rows():
    x = torch.zeros(())
    for t in range(4):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 1.0))
        pyro.sample(f"y_{t}", dist.Normal(x, 1.0), obs=torch.tensor(0.5 * t))
    return x


# -- searchers that break one law each -----------------------------------------------------------


@dataclass(frozen=True)
class Sampling(Searcher[Frontier]):
    """Two samples, as they should be."""

    def start(self, tree):
        return Frontier((tree.root,) * 2)

    def step(self, tree, state):
        moved = iter(tree.expand([node for node in state.nodes if node.open]))
        nodes = tuple(next(moved) if node.open else node for node in state.nodes)
        note = {"number": len(nodes)}
        return state.after(nodes=nodes, over=not any(n.open for n in nodes)), note

    def result(self, tree, state):
        weights = Weights([node.log_weight for node in state.nodes])
        return Result(state.nodes, weights.tolist(), weights.log_mean)


@dataclass(frozen=True)
class Pile(Frontier):
    pile: list[Any] = field(default_factory=list)


class Piling(Sampling):
    """Keeps a list in its state and adds to it."""

    def start(self, tree):
        return Pile((tree.root,) * 2)

    def step(self, tree, state):
        state.pile.append(state.round)
        return super().step(tree, state)


class Uncounted(Sampling):
    """Does not count its rounds."""

    def step(self, tree, state):
        state, note = super().step(tree, state)
        return replace(state, round=0), note


SHARED: dict[str, Any] = {}


class Noting(Sampling):
    """Reads what it has noted, from a note that it keeps a hand on."""

    def step(self, tree, state):
        note = SHARED.setdefault("note", {}) if state.round else {}
        SHARED["note"] = note
        state, _ = super().step(tree, state)
        return state, note

    def result(self, tree, state):
        result = super().result(tree, state)
        SHARED["calls"] = SHARED.get("calls", 0) + 1
        return replace(result, log_weights=[float(SHARED["calls"])] * 2)


class Twice(Sampling):
    """Weighs what has finished again in every round."""

    def result(self, tree, state):
        waits = [state.round - node.depth for node in state.nodes]
        last = [node.log_increment for node in state.nodes]
        weights = [n.log_weight + w * g for n, w, g in zip(state.nodes, waits, last, strict=True)]
        return Result(state.nodes, weights, Weights(weights).log_mean)


class Hiding(Sampling):
    """Shows what it likes least while it is not over."""

    def result(self, tree, state):
        worst = min(state.nodes, key=lambda node: node.log_likelihood)
        return Result.by_likelihood(state.nodes if state.over else [worst])


@dataclass(frozen=True)
class Changing(Sampling):
    """Another result with every call."""

    calls: list[int] = field(default_factory=list)

    def result(self, tree, state):
        self.calls.append(1)
        return Result(state.nodes, [float(len(self.calls))] * 2)


def test_the_sound_one_passes():
    assert check_searcher(Sampling()) == [*ALWAYS, "evidence"]


@pytest.mark.parametrize(
    ("searcher", "law"),
    [
        (Piling(), "value"),
        (Uncounted(), "value"),
        (Noting(), "notes"),
        (Changing(), "notes"),
        (Twice(), "evidence"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_what_breaks_a_law_is_told_which(searcher, law):
    with pytest.raises(SearchStateError, match=f"law '{law}' does not hold for"):
        check_searcher(searcher)


def test_what_a_searcher_hides_its_search_shows():
    search = Hiding().begin(partial(toy, "last"), seed=0, budget=ppl.Budget(tokens=4))
    posterior = search.run()
    assert posterior.stopped == "budget"
    found = [node.log_likelihood for node in search.tree.nodes if node.finished]
    assert posterior.best_sample.log_likelihood == max(found)
    assert check_searcher(Hiding()) == ALWAYS


def test_a_mutable_state_is_no_state():
    class Loose(Sampling):
        def start(self, tree):
            return Bag()

    class Bag:
        round, over = 0, False

    with pytest.raises(SearchStateError, match="Bag no State"):
        check_searcher(Loose())


# -- settings ------------------------------------------------------------------------------------


def test_a_changed_copy():
    one = SMC(16)
    two = one.with_(ess_threshold=1.0)
    assert (one.ess_threshold, two.ess_threshold) == (0.5, 1.0)
    assert two == SMC(16, 1.0)
    with pytest.raises(ValueError, match="num_particles=0"):
        one.with_(num_particles=0)
    with pytest.raises(TypeError, match=r"SMC\(...\) has no argument 'particles'.*num_particles="):
        one.with_(particles=3)


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: BestOfN(num_return_sequences=4), r"here it is n= of BestOfN"),
        (lambda: ppl.searchers.BeamSearch(num_beams=4), r"here it is beam_width="),
        (lambda: ppl.searchers.REBASE(num_solutions=4), r"here it is n="),
        (lambda: ppl.searchers.AStar(max_expansions=4), r"here it is simulations="),
        (lambda: SMC(4, max_new_tokens=10), r"lm\(text, max_tokens=...\) in the program"),
        (lambda: SMC(4, bogus=10), r"no argument 'bogus': it takes num_particles, ess_threshold"),
        (lambda: SMC(4, width=10), r"no argument 'width': it takes num_particles"),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(make, hint):
    with pytest.raises(TypeError, match=hint):
        make()


NO_COUNTS = [0, -1, 2.5, float("nan"), True, "3"]


@pytest.mark.parametrize("number", NO_COUNTS, ids=repr)
@pytest.mark.parametrize("searcher", [s for s in SEARCHERS if s.settings()], ids=repr)
def test_the_first_setting_of_every_searcher_is_a_count(searcher, number):
    first = searcher.settings()[0]
    assert first in ("num_particles", "n", "simulations", "beam_width", "rounds")
    with pytest.raises(ValueError, match=f"{first}="):
        searcher.with_(**{first: number})


def test_states_count_and_keep_the_rest():
    state = Frontier((), round=3)
    assert state.after(over=True) == Frontier((), round=4, over=True)
    assert issubclass(Frontier, State)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (lambda state: state.after(over=True), "Frontier"),
        (lambda state: None, "None"),
        (lambda state: (state.after(over=True), None), r"\(Frontier"),
        (lambda state: ({}, state.after(over=True)), r"\(\{\}, Frontier"),
    ],
)
def test_a_round_that_forgets_its_note_is_told(said, shown):
    @dataclass(frozen=True)
    class Forgetful(Searcher[Frontier]):
        def start(self, tree):
            return Frontier(nodes=(tree.root,))

        def step(self, tree, state):
            return said(state)

        def result(self, tree, state):
            return Result.by_likelihood(state.nodes)

    for run in (lambda: Forgetful().run(toy, "prod", seed=0), lambda: check_searcher(Forgetful())):
        with pytest.raises(SearchStateError, match=rf"Forgetful.step returned .*{shown}.*a note"):
            run()
