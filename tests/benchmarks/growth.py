"""How the cost of a token grows with the number of rows and with the length of their texts.

    python tests/benchmarks/growth.py --plot growth.png

SmolLM2-135M-Instruct: rows that share their beginning stand at a length, and the engine appends
tokens to all of them. Also says what memory that took over the weights and the budget.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

from machine import machine

import ppl

STEPS = 6


def milliseconds_per_step(lm: ppl.HFModel, rows: int, length: int) -> float:
    """One decode step of all rows, logits included."""
    lm.engine.pool.clear()
    shared = tuple(3 + i % 40_000 for i in range(length // 2))
    texts = [
        shared + tuple(3 + (i + 7919 * row) % 40_000 for i in range(len(shared), length))
        for row in range(rows)
    ]
    opened, _ = lm.engine.open(texts)
    slots = [opened[text] for text in texts]
    longer = [(*text, 3) for text in texts]
    lm.logits(lm.engine.step(slots, longer))
    started = time.perf_counter()
    for _ in range(STEPS):
        longer = [(*text, 3) for text in longer]
        lm.logits(lm.engine.step(slots, longer))
    spent = time.perf_counter() - started
    for slot in slots:
        lm.engine.slots.leave(slot)
    return spent / STEPS * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description="cost of a token by rows and length")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024, 2048])
    parser.add_argument("--kv-bytes", type=int, default=6 << 30)
    parser.add_argument("--plot", type=Path, help="write a picture of the table there")
    options = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from smollm2 import find_gguf

    lm = ppl.load(find_gguf(), device="cpu", kv_bytes=options.kv_bytes)
    print(machine())
    print("milliseconds per token and row, float32; - where the rows do not fit the budget\n")
    print(f"{'rows':>5}" + "".join(f"{f'{n} tokens':>14}" for n in options.lengths))
    table: dict[int, list[tuple[int, float]]] = {n: [] for n in options.lengths}
    for rows in options.rows:
        cells = []
        for length in options.lengths:
            if rows > lm.batch_rows(length + STEPS + 1):
                cells.append(f"{'-':>14}")
                continue
            spent = milliseconds_per_step(lm, rows, length) / rows
            table[length].append((rows, spent))
            cells.append(f"{spent:>14.2f}")
        print(f"{rows:>5}" + "".join(cells), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\nkeys, values and states: peak {lm.engine.peak_nbytes / 1e9:.2f} GB of a budget of")
    print(f"{options.kv_bytes / 1e9:.2f} GB; the process: {peak / 1e9:.2f} GB in all")
    if options.plot:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        for length, points in table.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{length} tokens")
        axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="ms per token and row")
        axes.legend(title="length of each text")
        axes.grid(alpha=0.3)
        figure.savefig(options.plot, dpi=120)


if __name__ == "__main__":
    main()
