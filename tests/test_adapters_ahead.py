"""Adapters that come and go while rows are ahead: each row draws with its own weights alone."""

from __future__ import annotations

import copy
import gc
import random
from dataclasses import replace

import pytest
import torch
from compiler import needs_compiler
from engines import Letters, plain_log_probs, random_model, some_texts
from engines import request as ask
from laid_out import KINDS, needs_any, small
from test_leading import RULES, plainly, together
from test_several_adapters import two_adapters

import ppl
from ppl.lm.adapter import put_in
from ppl.lm.base import Drawn
from ppl.lm.engine.beside import Adapters, Thin

assert together  # a fixture
pytestmark = [needs_compiler, needs_any]


@pytest.fixture(scope="module", params=[(), ("lm_head",)], ids=["head", "layers"])
def folders(request, tmp_path_factory):
    """Two adapters; of rows of these there are bursts where they leave the head alone."""
    folder = tmp_path_factory.mktemp("adapters")
    return two_adapters(random_model(KINDS["Llama"]()), folder, but=request.param)


@pytest.fixture(scope="module")
def right(folders):
    """Merged models."""
    models = {"base": small(KINDS["Llama"](), dtype=torch.float32, pack=False)}
    for name, folder in folders.items():
        models[name] = copy.deepcopy(models["base"])
        put_in(models[name], folder, {})
    return models


def base(kv_bytes: int = 1 << 26) -> ppl.HFModel:
    model = small(KINDS["Llama"](), dtype=torch.float32)
    return ppl.HFModel(model, Letters(), name="base", kv_bytes=kv_bytes)


def hooks_of(lm) -> list:
    return [hook for m in lm.model.modules() for hook in m._forward_hooks.values()]


def lived(lm, folders, seed: int) -> dict:
    """What two batches draw while adapters are loaded, and let go: each with model and text."""
    rng, views, texts = random.Random(seed), {}, some_texts(seed)[:5]
    sessions, asked, found = [lm.session(), lm.session()], {}, {}

    def step(number: int) -> None:
        if sessions[number].running:
            for ticket, drawn in sessions[number].step().items():
                found[number, ticket] = (*asked[number, ticket], drawn)

    for _ in range(50):
        number, what = rng.randrange(2), rng.random()
        if what < 0.25:
            model, text = rng.choice([lm, lm, *views.values()]), rng.choice(texts)
            row = ask(model, text, rng.randrange(6), rng.randrange(1, 40))
            row = replace(row, spec=replace(row.spec, rule=rng.choice(RULES)))
            asked[number, sessions[number].submit(row)] = model.name, text
            del model, row
        elif what < 0.33:
            name = rng.choice([*folders])
            if name not in views:
                views[name] = lm.with_adapter(folders[name], name=name)
        elif what < 0.43 and views:
            views.pop(rng.choice([*views]))
            gc.collect()
        else:
            for _ in range(rng.randrange(1, 10)):
                step(number)
    while any(session.running for session in sessions):
        step(0)
        step(1)
    return found


@pytest.mark.parametrize("kv_bytes", [1 << 26, 90_000])
def test_adapters_that_come_and_go_change_no_row_but_their_own(
    kv_bytes,
    folders,
    right,
    together,
):
    plain, lm = plainly(base(kv_bytes)), base(kv_bytes)
    together.clear()
    for seed in range(2):
        there, here = lived(plain, folders, seed), lived(lm, folders, seed)
        assert there.keys() == here.keys()
        for (name, text, one), (_, _, two) in zip(
            (there[key] for key in sorted(there)), (here[key] for key in sorted(here)), strict=True
        ):
            assert isinstance(two, Drawn)
            assert one.value == two.value
            exact = plain_log_probs(right[name], text, two.value.tokens)
            assert two.log_prob == pytest.approx(exact, abs=2e-4)
        assert not lm.engine.slots.busy
    assert together["bursts"]


def test_a_model_whose_adapters_are_gone_is_as_it_was(folders, together):
    lm, text = base(), some_texts()[0]
    (draw,) = lm.sample_batch([ask(lm, text, max_tokens=30)])
    view = lm.with_adapter(folders["one"])
    (other,) = lm.sample_batch([ask(view, text, max_tokens=30)])
    assert other.value != draw.value
    assert any(isinstance(hook, Thin) for hook in hooks_of(lm))
    del view, other
    gc.collect()
    lm.sample_batch([ask(lm, (5, 6, 7), max_tokens=2)])
    assert not hooks_of(lm)
    assert not lm.engine.runner.adapters.laid
    lm.fresh()
    together.clear()
    (again,) = lm.sample_batch([ask(lm, text, max_tokens=30)])
    assert together["bursts"] == 2
    assert (again.value, again.log_prob) == (draw.value, draw.log_prob)


def test_rows_beside_an_adapter_are_ahead_where_it_leaves_the_head_alone(
    folders, right, together, request
):
    plain, lm, texts = plainly(base()), base(), some_texts()[:3]
    views = [model.with_adapter(folders["one"], name="one") for model in (plain, lm)]
    together.clear()
    drawn = [
        view.sample_batch([ask(view, text, i, 30) for i, text in enumerate(texts)])
        for view in views
    ]
    assert bool(together["bursts"]) == ("layers" in request.node.name)
    for text, one, two in zip(texts, *drawn, strict=True):
        assert one.value == two.value
        exact = plain_log_probs(right["one"], text, two.value.tokens)
        assert two.log_prob == pytest.approx(exact, abs=2e-4)


def test_an_adapter_that_was_not_put_in_leaves_nothing(folders, monkeypatch):
    lm, puts = base(), []
    put = Adapters._put

    def interrupted(self, *rest):
        puts.append(put(self, *rest))
        raise KeyboardInterrupt

    monkeypatch.setattr(Adapters, "_put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lm.with_adapter(folders["one"])
    assert puts
    assert not hooks_of(lm)
    assert not lm.engine.runner.adapters.there
