"""Results of all kinds: counted, shown and looked at, or refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pytest
import torch
from programs import TOY

import ppl
from ppl.language.classes import identity, numbered, tally
from ppl.posterior.view import page_data


@dataclass
class Unhashable:
    x: int = 1


class Dense:
    """Has what a tensor has, and is none."""

    def detach(self):
        raise AssertionError("this is no tensor")

    to_dense = detach


def found(*values):
    samples = [ppl.Sample(v, 0.0, 0.0, True, i, None, ()) for i, v in enumerate(values)]
    return ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())


NANS = [
    math.nan,
    np.float64("nan"),
    np.float32("nan"),
    complex(math.nan, 1),
    Decimal("nan"),
    np.complex64("nan"),
]


@pytest.mark.parametrize("nan", NANS, ids=repr)
def test_what_is_no_number_is_one_class_of_any_type(nan):
    values = [nan, 1, type(nan)("nan"), 1.0, math.nan]
    assert tally(values, [1.0] * 5) == [(3.0, 0), (2.0, 1)]
    assert numbered([(nan, 1), (math.nan, 1), (nan, 2)]) == [0, 0, 1]
    assert found(*values).vote(weights="flat") is nan
    assert list(found(*values).marginal().values()) == pytest.approx([0.6, 0.4])


def test_what_does_not_equal_itself_is_counted_by_what_it_is():
    class Strange:
        def __eq__(self, other):
            return False

        def __hash__(self):
            return 1

    one = Strange()
    assert numbered([one, Strange(), one]) == [0, 1, 0]


def test_only_tensors_are_read_as_tensors():
    one = Dense()
    assert identity(one) is one
    assert identity(torch.Tensor) is torch.Tensor  # the class itself, as a result
    assert numbered([one, Dense(), one]) == [0, 1, 0]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to_sparse(),
        torch.nn.Parameter,
        lambda t: t.to(torch.bfloat16),
    ],
)
def test_tensors_of_all_layouts_are_equal_where_their_elements_are(change):
    one, other = torch.eye(2), torch.eye(2).flip(0)
    assert identity(change(one)) == identity(one)
    assert identity(change(one)) != identity(change(other))


def test_arrays_of_objects_and_fields():
    rows = [("a", int), ("b", float)]
    a, b, c = (np.array([(1, x)], dtype=rows) for x in (math.nan, math.nan, 2.0))
    assert numbered([a, b, c]) == [0, 0, 1]
    mixed = [np.array([[1], x], dtype=object) for x in ("a", "a", "b")]
    assert numbered(mixed) == [0, 0, 1]


UNREAD = [
    torch.ones(2, device="meta"),
    torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
]


@pytest.mark.parametrize("value", [Unhashable(), [Unhashable()], *UNREAD])
def test_what_cannot_be_counted_is_refused_by_name_and_looked_at_all_the_same(value, tmp_path):
    posterior = found(value, value)
    said = r"^a (Unhashable|\w*Tensor) cannot be counted as a result: .*a function \(key=, f=\)"
    with pytest.raises(TypeError, match=said):
        posterior.vote()
    with pytest.raises(TypeError, match=said):
        posterior.marginal()
    assert "2 particles" in str(posterior)
    data = page_data(posterior)
    assert data["vote"] is None
    assert len(data["candidates"]) == 2
    assert posterior.vote(lambda v: "one") is value
    with pytest.raises(ppl.errors.SearchStateError, match="no data and cannot be saved"):
        posterior.save(tmp_path / "p")


@pytest.mark.parametrize("value", [[1, 2], {3}, {"a": 1}, np.ones(2), (1, [2])], ids=repr)
def test_what_is_no_key_is_counted_and_asks_for_a_function(value):
    posterior = found(value, value)
    assert posterior.vote() is value
    said = (
        r"^a (list|set|dict|ndarray|tuple) is no key of a dictionary: .* such as marginal\(str\)$"
    )
    with pytest.raises(TypeError, match=said):
        posterior.marginal()
    assert posterior.marginal(str) == {str(value): 1.0}
    with pytest.raises(TypeError, match=said):
        ppl.enumerate_program(lambda: value).marginal()


def test_a_text_is_shown_by_what_is_written():
    start = TOY.prompt("^")
    a, b = (start + TOY.continuation(letters) for letters in ("ab", "ba"))
    for one, other in ((a, b), (TOY.continuation("ab"), TOY.continuation("ba"))):
        posterior = found(one, one, other, "ab$<b>")
        for shown in (str(posterior), posterior._repr_html_()):
            assert "Text(" not in shown
            assert "Continuation(" not in shown
        lines = str(posterior).splitlines()
        assert lines[1].endswith("0.5000          2    1.0000  'ab'")
        assert {line.split()[-1] for line in lines[2:4]} == {"'ba'", "'ab$<b>'"}
        data = page_data(posterior)
        assert data["answers"] == ["ab", "ba", "ab$<b>"]
        assert data["vote"] == "ab"
