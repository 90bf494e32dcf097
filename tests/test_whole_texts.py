"""Many tokens of Llama-like models as one program of our own are what the model gives."""

from __future__ import annotations

import laid_out
import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from engines import SMALL, Letters, make_trunks
from laid_out import KINDS, needs_any, needs_own, small
from transformers.models.llama.modeling_llama import LlamaMLP

import ppl
from ppl.lm.engine import native
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.whole import WholeStep

pytestmark = needs_compiler

LONG = {**SMALL, "max_position_embeddings": 512}
WIDE = {**LONG, "hidden_size": 64, "head_dim": 32}
# Heads for which there are units for whole matrices, and windows that end within what they see at
# once or before it.
WIDER = {
    "heads of 32": lambda: tf.LlamaConfig(**WIDE),
    "each its own keys": lambda: tf.LlamaConfig(**{**WIDE, "num_key_value_heads": 4}),
    "heads of 64": lambda: tf.Qwen3Config(**{**WIDE, "head_dim": 64}),
    "window of 40": lambda: tf.MistralConfig(**WIDE, sliding_window=40),
    "window of 150": lambda: tf.MistralConfig(**WIDE, sliding_window=150),
}
TEXTS = [
    tuple(3 + (7 * i * i + 5 * i + 11 * k) % 90 for i in range(size))
    for k, size in enumerate((100, 60, 35, 120, 3))
]
LONGER = [
    tuple(3 + (5 * i * i + 3 * i + 7 * k) % 90 for i in range(size))
    for k, size in enumerate((300, 33, 1, 140))
]


@pytest.fixture(params=[{}, {"VECTORS": 1}], ids=["", "without AMX"])
def attended(request, monkeypatch):
    """With attention by each of two programs."""
    build = native.built
    given = request.param
    monkeypatch.setattr(native, "built", lambda source, **more: build(source, **more, **given))
    for kept in (native.filling, native.program):
        kept.cache_clear()
    yield
    for kept in (native.filling, native.program):
        kept.cache_clear()


def engine_of(model, most=4096) -> Engine:
    engine = Engine(model, name="small", capacity=1 << 24)
    assert engine.runner.whole is not None
    assert engine.runner.whole.fills
    engine.runner._at_once = most
    return engine


@torch.inference_mode()
def filled(engine: Engine, texts, stands=False) -> list[torch.Tensor]:
    """Last hidden states of texts some of which are known in part, or stand on a trunk."""
    engine.pool.clear()
    if stands:
        make_trunks(engine, [texts[0][:70], texts[3][:20]])
    else:
        engine.hidden([text[: len(text) // 3 + 1] for text in texts], [0] * len(texts))
    states = engine.hidden(texts, [0] * len(texts))
    return [row.float() for row in states]


def plain(model, texts) -> list[torch.Tensor]:
    """By the model's own pass, in its own type."""
    with torch.inference_mode():
        rows = [model.model(torch.tensor([text]), use_cache=False) for text in texts]
    return [row.last_hidden_state[0].float() for row in rows]


@needs_own
@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_as_close_to_float32_as_the_models_own(kind):
    model = small(KINDS[kind]())
    engine = engine_of(model)
    own = laid_out.off(plain(model, TEXTS), TEXTS, model)
    assert own < 0.06
    for most, stands in ((4096, False), (4096, True), (50, False)):
        engine.runner._at_once = most
        assert laid_out.off(filled(engine, TEXTS, stands), TEXTS, model) < 1.3 * own + 2e-3


@needs_any
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("most", "stands"), [(4096, False), (4096, True), (50, False), (7, True)])
def test_texts_in_float32_are_the_models_own(kind, most, stands):
    model = small(KINDS[kind](), dtype=torch.float32)
    engine = engine_of(model, most)
    assert laid_out.off(filled(engine, TEXTS, stands), TEXTS, model) < 1e-5
    assert engine.tokens_padded == 0


@needs_own
@pytest.mark.parametrize("kind", WIDER)
@pytest.mark.parametrize("stands", [False, True])
def test_long_texts_attend_by_units_for_whole_matrices(kind, stands, attended):
    model = small(WIDER[kind]())
    engine = engine_of(model)
    own = laid_out.off(plain(model, LONGER), LONGER, model)
    assert own < 0.06
    assert laid_out.off(filled(engine, LONGER, stands), LONGER, model) < 1.3 * own + 2e-3


@needs_own
@pytest.mark.parametrize("dim", [32, 64])
@torch.inference_mode()
def test_windows_that_end_before_several_short_runs(dim, attended):
    """Of queries side by side some still see two runs, one after the other, that others do not."""
    model = small(tf.MistralConfig(**{**WIDE, "head_dim": dim}, sliding_window=40))
    engine = engine_of(model)
    text = LONGER[0][:140]
    parts = [make_trunks(engine, [text[:size]])[0] for size in range(60, 89, 4)]
    assert parts == list(range(1, 9))
    states = [state.float() for state in engine.hidden([text], [0])]
    own = laid_out.off(plain(model, [text]), [text], model)
    assert laid_out.off(states, [text], model) < 1.3 * own + 2e-3


@needs_any
@pytest.mark.parametrize("kind", WIDER)
def test_long_texts_in_float32(kind):
    model = small(WIDER[kind](), dtype=torch.float32)
    assert laid_out.off(filled(engine_of(model), LONGER), LONGER, model) < 1e-5


@torch.inference_mode()
def test_texts_with_weights_of_eight_bits():
    model = small(tf.LlamaConfig(**{**SMALL, "head_dim": 16}), weights="int8")
    engine = engine_of(model)
    assert laid_out.off(filled(engine, TEXTS), TEXTS, model) < 0.06
    assert laid_out.off(filled(engine, TEXTS, stands=True), TEXTS, model) < 0.06


@needs_any
@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs_own), torch.float32])
def test_a_text_is_the_same_whatever_is_beside_it_and_however_many_threads(dtype):
    """Bit for bit: rows of products are, and so is what a query sees."""
    model = small(WIDER["heads of 32"](), dtype=dtype)
    engine, threads = engine_of(model), torch.get_num_threads()
    try:
        found = []
        for some, number in ((LONGER, 1), (LONGER, 2), (LONGER[::-1], 3), (LONGER[:1], 1)):
            torch.set_num_threads(number)
            engine.pool.clear()
            with torch.inference_mode():
                found.append(engine.hidden(some, [0] * len(some))[some.index(LONGER[0])].clone())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs_own), torch.float32])
