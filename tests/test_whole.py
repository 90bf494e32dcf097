"""Steps of Llama-like models as one program of our own are the model's steps."""

from __future__ import annotations

import copy

import laid_out
import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from engines import SMALL, random_model, some_texts
from laid_out import KINDS, needs_any, needs_own, small
from torch.nn.utils import prune
from transformers.models.llama.modeling_llama import LlamaMLP

from ppl.lm.engine.engine import Engine
from ppl.lm.engine.whole import WholeStep


class Louder(LlamaMLP):
    def forward(self, x):
        return 1.02 * super().forward(x)


pytestmark = needs_compiler


def stepped(engine: Engine) -> list[torch.Tensor]:
    """Last hidden states of ragged texts with a fork, token by token, all rows side by side."""
    engine.pool.clear()
    texts = [text[:9] + text for text in some_texts()[:5]]
    starts = [text[:4] for text in texts]
    opened, _ = engine.open(list(dict.fromkeys(starts)))
    slots = [opened.pop(s) if s in opened else engine.seat([s])[0] for s in starts]
    states: list[list[torch.Tensor]] = [[] for _ in texts]
    for t in range(4, max(map(len, texts))):
        rows = [i for i, text in enumerate(texts) if t < len(text)]
        found = engine.step([slots[i] for i in rows], [texts[i][: t + 1] for i in rows])
        for i, state in zip(rows, found, strict=True):
            states[i].append(state.float())
    for slot, text in zip(slots, texts, strict=True):
        engine.close(slot, text)
    return [torch.stack(row) for row in states]


def off(states, model) -> float:
    texts = [text[:9] + text for text in some_texts()[:5]]
    return laid_out.off(states, texts, model, first=4)


