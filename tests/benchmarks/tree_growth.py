"""Time per step of adaptive branching as the tree grows, models excluded.

    python tests/benchmarks/tree_growth.py

    python -m venv other && other/bin/pip install treequest==0.3.3
    python tests/benchmarks/tree_growth.py --treequest other/bin/python

A step's work costs nothing: a drawn number, which is the score. A step draws from posteriors on the
way down, expands one node, and backs its score up. Every searcher runs in a process of its own;
treequest, the authors' library, changes its state in place, which is its faster way. Its
variant M runs a Markov chain of some seconds for every decision and is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable


def by_ppl(kind: str, nodes: int) -> Callable[[], object]:
    """What makes one step."""
    import math
    from itertools import count

    import pyro
    import pyro.distributions as dist

    import ppl.searchers

    def program() -> None:
        """Steps with scores in [0.2, 0.8], without end."""
        before = 1.0
        for t in count():
            score = 0.2 + 0.6 * float(pyro.sample(f"x_{t}", dist.Uniform(0.0, 1.0)))
            pyro.factor(f"score_{t}", math.log(score / before))
            before = score

    # One more than is timed: the last would run the best node on to an end that it does not have.
    search = getattr(ppl.searchers, kind)(nodes + 1).begin(program, seed=0)
    step: Callable[[], object] = search.step
    return step


def by_treequest(kind: str, nodes: int) -> Callable[[], object]:
    """What makes one step; runs where treequest is installed."""
    import random

    import numpy as np
    import treequest

    np.random.seed(0)
    rng = random.Random(0)
    searcher = getattr(treequest, kind)()
    state = searcher.init_tree()
    generate = {"a new child": lambda _: ("", 0.2 + 0.6 * rng.random())}
    return lambda: searcher.step(state, generate, inplace=True)


def timed(step: Callable[[], object], nodes: list[int]) -> list[float]:
    """Median seconds of the last hundred steps at these sizes of the tree."""
    medians, times = [], []
    for number in range(1, max(nodes) + 1):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
        if number in nodes:
            medians.append(statistics.median(times[-100:]))
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description="time per step as the tree grows")
    parser.add_argument("--treequest", help="python of an environment that has treequest")
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000, 3000, 10_000])
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        library, kind = options.side
        begin = by_ppl if library == "ppl" else by_treequest
        print(json.dumps(timed(begin(kind, max(options.nodes)), options.nodes)))
        return
    from machine import machine

    print(machine())
    print("median milliseconds of the last hundred steps\n")
    print(f"{'searcher':<20}" + "".join(f"{f'{n} nodes':>14}" for n in options.nodes), flush=True)
    sides = [(sys.executable, "ppl", "ABMCTSA"), (sys.executable, "ppl", "ABMCTSM")]
    if options.treequest:
        sides.insert(0, (options.treequest, "treequest", "ABMCTSA"))
    for python, library, kind in sides:
        command = [python, __file__, "--side", library, kind]
        command += ["--nodes", *map(str, options.nodes)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        medians = json.loads(done.stdout.splitlines()[-1])
        cells = "".join(f"{1e3 * median:>14.2f}" for median in medians)
        print(f"{f'{library} {kind}':<20}{cells}", flush=True)


if __name__ == "__main__":
    main()
