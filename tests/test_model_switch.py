"""ModelSwitch: who is asked, what the vote weighs, and what each model costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl
from ppl.errors import ArgumentError
from ppl.searchers import ModelSwitch, Search, check_searcher
from ppl.searchers.parse import parse, spell
from ppl.searchers.sampling.model_switch import consistency

ABC = "^abc$"


def model(name: str, **probabilities: float) -> ppl.TableLM:
    return ppl.TableLM(probabilities, symbols=ABC, end="$", name=name)


SURE, TORN, GOOD = model("sure", b=1.0), model("torn", a=0.5, b=0.5), model("good", a=0.9, c=0.1)
CHEAP_FIRST, TORN_FIRST = (SURE, GOOD), (TORN, GOOD, SURE)


def said(models: Sequence[ppl.TableLM] = TORN_FIRST, blank: str = "") -> str | None:
    """One symbol of the model that is chosen."""
    llm = models[int(pyro.sample("llm", dist.Categorical(torch.ones(len(models)))))]
    text = llm.prompt("^")
    text = text + pyro.sample("s", llm(text, max_tokens=1))
    ppl.condition(True)
    return None if text.text in blank.split() else text.text


def stepwise() -> str:
    """The choice is made again at every step."""
    words = ""
    for t in range(2):
        llm = TORN_FIRST[int(pyro.sample(f"llm_{t}", dist.Categorical(torch.ones(3))))]
        words += pyro.sample(f"s_{t}", llm(llm.prompt("^"), max_tokens=1)).text
        ppl.twist(f"here_{t}", 0.0)
    return words


def test_the_weight_of_a_models_consistency():
    published = {(4, 1): 0.751, (3, 2): 0.665, (3, 1, 1): 0.528, (2, 1, 1, 1): 0.338}
    for counts, v in published.items():
        # The last one is .33798: published to three digits, cut.
        assert consistency(counts) == pytest.approx(v, abs=6e-4)
    assert consistency((5,)) == consistency((1,)) == 1.0
    assert consistency((1,) * 5) == pytest.approx(1 / 5)
    # Divided by the entropy of as many answers as were seen, it would rise.
    assert consistency((3, 1, 1)) < consistency((3, 2)) < consistency((4, 1)) < 1


def test_a_unanimous_first_model_costs_exactly_its_samples_however_wrong_it_is():
    for n in (1, 3, 5):
        posterior = ModelSwitch(n).run(said, CHEAP_FIRST, seed=0)
        assert posterior.cost.lm_calls == n
        assert set(posterior.cost.models) == {"sure"}
        assert [s.value for s in posterior.samples] == ["b"] * n
        assert posterior.vote() == "b"
        assert posterior.log_evidence is None


def test_a_model_that_is_torn_is_followed_by_the_next():
    asked = set()
    for seed in range(40):
        posterior = ModelSwitch(4).run(said, seed=seed)
        calls = {name: page.lm_calls for name, page in posterior.cost.models.items()}
        assert set(calls.values()) == {4}
        groups = [posterior.samples[i : i + 4] for i in range(0, len(posterior.samples), 4)]
        for place, group in enumerate(groups):
            agreed = len({s.value for s in group}) == 1
            assert agreed == (place == len(groups) - 1)  # the last one, SURE, always agrees
            v = math.log(consistency(sizes(group)))
            assert [s.log_weight for s in group] == pytest.approx([v] * 4)
        asked.add(tuple(calls))
        by_hand: dict[str, float] = {}
        for s in posterior.samples:
            by_hand[s.value] = by_hand.get(s.value, 0.0) + math.exp(s.log_weight)
        assert by_hand[posterior.vote()] == pytest.approx(max(by_hand.values()))
    assert asked == {("torn",), ("torn", "good"), ("torn", "good", "sure")}


def sizes(group: Sequence[ppl.Sample]) -> list[int]:
    values = [s.value for s in group]
    return [values.count(value) for value in set(values)]


def test_order_weights_and_agreement():
    reverse = ModelSwitch(3, order=(2, 0)).run(said, seed=1)
    assert set(reverse.cost.models) == {"sure"}
    lax = ModelSwitch(5, agreement=0.6).run(said, seed=1)
    assert set(lax.cost.models) == {"torn"}  # of two answers one always has three of five
    never = ModelSwitch(3, order=(2, 1), agreement=1.0, weights=(4.0, 1.0))
    for seed in range(20):
        posterior = never.run(said, TORN_FIRST, "b", seed=seed)  # SURE says nothing: asked on
        assert [s.value for s in posterior.samples[:3]] == [None] * 3
        silent = math.log(4.0 * consistency([1, 1, 1]))
        assert [s.log_weight for s in posterior.samples[:3]] == pytest.approx([silent] * 3)
        assert posterior.vote() in ("a", "c")


def test_every_step_is_written_by_the_model_whose_turn_it_is():
    posterior = ModelSwitch(3, order=(2, 1)).run(stepwise, seed=0)
    assert [s.value for s in posterior.samples] == ["bb"] * 3
    assert posterior.cost.models["sure"].lm_calls == 6
    assert posterior.history == [{"model": 2, "agreement": 1.0}]


def test_the_laws_and_saved_in_any_round(tmp_path):
    searcher = ModelSwitch(3, agreement=0.9)
    checked = check_searcher(searcher, [said, stepwise])
    assert checked == ["value", "notes", "seed", "batch", "weighed once", "limits", "resumed"]
    assert parse(spell(searcher)) == searcher
    search = searcher.begin(said, seed=4)
    while not search.over:
        search.step()
        search.save(tmp_path / "s")
        search = Search.load(tmp_path / "s")
    whole = searcher.run(said, seed=4)
    assert [s.value for s in search.posterior().samples] == [s.value for s in whole.samples]


def test_what_does_not_fit_is_named():
    def without() -> str:
        return pyro.sample("s", SURE(SURE.prompt("^"), max_tokens=1)).text

    with pytest.raises(ppl.PPLError, match="without a choice named 'llm'"):
        ModelSwitch(2).run(without)
    with pytest.raises(ppl.PPLError, match="no value 7"):
        ModelSwitch(2, order=(7,)).run(said)
    with pytest.raises(ppl.PPLError, match="weights: 2 for 3 models"):
        ModelSwitch(2, weights=(1.0, 2.0)).run(said)
    for wrong, told in (
        ({"n": 0}, "n=0"),
        ({"n": 2, "agreement": 1.5}, "agreement=1.5"),
        ({"n": 2, "order": ()}, "order"),
        ({"n": 2, "order": (1, 1)}, "each model once"),
        ({"n": 2, "order": (-1,)}, "order=-1"),
        ({"n": 2, "weights": (0.0, 1.0)}, "weights=0.0"),
        ({"n": 2, "order": (0,), "weights": (1.0, 1.0)}, "2 for 1"),
    ):
        with pytest.raises(ValueError, match=told):
            ModelSwitch(**wrong)


def test_order_counts_models_that_are_impossible_too():
    def off():
        who = int(pyro.sample("llm", dist.Categorical(torch.tensor([0.5, 0.0, 0.5]))))
        ppl.condition(True)
        return who

    assert [s.value for s in ModelSwitch(2, order=(2, 0)).run(off).samples] == [2, 2]
    with pytest.raises(ArgumentError, match="value 1 of site 'llm' has probability zero"):
        ModelSwitch(2, order=(1,)).run(off)
