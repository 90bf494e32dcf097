"""Iterative agent decoding: what feedback can carry, in closed form, and what no feedback is."""

from __future__ import annotations

import math
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, more_a, toy

import ppl
from ppl.errors import AllParticlesDeadError, ProgramError
from ppl.searchers import BestOfN, IterativeAgentDecoding, feedback
from ppl.searchers.sampling.iterative import Tried, best_and_worst

# What follows `^`, an earlier symbol and its mark: kept if it was good, changed if it was bad.
REVISING = {"^": "", "^a+": "a", "^a-": "b", "^b+": "b", "^b-": "a"}


def revise(prefix: str) -> dict[str, float]:
    told = REVISING[prefix]
    return {told: 1.0} if told else {"a": 0.5, "b": 0.5}


REVISER = ppl.TableLM(revise, symbols="^ab+-$", end="$", name="reviser")


def one_bit(best: Tried, worst: Tried) -> str:
    return best.result + ("+" if best.score > 0.5 else "-")


def revising(noise: float) -> str:
    """`a` is right; the verdict on a candidate is wrong with probability `noise`."""
    text = REVISER.prompt("^" + feedback())
    text = text + pyro.sample("word", REVISER(text, max_tokens=1))
    wrong = pyro.sample("wrong", dist.Bernoulli(torch.tensor(noise))) == 1
    good = (text.text == "a") != bool(wrong)
    pyro.factor("verdict", torch.tensor(0.9 if good else 0.1).log())
    return text.text


def share(searcher, noise, runs=400):
    found = searcher.run_many(revising, [(noise,)] * runs, seed=range(runs))
    return sum(posterior.best == "a" for posterior in found) / runs


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
def test_noise_on_the_verifier_takes_the_gain_away(noise):
    """Two rounds, ties to the first. A verdict is right with probability 1 - e:

    iterative: a is first and stays unless it is called bad and its change, b, good: 1 - e^2; b is
        first and is mended where both verdicts are right: (1 - e)^2. In all 1 - e.
    best of 2: (1 + 1 - e^2 + (1 - e)^2) / 4 = 3/4 - e/2.

    So the bit is worth 1/4 - e/2, and nothing where a verdict is a coin.
    """
    two = IterativeAgentDecoding(2, feedback=one_bit)
    for searcher, exact in ((two, 1 - noise), (BestOfN(2), 0.75 - noise / 2)):
        error = math.sqrt(max(exact * (1 - exact), 1e-12) / 400)
        assert abs(share(searcher, noise) - exact) < 4 * error + 1e-9


def test_the_gain_needs_the_feedback():
    exact = 0.75 - 0.2 / 2  # that of the best of two, where the other would have 1 - .2
    assert abs(share(IterativeAgentDecoding(2, feedback=""), 0.2) - exact) < 0.09


def two_symbols() -> str:
    text = TOY.prompt("^")
    text = text + pyro.sample("text", TOY(text, max_tokens=2))
    pyro.factor("verdict", torch.tensor(more_a(text), dtype=torch.float64).log())
    return text.text


@pytest.mark.parametrize(("rounds", "width"), [(4, 1), (2, 2)])
def test_without_feedback_it_is_best_of_n_in_law(rounds, width):
    """Chi-square against the exact law of the best of four, the first among equals."""
    p = {"a": 0.5, "b": 0.3, "$": 0.2}
    own = {"": 0.2} | {x + y.strip("$"): p[x] * p[y] for x in "ab" for y in "ab$"}
    score = {text: more_a(TOY.prompt("^") + text) for text in own}
    law = {}
    for text, share_ in own.items():
        below = sum(p for other, p in own.items() if score[other] < score[text])
        equal = sum(p for other, p in own.items() if score[other] == score[text])
        law[text] = share_ / equal * ((below + equal) ** 4 - below**4)
    assert math.fsum(law.values()) == pytest.approx(1)
    runs = 600
    searcher = IterativeAgentDecoding(rounds, width, feedback="")
    found = Counter(q.best for q in searcher.run_many(two_symbols, [()] * runs, seed=range(runs)))
    cells = [(runs * law[text], found[text]) for text in law if runs * law[text] > 5]
    rest = runs - sum(expected for expected, _ in cells), runs - sum(n for _, n in cells)
    cells.append((max(rest[0], 1.0), rest[1]))
    assert sum((n - expected) ** 2 / expected for expected, n in cells) < 20
    # Taking the last candidate in place of the best would give the program's own law.
    assert sum((runs * own[t] - runs * law[t]) ** 2 / (runs * law[t]) for t in law) > 200