@pytest.mark.parametrize("kind", WIDER)
@needs_any
@torch.inference_mode()
def test_what_is_not_finite_reaches_no_token_before_it_and_no_other_text(kind, dtype, attended):
    """Bit for bit, and so no text that begins alike, then or later."""
    model = small(WIDER[kind](), dtype=dtype)
    engine = engine_of(model)
    at, (text, *others) = 71, LONGER
    spoilt = (*text[:at], 96, *text[at + 1 :])
    exact = engine.hidden([text, *others], [0] * len(LONGER))
    for bad in (torch.nan, torch.inf):
        model.model.embed_tokens.weight.data[96] = bad
        engine.pool.clear()
        found = engine.hidden([spoilt, *others], [0] * len(LONGER))
        assert not found[0][at].isfinite().any()
        assert torch.equal(found[0][:at], exact[0][:at])
        for one, other in zip(found[1:], exact[1:], strict=True):
            assert torch.equal(one, other)
        assert torch.equal(engine.hidden([text[:at]], [0])[0], exact[0][:at])


@needs_any
@torch.inference_mode()
def test_layers_that_have_come_to_do_something_else_run_as_they_are(monkeypatch):
    model = small(KINDS["Llama"](), dtype=torch.float32)
    engine = engine_of(model)
    made = []
    fill = WholeStep.fill
    monkeypatch.setattr(WholeStep, "fill", lambda self, run: made.append(1) or fill(self, run))
    exact = filled(engine, TEXTS)
    assert made
    made.clear()
    called: list[int] = []
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: called.append(1))
    again = filled(engine, TEXTS)
    assert called
    hook.remove()
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: 0 * x
    other = filled(engine, TEXTS)
    del mlp.forward
    with monkeypatch.context() as patch:
        patch.setattr(LlamaMLP, "forward", lambda self, x: 0 * x)
        filled(engine, TEXTS)
    assert not made
    torch.testing.assert_close(again, exact, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other[0], exact[0], rtol=1e-2, atol=1e-2)
    filled(engine, TEXTS)
    assert made


@needs_own
@torch.inference_mode()
def test_compiled_texts_beside_adapters_run_as_they_are(monkeypatch):
    """Their program knows the weights of the layers alone."""
    lm = ppl.HFModel(small(KINDS["Llama"]()), Letters(), name="small", compile=True)
    runner = lm.engine.runner
    runner.whole = None
    assert runner._packer is not None
    monkeypatch.setattr(type(runner.adapters), "there", True)
    assert runner._packer is None


@needs_any
@torch.inference_mode()
def test_a_program_that_disagrees_is_left_out_and_steps_stay(monkeypatch):
    fill = WholeStep.fill
    model = small(KINDS["Llama"](), dtype=torch.float32)
    for wrong in (lambda self, run: 1.5 * fill(self, run), lambda self: None):
        with monkeypatch.context() as patch:
            patch.setattr(WholeStep, "fill", wrong)
            engine = Engine(model, name="small", capacity=1 << 22)
        assert engine.runner.whole is not None
        assert not engine.runner.whole.fills
        states = engine.hidden(TEXTS, [0] * len(TEXTS))
        assert laid_out.off(states, TEXTS, model) < 1e-5


@needs_any
@torch.inference_mode()
def test_memory_of_another_kind_is_refused():
    engine = engine_of(small(KINDS["Llama"](), dtype=torch.float32))
    piece = engine.slots.piece(20)
    wrong = type(piece)(tuple(group.bfloat16() for group in piece.kv), piece.states)
    engine.slots.piece = lambda size: wrong
    with pytest.raises(RuntimeError, match=r"one kind with the cache"):
        engine.runner.segments([ppl.lm.engine.runs.Stem(TEXTS[1][:20], (), ())])


@needs_own
def test_compiled_models_fill_by_it_too(monkeypatch):
    model = small(KINDS["Llama"]())
    lm = ppl.HFModel(model, Letters(), name="small", compile=True)
    made = []
    fill = WholeStep.fill
    monkeypatch.setattr(WholeStep, "fill", lambda self, run: made.append(1) or fill(self, run))
    with torch.inference_mode():
        lm.engine.hidden(TEXTS, [0] * len(TEXTS))
    assert made
