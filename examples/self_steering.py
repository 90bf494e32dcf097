"""Self-steering: a planner writes the program by which a small model writes.

A planner that cannot solve a task can often say how an answer is checked, and step by step. Here
the planners are scripts, which write what a large model would, the first time with a mistake; its
error goes back to them, and they mend it. What they write runs in the sandbox alone.

* `lines` (the embedded model): chains of calculations, of which every line is checked.
* `writing` (SmolLM2, where it is installed): texts under constraints, with masks, hints, and words
  that are observed.

Shown is the weighted share of texts that obey, by a checker that the planner does not know: of the
follower alone, and under three engines with the planner's program.

    python examples/self_steering.py
    python examples/self_steering.py --tasks writing --particles 16
    python examples/self_steering.py --planner http://127.0.0.1:8000/v1 --tasks writing
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from smollm2 import find_gguf

import ppl
from ppl.errors import SandboxError, SteeringError
from ppl.programs.steering_prompt import EXAMPLE
from ppl.searchers import BestOfN

# -- what scripted planners write -----------------------------------------------------------------

LINES = '''
import re

task = {task!r}
start = int(re.search(r"Start with (\\d+)", task)[1])
steps = re.findall(r"([a-z])([-+*])(\\d+)", task)

def step(state):
    """One line; it has to say what the calculation gives."""
    name, sign, number = steps[state.step]
    before = getattr(state, "value", start)
    state.value = {{"+": before + int(number), "-": before - int(number),
                   "*": before * int(number)}}[sign]
    line = state.extend(until="\\n", max_tokens=12)
    state.require(line.strip() == f"{{name}}={{state.value}}")
    if state.step + 1 == len(steps):
        state.finish()

def check(text):
    return len(text.split()) == len(steps)
'''
# A model forgets that what a state does not have yet cannot be read.
FIRST_TRY = ('getattr(state, "value", start)', "state.value")

WITHOUT_E = r"""
prior = "Write one sentence about the sea."
proposal = "Write one short sentence about a ship. Do not use that fifth symbol of our ABC."

def step(state):
    state.mask(never="eE\n", end=False)
    state.extend(until=[" ", "."], max_tokens=8)
    if state.text.endswith("."):
        state.finish()
    state.require(len(state.text.split()) <= 14)

def check(text):
    return "e" not in text.lower() and text.endswith(".") and len(text.split()) >= 4
"""

ENDS_WITH = r"""
prior = "Write one sentence about a lonely house."
proposal = "Write one sentence of six words about a lonely house, that ends with 'night'."

def step(state):
    words = len(state.text.split())
    if words == 5:
        state.observe(" night.")
        state.finish()
    state.hint(f"{6 - words} words left, the last one is night")
    state.mask(never=".!?\n", end=False)
    state.extend(until=" ", max_tokens=6)
    state.require(words < len(state.text.split()) <= 5)

def check(text):
    return len(text.split()) == 6 and text.endswith(" night.")