@needs_own
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_as_close_to_float32_as_the_models_own(kind):
    model = small(KINDS[kind]())
    engine = Engine(model, name="small", capacity=1 << 22)
    step = engine.runner.whole
    assert step is not None
    assert engine.sharing.able  # on trunks, too
    with torch.inference_mode():
        ours = stepped(engine)
        engine.runner.whole = None
        plain = stepped(engine)
    assert any(not torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert off(ours, model) < 1.3 * off(plain, model) + 2e-3
    assert off(plain, model) < 0.05


@needs_any
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_float32_is_the_models_own(kind):
    model = small(KINDS[kind](), dtype=torch.float32)
    engine = Engine(model, name="small", capacity=1 << 22)
    assert engine.runner.whole is not None
    assert engine.sharing.able
    with torch.inference_mode():
        ours = stepped(engine)
        engine.runner.whole = None
        plain = stepped(engine)
    assert any(not torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert off(ours, model) < 1e-5


@torch.inference_mode()
def test_weights_of_eight_bits_make_whole_steps_everywhere():
    model = small(tf.LlamaConfig(**{**SMALL, "head_dim": 16}), weights="int8")
    engine = Engine(model, name="small@int8", capacity=1 << 22)
    assert engine.runner.whole is not None
    assert off(stepped(engine), model) < 0.05


@needs_any
@torch.inference_mode()
def test_rows_of_a_step_stay_where_they_are():
    """In any order, and with slots of other rows between them; and nothing is computed along."""
    model = small(KINDS["Llama"](), dtype=torch.float32)
    engine = Engine(model, name="small", capacity=1 << 22)
    starts = [(3 + i, 5, 7 * i + 1) for i in range(6)]
    slots = list(engine.open(starts)[0].values())
    places, padded = [slot.index for slot in slots], engine.runner.tokens_padded
    for i, which in enumerate([[4, 0, 2], [5], [0, 1, 2, 3, 4, 5], [3, 0]]):
        texts = [(*start, *range(7, 8 + i)) for start in starts]
        for rows in which, sorted(set(range(6)) - set(which)):
            found = engine.step([slots[j] for j in rows], [texts[j] for j in rows]) if rows else []
            for j, state in zip(rows, found, strict=True):
                plain = model.model(torch.tensor([texts[j]])).last_hidden_state[0, -1]
                torch.testing.assert_close(state, plain, rtol=1e-4, atol=1e-4)
    assert [slot.index for slot in slots] == places
    assert (engine.slots.swaps, engine.runner.tokens_padded) == (0, padded)


@needs_own
@torch.inference_mode()
def test_many_rows_and_layers_with_hooks_run_as_they_are(monkeypatch):
    model = small(KINDS["Llama"]())
    engine = Engine(model, name="small", capacity=1 << 22)
    step, called = engine.runner.whole, []
    assert step is not None
    monkeypatch.setattr(step, "_most", 2)
    assert (step.takes(2), step.takes(3)) == (True, False)
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: called.append(1))
    assert not step.takes(1)
    text = some_texts()[0]
    slot = engine.seat([text[:4]])[0]
    engine.step([slot], [text[:5]])
    assert called
    hook.remove()
    called.clear()
    engine.step([slot], [text[:6]])
    assert step.takes(1)
    assert not called


@needs_own
@torch.inference_mode()
def test_hooks_of_all_modules_and_norms_with_other_weights_run_as_they_are():
    model = small(KINDS["Llama"]())
    step = Engine(model, name="small", capacity=1 << 22).runner.whole
    assert step is not None
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not step.takes(1)
    hook.remove()
    norm = model.model.layers[0].input_layernorm
    norm.weight.mul_(2)  # where it is
    assert step.takes(1)
    before = norm.weight.data
    norm.weight.data = before.clone()
    assert not step.takes(1)
    norm.weight.data = before
    assert step.takes(1)
    norm.weight = torch.nn.Parameter(before.clone(), False)
    assert not step.takes(1)


@needs_own
@torch.inference_mode()
def test_layers_that_have_come_to_do_something_else_run_as_they_are(monkeypatch):
    model = small(KINDS["Llama"]())
    step = Engine(model, name="small", capacity=1 << 22).runner.whole
    assert step is not None
    assert step.takes(1)
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: 0 * x
    assert not step.takes(1)
    del mlp.forward
    assert step.takes(1)
    with monkeypatch.context() as patch:
        patch.setattr(LlamaMLP, "forward", lambda self, x: 0 * x)
        assert not step.takes(1)
    assert step.takes(1)


def another(module):
    changed = copy.deepcopy(module)
    next(changed.parameters()).mul_(3)
    return changed


def in_place_of(parent, name, made):
    def alter():
        before = getattr(parent, name)
        setattr(parent, name, made(before))
        return lambda: setattr(parent, name, before)

    return alter


def pruned(norm):
    def alter():
        prune.random_unstructured(norm, "weight", amount=0.5)
        return lambda: None  # for good

    return alter


ALTERED = {
    "another layer": lambda m: in_place_of(m.layers[0], "mlp", lambda x: LlamaMLP(m.config)),
    "another product": lambda m: in_place_of(
        m.layers[0].mlp, "down_proj", lambda x: torch.nn.Linear(x.in_features, x.out_features)
    ),
    "another norm": lambda m: in_place_of(m, "norm", another),
    "another activation": lambda m: in_place_of(
        m.layers[1].mlp, "act_fn", lambda x: torch.nn.GELU()
    ),
    "another scale": lambda m: in_place_of(m.layers[1].self_attn, "scaling", lambda x: 2 * x),
    "another epsilon": lambda m: in_place_of(m.layers[1].input_layernorm, "variance_epsilon",
                                             lambda x: 0.5),
    "a pruned norm": lambda m: pruned(m.norm),
}  # fmt: skip


@needs_any
@pytest.mark.parametrize("how", ALTERED)
@torch.inference_mode()
def test_a_model_that_was_altered_runs_as_it_is(how):
    model = small(KINDS["Llama"](), dtype=torch.float32)
    engine = Engine(model, name="small", capacity=1 << 22)
    step, text = engine.runner.whole, some_texts()[1]
    assert step is not None
    for restore in (False, True):
        back = ALTERED[how](model.model)()
        if restore:
            back()
        assert step.takes(1) == (restore and how != "a pruned norm")
        engine.pool.clear()
        (slot,) = engine.seat([text[:4]])
        found = engine.step([slot], [text[:5]])[0]
        engine.drop(slot)
        plain = model.model(torch.tensor([text[:5]]), use_cache=False).last_hidden_state[0, -1]
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
        if how == "a pruned norm":
            break
        back()


@needs_own
@torch.inference_mode()
def test_a_program_that_disagrees_is_left_out(monkeypatch):
    run = WholeStep.__call__
    monkeypatch.setattr(WholeStep, "__call__", lambda self, *given: 1.5 * run(self, *given))
    model = small(KINDS["Llama"]())
    engine = Engine(model, name="small", capacity=1 << 22)
    assert engine.runner.whole is None
    assert off(stepped(engine), model) < 0.05


@needs_own
def test_a_program_that_cannot_be_called_is_left_out(monkeypatch):
    """As where the model calls its parts in another way than we do."""
    model = small(KINDS["Llama"]())
    monkeypatch.setattr(WholeStep, "__call__", lambda self: None)
    assert Engine(model, name="small", capacity=1 << 22).runner.whole is None


def test_only_what_is_known_has_a_program():
    changed = small(KINDS["Llama"]())
    changed.model.layers[0].mlp.forward = changed.model.layers[0].mlp.forward
    cut = random_model(tf.LlamaConfig(**SMALL))
    cut.model.layers[1].mlp = LlamaMLP(tf.LlamaConfig(**{**SMALL, "intermediate_size": 46}))
    torch.nn.init.zeros_(cut.model.layers[1].mlp.down_proj.weight)  # so that no result tells
    slightly = small(KINDS["Llama"]())
    slightly.model.layers[0].mlp.__class__ = Louder
    for model in (
        small(KINDS["Llama"](), pack=False),
        small(KINDS["Llama"](), dtype=torch.float64),
        small(tf.LlamaConfig(**SMALL, hidden_act="gelu")),
        small(tf.GraniteConfig(**SMALL)),
        changed,
        small(cut),
        slightly,  # by less than rounding may be off
    ):
        assert Engine(model, name="small", capacity=1 << 20).runner.whole is None
