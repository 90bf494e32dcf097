"""SMC on a plain state-space model against Pyro's own filter, `pyro.infer.SMCFilter`: CPU time.

    python tests/benchmarks/against_smcfilter.py

The linear-Gaussian model x' = .9 x + N(0, .5), y = 1.5 x + N(0, .8), T observations, N particles,
resampling below half of the effective sample size on both sides. `SMCFilter` runs one model for
all particles, its variables tensors of N rows, and so does `VectorizedSMC`; `SMC` runs the program
for each particle on its own. All are compared with the Kalman filter; `SMCFilter` has no evidence.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from machine import machine
from pyro.infer import SMCFilter

from ppl.searchers import SMC, VectorizedSMC

Series = tuple[float, ...]
Side = Callable[[Series, int, int], tuple[float, float]]


def program(observations: Series) -> torch.Tensor:
    """The model from one particle's point of view; for `VectorizedSMC` x is a tensor `[N]`."""
    x = pyro.sample("x_0", dist.Normal(torch.tensor(0.0), 1.0))
    for t, y in enumerate(observations):
        if t:
            x = pyro.sample(f"x_{t}", dist.Normal(0.9 * x, 0.5))
        pyro.sample(f"y_{t}", dist.Normal(1.5 * x, 0.8), obs=torch.tensor(y))
    return x


class Rows:
    """The same model for `SMCFilter`: `x` is a tensor `[N]`, and the caller drives the time."""

    def init(self, state: dict[str, torch.Tensor], y: torch.Tensor | None = None) -> None:
        self._observe(state, pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0)), y)

    def step(self, state: dict[str, torch.Tensor], y: torch.Tensor | None = None) -> None:
        self._observe(state, pyro.sample("x", dist.Normal(0.9 * state["x"], 0.5)), y)

    def _observe(
        self, state: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor | None
    ) -> None:
        if y is not None:  # the model; the guide only proposes and may not write
            state["x"] = x
            pyro.sample("y", dist.Normal(1.5 * x, 0.8), obs=y)


class Proposal(Rows):
    """The bootstrap proposal."""

    def init(self, state: dict[str, torch.Tensor], y: torch.Tensor | None = None) -> None:
        super().init(state)

    def step(self, state: dict[str, torch.Tensor], y: torch.Tensor | None = None) -> None:
        super().step(state)


def by_pyro(observations: Series, particles: int, seed: int) -> tuple[float, float]:
    """The mean of the last state, and no evidence."""
    pyro.set_rng_seed(seed)
    search = SMCFilter(Rows(), Proposal(), particles, max_plate_nesting=0)
    search.init(y=torch.tensor(observations[0]))
    for y in observations[1:]:
        search.step(y=torch.tensor(y))
    return float(search.get_empirical()["x"].mean), math.nan


def by_rows(observations: Series, particles: int, seed: int) -> tuple[float, float]:
    """The mean of the last state and the log-evidence, one run for all particles."""
    posterior = VectorizedSMC(particles).run(program, observations, seed=seed)
    return posterior.expectation(float), float(posterior.log_evidence or math.nan)


def by_particle(observations: Series, particles: int, seed: int) -> tuple[float, float]:
    """The same, a run for each particle."""
    posterior = SMC(particles).run(program, observations, seed=seed)
    return posterior.expectation(float), float(posterior.log_evidence or math.nan)


def kalman(observations: Series) -> tuple[float, float]:
    """Mean of the last state given all observations, and the log-evidence."""
    mean, variance, log_evidence = 0.0, 1.0, 0.0
    for t, y in enumerate(observations):
        if t:
            mean, variance = 0.9 * mean, 0.81 * variance + 0.25
        spread = 2.25 * variance + 0.64
        off = y - 1.5 * mean
        log_evidence -= (math.log(2 * math.pi * spread) + off**2 / spread) / 2
        gain = 1.5 * variance / spread
        mean, variance = mean + gain * off, (1 - 1.5 * gain) * variance
    return mean, log_evidence


def simulated(length: int, seed: int) -> Series:
    """Observations drawn from the model."""
    pyro.set_rng_seed(seed)
    x, observations = torch.randn(()), []
    for t in range(length):
        if t:
            x = 0.9 * x + 0.5 * torch.randn(())
        observations.append(float(1.5 * x + 0.8 * torch.randn(())))
    return tuple(observations)


def profiled(side: Side, observations: Series, particles: int) -> None:
    """Where the time goes, by function."""
    profile = cProfile.Profile()
    profile.runcall(side, observations, particles, 0)
    pstats.Stats(profile).sort_stats("tottime").print_stats(20)


SIDES = {"SMCFilter": by_pyro, "VectorizedSMC": by_rows, "SMC": by_particle}


def main() -> None:
    parser = argparse.ArgumentParser(description="SMC against pyro.infer.SMCFilter, CPU time")
    parser.add_argument("--particles", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--steps", type=int, default=50, help="observations T")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most", type=int, default=100, help="most particles of plain SMC")
    parser.add_argument("--profile", choices=list(SIDES), help="profile this side instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    observations = simulated(options.steps, seed=0)
    if options.profile:
        profiled(SIDES[options.profile], observations, options.particles[0])
        return
    print(machine())
    mean, log_evidence = kalman(observations)
    print(f"T = {options.steps}; exact: last state {mean:.3f}, log-evidence {log_evidence:.3f}")
    print("CPU time, medians; an evaluation is one particle and one step; means of the runs\n")
    titles = ["s", "us/evaluation", "/ SMCFilter", "last state", "log-evidence"]
    print(f"{'particles':>9}{'':>15}" + "".join(f"{title:>14}" for title in titles))
    for particles in options.particles:
        base = 0.0
        for name, side in SIDES.items():
            if name == "SMC" and particles > options.most:
                continue
            seconds, found, failed = [], [], 0
            for seed in range(options.repeats):
                started = time.process_time()
                try:
                    found.append(side(observations, particles, seed))
                except IndexError:  # SMCFilter's systematic resampling, see docs/peers.md
                    failed += 1
                    continue
                seconds.append(time.process_time() - started)
            median = statistics.median(seconds)
            base = base or median
            each = 1e6 * median / particles / options.steps
            states, evidences = (statistics.fmean(side) for side in zip(*found, strict=True))
            line = f"{particles:>9}{name:>15}{median:>14.4f}{each:>14.3f}{median / base:>14.1f}"
            line += f"{states:>14.3f}{evidences:>14.3f}"
            print(line + (f"   {failed} of {options.repeats} runs failed" if failed else ""))


if __name__ == "__main__":
    main()
