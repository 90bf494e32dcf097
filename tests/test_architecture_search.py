"""The search over architectures of Archon."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from scipy.stats import binomtest
from scripted import Scripted
from test_archon import QUESTION, some

from ppl.errors import ArgumentError
from ppl.language.randomness import generator
from ppl.programs.archon import (
    Archon,
    Drafts,
    Space,
    critique,
    generate,
    rank,
    search_architectures,
    verify,
)
from ppl.programs.archon.policies import rungs
from ppl.tasks import Problem, Task

CHOICES = {
    "samples": [1, 2, 4, 8, 16],
    "ranker": ["none", "first", "second", "third", "all"],
    "fuser": ["none", "one", "two", "three"],
    "critic": [False, True],
}
POINTS = list(itertools.product(*CHOICES.values()))
PROBLEMS = 24


def world(seed: int):
    """Chances of 200 architectures, added up from their parts, and one that is planted: the best by
    the parts, and better still. What each does on each problem is drawn."""
    rng = generator(seed, "world")
    parts = [rng.permutation(np.linspace(0, 0.16, len(v))) for v in CHOICES.values()]
    places = itertools.product(*(range(len(v)) for v in CHOICES.values()))
    rates = np.array([0.1 + sum(p[i] for p, i in zip(parts, at, strict=True)) for at in places])
    best = int(rates.argmax())
    rates[best] += 0.15
    table = rng.random((len(POINTS), PROBLEMS)) < rates[:, None]
    return POINTS[best], dict(zip(POINTS, table.astype(float), strict=True))


def finds(method: str, seed: int, workers: int = 1) -> bool:
    """Whether the planted one is found with the calls of 40 evaluations."""
    best, table = world(seed)
    found = search_architectures(
        Space(CHOICES, lambda **settings: some),
        lambda settings, number: float(table[tuple(settings.values())][number]),
        calls=40 * PROBLEMS,
        method=method,
        problems=PROBLEMS,
        workers=workers,
        seed=seed,
    )
    assert found.calls == found.evaluations <= 40 * PROBLEMS
    return tuple(found.best.settings.values()) == best


@pytest.mark.parametrize("method", ["greedy", "tpe", "halving"])
def test_a_planted_architecture_is_found_more_often_than_by_chance(method):
    """Sign test over worlds in which exactly one of the two finds it."""
    assert len(POINTS) == 200
    seeds = range(24)
    pairs = [(finds(method, seed), finds("random", seed)) for seed in seeds]
    wins = sum(ours and not theirs for ours, theirs in pairs)
    losses = sum(theirs and not ours for ours, theirs in pairs)
    assert binomtest(wins, wins + losses, alternative="greater").pvalue < 0.01


def test_random_search_finds_it_one_time_in_five():
    found = sum(finds("random", seed) for seed in range(24))
    assert found / 24 < 0.2 + 3 * math.sqrt(0.2 * 0.8 / 24)


def test_halving_promotes_without_waiting_and_others_see_all_problems():
    assert rungs(24) == [3, 8, 24]
    assert rungs(2) == [2]
    space = Space(CHOICES, lambda **settings: some)
    asked: list[tuple] = []

    def task(settings, number):
        asked.append((tuple(settings.values()), number))
        return float(settings["critic"])

    found = search_architectures(
        space, task, calls=300, problems=24, method="halving", workers=4, seed=0
    )
    sizes = {len(trial.scores) for trial in found.trials}
    assert sizes <= {3, 8, 24}
    assert len(found.best.scores) == 24
    assert found.best.settings["critic"]
    assert len(asked) == len(set(asked)) == found.calls <= 300  # nothing is scored twice
    # Somebody is promoted before all have been looked at.
    first = next(
        i for i, (point, _) in enumerate(asked) if sum(p == point for p, _ in asked[:i]) == 3
    )
    assert len({point for point, _ in asked[:first]}) < 200
    whole = search_architectures(space, task, calls=300, problems=24, method="tpe", seed=0)
    assert {len(trial.scores) for trial in whole.trials} == {24}


def test_several_workers_and_the_limit():
    for method in ("random", "greedy", "tpe", "halving"):
        for workers in (1, 5):
            assert isinstance(finds(method, 3, workers), bool)  # the limit is asserted there
    space = Space({"a": [1, 2]}, lambda a: some)
    few = search_architectures(space, lambda s, n: s["a"], calls=1000, problems=2, method="tpe")
    assert (few.calls, few.best.settings) == (4, {"a": 2})  # both, and no more
    with pytest.raises(ArgumentError, match="calls=1"):
        search_architectures(space, lambda s, n: 0.0, calls=1, problems=2)


def adding():
    """A task of sums, and a space of real architectures with scripted writers: a model that errs on
    odd draws, a majority as fuser, a judge that knows."""
    problems = [Problem(f"sum/{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(6)]

    def score(problem, answer):
        return answer == problem.gold

    def doubled(prompt: str) -> int:
        return 2 * int(re.findall(r"What is (\d+)", prompt)[0])

    def writer(prompt: str) -> str:
        wrong = int(pyro.sample("wrong", dist.Bernoulli(0.5)))
        return str(doubled(prompt) + wrong)

    def judge(prompt: str) -> str:
        said = re.findall(r"to this:\n\n(\d+)", prompt)[0]
        return "[Correct]" if int(said) == doubled(prompt) else "[Incorrect]"

    def build(samples: int, verifier: str, ranker: str) -> Archon:
        layers = [generate(writer, samples)]
        if verifier == "knows":
            layers.append(verify(judge))
        if ranker == "critic alone":
            layers.append(critique(some))
        if ranker == "reversed":
            layers.append(rank(lambda prompt: " > ".join(map(str, range(9, 0, -1)))))
        return Archon(layers)

    choices = {
        "samples": [1, 4, 8],
        "verifier": ["none", "knows"],
        "ranker": ["none", "reversed", "critic alone"],
    }
    return Task("sums", problems, score), Space(choices, build)


@pytest.mark.parametrize("method", ["random", "greedy", "tpe", "halving"])
def test_architectures_are_searched_on_a_task(method):
    task, space = adding()
    assert len(space) == 12  # a critic at the end breaks a rule
    found = search_architectures(space, task, calls=700, method=method, seed=1)
    assert found.calls <= 700
    assert found.best.settings["verifier"] == "knows"
    assert found.best.settings["samples"] >= 4
    assert found.best.score >= 5 / 6
    assert isinstance(found.program, Archon)
    assert str(found).startswith(f"{method}: ")
    again = search_architectures(space, task, calls=700, method=method, seed=1)
    assert again.trials == found.trials


def test_the_limit_holds_where_a_writer_makes_several_calls():
    """What a program costs is found out, and what the limit ends is not counted."""
    lm = Scripted(lambda prompt: "4")

    def many(question: str) -> str:
        for i in range(5):
            said = pyro.sample(f"said_{i}", lm(lm.chat(question))).text
        return said

    task, _ = adding()
    space = Space({"samples": [1, 2, 3, 4]}, lambda samples: Archon([generate(many, samples)]))
    for limit in (31, 60, 100, 200):
        found = search_architectures(space, task, calls=limit, method="random")
        assert found.calls <= limit
        assert all(len(trial.scores) == 6 for trial in found.trials)
        assert found.best.score == pytest.approx(1 / 6)
    with pytest.raises(ArgumentError, match="calls=20"):
        search_architectures(space, task, calls=20, method="random")


def test_runs_that_fail_score_zero_and_are_counted():
    task, _ = adding()

    def build(broken: bool) -> Archon:
        def writer(prompt: str) -> str:
            if broken:
                raise RuntimeError("down")
            return "4"

        return Archon([generate(writer)])

    found = search_architectures(Space({"broken": [True, False]}, build), task, calls=100)
    by = {trial.settings["broken"]: trial for trial in found.trials}
    assert by[True].failed == 6
    assert by[True].score == 0
    assert by[False].failed == 0
    assert by[False].score == pytest.approx(1 / 6)


def test_what_is_no_space_is_refused():
    task, space = adding()
    for wrong, name in (
        (lambda: Space({}, some), "choices"),
        (lambda: Space({"a": []}, some), "choices"),
        (lambda: Space({"a": [1]}, lambda a: None), "build"),
        (lambda: search_architectures(space, task, calls=0), "calls"),
        (lambda: search_architectures(space, task, calls=9, problems=3), "problems"),
        (lambda: search_architectures(space, lambda s, n: 0.0, calls=9), "problems"),
        (lambda: search_architectures(space, task, calls=9, method="best"), "method"),  # type: ignore[arg-type]
        (lambda: search_architectures(space, task, calls=9, workers=0), "workers"),
        (lambda: generate(some, 0), "samples"),
        (lambda: rank(some, 0), "top"),
        (lambda: verify(some, threshold=2.0), "threshold"),
        (lambda: generate(3), "writer"),  # type: ignore[arg-type]
        (lambda: generate(lambda prompt: 3)(Drafts(QUESTION)), "writer"),
    ):
        with pytest.raises(ValueError, match=name):
            wrong()


@pytest.mark.parametrize("score", [math.nan, math.inf, None, "1"])
def test_a_score_that_cannot_be_compared_is_refused(score):
    space = Space({"a": [0, 1]}, lambda a: lambda question: a)
    with pytest.raises(ArgumentError, match=r"scored .* for \{'a': \d\} on problem \d"):
        search_architectures(space, lambda settings, number: score, calls=9, problems=2)
