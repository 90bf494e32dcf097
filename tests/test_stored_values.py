"""Values in files: what is data comes back as it was, what is none is refused by name."""

from __future__ import annotations

import collections
import datetime
import math
import re
import tempfile
import zipfile
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from files import there_and_back
from hypothesis import given, settings
from hypothesis import strategies as st

import ppl
from ppl.errors import SearchStateError
from ppl.language.site import Site
from ppl.searchers import BestOfN

UTC = datetime.UTC
VALUES = [
    ppl.Answer("x = 1"),
    None,
    True,
    0,
    -(10**5000),
    -0.0,
    1e-320,
    math.inf,
    -math.inf,
    2.5 - 1j,
    "ä\ud800\n\x00",
    b"\x80\x04\xff",
    (),
    (1,),
    tuple(range(200)),
    (2**300,) * 9,
    [1, [2.0, ("a", None)]],
    {"a": 1, 2: {"tuple": [1]}, (1, 2): {}, None: [], 1.5: True},
    {1, "a", (2, 3)},
    frozenset({b"x"}),
    Fraction(-(10**400), 3),
    Decimal("1.10"),
    datetime.date(2026, 11, 27),
    datetime.datetime(2026, 11, 27, 2, 3, 4, 5, UTC),
    datetime.datetime(2026, 11, 27, 2, 3),
    datetime.time(4, 5, 6, 7),
    datetime.timedelta(-1, 3, 5),
    torch.float16,
    torch.device("cpu"),
    torch.Size([2, 3]),
    Path("a/b"),
]


def same(a, b) -> bool:
    return type(a) is type(b) and repr(a) == repr(b) if isinstance(a, float) else a == b


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_plain_data_comes_back(value, tmp_path):
    again = there_and_back(value, tmp_path / "p")
    assert type(again) is type(value) or isinstance(value, Path)
    assert same(again, value)


def test_nan_comes_back(tmp_path):
    assert math.isnan(there_and_back(math.nan, tmp_path / "p"))


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
leaves |= st.binary() | st.fractions() | st.dates() | st.complex_numbers(allow_nan=False)
keys = st.integers() | st.text() | st.tuples(st.integers(), st.text())
plain = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.frozensets(keys)
    ),
)


@settings(deadline=None, max_examples=60)
@given(plain)
def test_any_plain_data_comes_back(value):
    with tempfile.TemporaryDirectory() as folder:
        again = there_and_back(value, Path(folder) / "p")
    assert again == value
    assert repr(again) == repr(value) or "frozenset" in repr(value)


INTEGERS = ["bool", "uint8", "int8", "int16", "int32", "int64"]
NUMBERS = [*INTEGERS, "float16", "float32", "float64", "complex64", "complex128"]
OF_TORCH = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("name", [*NUMBERS, *OF_TORCH])
def test_tensors_of_any_type_come_back_bit_by_bit(name, tmp_path):
    dtype = getattr(torch, name)
    whole = torch.arange(12).reshape(3, 4).to(dtype)
    for tensor in (whole, whole[0, 1], whole[:, ::2], whole.T, whole[:0]):
        again = there_and_back([tensor, tensor], tmp_path / "p")[1]
        assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
        assert again.contiguous().view(-1).tolist() == tensor.contiguous().view(-1).tolist()


@pytest.mark.parametrize("name", [*NUMBERS, "uint16", "uint32", "uint64"])
def test_arrays_and_their_numbers_come_back(name, tmp_path):
    array = np.arange(6).reshape(2, 3).astype(name)
    found = there_and_back({"array": array, "number": array[1, 2]}, tmp_path / "p")
    assert found["array"].dtype == found["number"].dtype == np.dtype(name)
    assert np.array_equal(found["array"], array)
    assert type(found["number"]) is type(array[1, 2])
    found["array"][0, 0] = 1  # its own memory
    with zipfile.ZipFile(tmp_path / "p") as archive:
        kept = [n for n in archive.namelist() if n.startswith("arrays/")]
    assert kept == [f"arrays/{name}.npy"]


class Mine:
    def __reduce__(self):
        raise AssertionError("it was asked how it is pickled")


class Name(str):
    __slots__ = ()


Pair = collections.namedtuple("Pair", "a b")
cyclic: list = []
cyclic.append(cyclic)
NO_DATA = {
    "test_stored_values.Mine": Mine(),
    "Mine'> of type type": Mine,
    "function": len,
    "<lambda>": lambda: 0,
    "test_stored_values.Name": Name("a"),
    "test_stored_values.Pair": Pair(1, 2),
    "collections.Counter": collections.Counter("aab"),
    "generator": (i for i in ()),
    "module": math,
    "contains itself": cyclic,
    "an array of object": np.array([Mine()]),
    "layout torch.sparse_coo": torch.eye(2).to_sparse(),
    "meta": torch.ones(2, device="meta"),
    "Parameter": torch.nn.Parameter(torch.ones(1)),
}


@pytest.mark.parametrize("what", NO_DATA)
def test_what_is_no_data_is_refused_by_name(what, tmp_path):
    for value in (NO_DATA[what], {"a": [NO_DATA[what]]}):
        with pytest.raises(SearchStateError, match=f"sample 0, 'value', holds .*{what}") as caught:
            there_and_back(value, tmp_path / "p")
        assert re.search("plain data.*numbers, strings", str(caught.value))
    assert not list(tmp_path.iterdir())


class Chosen(Site, dist.Delta):
    def __init__(self):
        super().__init__(torch.zeros(()))

    def draw(self, visit, msg, key, target=None):
        return Mine(), 0.0, None


def drew_an_object() -> int:
    pyro.sample("thing", Chosen())
    ppl.condition(True)
    return 1


def test_the_site_whose_value_is_no_data_is_named(tmp_path):
    posterior = BestOfN(2).run(drew_an_object)
    with pytest.raises(SearchStateError, match="site 'thing' of sample 0, 'value', holds"):
        posterior.save(tmp_path / "p")
