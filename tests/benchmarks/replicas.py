"""Rows of several questions over one model and over copies of it, in one run.

    PYTHONPATH=tests python tests/benchmarks/replicas.py [source] [--replicas 2] [--questions 8]
        [--rows 16] [--tokens 40] [--rounds 3]

One model with all processors, copies with a share each, in turns: tokens per second on the wall,
the median of the rounds, and their ratio; that the draws are the same; how many tokens of prompts
were computed; and how many rows went elsewhere than where their text was known. A step has ten
tokens, so that rows come back to be placed. On several NUMA nodes or GPUs this says what copies are
worth; where a few processors share one memory, what they cost.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import pyro

import ppl
from ppl.searchers import BestOfN

STEP = 10


def program(lm: Any, question: str, tokens: int) -> str:
    text = lm.prompt(question)
    for t in range(tokens // STEP):
        step = pyro.sample(f"s{t}", lm(text, max_tokens=STEP))
        text = text + step
        if step.finished:
            break
    return str(text.text)


def run(lm: Any, asked: argparse.Namespace, seed: int) -> tuple[float, int, int, list[str]]:
    """Seconds, tokens written, tokens of prompts computed, and what was said."""
    questions = [f"Question {seed}.{q}: what is {q} + {seed}? " * 8 for q in range(asked.questions)]
    started = time.perf_counter()
    found = BestOfN(asked.rows).run_many(
        program, [(lm, question, asked.tokens) for question in questions], seed=seed
    )
    took = time.perf_counter() - started
    costs = [posterior.cost for posterior in found]
    said = [str(sample.value) for posterior in found for sample in posterior.samples]
    return took, sum(c.lm_tokens for c in costs), sum(c.prompt_tokens for c in costs), said


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", nargs="?", default="tiny-lines")
    parser.add_argument("--replicas", type=int, default=2)
    for name, default in (("questions", 8), ("rows", 16), ("tokens", 40), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    one = ppl.load(asked.source)
    several: Any = ppl.load(asked.source, replicas=asked.replicas)
    run(one, asked, 1000)
    run(several, asked, 1000)
    speeds: dict[str, list[float]] = {"one": [], "several": []}
    prompts: dict[str, list[int]] = {"one": [], "several": []}
    same = True
    for seed in range(asked.rounds):
        said = {}
        for name, lm in (("one", one), ("several", several)):
            took, tokens, prompt, said[name] = run(lm, asked, seed)
            speeds[name].append(tokens / took)
            prompts[name].append(prompt)
        same = same and said["one"] == said["several"]
    print(f"{asked.source}, {asked.questions} questions x {asked.rows} rows, {asked.tokens} tokens")
    for name, speed in speeds.items():
        print(
            f"{name:>8}: {median(speed):8.0f} tokens/s, {median(prompts[name]):.0f} prompt tokens"
        )
    ratio = median(speeds["several"]) / median(speeds["one"])
    print(f"{asked.replicas} copies: {ratio:.2f} times one; same draws: {same}")
    print(f"rows placed elsewhere: {several.moved}; devices: {', '.join(several.devices)}")


if __name__ == "__main__":
    main()
