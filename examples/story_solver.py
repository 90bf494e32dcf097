"""The program of `word_problems.py`: a story is read a sentence at a time, and accounted for.

After every sentence the program writes the number so far and the model goes on: `+14=`, `-3=`, or
`=` alone where nothing changes. What comes out the program works out itself, as the calculator of
Cobbe et al. 2021 does ("Training verifiers to solve math word problems"), so that the model is
asked what happens and not for sums; an account takes three to five such lines.
"""

from __future__ import annotations

import re
from functools import lru_cache

import pyro
import torch
from story_problems import story, worth
from torch import Tensor

import ppl
from ppl.tasks import Problem

TEMPERATURE = 0.6
LONGEST = 5  # tokens of a line: a sign, three digits, =
SHOTS = 5
SHOT_SEED = 1  # of the stories that are shown; those that are asked have seed 0


@lru_cache(maxsize=1)
def shown() -> str:
    """Stories with their accounts, which come first in every prompt."""
    return "\n".join(_account(story(i, SHOT_SEED)) for i in range(SHOTS)) + "\n"


def _account(problem: Problem) -> str:
    first, *others = problem.meta["sentences"]
    lines = [first, str(number_of(first))]
    for sentence, line in zip(others, problem.meta["account"], strict=True):
        lines += [sentence, line]
    return "\n".join(lines) + "\n"


def number_of(sentence: str) -> int:
    """The first number of a sentence."""
    return int(re.findall(r"\d+", sentence)[0])


def number_after(problem: Problem) -> int:
    """The number after a story's first sentence, from which the account starts."""
    return number_of(problem.meta["sentences"][0])


def solve(problem: Problem, lm: ppl.LanguageModel, head: ppl.Verifier | None = None) -> str | None:
    """The story's last number; None if a line cannot be read.

    With a reward head every line is weighed.
    """
    first, *others = problem.meta["sentences"]
    number = number_of(first)
    text = lm.prompt(f"{shown()}{first}\n{number}\n")
    for t, sentence in enumerate(others):
        text = text + f"{sentence}\n{number}"
        law = lm(text, until="=", max_tokens=LONGEST, temperature=TEMPERATURE, allowed=signs(lm))
        line = pyro.sample(f"line_{t}", law)
        text = text + line
        if head is not None:
            pyro.sample(f"right_{t}", head(text), obs=True)
        found = worth(f"{number}{line.text.removesuffix('=')}")
        if found is None or not line.text.endswith("="):
            return None
        number = found
        text = text + f"{number}\n"
    return str(number)


@lru_cache(maxsize=4)
def signs(lm: ppl.LanguageModel) -> Tensor:
    """`[V]`: the tokens of which lines are made, the digits, `+`, `-` and `=`."""
    ids = [token for sign in "0123456789+-=" for token in lm.encode(sign)]
    mask = torch.zeros(lm.codec.size, dtype=torch.bool)
    mask[ids] = True
    return mask