"""


@dataclass(frozen=True)
class Asked:
    """A task with what a scripted planner writes for it.

    Attributes:
        task: what is asked.
        obeys: whether a text does; the planner does not know it.
        modules: what the planner says, one after the other.
        settings: of the steering.
    """

    task: str
    obeys: Callable[[str], bool]
    modules: Sequence[str]
    settings: dict[str, Any] = field(default_factory=dict)

    def planner(self) -> Callable[[Any], str]:
        """A function that answers as often as it is asked."""
        rest = list(self.modules)

        def plan(messages: Any) -> str:
            module = rest.pop(0) if len(rest) > 1 else rest[0]
            return f"```python\n{module}\n```"

        return plan


def lines(count: int) -> list[Asked]:
    """Held-out chains of calculations."""
    found = []
    for problem in ppl.tasks.load("lines/chain", n=count).problems:
        module = LINES.format(task=problem.question)
        gold = str(problem.gold)
        found.append(
            Asked(
                problem.question,
                partial(ends_in, gold),
                (module.replace(*FIRST_TRY), module),
                {"max_tokens": 12},
            )
        )
    return found


def ends_in(gold: str, text: str) -> bool:
    return text.strip().split("\n")[-1] == gold


def three_sentences(text: str) -> bool:
    said = re.findall(r"[^.!?]+[.!?]", text)
    short = all(len(sentence.split()) <= 12 for sentence in said)
    return len(said) == 3 and short and said[1].lstrip().startswith("Waves")


def without_e(text: str) -> bool:
    return re.fullmatch(r"[^eE\n.]+\.", text) is not None and len(text.split()) >= 4


def six_words(text: str) -> bool:
    return re.fullmatch(r"\s*(\S+ ){5}night\.", text) is not None


def writing(count: int) -> list[Asked]:
    """Texts under constraints, after COLLIE (Yao et al. 2023)."""
    sentences = (
        "Write three sentences about the sea, of at most twelve words each; the second begins "
        "with Waves."
    )
    asked = [
        Asked(sentences, three_sentences, (EXAMPLE,)),
        Asked("Write a sentence about the sea without the letter e.", without_e, (WITHOUT_E,)),
        Asked("Write a sentence of six words that ends with night.", six_words, (ENDS_WITH,)),
    ]
    return asked[:count]


# -- the comparison -------------------------------------------------------------------------------


def alone(follower: ppl.LanguageModel, task: str, most: int) -> str:
    """The follower without a planner."""
    text = follower.chat(task)
    return (text + pyro.sample("text", follower(text, max_tokens=most))).text


def compare(
    asked: Asked, follower: ppl.LanguageModel, particles: int, seed: int, planner: Any
) -> dict[str, float]:
    """Prints a line for each method; the shares that obey, by method."""
    print(f"\n{asked.task}")
    plain = BestOfN(particles).run(alone, follower, asked.task, 120, seed=seed)
    shares = {"alone": plain.expectation(lambda text: float(asked.obeys(text)))}
    print(f"  {'alone':<10} obeys {shares['alone']:.2f}  tokens {plain.cost.lm_tokens:>6}")
    for engine in ("smc", "is", "rejection"):
        try:
            found = ppl.selfsteer(
                planner or asked.planner(),
                follower,
                asked.task,
                particles,
                engine=engine,
                seed=seed,
                **asked.settings,
            )
        except SteeringError as error:
            shares[engine] = 0.0
            print(f"  {engine:<10} {str(error.attempts[-1].faults[0]).splitlines()[0][:70]}")
            continue
        posterior = found.posterior
        shares[engine] = posterior.expectation(lambda text: float(asked.obeys(text)))
        print(
            f"  {engine:<10} obeys {shares[engine]:.2f}  tokens {posterior.cost.lm_tokens:>6}"
            f"  modules {len(found.attempts)}  {posterior.sample(seed)[:60]!r}"
        )
        for fault in (f for a in found.attempts for f in a.faults[:1]):
            print(f"    mended: {fault.where}, {fault.said.splitlines()[-1]}")
    return shares


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", choices=("lines", "writing"), default="lines")
    parser.add_argument("--count", type=int, default=3, help="tasks")
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--planner", help="a model that ppl.load takes; a script by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    follower = ppl.load("tiny-lines" if args.tasks == "lines" else find_gguf())
    planner = ppl.load(args.planner) if args.planner else None
    found = []
    try:
        for asked in (lines if args.tasks == "lines" else writing)(args.count):
            found.append(compare(asked, follower, args.particles, args.seed, planner))
    except SandboxError as error:
        raise SystemExit(str(error)) from error
    for method in found[0]:
        mean = sum(shares[method] for shares in found) / len(found)
        print(f"{'' if method != 'alone' else chr(10)}{method:<10} {mean:.2f}")
    return found


if __name__ == "__main__":
    main()
