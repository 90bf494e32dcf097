"""Tokens per second of the engine against `transformers` generate(), same prompt, same length.

    python tests/benchmarks/generate_vs_ppl.py --rows 1 8 32 64 --dtype bfloat16

SmolLM2-135M-Instruct; a prompt of 60 tokens, 64 new tokens a row (rows that end early count what
they drew). The engine also computes and keeps log-probabilities, and shares the prompt between
rows; its prefix cache is emptied before every run, so that both sides compute the prompt.

Besides whole continuations, the engine is driven as searches drive it: in steps of 16 tokens and
token by token, where after every step half of the rows are dropped and the others forked, as a
resampling does. The last column is the bound of the processor: the products with all weights alone,
packed as ours are, for as many rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from machine import machine

import ppl
from ppl.lm.base import ContinueRequest
from ppl.lm.engine.linear import LaidOutLinear

PROMPT_TOKENS, NEW_TOKENS = 60, 64
STORY = (
    "Once upon a time there was an old lighthouse on a small island far out in the sea. Every "
    "evening its keeper climbed the narrow stairs, cleaned the lamp, and looked for ships. One "
    "stormy night in autumn he saw a light that he had never seen before, and he wondered who "
    "could be out there in such weather. He took his coat and"
)


def by_ppl(lm: ppl.HFModel, prompt: ppl.Text, rows: int, seed: int, step: int) -> float:
    """Tokens per second; `step` tokens at a time, resampling in between."""
    lm.engine.pool.clear()
    texts, tokens, done = [prompt] * rows, 0, 0
    started = time.perf_counter()
    while done < NEW_TOKENS and texts:
        requests = [
            ContinueRequest(lm, lm(text, max_tokens=step).spec, (seed << 32) + (done << 16) + row)
            for row, text in enumerate(texts)
        ]
        drawn = [d.value for d in lm.sample_batch(requests) if d is not None]
        tokens += sum(len(value.tokens) for value in drawn)
        done += step
        grown = [t + v for t, v in zip(texts, drawn, strict=True) if not v.finished]
        texts = [grown[i // 2] for i in range(len(grown))]  # the first half, each twice
    return tokens / (time.perf_counter() - started)


@torch.inference_mode()
def by_products(lm: ppl.HFModel, rows: int) -> float:
    """Tokens per second if a step were nothing but its products with the weights."""
    layers = [m for m in lm.model.modules() if isinstance(m, LaidOutLinear)]
    inputs = [torch.randn(rows, m.in_features).to(lm.model.dtype) for m in layers]
    started = time.perf_counter()
    for _ in range(10):
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)
    return 10 * rows / (time.perf_counter() - started)


def by_generate(lm: ppl.HFModel, prompt: ppl.Text, rows: int, seed: int) -> float:
    torch.manual_seed(seed)
    ids = torch.tensor([prompt.tokens] * rows)
    ends = sorted(lm.codec.end_tokens)
    started = time.perf_counter()
    with torch.inference_mode():
        out = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            temperature=1.0,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
    seconds = time.perf_counter() - started
    return sum(real_length(row, ends) for row in out[:, ids.shape[1] :].tolist()) / seconds


def real_length(row: Sequence[int], ends: Sequence[int]) -> int:
    """Tokens up to and with the first that ends the text."""
    return next((i + 1 for i, token in enumerate(row) if token in ends), len(row))


def main() -> None:
    parser = argparse.ArgumentParser(description="generate() against ppl, tokens per second")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="ours with compile=True")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from smollm2 import find_gguf

    dtype = getattr(torch, options.dtype)
    lm = ppl.load(find_gguf(), dtype=dtype, device="cpu", compile=options.compile)
    plain = ppl.load(find_gguf(), dtype=dtype, device="cpu", pack=False)
    prompt = ppl.Text(lm.encode(STORY)[:PROMPT_TOKENS], lm.codec)
    assert len(prompt) == PROMPT_TOKENS
    sides: dict[str, Callable[[int, int], float]] = {
        "generate": lambda rows, seed: by_generate(plain, prompt, rows, seed),
        "ppl": lambda rows, seed: by_ppl(lm, prompt, rows, seed, NEW_TOKENS),
        "16 a step": lambda rows, seed: by_ppl(lm, prompt, rows, seed, 16),
        "1 a step": lambda rows, seed: by_ppl(lm, prompt, rows, seed, 1),
        "bound": lambda rows, _: by_products(lm, rows),
    }
    print(machine())
    how = f"{options.dtype}{', compile=True' * options.compile}"
    print(f"{how}, tokens/s, medians of {options.repeats}, the sides taking turns\n")
    print(f"{'rows':>4}" + "".join(f"{name:>12}" for name in sides) + f"{'ppl / generate':>16}")
    for side in sides.values():
        side(2, 0)
    for rows in options.rows:
        runs = [[side(rows, seed) for side in sides.values()] for seed in range(options.repeats)]
        speeds = [statistics.median(side) for side in zip(*runs, strict=True)]
        print(
            f"{rows:>4}"
            + "".join(f"{speed:>12.1f}" for speed in speeds)
            + f"{speeds[1] / speeds[0]:>16.2f}",
            flush=True,
        )
    print(f"\nload at the end: {machine().split('load ')[1].split(';')[0]}")


if __name__ == "__main__":
    main()
