"""Compiled decode steps: exact, those of their own model, refused where they cannot be had."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from engines import (
    FAMILIES,
    SMALL,
    Letters,
    assert_close,
    make,
    plain_log_probs,
    plain_states,
    random_model,
    request,
    some_texts,
)

import ppl
from ppl.errors import UnsupportedModelError
from ppl.lm.engine import building, native
from ppl.lm.engine.compiled import CompiledStep
from ppl.lm.engine.engine import Engine


@needs_compiler
@pytest.mark.parametrize("family", ["Llama", "Gemma", "Phi", "GPT2"])
def test_compiled_steps_give_the_log_probs_of_a_plain_forward(family):
    lm = make(family, compile=True)
    texts = some_texts()
    for some in (texts, texts[:1], texts * 3):  # one program for any number of rows
        requests = [request(lm, t, i, max_tokens=20) for i, t in enumerate(some)]
        for text, draw in zip(some, lm.sample_batch(requests), strict=True):
            exact = plain_log_probs(lm.model, text, draw.value.tokens)
            assert draw.log_prob == pytest.approx(exact, abs=1e-4)


@needs_compiler
def test_compiled_steps_are_those_of_their_own_model(monkeypatch):
    """Nothing checks for which model a program was made: programs must be kept apart."""
    calls = []
    step = CompiledStep.__call__
    monkeypatch.setattr(CompiledStep, "__call__", lambda *a: calls.append(a[0]) or step(*a))
    one = make(compile=True)
    alike = random_model(tf.LlamaConfig(**SMALL, hidden_act="gelu"))  # the same but for this
    other = ppl.HFModel(alike, Letters(), name="other", compile=True)
    calls.clear()
    text = some_texts()[0]
    for lm in (one, other, one):
        (draw,) = lm.sample_batch([request(lm, text, max_tokens=9)])
        exact = plain_log_probs(lm.model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)
    assert [c is one.engine.runner.compiled for c in calls] == [True] * 8 + [
        False
    ] * 8  # then all was known
    try:
        with torch._dynamo.config.patch(recompile_limit=1):
            for threads in (2, 3):  # each needs another program
                torch.set_num_threads(threads)
                one.engine.pool.clear()
                again = one.sample_batch([request(one, text, max_tokens=9)])[0]
                assert again.log_prob == pytest.approx(draw.log_prob, abs=1e-4)
    finally:
        torch.set_num_threads(1)


@needs_compiler
@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_compiled_steps_run_with_attention_of_the_library(family, monkeypatch):
    """As on a GPU, where there is none of our own."""
    monkeypatch.setattr("ppl.lm.engine.native.attend", None)
    never = property(lambda _: False, lambda *_: None)
    monkeypatch.setattr(CompiledStep, "native", never, raising=False)
    lm = make(family, compile=True)
    texts = some_texts()
    drawn = lm.sample_batch([request(lm, t, i, max_tokens=20) for i, t in enumerate(texts)])
    for text, draw in zip(texts, drawn, strict=True):
        exact = plain_log_probs(lm.model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)


@needs_compiler
def test_compiled_steps_run_packed_layers():
    lm, plain = ppl.load("tiny", compile=True), ppl.load("tiny")
    text = lm.prompt("12 + 7 * 3\n")
    drawn = lm.sample_batch([request(lm, text.tokens, i, max_tokens=12) for i in range(8)])
    again = plain.sample_batch([request(plain, text.tokens, i, max_tokens=12) for i in range(8)])
    assert [d.value.tokens for d in drawn] == [d.value.tokens for d in again]
    assert [d.log_prob for d in drawn] == pytest.approx([d.log_prob for d in again], abs=1e-4)


@needs_compiler
@torch.inference_mode()
def test_compiled_steps_in_other_surroundings():
    """What the process has set meanwhile is kept out, or refused: never a pointer to elsewhere."""
    engine = make(compile=True).engine
    text = some_texts()[0]
    slots, _ = engine.open([text])
    torch.set_default_device("meta")
    try:
        states = engine.step([slots[text]], [(*text, 7)])
    finally:
        torch.set_default_device(None)
    assert_close(states[0], plain_states((*text, 7))[-1])
    with torch.autocast("cpu", torch.bfloat16):
        states = engine.step([slots[text]], [(*text, 7, 8)])
        with pytest.raises(RuntimeError, match=r"one kind with the cache.*bfloat16.*float32"):
            engine.runner.step([slots[text]], [(*text, 7, 8, 9)])
    assert_close(states[0], plain_states((*text, 7, 8))[-1])


@needs_compiler
def test_keys_repeated_before_attention_are_refused_by_compiled_steps():
    config = tf.JetMoeConfig(
        **{k: v for k, v in SMALL.items() if k != "num_attention_heads"},
        kv_channels=8,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    ppl.HFModel(random_model(config), Letters(), name="repeats")
    with pytest.raises(UnsupportedModelError, match=r"keep the keys.*\(2, 8\).*\(4, 8\)"):
        ppl.HFModel(random_model(config), Letters(), name="repeats", compile=True)


@needs_compiler
def test_steps_that_cannot_be_compiled_are_refused_at_loading(monkeypatch, tmp_path):
    model = random_model(FAMILIES["Llama"]())
    with monkeypatch.context() as patch:
        patch.setattr(tf.LlamaModel, "_supports_attention_backend", False)
        model.set_attn_implementation("eager")
        with pytest.raises(UnsupportedModelError, match=r"attn_implementation='sdpa'.*'eager'"):
            Engine(model, name="small", capacity=1 << 20, compile=True)
    model.set_attn_implementation("sdpa")

    attend = native.attend
    monkeypatch.setattr("ppl.lm.engine.native.attend", lambda *args: 2 * attend(*args))
    with pytest.raises(UnsupportedModelError, match="differ"):
        Engine(model, name="small", capacity=1 << 20, compile=True)

    monkeypatch.setattr("ppl.lm.engine.native.attend", attend)
    for compiler, said in (
        ("g+++", r"no C\+\+ compiler 'g\+\+\+'.*CXX"),
        ("g++ -nothing", "nothing"),
    ):
        native.program.cache_clear()
        monkeypatch.setenv("CXX", compiler)
        with pytest.raises(UnsupportedModelError, match=said + r".*compile=False"):
            Engine(model, name="small", capacity=1 << 20, compile=True)
    monkeypatch.delenv("CXX")

    def read_only():
        raise OSError("Read-only file system")

    native.program.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("PPL_CACHE", str(tmp_path))  # where nothing is kept
        patch.setattr(building.tempfile, "TemporaryDirectory", read_only)
        with pytest.raises(UnsupportedModelError, match=r"Read-only.*compile=False"):
            Engine(model, name="small", capacity=1 << 20, compile=True)


@needs_compiler
def test_steps_are_compiled_where_they_can_be(monkeypatch):
    assert make(compile="auto").engine.runner.compiled is not None
    assert make().engine.runner.compiled is None
    native.program.cache_clear()
    monkeypatch.setenv("CXX", "g+++")
    try:
        with pytest.warns(UserWarning, match=r"uncompiled: Llama.*no C\+\+ compiler 'g\+\+\+'"):
            lm = make(compile="auto")
    finally:
        native.program.cache_clear()
    assert lm.engine.runner.compiled is None
    text = some_texts()[0]
    (draw,) = lm.sample_batch([request(lm, text)])
    exact = plain_log_probs(lm.model, text, draw.value.tokens)
    assert draw.log_prob == pytest.approx(exact, abs=1e-4)
    with pytest.raises((TypeError, ValueError), match="compile='always'"):
        make(compile="always")


@needs_compiler
def test_compiled_steps_need_no_argument_that_older_releases_of_torch_lack(monkeypatch):
    compile = torch.compile
    given = []

    def older(step, *, fullgraph, options):
        given.append(step.__code__)
        return compile(step, fullgraph=fullgraph, options=options)

    monkeypatch.setattr(torch, "compile", older)
    for _ in range(2):
        Engine(make().model, name="small", capacity=1 << 20, compile=True)
    assert given[0] is not given[1]  # programs are kept with the code
