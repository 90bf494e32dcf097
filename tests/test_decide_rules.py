"""Each rule by the numbers of its paper, or worked by hand; what is near to it fails."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

import ppl
from ppl.decide import (
    RPC,
    Borda,
    Candidates,
    DeepConf,
    MajorityOfTheBests,
    Pessimistic,
    best,
    best_of_n_divergence,
    best_of_n_law,
    draw,
    minimum_bayes_risk,
    pessimistic_law,
    self_certainty,
    shares,
    soft_self_consistency,
    token_confidence,
    trace_confidence,
    vote,
    vote_law,
)
from ppl.decide.columns import COLUMNS
from ppl.decide.perplexity import kept
from ppl.errors import ArgumentError, SearchStateError
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import verifier

# -- one vote --------------------------------------------------------------------------------------


def test_sum_mean_max_and_majority_differ():
    answers = ["A", "B", "B", "B"]
    sure, unsure = [0.9, 0.2, 0.2, 0.2], [0.5, 0.2, 0.2, 0.2]
    assert vote(answers, sure) == "A"
    assert vote(answers, unsure) == "B"
    assert vote(answers) == "B"
    for combine in ("mean", "max"):
        assert vote(answers, unsure, combine=combine) == "A"


def test_keys_spellings_and_texts():
    said = ["0.5", "1/2", "1/2", "3", "3"]
    assert vote(said) == "1/2"  # the first seen of two
    assert vote(said, key=ppl.Answer) == "1/2"
    assert dict(shares(said, key=ppl.Answer)) == pytest.approx({"1/2": 0.6, "3": 0.4})
    assert vote(["a", "B", "b"], [3, 2, 2], key=str.lower) == "B"
    # The best itself speaks for its class, not its spelling's majority.
    assert vote(["b2", "b1", "b2"], [2, 3, 2], key=lambda v: v[0], combine="max") == "b1"
    assert vote([None, "a"], key=str.lower) == "a"  # nobody is asked for the class of no answer
    repeated = Candidates(["a", "a", "b"], texts=["x", "x", "y"])
    assert vote(repeated, [1, 2, 2.5]) == "a"
    assert vote(repeated, [1, 2, 2.5], unique=True) == "b"
    assert shares(repeated, [1, 2, 2], unique=True) == [("a", 0.5), ("b", 0.5)]


def test_no_candidates_have_no_answer_whatever_the_rule():
    empty = Candidates([], **dict.fromkeys(COLUMNS, ()))
    rules = [RPC(), MajorityOfTheBests(), Borda(1.0), DeepConf(), Pessimistic(0.1), "score"]
    for rule in [*rules, lambda c: c["log_scores"].max(keepdims=True)]:
        assert vote(empty, rule) is None
        assert vote(empty, rule, unique=True) is None
        assert shares(empty, rule) == []
        with pytest.raises(SearchStateError, match="no candidate"):
            draw(empty, rule, seed=0)


def test_a_text_that_died_elsewhere_does_not_stand_for_the_same_one_alive():
    """Also where all weights are zero, so that answers count alike."""
    twice = Candidates(
        ["a", "a"], log_weights=[-np.inf, 0.0], confidences=[0.5, 0.0], texts=["t", "t"]
    )
    assert vote(twice, "confidence", unique=True) == "a"
    assert shares(twice, "confidence", unique=True) == [("a", 1.0)]


def test_a_key_is_asked_once_for_each_answer():
    asked = []
    for rule in (vote, shares):
        rule(list("abcab"), key=lambda answer: asked.append(answer) or answer)
        assert asked == list("abcab")
        asked.clear()


def test_a_draw_follows_the_weights():
    answers = ["a", None, "b", "c"]
    found = [draw(answers, [1, 5, 2, 1], seed=seed) for seed in range(2000)]
    counts = [found.count(a) for a in "abc"]
    assert sum(counts) == 2000
    assert chisquare(counts, [500, 1000, 500]).pvalue > 0.01
    with pytest.raises(SearchStateError, match="no candidate"):
        draw([None], seed=0)


@verifier
def longer(text):
    return 0.3 + 0.2 * len(text.text.strip("^$"))


LM = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$")


def judged():
    text = LM.prompt("^")
    for i in range(2):
        step = pyro.sample(f"step_{i}", LM(text, max_tokens=1))
        text = text + step
        if step.finished:
            break
    pyro.sample("ok", longer(text), obs=True)
    return text.text.count("a")


def test_a_posterior_is_voted_on_as_its_own_methods_do():
    for searcher in (BestOfN(20), SMC(20)):
        posterior = searcher.run(judged, seed=3)
        assert vote(posterior) == posterior.vote()
        assert vote(posterior, "flat") == posterior.vote(weights="flat")
        assert best(posterior) == posterior.best
        assert dict(shares(posterior)) == pytest.approx(posterior.marginal())


def test_what_a_posterior_lacks_is_named_with_how_to_give_it():
    posterior = BestOfN(4).run(judged)
    with pytest.raises(ArgumentError, match=r"certainties: this rule needs .*Candidates\.of"):
        vote(posterior, DeepConf())
    with pytest.raises(ArgumentError, match=r"confidences: this rule needs"):
        vote(posterior, "confidence")
    told = Candidates.of(posterior, certainties=[1, 2, 3, 4])
    assert "certainties" in told.columns
    assert vote(told, DeepConf(0.01)) == posterior.samples[3].value
    # What was known before still is.
    assert (told.columns["log_probs"] == Candidates.of(posterior).columns["log_probs"]).all()
    assert told.written == [s.text.text for s in posterior.samples]
    assert Candidates.of(told, written=["w"] * 4, rewards=None).written == ["w"] * 4
    again = Candidates.of(posterior, log_scores=[-1.0, -2.0, -3.0, -4.0])
    assert again.columns["rewards"] == pytest.approx(np.exp([-1.0, -2.0, -3.0, -4.0]))


# -- RPC (2502.00511) ------------------------------------------------------------------------------


def test_perplexity_consistency_is_exact_once_every_text_was_seen():
    wanted: dict[int, float] = {}
    plain: dict[int, float] = {}
    posterior = BestOfN(400).run(judged, seed=0)
    texts = {s.text.text: s for s in posterior.samples}
    assert len(texts) == 7  # $, a$, b$, aa, ab, ba, bb
    for text, sample in texts.items():
        drawn = text if len(text) == 2 else f"{text}$"
        p = math.prod({"a": 0.5, "b": 0.3, "$": 0.2}[symbol] for symbol in drawn)
        a = text.count("a")
        plain[a] = plain.get(a, 0.0) + p
        wanted[a] = wanted.get(a, 0.0) + p * math.exp(sample.log_likelihood)
    assert sum(plain.values()) == pytest.approx(1.0, abs=1e-12)
    assert dict(shares(posterior, RPC(prune=False))) == pytest.approx(plain, abs=1e-12)
    evidence = sum(wanted.values())
    wanted = {a: p / evidence for a, p in wanted.items()}
    assert dict(shares(posterior, RPC("joint", prune=False))) == pytest.approx(wanted, abs=1e-12)
    # Counting is not exact, whatever the multiplicities.
    assert dict(shares(posterior, "flat")) != pytest.approx(plain, abs=1e-3)


def test_the_mean_over_tokens_is_another_probability():
    candidates = Candidates(["short", "long"], log_probs=[-3.0, -4.0], tokens=[2, 10], texts=[0, 1])
    assert vote(candidates, RPC(prune=False)) == "short"
    assert vote(candidates, RPC("token_mean", prune=False)) == "long"
    found = dict(shares(candidates, RPC("token_mean", prune=False)))
    assert found["long"] / found["short"] == pytest.approx(math.exp(-0.4 + 1.5))


LOW = np.array([0.12, 0.15, 0.18, 0.2, 0.22, 0.25, 0.28, 0.3])
HIGH = np.array([0.8, 0.82, 0.85, 0.86, 0.88, 0.9, 0.92, 0.93, 0.95, 0.97])


def test_the_lower_component_below_the_mean_is_pruned():
    everything = np.log(np.concatenate([LOW, HIGH]))
    assert kept(everything).tolist() == [False] * 8 + [True] * 10
    assert kept(everything - 500.0).tolist() == [False] * 8 + [True] * 10
    # Three wrong texts outweigh two right ones, until they are pruned.
    answers = ["wrong"] * 8 + ["right"] * 2
    p = np.concatenate([LOW, HIGH[:1] * 0.9, HIGH[:1]])
    candidates = Candidates(answers, log_probs=np.log(p), tokens=np.ones(10), texts=list(range(10)))
    assert vote(candidates, RPC(prune=False)) == "wrong"
    assert vote(candidates, RPC()) == "right"


def test_what_is_above_the_mean_stays_also_where_the_lower_component_has_more_of_it():
    """A narrow component between the ends of a wide one, whose mean is lower."""
    wide = [0.05, 0.16, 0.33, 0.34, 0.42, 0.43, 0.55, 0.56, 0.60]
    narrow = [0.62, 0.63, *[0.64] * 2, *[0.65] * 8, *[0.66] * 2, *[0.67] * 2, 0.68]
    high = [0.70, 0.76, 0.83, 0.95, 0.95]  # rather of the wide one
    found = kept(np.log(wide + narrow + high))
    assert found.tolist() == [False] * 9 + [True] * 22


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-60.0, -0.01), min_size=1, max_size=30))
def test_pruning_never_takes_all_nor_the_best_nor_what_is_above_the_mean(logs):
    found = kept(logs)
    p = np.exp(np.array(logs) - max(logs))
    assert found[int(np.argmax(logs))]
    assert found[p >= p.mean()].all()


def test_nothing_is_pruned_where_nothing_can_be_told():
    assert kept([-1.0] * 20).all()
    assert kept(np.log([0.1, 0.5, 0.9, 0.9, 0.5])).all()  # three different ones
    # Whole texts, many powers of ten apart: no law on [0, 1] has such a tail.
    for seed in range(30):
        assert kept(-np.random.default_rng(seed).gamma(8, 5, 64)).all()


# -- ranks -----------------------------------------------------------------------------------------

BESTS = Candidates(
    list("WRRRRXYZ"), log_scores=np.log([0.99, 0.90, 0.88, 0.86, 0.85, 0.40, 0.30, 0.20])
)


@pytest.mark.parametrize(
    ("draws", "wrong", "right"),
    [(1, 0.125, 0.5), (2, 0.2344, 0.6250), (3, 0.3301, 0.6172), (4, 0.4138, 0.5664),
     (8, 0.6564, 0.3432)],
)  # fmt: skip
def test_majority_of_the_bests(draws, wrong, right):
    """2511.18630: from the vote to best-of-N."""
    found = dict(shares(BESTS, MajorityOfTheBests(draws)))
    assert (found["W"], found["R"]) == pytest.approx((wrong, right), abs=5e-5)
    assert sum(found.values()) == pytest.approx(1.0)
    assert dict(shares(BESTS, MajorityOfTheBests()))["W"] == pytest.approx(0.3301, abs=5e-5)
    # The root of the number of answers: 2 of 4, whatever stands beside them without one.
    beside = Candidates([*"ABBC", *[None] * 12], log_scores=[-0.1, -0.2, -0.3, -0.4, *[0.0] * 12])
    assert dict(shares(beside, MajorityOfTheBests())) == pytest.approx(
        {"A": 0.4375, "B": 0.5, "C": 0.0625}
    )


def test_borda_goes_from_the_vote_to_the_best():
    """2502.18581: (N - r + 1)^p."""
    candidates = Candidates(["x", "y", "y", "z"], certainties=[9.0, 4.0, 1.0, 2.0])
    for power in (0.0, 0.5, 1.0, 2.0):
        found = dict(shares(candidates, Borda(power)))
        votes = {"x": 4**power, "y": 3**power + 1, "z": 2**power}
        assert found == pytest.approx({a: v / sum(votes.values()) for a, v in votes.items()})
    assert vote(candidates, Borda(1.0)) == "x"  # as many as y, and seen first
    assert vote(candidates, Borda(0.9)) == "y"
    assert vote(candidates, Borda(1.1)) == "x"
    tied = Candidates(["x", "y", "z"], certainties=[1.0, 1.0, 3.0])
    assert shares(tied, Borda(1.0)) == [
        ("z", pytest.approx(0.5)), ("x", pytest.approx(0.25)), ("y", pytest.approx(0.25))
    ]  # fmt: skip


# -- pessimism (2503.21878) ------------------------------------------------------------------------


def test_pessimistic_selection():
    rewards, p = [0.9, 0.6, 0.3], [0.5, 0.26, 0.24]
    law, threshold = pessimistic_law(rewards, 0.2, p)
    assert law == pytest.approx([0.91447, 0.08553, 0], abs=1e-5)
    assert threshold == pytest.approx(0.53421, abs=1e-5)
    law, threshold = pessimistic_law(rewards, 1.0, p)
    assert law == pytest.approx([0.611, 0.23972, 0.14928], abs=1e-5)
    assert threshold == pytest.approx(-0.322)
    assert pessimistic_law(rewards, 1e-9, p).probabilities == pytest.approx([1, 0, 0])
    assert pessimistic_law(rewards, 1e6, p).probabilities == pytest.approx(p, abs=1e-5)
    assert pessimistic_law([10.9, 10.6, 10.3], 0.2, p).threshold == pytest.approx(10.53421)
    # As weights, over samples that stand for the law.
    answers = ["a"] * 25 + ["b"] * 13 + ["c"] * 12
    scores = [0.9] * 25 + [0.6] * 13 + [0.3] * 12
    candidates = Candidates(answers, log_scores=np.log(scores))
    found = dict(shares(candidates, Pessimistic(0.2)))
    assert found == pytest.approx({"a": 0.91447, "b": 0.08553, "c": 0.0}, abs=1e-5)
    draws = [draw(candidates, Pessimistic(0.2), seed=seed) for seed in range(2000)]
    assert chisquare([draws.count("a"), draws.count("b")], [1828.94, 171.06]).pvalue > 0.01


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(0.01, 20))
def test_a_pessimistic_law_sums_to_one_before_it_is_normalised(rewards, beta):
    law, threshold = pessimistic_law(rewards, beta)
    raw = np.maximum(np.array(rewards) - threshold, 0) / beta / len(rewards)
    assert raw.sum() == pytest.approx(1.0)
    assert law == pytest.approx(raw)


# -- certainty -------------------------------------------------------------------------------------


def test_uniform_laws_have_no_self_certainty_and_the_confidence_log_v():
    uniform = np.full((5, 30), -math.log(30))
    assert self_certainty(uniform) == pytest.approx(0.0, abs=1e-12)
    assert token_confidence(uniform, top=30) == pytest.approx([math.log(30)] * 5)
    assert token_confidence(uniform) == pytest.approx([math.log(30)] * 5)
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]])
    expected = np.mean([math.log(1 / 3 / q) for q in p.ravel()])  # KL(uniform || p), the mean
    assert self_certainty(np.log(p)) == pytest.approx(expected)
    assert token_confidence(np.log(p), top=2) == pytest.approx(
        [-math.log(0.7 * 0.2) / 2, -math.log(0.5 * 0.25) / 2]
    )


def test_confidence_of_a_text():
    tokens = [4.0, 1.0, 2.0, 5.0, 3.0, 3.0]
    assert trace_confidence(tokens, "mean") == 3.0
    assert trace_confidence(tokens, "tail", window=2) == 3.0
    assert trace_confidence(tokens, "lowest", window=2) == 1.5  # of 2.5 1.5 3.5 4 3
    assert trace_confidence(tokens, "bottom", window=2, share=0.4) == 2.0
    assert trace_confidence(tokens, "bottom", window=2) == 1.5  # one at least
    for how in ("mean", "tail", "bottom", "lowest"):
        assert trace_confidence(tokens, how) == 3.0  # a window beyond the length


def test_deepconf_keeps_the_surest_texts():
    """2508.15260; everything kept, it is a vote weighed by confidence."""
    candidates = Candidates(
        ["a", "b", "b", "b", "c", "a", None, "c", "b", "a", "a"],
        certainties=[9.5, 1, 2, 1, 9, 1, 50, 1, 2, 1, 1],
    )
    assert vote(candidates, "flat") == "a"  # four each, and seen first
    assert vote(candidates, DeepConf(1.0)) == "a"
    assert dict(shares(candidates, DeepConf(1.0))) == pytest.approx(
        {"a": 12.5 / 28.5, "c": 10 / 28.5, "b": 6 / 28.5}
    )
    found = [dict(shares(candidates, DeepConf(keep))) for keep in (0.2, 0.1)]
    assert found[0] == pytest.approx({"a": 9.5 / 18.5, "c": 9 / 18.5, "b": 0.0})
    assert found[1] == pytest.approx({"a": 1.0, "b": 0.0, "c": 0.0})
    with pytest.raises(ArgumentError, match=r"certainties.*zero or more"):
        vote(Candidates(["a"], certainties=[-1.0]), DeepConf())


def test_the_laws_of_a_model_are_what_certainty_is_computed_from():
    text = LM.prompt("^")
    (logits,) = LM.logits_along([text.tokens], [LM.continuation("ab").tokens], [None])
    laws = logits.log_softmax(-1)[:, 1:].numpy()  # without the symbol that is never drawn
    expected = -(math.log(0.5) + math.log(0.3) + math.log(0.2)) / 3
    assert token_confidence(laws) == pytest.approx([expected] * 2)


# -- confidence (2503.00031) -----------------------------------------------------------------------


def test_soft_self_consistency_and_the_vote_by_confidence():
    answers, sure = ["7", "7", "9", None], [0.2, 0.3, 0.4, 0.1]
    assert soft_self_consistency(answers, sure) == pytest.approx([0.5, 0.5, 0.4, 0.0])
    assert soft_self_consistency(answers, [1, 1, 1, 1]) == pytest.approx([0.5, 0.5, 0.25, 0.0])
    assert soft_self_consistency(answers, [0, 0, 0, 0]).tolist() == [0, 0, 0, 0]
    assert vote(Candidates(answers, confidences=sure), "confidence") == "7"
    assert vote(Candidates(answers, confidences=[0.2, 0.1, 0.4, 1]), "confidence") == "9"


# -- minimum Bayes risk ----------------------------------------------------------------------------


def test_the_least_risk_lies_between_answers_that_differ():
    values = [0.0, 0.0, 4.0, 5.0, 6.0]
    assert vote(values) == 0.0
    assert minimum_bayes_risk(values, lambda a, b: -abs(a - b)) == 4.0  # the median
    assert minimum_bayes_risk(values, lambda a, b: -((a - b) ** 2)) == 4.0  # nearest to the mean
    weighted = Candidates(values, log_weights=np.log([1, 1, 1, 1, 9]))
    assert minimum_bayes_risk(weighted, lambda a, b: -abs(a - b)) == 6.0
    with pytest.raises(ArgumentError, match="utility"):
        minimum_bayes_risk(values, lambda a, b: math.nan)


# -- laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "sizes", "expected"),
    [
        ((0.6, 0.4), (1, 3, 5, 11), (0.6, 0.648, 0.68256, 0.75350)),
        ((0.4, 0.35, 0.25), (1, 3, 5, 9), (0.4, 0.422, 0.44344, 0.48003)),
        ((0.35, 0.40, 0.25), (1, 3, 5, 9), (0.35, 0.35175, 0.35461, 0.35627)),
    ],
)
def test_the_law_of_the_vote(law, sizes, expected):
    found = [vote_law(law, n) for n in sizes]
    assert [f[0] for f in found] == pytest.approx(expected, abs=5e-6)
    assert [f.sum() for f in found] == pytest.approx([1.0] * len(sizes))


def test_the_law_of_the_vote_without_some_answers():
    found = vote_law([0.5, 0.2], 2)  # the rest is no answer
    assert found == pytest.approx([0.25 + 2 * 0.5 * 0.3 + 0.1, 0.04 + 2 * 0.2 * 0.3 + 0.1])
    assert found.sum() == pytest.approx(1 - 0.09)


def test_the_law_of_the_best():
    assert best_of_n_law([0.5, 0.3, 0.2], [0.1, 0.5, 0.5], 3) == pytest.approx(
        [0.125, 0.875 * 0.6, 0.875 * 0.4]
    )
    p, n = np.full(1000, 1 / 1000), 4
    law = best_of_n_law(p, np.arange(1000), n)
    divergence = float(np.sum(law * np.log(law / p)))
    assert divergence < best_of_n_divergence(n) == pytest.approx(math.log(4) - 0.75)
    assert divergence == pytest.approx(best_of_n_divergence(n), abs=1e-3)
    tied = best_of_n_law(p, np.arange(1000) // 500, n)
    assert np.sum(tied * np.log(tied / p)) < 0.9 * divergence
