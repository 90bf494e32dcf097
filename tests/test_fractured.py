"""Fractured sampling: where thoughts are cut, what it costs, and what answers follow in law."""

from __future__ import annotations

import math
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl
from ppl.searchers import BestOfN, FracturedSampling, check_searcher

# Thoughts of a and b in parts of two symbols, and answers of three symbols of x and y.
THINK = ppl.TableLM({"a": 0.6, "b": 0.4}, symbols="^abxy!$", end="$", name="thoughts")


def after(prefix: str) -> dict[str, float]:
    lead = prefix.count("a") - prefix.count("b")
    p = 1 / (1 + math.exp(-lead))
    return {"x": p, "y": 1 - p}


ANSWER = ppl.TableLM(after, symbols="^abxy!$", end="$", name="answers")


def thinks(parts: int = 4, early: float = 1e-6) -> tuple[str, str]:
    """A thought of so many parts, which may be cut after each, and an answer."""
    text = THINK.prompt("^")
    for t in range(parts):
        text = text + pyro.sample(f"think_{t}", THINK(text, max_tokens=2))
        ppl.twist(f"cut_{t}", 0.0)
        if t == parts - 1 or pyro.sample(f"answer_{t}", dist.Bernoulli(early)) == 1:
            break
    thought = text.text
    said = ANSWER.prompt("^" + thought + "!")
    return thought, pyro.sample("said", ANSWER(said, max_tokens=3)).text


def test_one_depth_and_one_answer_is_plain_sampling_token_for_token():
    for seed in range(10):
        cut = FracturedSampling(5, 1, 1).run(thinks, seed=seed)
        plain = BestOfN(5).run(thinks, seed=seed)
        assert [s.value for s in cut.samples] == [s.value for s in plain.samples]
        assert [s.node for s in cut.samples] == [s.node for s in plain.samples]
        assert cut.cost.lm_tokens == plain.cost.lm_tokens
        assert cut.log_evidence is None


@pytest.mark.parametrize(("n", "depths", "answers"), [(1, 4, 3), (3, 2, 2), (2, 4, 1), (2, 1, 5)])
def test_the_cost_in_closed_form(n, depths, answers):
    """n (C_think + m H C_answer): every thought is drawn once, whatever hangs on it."""
    search = FracturedSampling(n, depths, answers).begin(thinks, seed=1)
    posterior = search.run()
    assert posterior.cost.lm_tokens == n * (8 + answers * depths * 3)
    assert posterior.cost.models["thoughts"].lm_tokens == n * 8
    assert len(posterior.samples) == n * depths * answers
    places = FracturedSampling.places(posterior)
    expected = {(t, h, k) for t in range(n) for h in range(1, depths + 1) for k in range(answers)}
    assert sorted(places.values()) == sorted(expected)
    for sample in posterior.samples:
        trace, depth, _ = places[sample.node]
        own = next(s for s in posterior.samples if places[s.node] == (trace, depths, 0))
        kept = depth * 4 // depths * 2
        assert sample.value[0] == own.value[0][:kept]
        assert len(sample.value[1]) == 3


def test_more_depths_than_parts_cut_each_part_once():
    posterior = FracturedSampling(2, 16, 3).run(thinks, 3, seed=0)
    places = FracturedSampling.places(posterior)
    lengths = Counter(
        (places[s.node][0], places[s.node][1], len(s.value[0])) for s in posterior.samples
    )
    assert lengths == {(t, h, n): 3 for t in (0, 1) for h, n in ((16, 6), (15, 4), (10, 2))}


def test_whole_thoughts_are_answered_by_the_plain_law():
    """Answers at the last depth, other than the trace's own, given the lead of the thought."""
    found: dict[int, Counter[str]] = {}
    for seed in range(80):
        posterior = FracturedSampling(2, 2, 6).run(thinks, 2, seed=seed)
        places = FracturedSampling.places(posterior)
        for sample in posterior.samples:
            if places[sample.node][1] == 2 and places[sample.node][2] > 0:
                thought, said = sample.value
                lead = thought.count("a") - thought.count("b")
                found.setdefault(lead, Counter())[said[0]] += 1
    chi2 = 0.0
    for lead, counts in found.items():
        p, total = 1 / (1 + math.exp(-lead)), counts.total()
        chi2 += (counts["x"] - total * p) ** 2 / (total * p * (1 - p))
    assert len(found) == 5
    assert chi2 < 20.5  # of five degrees of freedom, one in a thousand


def test_coverage_along_each_axis():
    posterior = FracturedSampling(2, 2, 2).run(thinks, 2, seed=4)
    places = FracturedSampling.places(posterior)
    target = next(s.value for s in posterior.samples if places[s.node] == (1, 1, 1))
    mine = {places[s.node] for s in posterior.samples if s.value == target}

    def right(value):
        return value == target

    for column, axis in enumerate(("trace", "depth", "answer")):
        found = FracturedSampling.coverage_by(posterior, right, axis)
        where = {place[column] for place in mine}
        order = [0, 1] if axis != "depth" else [2, 1]
        assert found == {k: bool(where & set(order[:k])) for k in (1, 2)}
        assert found[2]
    with pytest.raises(ValueError, match="axis='width'"):
        FracturedSampling.coverage_by(posterior, right, "width")


def test_a_thought_that_goes_on_to_its_answer_without_a_checkpoint():
    def breathless() -> str:
        text = THINK.prompt("^")
        for t in range(3):
            if t and pyro.sample(f"answer_{t}", dist.Bernoulli(1e-6)) == 1:
                break
            text = text + pyro.sample(f"think_{t}", THINK(text, max_tokens=2))
            if t < 2:
                ppl.twist(f"cut_{t}", 0.0)
        said = ANSWER.prompt("^" + text.text + "!")
        return text.text + pyro.sample("said", ANSWER(said, max_tokens=1)).text

    posterior = FracturedSampling(1, 3, 2).run(breathless, seed=0)
    assert sorted(len(s.value) for s in posterior.samples) == [3, 3, 5, 5, 7]


def test_the_laws_and_settings():
    checked = check_searcher(FracturedSampling(2, 2, 2), [thinks])
    assert checked == ["value", "notes", "seed", "batch", "weighed once", "limits", "resumed"]
    with pytest.raises(ppl.PPLError, match="no choice between no and yes"):
        FracturedSampling(2, site="three").run(three)
    for wrong in ({"n": 0}, {"depths": 0}, {"answers": 0}, {"site": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FracturedSampling(**wrong)


def three() -> float:
    return float(pyro.sample("three", dist.Categorical(torch.ones(3))))
