"""Time per step of adaptive branching as the tree grows, models excluded.

    python tests/benchmarks/tree_growth.py

The program costs nothing: one drawn number and one factor a step. A step draws from posteriors on
the way down, expands one node, and backs its score up.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from itertools import count

import pyro
import pyro.distributions as dist
from machine import machine

from ppl.searchers import ABMCTSA, ABMCTSM, Searcher


def program() -> None:
    """Steps with scores in [0, 1], without end."""
    before = 1.0
    for t in count():
        score = 0.2 + 0.6 * float(pyro.sample(f"x_{t}", dist.Uniform(0.0, 1.0)))
        pyro.factor(f"score_{t}", math.log(score / before))
        before = score


def main() -> None:
    parser = argparse.ArgumentParser(description="time per step as the tree grows")
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000, 3000, 10_000])
    options = parser.parse_args()
    print(machine())
    print("median milliseconds of the last hundred steps\n")
    print(f"{'searcher':<16}" + "".join(f"{f'{n} nodes':>14}" for n in options.nodes))
    makers: list[type[Searcher]] = [ABMCTSA, ABMCTSM]
    for make in makers:
        search = make(max(options.nodes)).begin(program, seed=0)  # type: ignore[call-arg]
        cells, times = [], []
        for number in range(1, max(options.nodes) + 1):
            started = time.perf_counter()
            search.step()
            times.append(time.perf_counter() - started)
            if number in options.nodes:
                cells.append(f"{statistics.median(times[-100:]) * 1e3:>14.2f}")
        search.tree.close()
        print(f"{make.__name__:<16}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
