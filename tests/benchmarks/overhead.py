"""What a particle costs beside its models: microseconds per site, model time excluded.

    python tests/benchmarks/overhead.py

(a) 200 plain Pyro sites, (b) 100 sites of a language model that answers at once, each followed by
an observation (so that every step is a checkpoint), (c) replay: expanding the same deep node again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Sequence

import pyro
import pyro.distributions as dist
import torch
from machine import machine

import ppl
from ppl.lm.base import ContinueRequest, Drawn, ScoreRequest
from ppl.lm.table import SymbolCodec
from ppl.runtime.node import Node
from ppl.runtime.tree import Tree

PARTICLES = 16
HALF = torch.tensor(0.5)


class InstantSession:
    """Answers whatever was asked in one step."""

    joined = 0

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn
        self._asked: list[int] = []
        self._tickets = 0

    @property
    def running(self) -> bool:
        return bool(self._asked)

    def submit(self, request: ContinueRequest) -> int:
        self._tickets += 1
        self._asked.append(self._tickets)
        return self._tickets

    def cancel(self, tickets: Collection[int]) -> None:
        self._asked = [ticket for ticket in self._asked if ticket not in tickets]

    def step(self) -> dict[int, Drawn | None]:
        asked, self._asked = self._asked, []
        return dict.fromkeys(asked, self._drawn)

    def close(self) -> None:
        self._asked = []


class Instant(ppl.LanguageModel):
    """Continues every text by the same token, at once."""

    def __init__(self) -> None:
        self.name, self.context_length = "instant", 100_000
        self.codec = SymbolCodec("^a$", "$")
        self._drawn = Drawn(self.continuation("a"), -0.5)

    def session(self) -> InstantSession:
        return InstantSession(self._drawn)

    def score_batch(self, requests: Sequence[ScoreRequest]) -> list[float]:
        return [-0.5] * len(requests)


def deterministic_sites(sites: int) -> None:
    for t in range(sites):
        pyro.deterministic(f"x_{t}", HALF)
    ppl.condition(True)


def bernoulli_sites(sites: int) -> None:
    coin = dist.Bernoulli(HALF)
    for t in range(sites):
        pyro.sample(f"x_{t}", coin)
    ppl.condition(True)


def lm_sites(sites: int) -> None:
    text = LM.prompt("^")
    for t in range(sites):
        text = text + pyro.sample(f"x_{t}", LM(text, max_tokens=1))
    ppl.condition(True)


def lm_steps(sites: int) -> None:
    text = LM.prompt("^")
    for t in range(sites):
        text = text + pyro.sample(f"x_{t}", LM(text, max_tokens=1))
        pyro.factor(f"ok_{t}", HALF)


def deep(program: Callable[[int], None]) -> Callable[[int], None]:
    """`program` with one checkpoint after it and one more site, so that it can be forked there."""

    def forked(sites: int) -> None:
        program(sites)
        pyro.sample("more", dist.Bernoulli(HALF))
        pyro.factor("end", HALF)

    return forked


LM = Instant()


def first_run(program: Callable[[int], None], sites: int) -> float:
    """Microseconds per site and particle of running the program to its end."""
    tree = Tree(program, (sites,))
    started = time.perf_counter()
    leaves = tree.expand([tree.root], PARTICLES)
    while any(leaf.open for leaf in leaves):
        leaves = tree.expand(leaves)
    return (time.perf_counter() - started) / (PARTICLES * sites) * 1e6


def replay(program: Callable[[int], None], sites: int) -> float:
    """Microseconds per replayed site of forking a node behind all the program's sites."""
    tree = Tree(deep(program), (sites,))
    node: Node = tree.expand([tree.root])[0]
    while sum(r.kind != "twist" for r in node.history) < sites or not node.open:
        node = tree.expand([node])[0]
    tree.expand([node])  # uses up the node's own particle and computes the fingerprints
    tree.expand([node])
    records = len(node.history)
    started = time.perf_counter()
    tree.expand([node], PARTICLES)
    return (time.perf_counter() - started) / (PARTICLES * records) * 1e6


def main() -> None:
    print(machine())
    print(f"{PARTICLES} particles, medians of 5, microseconds per site and particle\n")
    rows: tuple[tuple[str, Callable[[int], None], int], ...] = (
        ("200 pyro.deterministic sites", deterministic_sites, 200),
        ("200 Bernoulli sites", bernoulli_sites, 200),
        ("100 lm sites, one checkpoint", lm_sites, 100),
        ("100 lm sites + factors, 100 checkpoints", lm_steps, 100),
    )
    print(f"{'program':<42}{'first run':>12}{'replay':>12}")
    for name, program, sites in rows:
        first_run(program, sites)
        first = statistics.median(first_run(program, sites) for _ in range(5))
        again = statistics.median(replay(program, sites) for _ in range(5))
        print(f"{name:<42}{first:>12.1f}{again:>12.1f}")
    print("\nfirst run: per named site of the first column; replay: per replayed record.")


if __name__ == "__main__":
    main()
