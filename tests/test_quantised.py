"""Weights of eight bits: the kernel, layers and models that have them, what they are called."""

from __future__ import annotations

import ctypes
import json
from functools import partial

import pyro
import pytest
import torch
import transformers as tf
from compiler import needs_compiler
from engines import GPT2, SMALL, Letters, plain_log_probs, random_model, request, some_texts
from torch import nn

import ppl
from ppl.errors import StudyError, UnsupportedModelError
from ppl.lm.engine import building, quantised
from ppl.lm.engine.linear import JoinedPart, PackedLinear
from ppl.lm.engine.quantised import Int8Linear, quantise_linears
from ppl.lm.placement import check_weights
from ppl.lm.sources import TINY
from ppl.posterior.posterior import Posterior
from ppl.searchers import SMC, BestOfN, Search
from ppl.study import Study, merge
from ppl.tasks import Problem, Task
from ppl.verifiers import PRM, OutcomeModel, RewardModel

pytestmark = needs_compiler

SIZES = [(32, 64), (40, 100), (5, 7), (97, 193), (64, 576)]  # outputs, inputs


def layer(outputs, inputs, dtype=torch.float32, bias=True, seed=0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)


# -- the layer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_no_weight_is_off_by_more_than_half_a_step(outputs, inputs):
    plain = layer(outputs, inputs)
    ours = Int8Linear(plain)
    assert ours.weight.shape == plain.weight.shape
    for start in range(0, inputs, 64):
        group = plain.weight[:, start : start + 64]
        step = group.abs().amax(1, keepdim=True) / 127
        off = (group - ours.weight[:, start : start + 64]).abs()
        assert (off <= 0.5001 * step).all()
        if group.shape[1] > 1:  # the bound is one that a finer rounding would not need
            assert (off > 0.3 * step).any()
        largest = group.abs().argmax(1, keepdim=True)
        torch.testing.assert_close(  # a scale that is off moves the largest
            ours.weight[:, start : start + 64].gather(1, largest), group.gather(1, largest)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@torch.inference_mode()
def test_the_product_is_that_of_its_weight(outputs, inputs, bias, dtype):
    """To the rounding of a row: at most a 65024th of the largest number of each group of 64."""
    plain = layer(outputs, inputs, dtype, bias)
    ours = Int8Linear(plain)
    weight = ours.weight.double()
    for rows in (1, 2, 3, 4, 5, 9):
        x = (torch.randn(rows, inputs) * torch.logspace(-3, 2, inputs)).to(dtype)
        exact = x.double() @ weight.T + (plain.bias.double() if bias else 0.0)
        bound = torch.zeros(rows, outputs, dtype=torch.float64)
        for start in range(0, inputs, 64):
            part = slice(start, start + 64)
            most = x[:, part].abs().amax(1, keepdim=True).double() / 65024
            bound += most * weight[:, part].abs().sum(1)
        sums = x.double().abs() @ weight.T.abs() + 1
        bound += 1e-6 * sums  # of groups, in float32
        if dtype == torch.bfloat16:
            bound += exact.abs() / 256
        found = ours(x)
        assert found.dtype == dtype
        assert ((found.double() - exact).abs() <= bound).all()
        off = x.double() @ (1.01 * weight).T + (plain.bias.double() if bias else 0.0)
        assert ((found.double() - off).abs() > bound).any()  # a scale off by 1% is not
        assert torch.equal(found, torch.cat([ours(row[None]) for row in x]))  # rows are alone
        assert torch.equal(found, ours(x.view(1, rows, 1, inputs))[0, :, 0])


@torch.inference_mode()
@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16], ids=str)
def test_scales_are_of_one_type_whatever_torch_has_as_default(other):
    plain = layer(64, 96, torch.bfloat16)
    before, wanted = torch.get_default_dtype(), Int8Linear(plain)
    torch.set_default_dtype(other)
    try:
        ours = Int8Linear(plain)
    finally:
        torch.set_default_dtype(before)
    x = torch.randn(3, 96).to(torch.bfloat16)
    assert torch.equal(ours.weight, wanted.weight)
    assert torch.equal(ours(x), wanted(x))


