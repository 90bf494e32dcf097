"""What one copy of a common beginning is worth: tokens a second and memory, with and without it.

    python tests/benchmarks/shared_prefix.py --dtype bfloat16 --compile

SmolLM2-135M-Instruct, plain sampling. `questions x rows` texts grow by `--new` tokens, those of a
question from one prompt, which nobody has computed before. "apart": each row has its prompt in its
own slot (as if the model's attention could not be taken in parts); "once": rows stand on one copy.
The sides take turns, the best run of each counts. "kept" is what the engine's memory holds at its
most, slots, trunks and prefix tree together.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from machine import machine

import ppl
from ppl.lm.base import ContinueRequest

CASES = ["1x64x2000", "8x16x550", "8x4x550", "1x32x550", "4x8x60"]


def fresh(lm: ppl.HFModel) -> None:
    """Empty memory, as after loading."""
    engine = lm.engine
    engine.pool.clear()
    engine.slots.rebuild(0, 1)
    engine.pool.held.most = 0


def run(lm: ppl.HFModel, case: str, new: int, seed: int) -> tuple[float, int]:
    """Tokens a second, and most bytes that were kept."""
    questions, rows, length = map(int, case.split("x"))
    fresh(lm)
    prompts = [
        tuple(3 + (i * 7919 + 104_729 * (q + 31 * seed)) % 40_000 for i in range(length))
        for q in range(questions)
    ]
    texts = [ppl.Text(prompt, lm.codec) for prompt in prompts for _ in range(rows)]
    started = time.perf_counter()
    drawn = lm.sample_batch(
        [
            ContinueRequest(lm, lm(text, max_tokens=new).spec, (seed << 32) + row)
            for row, text in enumerate(texts)
        ]
    )
    seconds = time.perf_counter() - started
    tokens = sum(len(d.value.tokens) for d in drawn if d is not None)
    return tokens / seconds, lm.engine.peak_nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description="a common beginning once, or with each row")
    parser.add_argument("--cases", nargs="+", default=CASES, help="questions x rows x tokens")
    parser.add_argument("--new", type=int, default=40)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kv-bytes", type=int, default=16 << 30)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from smollm2 import find_gguf

    dtype = getattr(torch, options.dtype)
    lm = ppl.load(
        find_gguf(), dtype=dtype, device="cpu", compile=options.compile, kv_bytes=options.kv_bytes
    )
    assert lm.engine.sharing.able
    print(machine())
    print(f"{options.dtype}{', compile=True' * options.compile}, best of {options.repeats}\n")
    print(f"{'case':>12}{'apart, tok/s':>14}{'once, tok/s':>13}{'ratio':>8}", end="")
    print(f"{'apart, MB':>12}{'once, MB':>11}{'ratio':>8}")
    run(lm, "1x2x80", 4, 0)
    for case in options.cases:
        best, kept = {True: 0.0, False: 0.0}, {True: 0, False: 0}
        for seed in range(options.repeats):
            for once in (False, True):
                lm.engine.sharing.able = once
                speed, nbytes = run(lm, case, options.new, seed)
                best[once], kept[once] = max(best[once], speed), max(kept[once], nbytes)
        print(f"{case:>12}{best[False]:>14.1f}{best[True]:>13.1f}", end="")
        print(f"{best[True] / best[False]:>8.2f}", end="")
        print(f"{kept[False] / 1e6:>12.1f}{kept[True] / 1e6:>11.1f}", end="")
        print(f"{kept[True] / kept[False]:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
