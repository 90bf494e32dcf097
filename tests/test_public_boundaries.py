"""What a public call cannot take, it refuses by name: the law for every argument of every call.

`public_calls.CALLS` has the calls. One argument at a time is set to what its annotation excludes,
or to a value that only this argument must not have; the call has to end in a `PPLError`, a
`ValueError` or a `TypeError` in whose message the argument's name stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import re
import signal

import numpy as np
import public_calls
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from public_allocate import ALLOCATE_CALLS, NOT_CALLED_ALLOCATE
from public_calibration import CALIBRATION_CALLS
from public_calls import NOT_CALLED, Call, program
from public_decide import DECIDE_CALLS, NOT_CALLED_HERE
from public_verifiers import VERIFIER_CALLS

import ppl
from ppl import allocate, decide, searchers, tasks, verifiers
from ppl.lm import loading

CALLS = [*public_calls.CALLS, *VERIFIER_CALLS, *CALIBRATION_CALLS, *DECIDE_CALLS, *ALLOCATE_CALLS]
MODULES = [ppl, searchers, verifiers, tasks, decide, decide.scaling, allocate]
ROOM = re.compile(r"^(tasks|decide|scaling|allocate|programs)\.")
SECONDS = 60  # a call that takes longer hangs


class Unfit:
    """Of no type that anything takes."""

    def __repr__(self) -> str:
        return "<unfit>"


NOTHING = [Unfit(), 1j, b"bytes"]
BY_TYPE = {
    "int": [*NOTHING, "3", 2.5, math.nan, math.inf, True, [3], {}],
    "float": [*NOTHING, "0.5", math.nan, True, [0.5], {}],
    "bool": [*NOTHING, "yes", 2, 0.5, math.nan, []],
    "str": [*NOTHING, 3, math.nan, ["a"], {}],
    "function": [*NOTHING, 3, "f", math.nan, []],
    "sequence": [*NOTHING, 3, math.nan, len],
    "mapping": [*NOTHING, 3, "a", math.nan, len],
    "word": [*NOTHING, "bogus", "", 3, math.nan, ["a"]],
    "object": [*NOTHING, 3, "a", math.nan, [], {}],
}


def kinds(annotation: str) -> set[str]:
    """The kinds of values that an annotation, as it is written, admits; empty for any."""
    found = set()
    for part in re.split(r" \| (?![^\[]*\])", annotation):
        head = re.split(r"\[", part)[0].split(".")[-1]
        kind = KINDS.get(head, "object")
        if kind == "any":
            return set()
        found.add(kind)
    return found


KINDS = {
    **dict.fromkeys(("Any", "object", "ArrayLike", "NDArray", "Floats", "Ints"), "any"),
    **{name: name for name in ("int", "float", "bool", "str")},
    **dict.fromkeys(
        ("Callable", "Program", "OnStep", "Ask", "Loader", "Decide", "Right"), "function"
    ),
    **dict.fromkeys(("Sequence", "tuple", "list", "Iterable"), "sequence"),
    "Mapping": "mapping",
    "None": "none",
    **dict.fromkeys(("Literal", "Meaning", "Aggregate", "Scheme", "TaskName"), "word"),
    "Path": "str",
    "Until": "any",
    "Allowed": "any",
    "Probabilities": "mapping",
    "Render": "function",
    "Temperature": "function",
}


def unfit(parameter: inspect.Parameter) -> list[object]:
    """What the annotation of a parameter excludes."""
    own = kinds(str(parameter.annotation).strip("'"))
    if not own:
        return []
    values = {id(v): v for kind in own - {"none"} for v in BY_TYPE[kind]}
    admitted = [v for v in values.values() if not any(_is(v, kind) for kind in own)]
    return admitted if "none" in own else [*admitted, None]


def _is(value: object, kind: str) -> bool:
    match kind:
        case "int":
            return isinstance(value, int) and not isinstance(value, bool)
        case "float":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and not math.isnan(value)
        case "bool":
            return isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case "function":
            return callable(value)
        case "sequence":
            return isinstance(value, list | np.ndarray | torch.Tensor)
        case "none":
            return value is None
        case "mapping":
            return isinstance(value, dict)
        case _:
            return False


def typed(call: Call) -> dict[str, set[str]]:
    """Arguments of which a type is told, with the kinds of values they admit."""
    found = {}
    for name, parameter in call.arguments().items():
        own = kinds(str(parameter.annotation).strip("'"))
        if own and "word" not in own:
            found[name] = own
    return found


@contextlib.contextmanager
def in_time():
    """Raises if what is inside does not end."""

    def late(*_):
        raise AssertionError(f"hangs: no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def called(call: Call, **changed):
    """What the call gives with some arguments changed."""
    function, arguments = call.make()
    with in_time():
        result = function(**{**arguments, **changed})
        return asyncio.run(result) if inspect.iscoroutine(result) else result


def breaches(call: Call, argument: str, value: object) -> str | None:
    """How the call breaks the law for this value, None if it holds."""
    where = f"{call}({argument}={value!r})"
    try:
        called(call, **{argument: value})
    except (ppl.PPLError, ValueError, TypeError) as error:
        if re.search(rf"\b{argument}\b", str(error)):
            return None
        return f"{where}: {type(error).__name__} does not name it: {error}"
    except Exception as error:
        return f"{where}: {type(error).__name__}: {error}"
    return f"{where} is accepted"


@pytest.fixture(autouse=True)
def same_loaders(monkeypatch):
    """What is registered here is forgotten."""
    monkeypatch.setattr(loading, "_LOADERS", dict(loading._LOADERS))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_every_public_callable_is_tried_or_says_why_not(module):
    tried = {ROOM.sub("", str(call)).partition(".")[0] for call in CALLS}
    names = {name for name in module.__all__ if callable(getattr(module, name))}
    assert (
        not names - tried - NOT_CALLED.keys() - NOT_CALLED_HERE.keys() - NOT_CALLED_ALLOCATE.keys()
    )


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_what_an_argument_cannot_be_is_refused_by_its_name(call):
    found = []
    for name, parameter in call.arguments().items():
        for value in (*unfit(parameter), *call.bad.get(name, ())):
            found.append(breaches(call, name, value))
    assert not (wrong := [f for f in found if f]), "\n".join(wrong)


TYPED = [call for call in CALLS if typed(call)]
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([*NOTHING, np.float32("nan"), np.array([]), torch.zeros(0), len, int]),
)


@settings(derandomize=True, max_examples=400, deadline=None, database=None)
@given(st.data())
def test_whatever_does_not_fit_is_refused_by_its_name(data):
    call = data.draw(st.sampled_from(TYPED))
    name = data.draw(st.sampled_from(sorted(typed(call))))
    own = typed(call)[name]
    value = data.draw(ANYTHING.filter(lambda v: not any(_is(v, kind) for kind in own)))
    assert breaches(call, name, value) is None


@pytest.mark.parametrize("seed", [0, -1, 10**400, -(10**30), np.int64(3), np.uint8(200)], ids=repr)
def test_every_whole_number_is_a_seed(seed):
    searcher = searchers.BestOfN(2)
    alone = searcher.run(program, seed=seed)
    assert [s.value for s in alone.samples] == [
        s.value for s in searcher.run_many(program, [()], seed=seed)[0].samples
    ]
    assert searcher.run(program, seed=int(seed)).samples[0].value == alone.samples[0].value
    assert alone.sample(seed) is not None
    many = searcher.run_many(program, [(), ()], seed=np.array([1, 2]))
    assert [p.samples[0].text for p in many] == [
        searcher.run(program, seed=s).samples[0].text for s in (1, 2)
    ]


def test_counts_of_numpy_are_counts():
    tree = ppl.Tree(program)
    assert len(tree.expand([tree.root], np.int64(3))) == 3
    assert len(tree.expand([tree.root, tree.root], np.array([2, 1]))) == 3


def test_an_argument_that_is_left_out_or_unknown_is_named_too():
    with pytest.raises(TypeError, match="verifier"):
        verifiers.Cached()
    with pytest.raises(TypeError, match="mots"):
        verifiers.Cached(public_calls.half, mots=3)
