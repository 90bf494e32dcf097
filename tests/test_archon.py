"""Archon: what every operator takes and gives, rules of construction, and the search for one."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from bubblewrap import needs_bubblewrap
from scipy.stats import binomtest
from scripted import Scripted

import ppl
from ppl.errors import ArgumentError
from ppl.language.randomness import generator
from ppl.programs.archon import (
    Archon,
    Drafts,
    Space,
    critique,
    fuse,
    generate,
    rank,
    run_tests,
    search_architectures,
    verify,
    write_tests,
)
from ppl.programs.archon.operators import _order
from ppl.programs.archon.policies import rungs
from ppl.programs.archon.testing import assertions, called
from ppl.searchers import BestOfN
from ppl.tasks import Problem, Task
from ppl.verifiers import PRM, FunctionVerifier, LogOdds, Ranker

QUESTION = "Name a fruit."


def fruits() -> Scripted:
    """Says another fruit for every generator; a fuser gets all of them together."""
    return Scripted(lambda prompt: "a fused fruit" if "better than each" in prompt else "an apple")


def drafted(n: int = 3) -> Drafts:
    """Drafts `text 0`, `text 1`, ... that a function wrote."""
    numbers = iter(range(n))
    return generate(lambda prompt: f"text {next(numbers)}", n)(Drafts(QUESTION))


def judged(reply):
    """A judge that keeps what it was asked."""
    asked: list[str] = []

    def said(prompt: str) -> str:
        asked.append(prompt)
        return reply(prompt)

    said.asked = asked  # type: ignore[attr-defined]
    return said


# -- the contract of every operator --------------------------------------------------------------


def test_generators_make_weighted_drafts_from_the_question_alone():
    writer = judged(lambda prompt: "a pear")
    found = generate(writer, 3)(Drafts(QUESTION))
    assert writer.asked == [QUESTION] * 3
    assert found.texts == ["a pear"] * 3
    assert [d.log_weight for d in found] == [0.0] * 3
    assert [d.provenance for d in found] == [
        ("generate_0/0",),
        ("generate_0/1",),
        ("generate_0/2",),
    ]
    assert found.depth == 1


def test_a_language_model_writes_texts_that_verifiers_can_read():
    found = generate(fruits(), 2)(Drafts(QUESTION))
    assert [d.written.text for d in found] == found.texts == ["an apple"] * 2


def test_rankers_order_keep_weights_and_append_what_is_missing():
    def order(said: str, top: int | None = None):
        return rank(lambda prompt: said, top)(drafted(4))

    assert order("Well.\n3 > 1 > 4 > 2").texts == ["text 2", "text 0", "text 3", "text 1"]
    missing = order("4 > 2")
    assert missing.texts == ["text 3", "text 1", "text 0", "text 2"]
    assert missing.flags == ("rank_1: 2 not ranked",)
    for said in (
        "2 > 1 > 3\nFor 3 > 2 in length.",
        "2 > 1 > 3\n> done\n",
        "<p>\n2, 1, 3\n2>1>3 <p>",
    ):
        assert _order(said, 3, "") == ([1, 0, 2], ())
    assert _order("2, 1, 3\n\n", 3, "") == ([1, 0, 2], ())
    assert order("2 > 9 > 2 > 1", 2).texts == ["text 1", "text 0"]  # strange and double numbers
    assert order("I cannot.").texts == drafted(4).texts
    assert [d.log_weight for d in missing] == [0.0] * 4
    assert missing.drafts[0].provenance == ("generate_0/3", "rank_1: place 1")


def test_critics_speak_of_every_draft_and_cost_the_weight():
    found = critique(lambda prompt: "C[3]: bad\nC[1]: good\nC[x]: lost")(drafted(3))
    assert found.texts == drafted(3).texts
    assert [d.critique for d in found] == ["good", None, "bad"]
    assert [d.log_weight for d in found] == [None] * 3
    assert found.flags == ("critique_1: 1 without a critique",)
    reader = judged(lambda prompt: "2 > 1 > 3")
    assert rank(reader)(found).drafts[1].critique == "good"
    assert "A critic says: bad" in reader.asked[0]


def test_fusers_make_new_texts_without_weight_and_know_their_sources():
    writer = judged(lambda prompt: "all fruits")
    found = fuse(writer, 2)(critique(lambda prompt: "C[2]: too short")(drafted(2)))
    assert found.texts == ["all fruits"] * 2
    assert [d.log_weight for d in found] == [None] * 2
    assert found.drafts[1].origin == "fuse_2/1"
    assert found.drafts[1].sources == ("generate_0/0", "generate_0/1")
    assert all("text 1\n(A critic says: too short)" in prompt for prompt in writer.asked)


def test_verifiers_keep_what_is_correct_with_its_weight():
    judge = judged(
        lambda prompt: "It is [incorrect]? No: [Correct]" if "text 1" in prompt else "[Incorrect]"
    )
    found = verify(judge)(drafted(3))
    assert len(judge.asked) == 3  # each by itself
    assert found.texts == ["text 1"]
    assert found.drafts[0].log_weight == 0.0
    assert found.drafts[0].provenance == ("generate_0/1", "verify_1")
    assert not found.flags


def test_a_verifier_that_rejects_all_returns_its_input_flagged():
    before = drafted(3)
    for said, flags in (
        ("[Incorrect]", ("verify_1: rejected all",)),
        ("Who knows.", ("verify_1: 3 without a verdict", "verify_1: rejected all")),
    ):
        found = verify(lambda prompt, said=said: said)(before)
        assert found.drafts == before.drafts
        assert found.flags == flags


def test_verifiers_and_rankers_of_the_library_serve_as_judges():
    long = FunctionVerifier(lambda text: min(1.0, len(text.text) / 8), name="long")
    texts = iter(["aaaaaaaa", "b", "ccccc"])
    lm = Scripted(lambda prompt: "")

    def written(prompt: str) -> ppl.Text:
        return lm.chat(prompt) + lm.continuation(next(texts), finished=True)

    drafts = generate(written, 3)(Drafts(QUESTION))
    assert rank(long)(drafts).texts == ["aaaaaaaa", "ccccc", "b"]
    assert verify(long, threshold=0.5)(drafts).texts == ["aaaaaaaa", "ccccc"]
    assert [d.log_weight for d in verify(long)(drafts)] == [0.0] * 2
    with pytest.raises(ArgumentError, match="a bare string"):
        rank(long)(drafted(2))

    class Shorter(Ranker):
        name = "shorter"

        def judge(self, requests):
            return [[-float(len(r.text.text))] for r in requests]

    assert rank(Shorter(), 1)(drafts).texts == ["b"]
    for no_probability in (Shorter(), LogOdds(ppl.load("tiny-lines"), lambda lm, text: text)):
        with pytest.raises(ArgumentError, match="says which is better"):
            verify(no_probability)


@needs_bubblewrap
def test_tests_are_written_and_really_run():
    asked = judged(
        lambda prompt: (
            "```python\nassert add(1, 2) == 3\nassert add(0, 0) == 0\nassert 1 == 1\n"
            "assert add(2, 2) == 4\nassert add(5, 5) == 10\n```"
        )
    )
    bodies = ["return a - b", "return a + b", "return 3", "import os; os._exit(0)"]
    sources = iter(f"```python\ndef add(a, b):\n    {body}\n```" for body in bodies)
    drafts = generate(lambda prompt: next(sources), 4)(Drafts("Write add(a, b)."))
    tested = write_tests(asked, 4)(drafts)
    assert tested.tests == tuple(assertions(asked(""))[:4])
    assert tested.texts == drafts.texts
    found = run_tests()(tested)
    assert [d.provenance[-1] for d in found] == [f"run_tests_2: {n} of 3" for n in (3, 1, 1, 0)]
    assert "return a + b" in found.texts[0]
    assert found.texts[1:3] == [drafts.texts[0], drafts.texts[2]]  # equals in their order
    assert found.flags == ("run_tests_2: 1 tests that test nothing",)
    assert [d.log_weight for d in found] == [0.0] * 4
    assert run_tests(1)(tested).texts == found.texts[:1]
    # A program that nobody wrote a test for stays where it is.
    none = run_tests()(write_tests(lambda prompt: "I would test it.")(drafts))
    assert none.texts == drafts.texts
    assert none.flags == ("write_tests_1: no test", "run_tests_2: nothing to run")


def test_assertions_are_read_from_replies():
    assert assertions("1. `assert f(1) == 2`\n2. assert f(0) == 1\nand so on") == [
        "assert f(1) == 2",
        "assert f(0) == 1",
    ]
    assert assertions("assert f(1) == 2\nassert f(1)==2\nx = 3") == ["assert f(1) == 2"]
    assert assertions("no tests") == []
    assert called(["assert sorted(f(1)) == g.h(2)"]) == ["f"]


# -- architectures -------------------------------------------------------------------------------


def some(prompt: str) -> str:
    return "1"


def test_rules_of_construction():
    g, f, r, c = generate(some), fuse(some), rank(some), critique(some)
    v, w, t = verify(some), write_tests(some), run_tests()
    for layers in (
        [g],
        [[g, g], r, c, f],
        [g, c, [f, f], r],
        [g, c, v, r],
        [g, w, t, r, c, f],
        [g, f, f, v],
    ):
        Archon(layers)
    for layers, why in (
        ([], "at least a generator"),
        ([f], "generators stand in the first layer"),
        ([r, g], "generators stand in the first layer"),
        ([g, g], "generators stand in the first layer"),
        ([[g, f]], "one kind a layer"),
        ([g, [r, r]], "at most one a layer"),
        ([g, [c, c], r], "at most one a layer"),
        ([g, [v, v]], "at most one a layer"),
        ([g, c], "a critic comes before"),
        ([g, r, f, c], "a critic comes before"),
        ([g, c, v], "a critic comes before"),
        ([g, t], "right after write_tests"),
        ([g, w], "right after write_tests"),
        ([g, w, r, t], "right after write_tests"),
        ([g, []], "at least one operator"),
        ([g, some], "layers"),
        (g, "layers="),
    ):
        with pytest.raises(ArgumentError, match=why):
            Archon(layers)  # type: ignore[arg-type]


def test_an_architecture_is_a_program_of_any_searcher():
    lm = fruits()
    archon = Archon([[generate(lm, 2), generate(lm)], rank(some, 2), fuse(lm)], read=str.upper)
    assert repr(archon) == "Archon(generate+generate > rank > fuse)"
    posterior = BestOfN(2).run(archon, QUESTION, seed=0)
    assert posterior.best == "A FUSED FRUIT"
    assert [r.name for r in posterior.samples[0].records] == [
        "layer_0/0/generate_0/0/reply",
        "layer_0/0/generate_0/1/reply",
        "layer_0/1/generate_0/0/reply",
        "fuse_2/0/reply",
    ]
    assert posterior.cost.lm_calls == 8
    assert archon.calls == 5  # the function that ranks is asked, too
    drafts = archon.drafts(QUESTION)
    assert drafts.drafts[0].sources == (
        "layer_0/0/generate_0/0",
        "layer_0/0/generate_0/1",
    )


def test_calls_are_never_more_than_said():
    asked = judged(lambda prompt: "[Correct]" if len(asked.asked) % 2 else "[Incorrect]")
    archon = Archon([generate(asked, 4), verify(asked), critique(asked), [fuse(asked, 2)] * 2])
    archon(QUESTION)
    assert archon.calls == 4 + 4 + 1 + 4
    assert len(asked.asked) <= archon.calls


def test_the_embedded_pair_as_generator_and_ranker():
    """The reward model as a ranker: best-of-4 as an architecture."""
    lm, prm = ppl.load("tiny-lines"), PRM.load("tiny-lines")

    def solve(question: str) -> ppl.Text:
        text = lm.chat(question)
        for t in range(12):
            step = pyro.sample(f"step_{t}", lm(text, until="\n"))
            text = text + step
            if step.finished:
                break
        return text

    question = ppl.tasks.load("lines/chain", n=1)[0].question
    archon = Archon([generate(solve, 4), rank(prm)])
    posterior = BestOfN(1).run(archon, question, seed=0)
    records = posterior.samples[0].records
    scores = [r.value for r in records if r.name.endswith("/score")]
    texts = [
        "".join(r.value.text for r in records if r.name.startswith(f"generate_0/{i}/"))
        for i in range(4)
    ]
    assert posterior.best == texts[int(np.argmax(scores))]
    assert len(set(scores)) > 1
    assert posterior.cost.verifier_calls == 4
    assert posterior.samples[0].log_weight == 0  # it is no observation
    assert archon.calls == 8


# -- the search ----------------------------------------------------------------------------------

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
