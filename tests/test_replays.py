"""Steps that are captured with their draws, several of them without anybody looking in between."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pyro
import pytest
import torch
from engines import FAMILIES, ON_GPU, captured, emulated, make, request, some_texts
from programs import contents
from test_bursts import among_others
from test_leading import again_and_again, assert_same, one_by_one, plainly, together  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ppl
from ppl.errors import PPLError, WeightError
from ppl.language.cost import Account
from ppl.language.steps import StepRule
from ppl.lm.engine.replays import Replays
from ppl.lm.sampling import Warp
from ppl.searchers import SMC, BeamSearch, BestOfN


def alike(there: list, here: list, within: float = 1e-4) -> None:
    assert len(there) == len(here)
    for a, b in zip(there, here, strict=True):
        if isinstance(a, list) or a[1] is None:
            assert a == b
        elif isinstance(a[1], PPLError):
            assert (a[0], str(a[1])) == (b[0], str(b[1]))
        else:
            assert a[0] == b[0]
            assert_same(a[1], b[1], within)


def grown(lm, asked: list) -> list:
    """What is drawn of rows that begin together, in the order in which they are done."""
    session = lm.session()
    for one in asked:
        session.submit(one)
    done: list = []
    while session.running:
        done += sorted(session.step().items())
    session.close()
    assert not lm.engine.slots.busy
    return done


def many(lm, rows: int, most: int = 40, **spec) -> list:
    """Rows of all lengths and temperatures; their ends are anywhere."""
    texts = [tuple(3 + (7 * i + j * j) % 90 for j in range(4 + i % 9)) for i in range(rows)]
    rules = [StepRule(), StepRule(tuple(chr(0x4E00 + i) for i in range(20, 24)))]
    asked = [request(lm, text, seed=i, max_tokens=most) for i, text in enumerate(texts)]
    for i, row in enumerate(asked):
        given = {"rule": rules[i % 2], "warp": Warp((1.0, 0.7, 1.3)[i % 3]), **spec}
        asked[i] = replace(row, spec=replace(row.spec, **given))
    return asked


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 3, 8, 21])
def test_rows_of_any_number_draw_what_they_draw_step_by_step(family, rows, together):  # noqa: F811
    plain, lm = plainly(make(family)), captured(family)
    assert isinstance(lm._bursts, Replays)
    together.clear()
    alike(grown(plain, many(plain, rows)), grown(lm, many(lm, rows)))
    assert together["bursts"] >= 2
    assert together["steps"] >= 20
    # What is nobody's, behind the end of a row or in one that is not there, counts as that.
    assert lm.engine.tokens_computed == plain.engine.tokens_computed


def test_batches_beside_each_other_are_those_of_a_token_a_step(together):  # noqa: F811
    plain, lm = plainly(make()), captured()
    together.clear()
    for seed in range(12):
        for model in (plain, lm):
            model.fresh()
        (there, _), (here, _) = among_others(plain, seed), among_others(lm, seed)
        alike(there, here)
    assert together["bursts"] > 20


def test_draws_bills_and_steps_are_those_of_a_token_a_step(together):  # noqa: F811
    plain, lm, ours, usual = plainly(make()), captured(), Account(), Account()
    there = one_by_one(plain, again_and_again(plain, usual))
    together.clear()
    here = one_by_one(lm, again_and_again(lm, ours))
    for (a, _, steps), (b, _, steps_) in zip(there, here, strict=True):
        assert_same(a, b)
        assert steps == steps_
    assert replace(ours.cost, seconds=0) == replace(usual.cost, seconds=0)
    assert together["runs"] > 20
    assert together["bursts"] > 10


def test_the_processor_looks_once_in_sixteen_steps(together):  # noqa: F811
    lm = captured()
    together.clear()
    drawn = grown(lm, many(lm, 12, most=65, rule=StepRule(), warp=Warp()))
    ends = [len(draw.value.tokens) for _, draw in drawn]
    assert together["bursts"] <= 6 + sum(length < 65 for length in ends)
    assert together["steps"] >= max(ends) - 4
    assert lm._bursts.graphs.captured <= 6


def test_a_callable_that_ends_steps_is_asked_as_they_are_shown(together):  # noqa: F811
    def ends(said: str) -> bool:
        return len(said) > 5 and said.endswith(chr(0x4E00 + 40))

    plain, lm = plainly(make()), captured()
    together.clear()
    rule = StepRule(predicate=ends)
    alike(grown(plain, many(plain, 5, rule=rule)), grown(lm, many(lm, 5, rule=rule)))
    assert together["bursts"] >= 2


def test_rows_that_come_again_and_again_make_no_bursts(together):  # noqa: F811
    """Where somebody joins at every step, nothing is computed ahead of it."""
    lm = captured()
    session = lm.session()
    together.clear()
    for one in many(lm, 20, most=60, rule=StepRule(), warp=Warp()):
        session.submit(one)
        session.step()
        assert together["steps"] == 16  # of the first row, which nobody was seen to join
    longest = []
    while session.running:
        before = together["steps"]
        session.step()
        longest.append(together["steps"] - before)
    assert max(longest[:7]) == 0
    assert [n for n in longest if n][:4] == [4, 6, 9, 13]
    session.close()


def test_a_burst_ends_where_there_is_no_distribution():
    plain, lm, steps = plainly(make()), captured(), []
    for model in (plain, lm):
        weight = model.model.get_input_embeddings().weight.detach().clone()
        weight[93:] = torch.nan  # whoever draws one of these is told at the next token
        model.model.get_input_embeddings().weight = torch.nn.Parameter(weight, False)
    for model in (plain, lm):
        session = model.session()
        for one in many(model, 6, rule=StepRule()):
            session.submit(one)
        for count in range(99):
            try:
                session.step()
            except WeightError as error:
                steps.append((count, str(error)))
                break
    assert steps[0] == steps[1]
    assert 3 < steps[0][0] < 16


class OnTheDevice(TorchDispatchMode):
    """Refuses what would bring anything from the host, or look at a value there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for part in tree_leaves((args, kwargs, found)):
            assert not isinstance(part, torch.Tensor) or part.device.type == "meta", function
        return found


