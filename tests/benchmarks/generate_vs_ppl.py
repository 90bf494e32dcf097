"""Tokens per second of the engine against `transformers` generate(), same prompt, same length.

    python tests/benchmarks/generate_vs_ppl.py

SmolLM2-135M-Instruct in float32; a prompt of 60 tokens, 64 new tokens a row (rows that end early
count what they drew). ppl also computes and keeps log-probabilities, and shares the prompt between
rows; its prefix cache is emptied before every run, so that both sides compute the prompt.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from machine import machine

import ppl
from ppl.lm.base import ContinueRequest

PROMPT_TOKENS, NEW_TOKENS = 60, 64
STORY = (
    "Once upon a time there was an old lighthouse on a small island far out in the sea. Every "
    "evening its keeper climbed the narrow stairs, cleaned the lamp, and looked for ships. One "
    "stormy night in autumn he saw a light that he had never seen before, and he wondered who "
    "could be out there in such weather. He took his coat and"
)


def by_ppl(lm: ppl.HFModel, prompt: ppl.Text, rows: int, seed: int) -> float:
    lm.engine.pool.clear()
    spec = lm(prompt, max_tokens=NEW_TOKENS).spec
    requests = [ContinueRequest(lm, spec, (seed << 32) + row) for row in range(rows)]
    started = time.perf_counter()
    drawn = lm.sample_batch(requests)
    seconds = time.perf_counter() - started
    return sum(len(d.value.tokens) for d in drawn if d is not None) / seconds


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
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, help="torch threads")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from smollm2_constrained import find_gguf

    lm = ppl.load(find_gguf(), dtype=torch.float32, device="cpu")
    prompt = ppl.Text(lm.encode(STORY)[:PROMPT_TOKENS], lm.codec)
    assert len(prompt) == PROMPT_TOKENS
    print(machine())
    print("medians of 3, the two sides taking turns\n")
    print(f"{'rows':>4}{'ppl, tokens/s':>16}{'generate, tokens/s':>20}{'ppl / generate':>16}")
    by_ppl(lm, prompt, 1, 0)
    by_generate(lm, prompt, 1, 0)
    for rows in options.rows:
        pairs = [
            (by_ppl(lm, prompt, rows, seed), by_generate(lm, prompt, rows, seed))
            for seed in (1, 2, 3)
        ]
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{rows:>4}{ours:>16.1f}{theirs:>20.1f}{ours / theirs:>16.2f}", flush=True)
    print(f"\nload at the end: {machine().split('load ')[1].split(';')[0]}")


if __name__ == "__main__":
    main()
