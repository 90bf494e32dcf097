"""Adapters beside the weights in passes that are one program: to each row what its layers give."""

from __future__ import annotations

import copy

import laid_out
import pytest
import torch
from adapters_made import layers_of, random_pairs
from compiler import needs_compiler
from engines import Letters, random_model, some_texts
from laid_out import KINDS, exactly, needs_any, needs_own, small
from test_adapters import made

import ppl
from ppl.errors import UnsupportedModelError
from ppl.lm.adapter import put_in
from ppl.lm.engine.beside import Adapters
from ppl.lm.engine.lowrank import LowRank
from ppl.lm.engine.whole import WholeStep

pytestmark = needs_compiler
WAYS = {"float32": {"dtype": torch.float32}, "bfloat16": {}, "int8": {"weights": "int8"}}
# Ranks that fill no vector, and more than one; layers of one product, each of its own rank.
RANKS = {"one": 3, "two": 19}


def folders(folder, kind="Llama"):
    """Two adapters: of all layers but values and the head, and of every second one."""
    sizes = {n: s for n, s in layers_of(random_model(KINDS[kind]())).items() if "layers" in n}
    some = {n: s for n, s in sizes.items() if "v_proj" not in n}
    pattern = {"up_proj": 5, "q_proj": 1}
    pairs = random_pairs(some, RANKS["one"], 1)
    for word, rank in pattern.items():
        pairs |= random_pairs({n: s for n, s in some.items() if word in n}, rank, 2)
    two = random_pairs(dict(list(sizes.items())[::2]), RANKS["two"], 3)
    more = {"rank_pattern": pattern, "use_rslora": True}
    return {
        "one": made(folder / "one", pairs, r=RANKS["one"], **more),
        "two": made(folder / "two", two, r=RANKS["two"], lora_alpha=4),
    }


class Both:
    """A model with two adapters, and in float32 what each is."""

    def __init__(self, folder, way="float32", kind="Llama"):
        model = small(KINDS[kind](), **WAYS[way])
        self.right = {"base": exactly(model)}
        self.base = ppl.HFModel(model, Letters(), name="base", kv_bytes=1 << 24)
        self.runner = self.base.engine.runner
        self.models = {"base": self.base}
        for name, adapter in folders(folder, kind).items():
            self.right[name] = copy.deepcopy(self.right["base"])
            put_in(self.right[name], adapter, {})
            self.models[name] = self.base.with_adapter(adapter, name=name)

    def marked(self, asked):
        return [self.models[which].marked(text) for which, text in asked]

    def filled(self, asked) -> list[torch.Tensor]:
        self.base.engine.pool.clear()
        return self.base.engine.hidden(self.marked(asked), [0] * len(asked))

    def stepped(self, asked, start=3) -> list[torch.Tensor]:
        """Last hidden states from a position on, token by token, side by side."""
        engine, texts = self.base.engine, self.marked(asked)
        engine.pool.clear()
        slots, found = engine.seat([text[:start] for text in texts]), []
        for t in range(start, len(texts[0])):
            found.append(engine.step(slots, [text[: t + 1] for text in texts]))
        for slot, text in zip(slots, texts, strict=True):
            engine.close(slot, text)
        return list(torch.stack(found, 1))

    def off(self, asked, states, first=0) -> float:
        return max(
            laid_out.off([state.float()], [text], self.right[which], first)
            for (which, text), state in zip(asked, states, strict=True)
        )


TEXTS = [text[:20] for text in (text * 20 for text in some_texts()[:5])]
ASKED = [(which, text) for text in TEXTS for which in ("one", "base", "two")]


@pytest.fixture(params=[pytest.param("float32", marks=needs_any),
                        pytest.param("bfloat16", marks=needs_own), "int8"])  # fmt: skip
def way(request):
    return request.param


@torch.inference_mode()
def test_steps_and_fills_are_as_close_to_float32_as_those_of_the_layers(way, tmp_path, monkeypatch):
    both, made_by = Both(tmp_path, way), []
    for name in ("fill", "asked"):
        run = getattr(WholeStep, name)
        monkeypatch.setattr(
            WholeStep, name, lambda *given, run=run, name=name: made_by.append(name) or run(*given)
        )
    ours = both.filled(ASKED), both.stepped(ASKED)
    assert set(made_by) == {"fill", "asked"}
    both.runner.whole = None
    layers = both.filled(ASKED), both.stepped(ASKED)
    for first, one, other in zip((0, 3), ours, layers, strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))
        if way == "float32":
            assert both.off(ASKED, one, first) < 1e-4
        else:
            assert both.off(ASKED, one, first) < 1.3 * both.off(ASKED, other, first) + 2e-3


@needs_any
@pytest.mark.parametrize("kind", ["biased", "Mistral", "Qwen3"])
@torch.inference_mode()
def test_of_every_kind(kind, tmp_path):
    both = Both(tmp_path, kind=kind)
    assert both.runner.takes_whole(1)
    assert both.off(ASKED, both.filled(ASKED)) < 1e-4
    assert both.off(ASKED, both.stepped(ASKED), 3) < 1e-4


