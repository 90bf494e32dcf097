"""`pyro.factor` in a particle: what it weighs, and that it is Pyro's `Unit` to everybody else."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY
from pyro import poutine

import ppl
from ppl import errors
from ppl.runtime.factor import Factor
from ppl.runtime.record import fingerprint
from ppl.runtime.tree import Tree

NUMBERS = {
    "float32": torch.tensor(-0.3),
    "float64": torch.tensor(-0.3, dtype=torch.float64),
    "bfloat16": torch.tensor(-0.3, dtype=torch.bfloat16),
    "a whole number": torch.tensor(-2),
    "a number of Python's": -0.3,
    "minus infinity": torch.tensor(-math.inf),
}


def records(program):
    tree = Tree(program)
    node = tree.root
    while node.open:
        (node,) = tree.expand([node])
    return [r for r in node.history if r.name != "plate"]


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_a_factor_is_the_unit_that_pyro_would_make(number):
    def program():
        pyro.factor("f", number)

    plain = poutine.trace(program).get_trace().nodes["f"]
    (record,) = records(program)
    made = record.distribution
    assert type(made) is Factor
    assert type(plain["fn"]) is dist.Unit
    assert record.log_likelihood == float(plain["fn"].log_prob(plain["value"]))
    assert record.fingerprint == fingerprint(plain["fn"])
    assert record.fingerprint != fingerprint(dist.Unit(torch.tensor(-0.4)))
    assert made.shape() == plain["fn"].shape() == (0,)
    assert record.value.dtype == plain["value"].dtype
    assert record.value.shape == plain["value"].shape
    for sampled in (made.sample((3,)), made.rsample((3,))):
        assert sampled.shape == plain["fn"].sample((3,)).shape
        assert made.log_prob(sampled).tolist() == plain["fn"].log_prob(sampled).tolist()
    wide = made.expand((2,)).log_prob(torch.empty(2, 0))
    assert wide.tolist() == [float(torch.as_tensor(number))] * 2


def test_who_comes_first_decides_nothing_for_others():
    def program():
        pyro.factor("f", torch.tensor(-1.5, dtype=torch.float16))

    with torch.inference_mode():  # no other test has factors of this type
        (first,) = records(program)
    (record,) = records(program)
    assert first.value is record.value
    assert not record.value.is_inference()
    assert (record.value.dtype, record.log_likelihood) == (torch.float16, -1.5)


def test_only_numbers_in_particles_are_made_light():
    made = []

    def program():
        pyro.factor("several", torch.tensor([0.1, 0.2]))
        made.append(dist.Unit(torch.tensor(0.5)))  # not as `pyro.factor` makes it
        with pyro.plate("plate", 3):
            pyro.factor("in a plate", torch.tensor(0.25))
        pyro.factor("of a guide", torch.tensor(0.5), has_rsample=True)

    found = records(program)
    assert [type(r.distribution) for r in found] == [dist.Unit, dist.Unit, Factor]
    assert [r.log_likelihood for r in found] == pytest.approx([0.3, 0.75, 0.5])
    assert [type(made[0]), found[2].distribution.has_rsample] == [dist.Unit, True]
    assert found[1].distribution.has_rsample is False
    assert type(dist.Unit(torch.tensor(0.5), has_rsample=None)) is dist.Unit  # nobody runs


@pytest.mark.parametrize("wrong", [math.nan, torch.tensor(math.nan)])
def test_what_is_no_number_is_refused_and_infinity_by_the_runtime(wrong):
    # `torch.compile` switches Pyro's look at it off for the whole process; then the runtime looks.
    with pytest.raises(errors.PPLError, match=r"log_factor|site 'f' .* log-probability nan"):
        records(lambda: pyro.factor("f", wrong))
    with pytest.raises(errors.WeightError, match="inf"):
        records(lambda: pyro.factor("f", math.inf))


def test_scale_mask_and_handlers_inside_see_the_same():
    def part():
        pyro.factor("f", torch.tensor(-0.7))

    def program():
        with poutine.scale(scale=0.3):
            pyro.factor("scaled", torch.tensor(-0.7))
        with poutine.mask(mask=False):
            pyro.factor("masked", torch.tensor(-0.7))
        return float(poutine.trace(part).get_trace().log_prob_sum())

    tree = Tree(program)
    (node,) = tree.expand([tree.root])
    scaled = float(poutine.trace(poutine.scale(part, scale=0.3)).get_trace().log_prob_sum())
    assert [r.log_likelihood for r in node.records] == [scaled, 0.0, float(torch.tensor(-0.7))]
    assert node.result == float(torch.tensor(-0.7))


def test_a_fork_with_another_factor_is_noticed():
    number = torch.tensor(0.1)

    def program():
        pyro.factor("f", number)
        pyro.sample("coin", dist.Bernoulli(torch.tensor(0.5)))

    tree = Tree(program)
    (node,) = tree.expand([tree.root])
    tree.expand([node], 2)  # one goes on, the other is replayed
    number = torch.tensor(0.2)
    with pytest.raises(errors.NonDeterministicProgramError, match="'f'"):
        tree.expand([node])


def test_the_text_of_a_node_is_what_was_written_last_in_replays_and_branches():
    def program():
        text = TOY.prompt("^")
        for t in range(3):
            text = text + pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
            pyro.factor(f"f_{t}", 0.0)
            if text.finished:
                return text

        def branch(i):
            return pyro.sample("more", TOY(text, max_tokens=1 + i))

        ppl.parallel([lambda: branch(0), lambda: None])
        pyro.factor("end", 0.0)
        return text

    tree = Tree(program, seed=5)
    nodes = [tree.root]
    while nodes[-1].open:
        first, again = tree.expand([nodes[-1]], 2)
        for node in (first, again):
            written = [r.value.tokens for r in node.history if r.kind == "choice"]
            expected = TOY.prompt("^").tokens + tuple(t for tokens in written for t in tokens)
            assert node.text is not None
            assert node.text.tokens == expected
            assert len(node.text.step_ends) == len(written)
        nodes.append(again if again.open else first)
