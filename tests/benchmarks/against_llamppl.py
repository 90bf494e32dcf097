"""Token-level SMC against llamppl: the same program, model, particles and tokens.

    python -m venv other && other/bin/pip install llamppl==0.2.3 genlm-backend==0.3.1
    python tests/benchmarks/against_llamppl.py --llamppl other/bin/python

SmolLM2-135M-Instruct; every token is a step with a soft potential, and the particles are resampled
when their effective sample size falls below half. Both sides run in processes of their own, taking
turns; loading is not counted. llamppl is driven as its documentation says: the prompt's keys and
values cached, `smc_standard`, steps awaited together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

STORY = (
    "Once upon a time there was an old lighthouse on a small island far out in the sea. Every "
    "evening its keeper climbed the narrow stairs, cleaned the lamp, and looked for ships. One "
    "stormy night in autumn he saw a light that he had never seen before, and he wondered who "
    "could be out there in such weather. He took his coat and"
)


def potential(token: str) -> float:
    """Log-potential of a token: a mild liking for the letter e."""
    return 0.5 * ("e" in token)


def by_ppl(folder: str, particles: int, tokens: int, repeats: int, compile: bool) -> list[float]:
    """Tokens per second of each repeat."""
    import pyro

    import ppl
    from ppl.searchers import SMC

    lm = ppl.load(folder, device="cpu", compile=compile)

    def program() -> None:
        text = lm.prompt(STORY)
        for t in range(tokens):
            step = pyro.sample(f"token_{t}", lm(text, max_tokens=1))
            text = text + step
            pyro.factor(f"e_{t}", potential(step.text))
            if step.finished:
                break

    speeds = []
    for seed in range(repeats + 1):
        lm.engine.pool.clear()
        started = time.perf_counter()
        posterior = SMC(particles).run(program, seed=seed)
        speeds.append(posterior.cost.lm_tokens / (time.perf_counter() - started))
    return speeds[1:]


def by_llamppl(folder: str, particles: int, tokens: int, repeats: int, _: bool) -> list[float]:
    """Tokens per second of each repeat; runs where llamppl is installed."""
    import asyncio

    import llamppl

    lm = llamppl.CachedCausalLM.from_pretrained(folder, backend="hf")
    lm.model.batch_size = particles
    drawn = 0

    class Program(llamppl.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.context = llamppl.LMContext(lm, STORY)
            self.count = 0

        async def step(self) -> None:
            nonlocal drawn
            token = await self.sample(self.context.next_token())
            drawn += 1
            self.count += 1
            self.score(potential(str(token)))
            if self.count == tokens or token == lm.tokenizer.eos_token_id:
                self.finish()

    speeds = []
    for _ in range(repeats + 1):
        lm.clear_cache()
        lm.cache_kv(lm.tokenizer.encode(STORY))
        drawn = 0
        started = time.perf_counter()
        asyncio.run(llamppl.smc_standard(Program(), particles))
        speeds.append(drawn / (time.perf_counter() - started))
    return speeds[1:]


def converted() -> str:
    """The folder of SmolLM2 as safetensors, made from the GGUF file when first asked for."""
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    from smollm2 import find_gguf

    import ppl

    return str(ppl.load(find_gguf(), device="cpu").model.name_or_path)


def main() -> None:
    parser = argparse.ArgumentParser(description="token-level SMC: llamppl against ppl, tokens/s")
    parser.add_argument("--llamppl", help="python of an environment that has llamppl")
    parser.add_argument("--particles", type=int, nargs="+", default=[16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="ours with compile=True")
    parser.add_argument("--side", choices=["ppl", "llamppl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run = by_ppl if options.side == "ppl" else by_llamppl
        settings = options.particles[0], options.tokens, options.repeats, options.compile
        speeds = run(options.folder, *settings)
        print(json.dumps(speeds))
        return
    if not options.llamppl:
        parser.error("say with --llamppl which python has llamppl (see --help and this file)")
    from machine import machine

    print(machine())
    print(
        f"float32{', compile=True' * options.compile}, {options.tokens} tokens a particle, "
        "tokens/s, medians\n"
    )
    print(f"{'particles':>9}{'llamppl':>12}{'ppl':>12}{'ppl / llamppl':>16}")
    folder = converted()
    for particles in options.particles:
        speeds = []
        for side, python in (("llamppl", options.llamppl), ("ppl", sys.executable)):
            command = [python, __file__, "--side", side, "--folder", folder]
            command += ["--particles", str(particles), "--tokens", str(options.tokens)]
            command += ["--repeats", str(options.repeats)] + ["--compile"] * options.compile
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            speeds.append(statistics.median(json.loads(done.stdout.splitlines()[-1])))
        print(f"{particles:>9}{speeds[0]:>12.1f}{speeds[1]:>12.1f}{speeds[1] / speeds[0]:>16.1f}")


if __name__ == "__main__":
    main()