def test_all_threads_give_the_same():
    ours, x = Int8Linear(layer(640, 192)), torch.randn(5, 192)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(ours(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@torch.inference_mode()
def test_processors_of_all_kinds_give_the_same(monkeypatch):
    """The plain loops are those that run where there is no AVX512-VNNI."""
    layers = [layer(*sizes, seed=1) for sizes in SIZES]
    xs = [torch.randn(6, inputs) for _, inputs in SIZES]
    ours = [Int8Linear(one)(x) for one, x in zip(layers, xs, strict=True)]
    program = building.built("int8.cpp", PORTABLE=1).multiply
    program.argtypes, program.restype = quantised._program().argtypes, None
    assert ctypes.cast(program, ctypes.c_void_p).value != (
        ctypes.cast(quantised._program(), ctypes.c_void_p).value
    )
    monkeypatch.setattr(quantised, "_program", lambda: program)
    for one, x, found in zip(layers, xs, ours, strict=True):
        assert torch.equal(Int8Linear(one)(x), found)


@pytest.mark.skipif("amx_int8" not in building._processor(), reason="a processor without AMX")
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("other", ["VECTORS", "PORTABLE"])
def test_whole_matrices_give_the_same_bit_for_bit(other, dtype, monkeypatch):
    """As AVX512-VNNI and plain loops do, whatever rows are beside one, by any number of threads."""
    program = building.built("int8.cpp", **{other: 1}).multiply
    program.argtypes, program.restype = quantised._program().argtypes, None
    before = torch.get_num_threads()
    for outputs, inputs in (*SIZES, (200, 65), (33, 1000)):
        plain = layer(outputs, inputs, dtype)
        ours = Int8Linear(plain)
        with monkeypatch.context() as patch:
            patch.setattr(quantised, "_program", lambda: program)
            theirs = Int8Linear(plain)
        x = (torch.randn(531, inputs) * torch.logspace(-3, 2, inputs)).to(dtype)
        wrong = 5, 40, 300
        x[5, 0], x[40, inputs - 1], x[300] = torch.nan, torch.inf, -torch.inf
        wanted = theirs(x)
        right = torch.ones(len(x), dtype=torch.bool)
        right[list(wrong)] = False
        assert wanted[right].isfinite().all()
        assert wanted[~right].isnan().all()
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for rows in (*range(1, 71), 256, 257, 300, 531):
                    found = ours(x[:rows])
                    assert torch.equal(found[right[:rows]], wanted[:rows][right[:rows]]), rows
                    assert found[~right[:rows]].isnan().all()
        finally:
            torch.set_num_threads(before)


@torch.inference_mode()
def test_what_is_not_finite_stays_so_and_nothing_stays_nothing():
    ours = Int8Linear(layer(32, 128, bias=False))
    x = torch.randn(4, 128)
    x[0, 3], x[1, 70], x[2] = torch.nan, torch.inf, 0.0
    y = ours(x)
    assert not y[:2].isfinite().any()
    assert (y[2] == 0).all()
    assert y[3].isfinite().all()
    none = nn.Linear(64, 32, bias=False)
    nn.init.zeros_(none.weight)
    assert (Int8Linear(none)(x[3:, :64]) == 0).all()
    assert ours(x[:0]).shape == (0, 32)


@torch.inference_mode()
def test_what_does_not_fit_is_refused():
    ours = Int8Linear(layer(32, 64))
    elsewhere = torch.randn(2, 64, device="meta")
    others = torch.randn(2, 64).bfloat16(), torch.randn(2, 64).double(), elsewhere
    for x in (torch.randn(2, 65), *others):
        with pytest.raises(RuntimeError, match=r"\[32, 64\] in torch\.float32 on a CPU was given"):
            ours(x)


# -- models --------------------------------------------------------------------------------------


def with_plain_layers(model) -> nn.Module:
    """The same model with plain layers of the weights that the given one multiplies with."""
    plain = random_model(model.config)
    for name, module in plain.named_modules():
        if type(module) is nn.Linear:
            ours = model.get_submodule(name)
            module.weight = nn.Parameter(ours.weight.clone(), False)
    return plain


def int8(compile: bool = False) -> ppl.HFModel:
    model = random_model(tf.LlamaConfig(**SMALL))
    ids = torch.arange(4)[None]
    quantise_linears(model, "int8", lambda: model(input_ids=ids, use_cache=False), "Llama")
    assert type(model.lm_head) is Int8Linear
    assert type(model.model.layers[0].self_attn.q_proj) is JoinedPart
    return ppl.HFModel(model, Letters(), name="Llama@int8", compile=compile)


@pytest.mark.parametrize("compile", [False, True])
def test_the_engine_gives_what_a_plain_forward_with_these_weights_gives(compile):
    lm = int8(compile)
    plain = with_plain_layers(lm.model)
    texts = some_texts()
    for some in (texts, texts[:1], texts * 3):
        requests = [request(lm, t, i, max_tokens=20) for i, t in enumerate(some)]
        for text, draw in zip(some, lm.sample_batch(requests), strict=True):
            own = plain_log_probs(lm.model, text, draw.value.tokens)
            assert draw.log_prob == pytest.approx(own, abs=1e-4)
            exact = plain_log_probs(plain, text, draw.value.tokens)
            assert draw.log_prob == pytest.approx(exact, abs=1e-3)
    unrounded = random_model(lm.model.config)
    off = [
        abs(draw.log_prob - plain_log_probs(unrounded, text, draw.value.tokens))
        for text, draw in zip(some, lm.sample_batch(requests), strict=True)
    ]
    assert max(off) > 2e-3  # it is another model, and the bound above sees that


def relative(lm, plain, ids) -> float:
    """How far logits are from those of another model, as a part of how far they are spread."""
    with torch.inference_mode():
        ours, theirs = (m.model(input_ids=ids).logits.double() for m in (lm, plain))
    return float((ours - theirs).norm() / (theirs - theirs.mean(-1, keepdim=True)).norm())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_rounding_is_small_and_a_wrong_scale_would_not_be(dtype, monkeypatch):
    plain = ppl.load("tiny-lines", pack=False)
    text = plain.chat("start 4; add 5; mul 3; sub 6").tokens
    ids = torch.tensor([text])
    ours = relative(ppl.load("tiny-lines", weights="int8", dtype=dtype), plain, ids)
    assert ours < 0.025
    right = quantised.quantised

    def off(weight, by):
        numbers, scales = right(weight)
        return numbers, scales * by

    for by in (0.97, 1.03):
        monkeypatch.setattr(quantised, "quantised", partial(off, by=by))
        wrong = relative(ppl.load("tiny-lines", weights="int8", dtype=dtype), plain, ids)
        assert wrong > 0.025


def test_searches_run_and_repeat():
    lm, prm = ppl.load("tiny-lines", weights="int8"), PRM.load("tiny-lines", weights="int8")

    def solve(question):
        text = lm.chat(question)
        for t in range(3):
            text = text + pyro.sample(f"step_{t}", lm(text, until="\n", max_tokens=12))
            pyro.sample(f"ok_{t}", prm(text), obs=True)
        return text.answer

    question = "start 4; add 5; mul 3"
    first = SMC(8).run(solve, question, seed=3)
    lm.engine.pool.clear()
    again = SMC(8).run(solve, question, seed=3)
    assert first.log_evidence == pytest.approx(again.log_evidence, abs=1e-4)
    assert set(first.cost.models) == {"tiny-lines@int8", "PRM('tiny-lines@int8')"}


# -- what they are called ------------------------------------------------------------------------


def test_the_format_is_part_of_the_name_everywhere(tmp_path):
    lm = ppl.load("tiny-lines", weights="int8")
    assert repr(lm) == "HFModel('tiny-lines@int8')"
    assert ppl.load("tiny-lines").name == "tiny-lines"
    assert PRM.load("tiny-lines", weights="int8").name == "PRM('tiny-lines@int8')"
    assert lm.parameters == ppl.load("tiny-lines").parameters
    question = lm.chat("start 4; add 5")
    search = BestOfN(2).begin(program, lm, question, seed=1)
    search.save(tmp_path / "search")
    again = Search.load(tmp_path / "search")  # loads the model as it was
    assert again.tree.args[0].name == "tiny-lines@int8"
    assert type(again.tree.args[0].model.lm_head) is Int8Linear
    posterior = again.run()
    posterior.save(tmp_path / "posterior")
    assert set(Posterior.load(tmp_path / "posterior").cost.models) == {"tiny-lines@int8"}


def program(lm, question):
    return pyro.sample("all", lm(question, max_tokens=4))


def test_records_of_a_study_name_the_format_and_are_not_mixed_with_others(tmp_path):
    def study(**model):
        task = Task("sums", [Problem("sums/0", "start 4; add 5", "9")], lambda p, a: a == p.gold)
        return Study(
            tasks=[task], models={"small": {"load": "tiny-lines", **model}}, programs=["whole"],
            searchers=["BestOfN(2)"],
        )  # fmt: skip

    study(weights="int8").run(tmp_path / "int8")
    study().run(tmp_path / "plain")
    rows = {
        folder: json.loads((tmp_path / folder / "results.jsonl").read_text())
        for folder in ("int8", "plain")
    }
    assert set(rows["int8"]["cost"]["models"]) == {"tiny-lines@int8"}
    assert set(rows["plain"]["cost"]["models"]) == {"tiny-lines"}
    with pytest.raises(StudyError, match=r"models\.small.*weights"):
        merge([tmp_path / "int8", tmp_path / "plain"], tmp_path / "both")
    with pytest.raises(StudyError, match="weights"):
        study().run(tmp_path / "int8")


def saved(kind, folder, **labels):
    size = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    config = tf.LlamaConfig(**{**SMALL, **size, "vocab_size": 512}, **labels)
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(TINY / "lm").save_pretrained(folder)
    return folder


def test_other_reward_models_have_the_format_too(tmp_path):
    kind = tf.LlamaForSequenceClassification
    one = RewardModel.load(saved(kind, tmp_path / "one", num_labels=1), weights="int8")
    two = OutcomeModel.load(saved(kind, tmp_path / "two", num_labels=2), weights="int8")
    assert one.name == f"RewardModel('{tmp_path / 'one'}@int8')"
    assert two.name == f"OutcomeModel('{tmp_path / 'two'}@int8')"
    for found in (one, two):
        model = found._model.model
        assert type(model.model.layers[0].mlp.down_proj) is Int8Linear
        assert type(model.score) is PackedLinear  # a head of one or two outputs stays as it is


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights": "int4"}, r"weights='int4': 'int8', or None.*server"),
        ({"weights": "q8"}, r"weights='q8': 'int8', or None"),
        ({"weights": "int8", "pack": False}, "pack=True"),
    ],
)
def test_what_there_is_not_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        ppl.load("tiny", **given)


