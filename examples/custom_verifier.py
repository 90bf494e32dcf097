"""A verifier of one's own, three ways: a function, a class, a format for a model.

Each takes about ten lines. All three run through the laws that a verifier must keep, and then in
one program side by side.

    python examples/custom_verifier.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import pyro
import torch

import ppl
from ppl.searchers import SMC
from ppl.verifiers import PRM, JudgeRequest, Labels, PRMFormat, Verifier, check_verifier, verifier


# 1. A function of the text, to a probability or a bool.
@verifier(meaning="outcome")
def short(text: ppl.Text) -> float:
    return 0.95 if len(text.text) < 60 else 0.3


# 2. A class, which sees the whole batch and every step, and works in log-probabilities.
class SmallNumbers(Verifier):
    name, meaning, aggregate = "small numbers", "step", "prod"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[list[float]]:
        return [[self.log_prob(step) for step in r.text.steps[r.since :]] for r in requests]

    def log_prob(self, step: str) -> float:
        digits = sum(character.isdigit() for character in step)
        return math.log(0.9) if digits < 8 else math.log(0.5)


# 3. A format for a reward model: how question and steps become tokens, one piece per step; the
# model is read at the last token of each piece. Here the steps go to the model as a numbered list.
def numbered(tokenizer, question: str, steps: Sequence[str]) -> list[tuple[int, ...]]:
    strings = [f"{i + 1}. {step}\n" for i, step in enumerate(steps)]
    start = tokenizer.encode(question + "\n")
    pieces = [tokenizer.encode(string) for string in strings]
    return [(*start, *pieces[0]), *map(tuple, pieces[1:])]


NUMBERED = PRMFormat("numbered", Labels(bad="bad", good="good"), numbered, meaning="value")


def solve(question: str, lm: ppl.LanguageModel, verifiers: Sequence[Verifier]) -> str | None:
    text = lm.chat(question)
    for t in range(12):
        step = pyro.sample(f"step_{t}", lm(text, until="\n", max_tokens=40))
        text = text + step
        for v in verifiers:
            pyro.sample(f"{v.name}_{t}", v(text), obs=True)
        if step.finished:
            break
    return text.answer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--question", default="Calculate ( 3 + 5 ) * 2 - 7.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lm = ppl.load("tiny")
    mine = [short, SmallNumbers(), PRM.load("tiny", format=NUMBERED)]

    text = lm.chat(args.question)
    for step in ("8*2-7\n", "16-7\n", "9"):
        text = text + lm.continuation(step)
    other = lm.chat("Calculate 1 + 1.") + lm.continuation("2")
    for v in mine:
        print(f"{v.name}: means {v.meaning!r}, combines by {v.aggregate!r}; laws kept: ", end="")
        print(", ".join(check_verifier(v, [text, other])))
    print(SMC(8).run(solve, args.question, lm, mine, seed=args.seed))


if __name__ == "__main__":
    main()