@pytest.mark.parametrize("words", [97, 2048, 5000, 5120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_draw_of_a_captured_step_stays_on_its_device(words, dtype):
    """What is captured may not wait; the emulation would not notice."""
    states = torch.empty(8, 1, 32, device="meta", dtype=dtype)
    weight = torch.empty(words, 32, device="meta", dtype=dtype)
    replays = object.__new__(Replays)
    replays._head = lambda states: states @ weight.T
    replays._runner = SimpleNamespace(captured_pass=lambda table, low, visible: states)
    replays._slots = SimpleNamespace(length=64)
    table = torch.empty(3, 8, 1, device="meta", dtype=torch.int64)
    numbers = torch.empty(17, 8, device="meta", dtype=torch.float64)
    drawn = torch.empty(16, 2, 8, device="meta", dtype=torch.float64)
    with OnTheDevice():
        assert replays._step(table, numbers, drawn, 0, 64) is drawn


@pytest.mark.skipif(ON_GPU, reason="a capture that fails is emulated")
@pytest.mark.parametrize("fault", ["capture", "draws", "embeddings"])
def test_models_without_bursts_make_their_steps_one_by_one(fault, monkeypatch):
    if fault == "capture":

        def fails(step, device):
            raise RuntimeError("operation not permitted when stream is capturing")

        made = Replays.__init__

        def init(self, *args):
            made(self, *args)
            self.graphs._capture = fails

        monkeypatch.setattr(Replays, "__init__", init)
    elif fault == "draws":
        step = Replays._step

        def late(self, table, *rest):
            table[1] += 1  # one position too far
            return step(self, table, *rest)

        monkeypatch.setattr(Replays, "_step", late)
    else:
        monkeypatch.setattr("ppl.lm.engine.admission.vocabulary", lambda *_: 96)
    lm, plain = captured(), plainly(make())
    assert lm._bursts is None
    assert lm.engine.steps == "graphs"
    assert not lm.engine.slots.busy
    assert lm.engine.passes == 0
    if fault != "embeddings":
        alike(grown(plain, many(plain, 5)), grown(lm, many(lm, 5)))


@pytest.mark.parametrize("rows", [3, 8])
def test_what_is_written_before_a_capture_is_written_over(rows, monkeypatch):
    """A GPU runs a step twice before it captures it: its rows must not see what that left."""

    def warmed(step, device):
        step(), step()
        return emulated(step, device)

    plain, lm = plainly(make()), captured()
    lm._bursts.graphs._capture = warmed
    alike(grown(plain, many(plain, rows)), grown(lm, many(lm, rows)))
    texts = [text for text in some_texts() if len(text) > 3]
    for model in (plain, lm):
        model.fresh()
    states = [model.engine.hidden(texts, [0] * len(texts)) for model in (plain, lm)]
    for one, two in zip(*states, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_what_a_burst_computed_is_what_is_known_afterwards():
    lm = captured()
    done = grown(lm, many(lm, 7))
    fresh = make()
    for (_, draw), one in zip(done, sorted_by_ticket(done, many(lm, 7)), strict=True):
        text = (*one.spec.tokens, *draw.value.tokens[:-1])
        known = lm.engine.known_from(text, 0)
        assert known is not None
        (right,) = fresh.engine.hidden([text], [0])
        torch.testing.assert_close(known, right, rtol=1e-4, atol=1e-4)
        ahead = (*text, draw.value.tokens[-1])
        if draw.value.reason == "until":
            assert lm.engine.known(ahead) is None  # nobody wanted that


def sorted_by_ticket(done: list, asked: list) -> list:
    return [asked[ticket - 1] for ticket, _ in done]


@pytest.mark.parametrize(
    "searcher", [SMC(6), BeamSearch(3), BestOfN(9)], ids=["SMC", "BeamSearch", "BestOfN"]
)
def test_searches_are_what_they_are_token_by_token(searcher, together):  # noqa: F811
    def walk(lm):
        text = lm.prompt("3 + 4 = ")
        for t in range(3):
            text = text + pyro.sample(f"step_{t}", lm(text, max_tokens=9, until="\n"))
            pyro.factor(f"ok_{t}", -0.3 * text.text.count("1"))
            if text.finished:
                break
        return text.text

    from unittest import mock

    with mock.patch("ppl.lm.engine.graphs.cuda_graph", emulated):
        lm = ppl.load("tiny", graphs=True)
    found = []
    for model in (plainly(ppl.load("tiny")), lm):
        posterior = searcher.run(walk, model, seed=5)
        cost = replace(posterior.cost, seconds=0, models={})
        found.append((contents(posterior), cost))
    (one, cost), (two, cost_) = found
    assert cost == cost_
    assert [each[0] for each in one] == [each[0] for each in two]
    assert [each[1] for each in one] == pytest.approx([each[1] for each in two], abs=1e-4)
    assert together["bursts"]
