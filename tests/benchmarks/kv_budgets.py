"""What keys and values in eight bits, of a window, or those that heads keep, cost and save:
`ppl.load(..., kv=...)`.

    python tests/benchmarks/kv_budgets.py --dtype bfloat16

SmolLM2-135M-Instruct. Three tables, each with one line a setting:

* rows that run side by side over one prompt within `--kv-bytes`, most bytes that slots, trunks and
  prefix tree took, and new tokens a second with as many rows as "full" can run and with as many as
  fit. A pass also makes a copy of one layer's keys and values in the model's dtype where they are
  kept in eight bits; it is gone with the layer, and not in these bytes: "copy".
* texts that the full model drew, scored by each: difference of a token's log-probability (mean and
  mean magnitude), Kullback-Leibler divergence of its law from the full one's, and how often both
  have the same likeliest token.
* the embedded model `tiny-lines` on its task `lines/chain`: share of right answers, plain draws.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from machine import machine

import ppl
import ppl.tasks
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, Spec
from ppl.lm.sampling import Warp

SETTINGS = ["full", "int8", "window(128, 4)", "int8+window(128, 4)", "delayed(4, 64)"]
LINES = ["full", "int8", "window(24, 4)", "window(16, 4)", "window(8, 4)"]
LINES += ["delayed(2, 8)", "delayed(4, 16)", "delayed(4, 8)"]
QUESTIONS = [
    "Write a short story about a lighthouse keeper and a storm.",
    "Explain how a bicycle stays upright, step by step.",
    "Give me a recipe for vegetable soup and say why each step matters.",
    "What happened to the library of Alexandria? Tell it in order.",
]


def request(lm: ppl.HFModel, tokens: tuple[int, ...], new: int, seed: int) -> ContinueRequest:
    """A text that does not end before."""
    ends = lm.codec.end_tokens
    allowed = torch.tensor([t not in ends for t in range(lm.token_count)])
    return ContinueRequest(lm, Spec(tokens, StepRule(), new, Warp(), allowed), (seed << 32) + 1)


def run(lm: ppl.HFModel, prompt: int, new: int, rows: int) -> tuple[int, int, float, int]:
    """Most rows side by side, most bytes, tokens a second, and bytes of a layer's copy."""
    engine = lm.engine
    engine.pool.clear()
    engine.slots.rebuild(0, 1)
    engine.pool.held.most = 0
    text = tuple(3 + (i * 7919) % 40_000 for i in range(prompt))
    session = lm.session()
    started = time.perf_counter()
    for seed in range(rows):
        session.submit(request(lm, text, new, seed))
    while session.running:
        session.step()
    seconds = time.perf_counter() - started
    session.close()
    slots, copy = engine.slots, 0
    if slots.keeps.int8:
        copy = len(slots.all) * slots.length * slots.layout.widest * slots.dtype.itemsize
    return session.joined, engine.peak_nbytes, rows * new / seconds, copy


def memory(lms: dict[str, ppl.HFModel], prompt: int, new: int) -> None:
    print(f"{'kv':>22}{'B/token':>9}{'rows':>6}{'ratio':>7}{'MB':>8}{'copy, MB':>10}", end="")
    print(f"{'tok/s, alike':>14}{'tok/s, all':>12}")
    least = 0
    for kv, lm in lms.items():
        most = lm.most_rows([tuple(range(3, 3 + prompt))] * 2, [prompt + new] * 2)
        least = least or most
        run(lm, prompt, 2, 2)
        _, _, alike, _ = run(lm, prompt, new, least)
        joined, peak, speed, copy = run(lm, prompt, new, most)
        print(
            f"{kv:>22}{lm.engine._memory.bytes_per_token:>9}{joined:>6}{joined / least:>7.2f}",
            end="",
        )
        print(f"{peak / 1e6:>8.1f}{copy / 1e6:>10.2f}{alike:>14.1f}{speed:>12.1f}", flush=True)


@torch.inference_mode()
def deviation(lms: dict[str, ppl.HFModel], new: int) -> None:
    full = lms["full"]
    texts = [full.chat(question).tokens for question in QUESTIONS]
    drawn = full.sample_batch([request(full, t, new, i) for i, t in enumerate(texts)])
    values = [d.value.tokens for d in drawn if d is not None]
    laws: dict[str, torch.Tensor] = {}
    print(f"\n{'kv':>22}{'mean':>10}{'magnitude':>11}{'KL':>10}{'alike':>8}")
    for kv, lm in lms.items():
        logits = lm.logits_along(texts, values, [None] * len(texts))
        laws[kv] = torch.cat([torch.log_softmax(rows.float(), -1) for rows in logits])
        law, own = laws["full"], laws[kv]
        chosen = torch.tensor([t for value in values for t in value])[:, None]
        off = (own - law).gather(1, chosen)
        apart = (law.exp() * (law - own)).sum(-1).mean()
        alike = (law.argmax(-1) == own.argmax(-1)).float().mean()
        print(f"{kv:>22}{off.mean():>10.4f}{off.abs().mean():>11.4f}{apart:>10.5f}{alike:>8.3f}")


def accuracy(settings: list[str], draws: int) -> None:
    task = ppl.tasks.load("lines/chain")
    print(f"\n{'kv':>22}{'right':>8}{'error':>8}")
    for kv in settings:
        lm = ppl.load("tiny-lines", kv=kv)
        texts = [lm.chat(problem.question).tokens for problem in task.problems]
        spec = [Spec(t, StepRule(), 40, Warp(), None) for t in texts for _ in range(draws)]
        asked = [ContinueRequest(lm, s, (i << 32) + 7) for i, s in enumerate(spec)]
        marks = [
            bool(task.score(task.problems[i // draws], d.value.text))
            for i, d in enumerate(lm.sample_batch(asked))
            if d is not None
        ]
        share = sum(marks) / len(marks)
        error = math.sqrt(share * (1 - share) / len(marks))
        print(f"{kv:>22}{share:>8.3f}{error:>8.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="what is kept of keys and values")
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--lines", nargs="*", default=LINES, help="settings of tiny-lines")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the common prompt")
    parser.add_argument("--new", type=int, default=448, help="new tokens a row")
    parser.add_argument("--kv-bytes", type=int, default=100 << 20)
    parser.add_argument("--draws", type=int, default=8, help="of tiny-lines, a problem")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, help="torch threads")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from smollm2 import find_gguf

    settings = dict.fromkeys(["full", *options.settings])
    print(machine())
    print(f"{options.dtype}{', compile=True' * options.compile}, prompt {options.prompt}, ", end="")
    print(f"{options.new} new tokens, kv_bytes={options.kv_bytes}\n")
    accuracy(options.lines, options.draws)
    lms = {
        kv: ppl.load(
            find_gguf(),
            dtype=options.dtype,
            device="cpu",
            kv=kv,
            kv_bytes=options.kv_bytes,
            compile=options.compile,
        )
        for kv in settings
    }
    deviation(lms, options.new)
    print()
    memory(lms, options.prompt, options.new)


if __name__ == "__main__":
    main()
