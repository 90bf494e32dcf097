"""Aggregators: programs that read samples, and the trainable one that reads their features."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pyro
import pytest

import ppl
from ppl.decide import (
    Candidates,
    SampleSetAggregator,
    aggregate,
    best,
    flip_rate,
    sample_set_answer,
    universal_self_consistency,
    vote,
)
from ppl.decide.aggregation import consistency_prompt
from ppl.errors import ArgumentError
from ppl.searchers import BestOfN

SAID = Candidates(["4", "5", "4", None], written=["so 4", "so 5", "it is 4", "hm"])
ONE = BestOfN(1)


def longest(texts):
    """Chooses a text by what it says, whatever the order."""
    pyro.sample("nothing", pyro.distributions.Bernoulli(0.5))
    return max(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))


def first(texts):
    return 0


def writer(question, texts):
    return f"{question}{len(texts)}"


def test_a_program_chooses_a_text_or_writes_its_own_answer():
    chosen = aggregate(SAID, longest, searcher=ONE)
    assert (chosen.value, chosen.outside) == ("4", False)
    assert chosen.posterior is not None
    written = aggregate(SAID, writer, "n=", searcher=ONE)
    assert (written.value, written.outside) == ("n=3", True)  # without that which has no answer
    assert aggregate(SAID, writer, "", searcher=ONE, k=2).value == "2"
    inside = aggregate(Candidates(["3", "x", "4"], written=["a"] * 3), writer, "", searcher=ONE)
    assert (inside.value, inside.outside) == ("3", False)
    unsure = aggregate(SAID, lambda texts: None, searcher=ONE)
    assert (unsure.value, unsure.outside) == (None, False)
    with pytest.raises(ArgumentError, match="program: it chose text 3"):
        aggregate(SAID, lambda texts: 3, searcher=ONE)


def test_unanimous_candidates_are_returned_and_nobody_is_asked():
    def never(texts):
        raise AssertionError

    agreed = aggregate(["7", None, "7"], never, searcher=ONE)
    assert (agreed.value, agreed.outside, agreed.posterior) == ("7", False, None)
    assert agreed.cost == ppl.Cost()
    assert aggregate(["1/2", "0.5"], never, searcher=ONE, key=ppl.Answer).value == "1/2"
    assert aggregate([None], never, searcher=ONE).value is None


def test_texts_that_are_not_known_are_asked_for():
    with pytest.raises(ArgumentError, match=r"written: this rule reads the texts"):
        aggregate(["4", "5"], longest, searcher=ONE)


def test_how_often_the_order_decides():
    assert flip_rate(SAID, longest, searcher=ONE) == 0.0
    # The first of three texts, of which one says something else.
    rates = [flip_rate(SAID, first, searcher=ONE, shuffles=30, seed=s) for s in range(20)]
    assert np.mean(rates) == pytest.approx(1 / 3, abs=3 * math.sqrt(2 / 9 / 600))


class Scripted(ppl.TableLM):
    """A chat model that answers with one line, symbol by symbol."""

    def __init__(self, reply: str) -> None:
        self.reply, self.asked = reply, ""
        symbols = "".join(sorted(set(map(chr, range(32, 127))) | {"\n"} - {"$"}))
        super().__init__(self._next, symbols=symbols, context_length=4096)

    def chat(self, messages, **_):
        self.asked = messages
        return self.prompt(messages + "\n#")

    def _next(self, before):
        said = before.rpartition("#")[2]
        return {(self.reply + "$")[len(said)]: 1.0}


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("The most consistent response is Response 2", 1),
        ("the most consistent response is **Response 3**.", 2),
        ("The most consistent response is Response 12", None),
        ("Response 2 looks good", None),
    ],
)
def test_universal_self_consistency(reply, number):
    """2311.17311: the prompt, and what is read of the reply."""
    lm = Scripted(reply)
    said = aggregate(SAID, universal_self_consistency, lm, "2 + 2?", searcher=ONE)
    assert said.value == (None if number is None else ["4", "5", "4"][number])
    assert lm.asked == consistency_prompt("2 + 2?", ["so 4", "so 5", "it is 4"])
    assert said.cost.lm_tokens > 0
    asked = lm.asked.splitlines()
    assert asked[0] == "I have generated the following responses to the question: 2 + 2?"
    assert asked[2:7:2] == ["Response 1: so 4", "Response 2: so 5", "Response 3: it is 4"]
    assert "Select the most consistent response based on majority consensus." in asked[-1]


def test_the_free_form_may_write_an_answer_that_no_sample_has():
    lm = Scripted("Both slipped. \\boxed{6}")
    said = aggregate(SAID, sample_set_answer, lm, "2 + 4?", searcher=ONE, key=ppl.Answer)
    assert (said.value, said.outside) == ("6", True)
    assert lm.asked.startswith("2 + 4?")
    assert "Response 3: it is 4" in lm.asked
    same = aggregate(SAID, sample_set_answer, Scripted("\\boxed{4.0}"), "?", searcher=ONE,
                     key=ppl.Answer)  # fmt: skip
    assert (same.value, same.outside) == ("4.0", False)

    def own(texts_of):
        return lambda question, texts: f"{question}|{len(texts)}|{texts_of}"

    def trained(lm, question, texts):
        return sample_set_answer(lm, question, texts, prompt=own("mine"), max_tokens=3)

    cut = Scripted("too long \\boxed{1}")
    assert aggregate(SAID, trained, cut, "q", searcher=ONE).value is None
    assert cut.asked == "q|3|mine"


# -- features of the set ---------------------------------------------------------------------------


def questions(count: int, seed: int):
    """Eight samples each; a verifier and the count each tell something, and length nothing."""
    rng = np.random.default_rng(seed)
    made, right = [], []
    for _ in range(count):
        p = rng.beta(1.2, 1.6)
        correct = rng.random(8) < p
        answers = np.where(correct, "r", rng.choice(list("xyz"), p=[0.6, 0.2, 0.2], size=8))
        logits = 1.2 * (correct - 0.5) + rng.normal(0, 1.2, 8)
        scores = 1 / (1 + np.exp(-logits))
        tokens = rng.integers(5, 50, 8)
        rates = -0.5 - 0.2 * rng.random(8) + 0.1 * correct
        made.append(
            Candidates(
                answers.tolist(),
                log_scores=np.log(scores),
                log_probs=rates * tokens,
                tokens=tokens,
            )
        )
        right.append(correct)
    return made, right


def test_the_feature_form_learns_on_some_questions_and_serves_others():
    rule = SampleSetAggregator.fit(*questions(400, 0))
    others, _ = questions(600, 1)

    def accuracy(choose) -> float:
        return float(np.mean([choose(each) == "r" for each in others]))

    learnt, voted, picked = accuracy(rule), accuracy(lambda c: vote(c, "flat")), accuracy(best)
    assert learnt > max(voted, picked) + 0.02
    # Its numbers are chances.
    found = [dict(rule.probabilities(each)) for each in others]
    pairs = np.array([(p, a == "r") for each in found for a, p in each.items()])
    assert pairs[:, 1].mean() == pytest.approx(pairs[:, 0].mean(), abs=0.02)
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = pairs[(pairs[:, 0] >= low) & (pairs[:, 0] < low + 0.25)]
        assert inside[:, 1].mean() == pytest.approx(inside[:, 0].mean(), abs=0.15)
    assert rule.weights[-1] == pytest.approx(0.0, abs=0.35)  # length says nothing
    # The score tells more than that.
    assert rule.weights[2] > 0.5


def test_a_text_that_cannot_be_is_a_poor_one_and_no_warning():
    rule = SampleSetAggregator.fit(*questions(60, 0))
    zero = [-math.inf, -1.0, -1.0]
    candidates = Candidates(
        ["a", "b", "b"], log_scores=zero, log_probs=zero, tokens=[3.0, 3.0, 3.0]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rule(candidates) == "b"
        assert all(0 <= chance <= 1 for _, chance in rule.probabilities(candidates))


def test_the_feature_form_knows_no_order_and_leaves_unanimity_alone():
    rule = SampleSetAggregator.fit(*questions(60, 0))
    (one,), _ = questions(1, 5)
    order = np.random.default_rng(0).permutation(8)
    columns = {n: one.columns[n][order] for n in ("log_scores", "log_probs", "tokens")}
    again = Candidates([one.values[i] for i in order], **columns)
    expected = dict(rule.probabilities(one))
    assert dict(rule.probabilities(again)) == pytest.approx(expected)
    agreed = Candidates(["q"] * 8, **columns)
    assert rule(agreed) == "q"
    assert rule(Candidates([None] * 8, **columns)) is None
    assert rule(one, key=lambda a: "all") in one.values


def test_a_posterior_has_what_the_feature_form_needs():
    lm = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$")

    def program():
        return pyro.sample("x", lm(lm.prompt("^"), max_tokens=2)).text

    posteriors = [BestOfN(6).run(program, seed=seed) for seed in range(8)]
    right = [[s.value.startswith("a") for s in p.samples] for p in posteriors]
    rule = SampleSetAggregator.fit(posteriors, right)
    assert rule(posteriors[0]) in {s.value for s in posteriors[0].samples}


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: SampleSetAggregator.fit(*questions(3, 0), penalty=0.0), "penalty"),
        (lambda: SampleSetAggregator.fit(questions(3, 0)[0], [[1]]), "correct"),
        (lambda: SampleSetAggregator.fit(questions(1, 0)[0], [[1]]), "correct"),
        (lambda: SampleSetAggregator.fit(questions(1, 0)[0], [[0] * 8]), "correct: some"),
        (lambda: SampleSetAggregator.fit([["a", "b"]], [[1, 0]]), "log_scores: this rule needs"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, named):
    with pytest.raises((ArgumentError, ValueError), match=named):
        call()