@pytest.mark.parametrize("dtype", ["float16", torch.float64])
def test_other_types_are_refused_by_name(dtype):
    said = rf"weights='int8' is for .*float32 or bfloat16.*{str(dtype).removeprefix('torch.')}"
    with pytest.raises(UnsupportedModelError, match=said):
        ppl.load("tiny", weights="int8", dtype=dtype)


def test_a_gpu_has_no_such_weights():
    with pytest.raises(ValueError, match=r"on a CPU, this one runs on cuda"):
        check_weights("int8", torch.device("cuda"), pack=True)


def test_models_whose_weights_are_elsewhere_are_refused():
    model = random_model(tf.GPT2Config(**GPT2))  # in layers of another kind
    ids = torch.arange(4)[None]
    with pytest.raises(UnsupportedModelError, match=r"gpt2: weights='int8'.*linear layers"):
        quantise_linears(model, "int8", lambda: model(input_ids=ids, use_cache=False), "gpt2")


# -- programs that are built ---------------------------------------------------------------------


def test_a_program_is_built_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("PPL_CACHE", str(tmp_path))
    runs = []
    run = building.subprocess.run
    monkeypatch.setattr(
        building.subprocess, "run", lambda *a, **k: runs.append(a[0]) or run(*a, **k)
    )
    building.built("int8.cpp")
    building.built("int8.cpp")
    (kept,) = (tmp_path / "native").iterdir()
    assert len(runs) == 1
    building.built("int8.cpp", PORTABLE=1)  # another program
    assert len(runs) == 2
    kept.chmod(0o666)  # anybody may have written it
    building.built("int8.cpp")
    assert len(runs) == 3
    elsewhere = tmp_path / "elsewhere" / "native"
    elsewhere.mkdir(parents=True, mode=0o700)
    (elsewhere / kept.name).write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setenv("PPL_CACHE", str(elsewhere.parent))
        building.built("int8.cpp")
    assert len(runs) == 4
    assert (elsewhere / kept.name).read_bytes() == kept.read_bytes()
    monkeypatch.setattr(building.Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        building.built("int8.cpp", PORTABLE=2)
    assert len(list((tmp_path / "native").iterdir())) == 2  # nothing half done stays


def test_a_cache_that_cannot_be_written_is_none(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PPL_CACHE", str(tmp_path / "file"))
    assert building.built("int8.cpp").multiply


def test_what_a_compiler_refuses_is_tried_once(monkeypatch, tmp_path):
    monkeypatch.setenv("PPL_CACHE", str(tmp_path))
    runs, run = [], building.subprocess.run
    monkeypatch.setattr(
        building.subprocess, "run", lambda *a, **k: runs.append(a[0]) or run(*a, **k)
    )
    monkeypatch.setenv("CXX", "g++ -nothing")
    for _ in range(2):  # as every layer of a model does
        with pytest.raises(RuntimeError, match="nothing"):
            building.built("int8.cpp")
    assert len(runs) == 1
    monkeypatch.setenv("CXX", "  ")  # as good as none
    assert building.built("int8.cpp").multiply
    monkeypatch.setenv("CXX", "g++ 'half")
    with pytest.raises(RuntimeError, match=r"CXX=.*half"):
        building.built("int8.cpp")


def test_without_a_compiler_the_remedy_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "g+++")
    quantised._program.cache_clear()
    try:
        with pytest.raises(UnsupportedModelError, match=r"no C\+\+ compiler 'g\+\+\+'.*without"):
            ppl.load("tiny", weights="int8")
    finally:
        quantised._program.cache_clear()
