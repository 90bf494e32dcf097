"""Archon: what every operator takes and gives, rules of construction, and the search for one."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
from bubblewrap import needs_bubblewrap
from scripted import Scripted

import ppl
from ppl.errors import ArgumentError
from ppl.programs.archon import (
    Archon,
    Drafts,
    critique,
    fuse,
    generate,
    rank,
    run_tests,
    testing,
    verify,
    write_tests,
)
from ppl.programs.archon.operators import _order
from ppl.programs.archon.testing import assertions, called
from ppl.searchers import BestOfN
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


def test_programs_that_pass_most_come_first_and_equals_as_they_were(monkeypatch):
    monkeypatch.setattr(testing, "passes", lambda *_: ([1, 3, 0, 1], 3))
    found = run_tests()(drafted(4))
    assert found.texts == ["text 1", "text 0", "text 3", "text 2"]
    assert [d.provenance[-1] for d in found] == [f"run_tests_1: {n} of 3" for n in (3, 1, 1, 0)]


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
