"""The GPU benchmark on a CPU: its sides draw what is asked for, and its arithmetic is right."""

from __future__ import annotations

import gc
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

import ppl

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import gpu
import shapes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_shape():
    return shapes.random_model("tiny", CPU)


@pytest.mark.parametrize(
    ("shape", "parameters", "kv_bytes"),
    [
        # The sizes that the models' pages on the hub state; 28 layers of 2 or 4 heads of 128.
        ("qwen2.5-1.5b", 1_543_714_304, 28 * 2 * 2 * 128 * 2),
        ("qwen2.5-7b", 7_615_616_512, 28 * 2 * 4 * 128 * 2),
    ],
)
def test_the_shapes_are_those_of_the_published_models(shape, parameters, kv_bytes):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            Qwen2Config(**shapes.SHAPES[shape]), dtype=torch.bfloat16
        )
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert shapes.kv_bytes_per_token(model) == kv_bytes


def test_a_step_reads_weights_once_and_a_shared_prompt_once(tiny_shape):
    own, shared = (gpu.step_bytes(tiny_shape, gpu.Setting(s, 8, 100, 20)) for s in (False, True))
    key = shapes.kv_bytes_per_token(tiny_shape)
    weights = sum(p.nbytes for p in tiny_shape.parameters())
    # 8 rows hold 111 tokens each half-way: the prompt, the first new one, and half of the rest.
    assert own == weights + 8 * 111 * key
    assert own - shared == 7 * 100 * key

    untied = AutoModelForCausalLM.from_config(
        Qwen2Config(**{**shapes.SHAPES["tiny"], "tie_word_embeddings": False}), dtype=torch.bfloat16
    )
    assert gpu.step_bytes(untied, gpu.Setting(False, 8, 100, 20)) == own  # an embedding is a lookup


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rows", [1, 5])
def test_the_budget_holds_all_rows_side_by_side(tiny_shape, shared, rows):
    setting = gpu.Setting(shared, rows, 50, 13)  # 64 tokens, a whole slot
    lm = gpu._language_model(tiny_shape, setting, graphs=False)
    session = lm.session()
    for request in gpu._requests(lm, setting.prompts(1024, 0), 14):
        session.submit(request)
    while session.running:
        session.step()
    session.close()
    assert session.joined == rows
    assert lm.engine.passes == 1 + 13
    assert lm.engine.peak_nbytes <= gpu.budget(tiny_shape, setting)
    assert lm.batch_rows(65) < rows or rows == 1


def test_no_row_can_end_early(tiny_shape):
    lm = gpu._language_model(tiny_shape, gpu.Setting(True, 1, 8, 8), graphs=False)
    assert lm.logits(torch.zeros(1, 64, dtype=torch.bfloat16)).shape[-1] <= min(lm.codec.end_tokens)


def test_prompts_are_shared_or_not_and_new_in_every_run():
    shared, separate = (gpu.Setting(s, 4, 30, 8) for s in (True, False))
    assert len(set(shared.prompts(1000, 1))) == 1
    assert len(set(separate.prompts(1000, 1))) == 4
    assert set(separate.prompts(1000, 1)).isdisjoint(separate.prompts(1000, 2))


def test_a_side_that_draws_fewer_tokens_is_refused(tiny_shape, monkeypatch):
    setting = gpu.Setting(True, 2, 8, 8)
    monkeypatch.setattr(ppl.HFModel, "sample_batch", lambda *_: [None, None])
    refusal = gpu.measure(tiny_shape, "ppl", setting, 1)
    assert refusal == "refused: drew [0, 0] tokens, not 9 for each of 2 rows"


def test_the_script_prints_a_line_for_every_side(capsys):
    small = ["--rows", "3", "--context", "24", "--new-tokens", "8", "--repeats", "1"]
    gpu.main(["--shape", "tiny", "--device", "cpu", *small, "--profile"])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith(("shared ", "separate "))]
    assert len(lines) == 2 * len(gpu.SIDES)
    for line in lines:
        if " vllm " in line and not importlib.util.find_spec("vllm"):
            assert "refused: vllm is not installed here" in line
        elif "graphs" in line or "compiled" in line:
            assert "refused: graphs=True: CUDA graphs need a GPU" in line
        else:
            first, whole = map(float, line[31:].split()[:2])
            assert first >= 0
            assert whole > 0
    assert printed.count("a step: ") == 2  # the others are refused
    assert "aten::addmm" in printed


def test_the_script_names_tests_that_there_are():
    script = (Path(gpu.__file__).parent / "gpu.sh").read_text()
    words = re.search(r"exact='([^']*)'", script)[1].split(" or ")
    (files,) = re.findall(r"tests=\(tests/test_\{(.*)\}\.py\)", script)
    there = [Path(__file__).parent / f"test_{name}.py" for name in files.split(",")]
    names = [name for file in there for name in re.findall(r"def (test_\w+)", file.read_text())]
    assert {word for word in map(str.strip, words) if not any(word in n for n in names)} == set()
    for seconds in re.findall(r"_SECONDS:-(\d+)", script):
        assert int(seconds) > 100
    assert sum(map(int, re.findall(r"_SECONDS:-(\d+)", script))) < 480


def test_what_cannot_be_timed_is_an_error(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--shape", "tiny", "--new-tokens", "4"])
    assert "too few to time" in capsys.readouterr().err


@pytest.mark.parametrize("side", ["batching", "ppl"])
def test_a_side_leaves_no_memory_to_the_next(tiny_shape, side):
    def held():
        gpu.free(CPU)
        kinds = {"Engine", "Slots", "ContinuousBatchProcessor"}
        return sum(type(thing).__name__ in kinds for thing in gc.get_objects())

    before = held()  # other tests may hold some
    assert isinstance(gpu.measure(tiny_shape, side, gpu.Setting(True, 2, 8, 8), 1), gpu.Measured)
    assert held() <= before
    assert tiny_shape.config._attn_implementation == "sdpa"
