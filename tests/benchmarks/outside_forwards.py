"""How much of a search's time is not spent in model forwards: SMC with a reward model, tiny model.

    python tests/benchmarks/outside_forwards.py

Scheduler, replay, resampling, sampling, bookkeeping: everything but the passes of the two models.
Also counts tokens: what the models computed against the distinct tokens of the genealogy, which is
what has to be computed if nothing is computed twice.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine

import ppl
from ppl.lm.engine.engine import Engine
from ppl.runtime.tree import Tree
from ppl.searchers import MCTS, SMC, Searcher
from ppl.tasks import problems
from ppl.verifiers import PRM


class Clock:
    """Adds up the time spent in a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def computed_and_distinct(tree: Tree, engine: Engine, judged: bool) -> tuple[int, int]:
    """Tokens that the engine computed, and the distinct ones that it had to compute.

    The last token of a text that nothing follows is drawn but never forwarded by the LM; a
    verifier reads it.
    """
    prefixes: set[tuple[int, ...]] = set()
    for node in tree.nodes:
        if node.text is not None:
            tokens = node.text.tokens if judged else node.text.tokens[:-1]
            prefixes |= {tokens[: i + 1] for i in range(len(tokens))}
    return engine.tokens_computed, len(prefixes)


def main() -> None:
    parser = argparse.ArgumentParser(description="time outside model forwards")
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from accuracy_vs_budget import solve

    lm, prm = ppl.load("tiny"), PRM.load("tiny")
    clock = Clock()
    for engine in (lm.engine, prm.engine):
        engine.runner._pass = clock.around(engine.runner._pass)  # type: ignore[method-assign]
        engine.runner._pack = clock.around(engine.runner._pack)  # type: ignore[method-assign]
    lm._head = clock.around(lm._head)
    if lm._bursts is not None:  # steps, heads and draws of several tokens
        lm._bursts._run = clock.around(lm._bursts._run)
    print(machine())
    searchers: dict[str, Searcher] = {
        f"SMC({options.particles})": SMC(options.particles),
        f"MCTS({options.particles})": MCTS(options.particles),
    }
    asked = problems("countdown", options.questions, seed=7)
    header = ("searcher", "ms/question", "outside", "LM computed/distinct", "PRM computed/distinct")
    print("{:<12}{:>14}{:>10}{:>22}{:>24}".format(*header))
    for name, searcher in searchers.items():
        shares, times = [], []
        counts = torch.zeros(4, dtype=torch.long)
        for i, problem in enumerate(asked):
            for engine in (lm.engine, prm.engine):
                engine.pool.clear()
                engine.runner.tokens_computed = 0
            clock.seconds = 0.0
            started = time.perf_counter()
            search = searcher.begin(solve, problem.question, lm, prm, seed=i)
            search.run()
            spent = time.perf_counter() - started
            shares.append(1 - clock.seconds / spent)
            times.append(spent)
            counts += torch.tensor(
                [
                    *computed_and_distinct(search.tree, lm.engine, judged=False),
                    *computed_and_distinct(search.tree, prm.engine, judged=True),
                ]
            )
        lm_ratio, prm_ratio = counts[0] / counts[1], counts[2] / counts[3]
        print(
            f"{name:<12}{statistics.median(times) * 1e3:>14.0f}{statistics.median(shares):>10.1%}"
            f"{lm_ratio:>22.3f}{prm_ratio:>24.3f}"
        )


if __name__ == "__main__":
    main()
