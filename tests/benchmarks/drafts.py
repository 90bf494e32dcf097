"""Guesses of next tokens (`ppl.load(..., drafts=)`): tokens per second with and without, in turns.

    python tests/benchmarks/drafts.py --rows 1 8 32 --work copy list story --repeats 2
    python tests/benchmarks/drafts.py --rows 1 8 --work copy story --dtype float32 --small int8

SmolLM2-135M-Instruct, one engine, 64 tokens a row at most. Work: a text to be copied, a list and a
word problem solved in steps (temperature 0.5), and a story that goes on (temperature 1). Rows of a
batch, and two batches before it, are siblings: one question, other seeds. The sides have the same
seeds, so they draw the same tokens, up to rounding; computed prompts are forgotten before every
run, what guesses are made from is not. `always` guesses as far as it can, `auto` as far as it has
measured that it pays. Texts are forgotten between the lines of the table; what passes cost and how
often guesses are right is kept, as by any program that asks one model one thing after another.
`--small int8`: the same model with weights of eight bits guesses, a stand-in for a small model with
a large one's tokenizer. "first": the ratio of the first batch, which knows no sibling yet. "tokens
a pass": of a row; 1 without guesses.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from generate_vs_ppl import STORY, real_length
from machine import machine

import ppl
from ppl.lm.base import ContinueRequest
from ppl.lm.drafts import Drafts
from ppl.lm.guessing import Drafting

NEW_TOKENS = 64
WORK = {
    "copy": (
        "Repeat the following text word for word, and nothing else:\n\nThe committee met on "
        "Tuesday the 14th of March 1893 in the old town hall of Bergen. Present were Messrs. "
        "Halvorsen, Lindqvist and Aakre; Mrs. Solberg had sent her regrets. The minutes of the "
        "last meeting, of the 28th of February, were read and approved without changes.",
        0.5,
    ),
    "list": (
        "Write the numbers from 1 to 20, one per line, as '1. one', '2. two', and so on.",
        0.5,
    ),
    "steps": (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
        "May. How many clips did Natalia sell altogether in April and May? Think step by step.",
        0.5,
    ),
    "story": (STORY, 1.0),
}


def run(lm: ppl.HFModel, prompt: ppl.Text, heat: float, rows: int, seed: int) -> tuple[float, int]:
    """Seconds, and tokens drawn."""
    lm.engine.pool.clear()
    spec = lm(prompt, max_tokens=NEW_TOKENS, temperature=heat).spec
    requests = [ContinueRequest(lm, spec, (seed << 32) + row) for row in range(rows)]
    started = time.perf_counter()
    drawn = lm.sample_batch(requests)
    seconds = time.perf_counter() - started
    ends = sorted(lm.codec.end_tokens)
    return seconds, sum(real_length(d.value.tokens, ends) for d in drawn if d is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description="with and without guesses, tokens per second")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--work", nargs="+", default=list(WORK), choices=list(WORK))
    parser.add_argument("--sides", nargs="+", default=["auto"], choices=["auto", "always"])
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--weights", choices=["int8"])
    parser.add_argument("--small", choices=["int8"], help="who guesses, instead of siblings")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="with compile=True")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from smollm2 import find_gguf

    dtype = getattr(torch, options.dtype)
    settings = {"dtype": dtype, "device": "cpu", "compile": options.compile}
    lm = ppl.load(find_gguf(), weights=options.weights, **settings)
    source = "siblings"
    if options.small:
        source = ppl.load(find_gguf(), weights=options.small, **settings | {"compile": False})
    sides = {
        side: Drafting(Drafts(source, depth=options.depth, switch=side), lm.engine.vocabulary)
        for side in options.sides
    }
    run(lm, lm.prompt(STORY), 1.0, 1, 99)  # what the first pass of a process makes
    print(machine())
    how = f"{options.dtype}{', weights=int8' * bool(options.weights)}"
    how += f", drafts by {options.small}" if options.small else ""
    print(f"{how}{', compile=True' * options.compile}, medians of {options.repeats}, in turns\n")
    print("work    rows  side      off tok/s   with tok/s    ratio  first  right  tokens a pass")
    for work in options.work:
        text, heat = WORK[work]
        prompt = lm.prompt(text) if work == "story" else lm.chat(text)
        for rows in options.rows:
            measure(lm, prompt, heat, rows, sides, options.repeats, work)


def measure(
    lm: ppl.HFModel,
    prompt: ppl.Text,
    heat: float,
    rows: int,
    sides: dict[str, Drafting],
    repeats: int,
    work: str,
) -> None:
    """Lines of the table."""
    firsts = {}
    for side in sides.values():
        side.forget()
    for seed in (1000, 1001):  # siblings that ran before, with seeds of their own
        speeds = {}
        for name in ("off", *sides):
            lm.drafts = sides.get(name)
            seconds, tokens = run(lm, prompt, heat, rows, seed)
            speeds[name] = tokens / seconds
        firsts = firsts or {name: speeds[name] / speeds["off"] for name in sides}
    for side in sides.values():
        side.tokens_drafted = side.tokens_accepted = side.row_passes = 0
    found: dict[str, list[float]] = {name: [] for name in ("off", *sides)}
    drawn = dict.fromkeys(found, 0)
    for seed in range(repeats):
        for name, each in found.items():
            lm.drafts = sides.get(name)
            seconds, tokens = run(lm, prompt, heat, rows, seed)
            each.append(tokens / seconds)
            drawn[name] += tokens
    off = statistics.median(found["off"])
    for name, side in sides.items():
        fast = statistics.median(found[name])
        pairs = zip(found["off"], found[name], strict=True)
        ratio = statistics.median(b / a for a, b in pairs)
        # The first token of a row needs no pass of a batch.
        a_pass = (drawn[name] - rows * repeats) / max(1, side.row_passes)
        print(
            f"{work:<7} {rows:>4}  {name:<7} {off:>11.1f} {fast:>12.1f} {ratio:>8.2f} "
            f"{firsts[name]:>6.2f} {side.acceptance:>6.2f} {a_pass:>14.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