@torch.inference_mode()
def test_a_row_gives_the_same_bits_whatever_is_beside_it(way, tmp_path):
    both, threads = Both(tmp_path, way), torch.get_num_threads()
    # Rows of one beginning read it together: these have none in common.
    every = [(which, (10 + i // 3, *text[1:])) for i, (which, text) in enumerate(ASKED)]
    alone = {i: both.filled([ask])[0] for i, ask in enumerate(every)}
    steps = {i: both.stepped([ask])[0] for i, ask in enumerate(every)}
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for rows in ([0, 3], [0, 1, 2, 3], [6, 0, 9, 3, 12], range(15), range(14, -1, -1)):
                asked = [every[i] for i in rows]
                for i, row in zip(rows, both.stepped(asked), strict=True):
                    assert torch.equal(row, steps[i])
                for i, row in zip(rows, both.filled(asked), strict=True):
                    assert torch.equal(row, alone[i])
    finally:
        torch.set_num_threads(threads)


@needs_any
@torch.inference_mode()
def test_an_adapter_that_is_not_finite_spoils_its_own_rows_alone(tmp_path):
    both = Both(tmp_path)
    before = both.stepped(ASKED), both.filled(ASKED)
    layer = both.models["base"].model.model.layers[0].mlp.down_proj
    a, _, _ = both.runner.adapters.beside(layer).of(both.models["one"].adapter.number)
    a[0, 0] = torch.nan
    for was, now in zip(before, (both.stepped(ASKED), both.filled(ASKED)), strict=True):
        for (which, _), one, other in zip(ASKED, was, now, strict=True):
            assert torch.equal(one, other) if which != "one" else other.isnan().all()


@needs_any
@torch.inference_mode()
def test_a_program_that_disagrees_is_left_to_the_layers(tmp_path, monkeypatch):
    laid = LowRank._laid

    def nothing(self, number):
        found = laid(self, number)
        found.each[:] = 0
        return found

    def half(self, number):
        found = laid(self, number)
        found.each[1::2] = 0
        return found

    for i, wrong in enumerate([nothing, half, lambda self, number: laid(self, 0)]):
        with monkeypatch.context() as patch:
            patch.setattr(LowRank, "_laid", wrong)
            (tmp_path / str(i)).mkdir()
            both = Both(tmp_path / str(i))
        assert not both.runner.adapters.agrees
        assert not both.runner.takes_whole(1)
        assert both.off(ASKED, both.stepped(ASKED), 3) < 1e-4
        both.runner.adapters.drop({view.adapter.number for view in list(both.models.values())[1:]})
        assert both.runner.takes_whole(1)  # of the model alone it never was in doubt
        again = both.base.with_adapter(tmp_path / str(i) / "one")
        assert both.runner.takes_whole(1)  # nor of an adapter that comes when these are gone
        assert again.adapter is not None


@needs_any
@torch.inference_mode()
def test_a_pass_that_failed_before_it_began_leaves_nothing_to_the_next(tmp_path, monkeypatch):
    both = Both(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(both.runner, "_standing", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            both.stepped(ASKED)
    adapters = both.runner.adapters
    adapters.drop({view.adapter.number for view in list(both.models.values())[1:]})
    alone = [("base", text) for text in TEXTS]
    assert both.off(alone, both.stepped(alone), 3) < 1e-4


@needs_any
@torch.inference_mode()
def test_what_is_refused_is_none_of_the_programs_faults(tmp_path):
    base = ppl.HFModel(small(KINDS["Llama"](), dtype=torch.float32), Letters(), name="base")
    pairs = random_pairs({"model.layers.0.mlp.up_proj": (48, 32)}, 2, 0)
    bad = {name: tensor.fill_(1e30) for name, tensor in copy.deepcopy(pairs).items()}
    with pytest.raises(UnsupportedModelError, match=r"/bad: .*with the adapter.*range of.*float32"):
        base.with_adapter(made(tmp_path / "bad", bad, r=2))
    adapters: Adapters = base.engine.runner.adapters
    assert adapters.agrees
    assert not adapters.there
    assert not adapters.laid
    good = base.with_adapter(made(tmp_path / "good", pairs, r=2))
    with pytest.raises(UnsupportedModelError, match="/bad: "):
        base.with_adapter(tmp_path / "bad")
    assert base.engine.runner.takes_whole(1)
    # Layers that have come to do something else have to run.
    hook = base.model.model.layers[0].mlp.up_proj.layer.register_forward_hook(lambda *_: None)
    assert not base.engine.runner.takes_whole(1)
    hook.remove()
    assert base.engine.runner.takes_whole(1)
    assert good.adapter is not None


@torch.inference_mode()
@pytest.mark.parametrize("whole", [True, False])
def test_engines_of_one_model_have_adapters_of_their_own(whole, tmp_path):
    """Both number them from one on, and the model's layers have the hooks of both."""
    adapters, model = folders(tmp_path), small(KINDS["Llama"](), **WAYS["float32"])
    plain = exactly(model)
    engines = [ppl.HFModel(model, Letters(), name=each, kv_bytes=1 << 24) for each in adapters]
    for engine in engines:
        engine.engine.runner.whole = engine.engine.runner.whole if whole else None
    pairs = list(zip(engines, adapters.values(), strict=True))
    models = [engine.with_adapter(adapter) for engine, adapter in pairs]
    assert all(engine.engine.runner.adapters.agrees for engine in engines)
    for engine, beside, adapter in zip(engines, models, adapters.values(), strict=True):
        right = copy.deepcopy(plain)
        put_in(right, adapter, {})
        for lm, by in (beside, right), (engine, plain):
            found = engine.engine.hidden([lm.marked(text) for text in TEXTS], [0] * len(TEXTS))
            assert laid_out.off(found, TEXTS, by, 0) < 1e-4
