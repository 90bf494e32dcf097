"""What adapters beside the weights cost: one model, two adapters, rows in one batch.

    PYTHONPATH=tests python tests/benchmarks/adapters.py [folder] [--rows 8 32] [--compile]
        [--scoring | --steps [--weights int8]]

Tokens per second, prompts included, of rows that go on by 32 tokens each, all in one run on one
thread: the model alone, an adapter in its weights, one beside them, and half of the rows with each
of two. Seconds are of processor time, so that others on the machine do not count. The adapters are
random, of rank 16, on queries, values, and the way up and down; without a folder the model is a
random one of 60 million parameters. With `--scoring`, instead: how long as many texts of each of
the two take in a batch of their own, as their scores do, beside one batch of both. With `--steps`,
instead: decode steps of SmolLM2-135M-Instruct in bfloat16 behind prompts that are known, without an
adapter anywhere, with random ones of ranks 8 and 16 on all layers but the head, in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import ppl
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, Spec
from ppl.lm.sampling import Warp
from ppl.lm.sources import TINY

RANK, NEW = 16, 32
PLACES = ("q_proj", "v_proj", "up_proj", "down_proj")


def random_model(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "lm")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=576, intermediate_size=1536, num_hidden_layers=12,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=1024,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_adapter(base: Path, folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    weights = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(PLACES):
            key = f"base_model.model.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(RANK, layer.in_features) * 0.02
            weights[f"{key}.lora_B.weight"] = torch.randn(layer.out_features, RANK) * 0.02
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def seconds(models: list[ppl.HFModel], rows: int, text: tuple[int, ...]) -> float:
    """The best of three batches, after one to warm up."""
    best = float("inf")
    for attempt in range(4):
        models[0].engine.pool.clear()  # else what was drawn before would be known
        spec = Spec(text, StepRule(), NEW, Warp(), None)
        requests = [
            ContinueRequest(models[i % len(models)], spec, 7919 * i + attempt) for i in range(rows)
        ]
        started = time.process_time()
        drawn = models[0].sample_batch(requests)
        took = time.process_time() - started
        tokens = sum(len(d.value.tokens) for d in drawn if d is not None)
        if attempt:
            best = min(best, took / tokens)
    return best


def apart_and_together(one: ppl.HFModel, two: ppl.HFModel, rows: int, length: int) -> list[float]:
    """Seconds for `rows` new texts of each of two models: a batch each, and one batch; the best of
    eight, in turns."""
    engine = one.engine
    texts = [tuple(torch.randint(5, 90, (length,)).tolist()) for _ in range(2 * rows)]
    asked = [one.marked(text) for text in texts[:rows]]
    asked += [two.marked(text) for text in texts[rows:]]
    best = [float("inf")] * 2
    for _ in range(8):
        for way, batches in enumerate(([asked[:rows], asked[rows:]], [asked])):
            engine.pool.clear()
            started = time.process_time()
            for batch in batches:
                engine.hidden(batch, [0] * len(batch))
            best[way] = min(best[way], time.process_time() - started)
    return best


def beside(lm: ppl.HFModel, folder: Path, rank: int, seed: int) -> ppl.HFModel:
    """The model with a random adapter on all of its layers but the head."""
    draws, weights = torch.Generator().manual_seed(seed), {}
    for name, layer in lm.model.named_modules():
        if name.endswith("_proj"):
            for part, sizes in {
                "A": (rank, layer.in_features),
                "B": (layer.out_features, rank),
            }.items():
                key = f"base_model.model.{name}.lora_{part}.weight"
                weights[key] = 0.02 * torch.randn(sizes, generator=draws)
    place = folder / f"rank{rank}-{seed}"
    place.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (place / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, place / "adapter_model.safetensors")
    return lm.with_adapter(place)


def steps(rows_of: list[int], weights: str | None, folder: Path) -> None:
    """Prints tokens per second of processor time, the best of four in turns after one."""
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from smollm2 import find_gguf

    def loaded() -> ppl.HFModel:
        return ppl.load(find_gguf(), device="cpu", dtype="bfloat16", weights=weights)

    alone, base = loaded(), loaded()
    few, one, two = (beside(base, folder, *kind) for kind in [(8, 0), (RANK, 0), (RANK, 1)])
    ways = {"alone": [alone], "alone, beside three": [base], "rank 8": [few], "rank 16": [one]}
    ways["two of 16, half each"] = [one, two]
    text = alone.prompt("What is 2 + 3? " * 8).tokens

    def once(models: list[ppl.HFModel], rows: int, attempt: int) -> float:
        def asked(most: int) -> list[ContinueRequest]:
            spec = Spec(text, StepRule(), most, Warp(), None)
            some = [models[i % len(models)] for i in range(rows)]
            return [ContinueRequest(lm, spec, 7919 * i + attempt) for i, lm in enumerate(some)]

        models[0].engine.pool.clear()
        models[0].sample_batch(asked(1))
        started = time.process_time()
        drawn = models[0].sample_batch(asked(NEW))
        took = time.process_time() - started
        return took / sum(len(d.value.tokens) for d in drawn if d is not None)

    for rows in rows_of:
        took = {way: [once(models, rows, 0)] for way, models in ways.items()}
        for attempt in range(1, 5):
            for way, models in ways.items():
                took[way].append(once(models, rows, attempt))
        for way, found in took.items():
            best, of_alone = min(found[1:]), min(took["alone"][1:])
            print(f"{rows:>5} {way:<22} {1 / best:>9.0f} {of_alone / best:>14.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--scoring", action="store_true")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--weights", choices=["int8"])
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        if asked.steps:
            steps(asked.rows, asked.weights, Path(name))
            return
        folder = asked.folder or random_model(Path(name) / "base")
        adapters = [random_adapter(folder, Path(name) / f"lora{i}") for i in range(2)]
        base = ppl.load(folder, compile=asked.compile)
        merged = ppl.load(folder, adapter=adapters[0], compile=asked.compile)
        text = base.prompt("What is 2 + 3? " * 8).tokens
        ways = {"model alone": [base], "in the weights": [merged]}
        alone = {
            rows: {n: seconds(m, rows, text) for n, m in ways.items()}
            for rows in asked.rows * (not asked.scoring)
        }
        one, two = (base.with_adapter(adapter) for adapter in adapters)
        if asked.scoring:
            for rows in asked.rows:
                for length in (8, 32, 128):
                    apart, both = apart_and_together(one, two, rows, length)
                    print(f"{rows} + {rows} texts of {length}: {apart / both:.2f} times together")
            return
        ways = {
            "model alone, beside two": [base],
            "one beside": [one],
            "two beside, half each": [one, two],
            "two and the model": [base, one, two],
        }
        print(f"{'rows':>5} {'way':<26} {'tokens/s':>9} {'of the merged':>14}")
        for rows in asked.rows:
            took = {**alone[rows], **{n: seconds(m, rows, text) for n, m in ways.items()}}
            for way, per_token in took.items():
                ratio = took["in the weights"] / per_token
                print(f"{rows:>5} {way:<26} {1 / per_token:>9.0f} {ratio:>14.2f}")


if __name__ == "__main__":
    main()