def test_the_best_score_never_falls():
    for seed in range(8):
        posterior = IterativeAgentDecoding(6, 2).run(toy, seed=seed)
        bests = [note["best"] for note in posterior.history if "best" in note]
        scores = [note["scores"] for note in posterior.history if "scores" in note]
        assert len(bests) == 6
        assert bests == sorted(bests)
        assert bests[-1] == pytest.approx(max(s for round_ in scores for s in round_))
        assert posterior.best_sample.score == pytest.approx(bests[-1])


def test_a_constant_verifier_returns_the_first():
    def constant():
        said = feedback()
        word = pyro.sample("word", TOY(TOY.prompt("^"), max_tokens=1)).text
        pyro.factor("verdict", torch.tensor(0.3).log())
        return word, said

    for seed in range(8):
        posterior = IterativeAgentDecoding(4, 2).run(constant, seed=seed)
        assert posterior.best == posterior.samples[0].value
        assert posterior.best[1] == ""
        assert all(sample.value[1] for sample in posterior.samples[2:])


def test_what_is_read_is_the_best_and_the_worst_so_far():
    read: list[tuple[Tried, Tried]] = []

    def saying(best, worst):
        read.append((best, worst))
        return "+"

    def program():
        said = feedback()
        value = pyro.sample("value", dist.Categorical(torch.ones(9)))
        pyro.factor("score", (value.double() + 1).log() - math.log(9))
        return int(value), said

    searcher = IterativeAgentDecoding(5, 2, feedback=saying)
    posterior = searcher.run(program, seed=4)
    drawn = [value for value, _ in (s.value for s in posterior.samples)]
    assert [said for _, said in (s.value for s in posterior.samples)] == [""] * 2 + ["+"] * 8
    assert [(b.result[0], w.result[0]) for b, w in read] == [
        (max(drawn[: 2 * t]), min(drawn[: 2 * t])) for t in range(1, 5)
    ]
    assert read[-1][0].score == pytest.approx((max(drawn[:8]) + 1) / 9)


def test_the_words_say_both_texts_and_scores():
    good, bad = Tried(1, 0.75, "yes"), Tried(0, 0.25, "no")
    said = best_and_worst(good, bad)
    assert said.index("0.75:\nyes") < said.index("0.25:\nno")
    assert "worst" not in best_and_worst(good, good)
    assert "from 0 to 1" in said
    assert "from 0 to 1" not in best_and_worst(Tried(1, 2.5, "yes"), bad)  # the odds of a reward


def test_the_dead_are_not_read():
    def fragile():
        said = feedback()
        word = pyro.sample("word", TOY(TOY.prompt("^"), max_tokens=1)).text
        ppl.condition(word == "a")
        return said

    def counting(best, worst):
        assert best.score == worst.score == 1
        return "+"

    posterior = IterativeAgentDecoding(12, feedback=counting).run(fragile, seed=1)
    assert {s.value for s in posterior.samples} <= {"", "+"}

    def hopeless():
        feedback()
        pyro.sample("word", TOY(TOY.prompt("^"), max_tokens=1))
        ppl.condition(False)

    with pytest.raises(AllParticlesDeadError):
        IterativeAgentDecoding(3).run(hopeless)


def test_no_answer_is_worse_than_any():
    def program() -> str | None:
        said = feedback()
        text = TOY.prompt("^")
        text = text + pyro.sample("word", TOY(text, max_tokens=1))
        pyro.factor("verdict", torch.tensor(0.2 if text.text else 0.9).log())
        pyro.deterministic("read", torch.tensor(float(len(said))))
        return text.text or None  # nothing is well scored

    read: list[tuple[Tried, Tried]] = []
    search = IterativeAgentDecoding(16, feedback=lambda *tried: read.append(tried) or "")
    posterior = search.run(program, seed=0)
    assert {s.value for s in posterior.samples} == {"a", "b", None}
    best, worst = read[-1]
    assert best.result == posterior.best is not None
    assert worst.result is None


def test_outside_of_the_search_nothing_is_told():
    assert feedback() == ""
    assert BestOfN(3).run(feedback, seed=0).samples[0].value == ""
    with pytest.raises(ValueError, match="feedback='better'"):
        IterativeAgentDecoding(2, feedback="better")
    with pytest.raises(ProgramError, match="returned 3"):
        IterativeAgentDecoding(2, feedback=lambda best, worst: 3).run(toy)
