"""Perturbations of a question for `ppl.perturbed` (DivSampling: Wang et al. 2025, 2502.11027).

Task-agnostic ones are strings that stand before any question: a role, an instruction, text without
meaning. Task-specific ones are written for the question by a model: an idea how to go about it, or
the question in other words. The wordings are ours.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro

from ppl.language import checks
from ppl.language.arguments import checked
from ppl.lm.base import LanguageModel

ROLES = (
    "You are a mathematician who checks every step.",
    "You are a patient teacher of small children.",
    "You are an engineer who estimates before computing.",
    "You are an accountant: no number may get lost.",
    "You are a lawyer who reads every word of the question.",
    "You are a programmer who thinks in variables and loops.",
)
"""Who answers."""

INSTRUCTIONS = (
    "Think step by step.",
    "Write down what is given, and what is asked, first.",
    "Work backwards from what is asked.",
    "Solve a simpler case first.",
    "Name every quantity before you use it.",
    "Check your result before you state it.",
)
"""How to answer."""

NOISE = (
    "'Twas brillig, and the slithy toves did gyre and gimble in the wabe.",
    "All mimsy were the borogoves, and the mome raths outgrabe.",
    "Beware the Jabberwock, my son! The jaws that bite, the claws that catch!",
    "He took his vorpal sword in hand; long time the manxome foe he sought.",
    "One, two! One, two! And through and through the vorpal blade went snicker-snack!",
    "O frabjous day! Callooh! Callay! He chortled in his joy.",
)
"""Text without meaning for the question (Lewis Carroll, Jabberwocky, 1871)."""


@checked
def idea(lm: LanguageModel, *, max_tokens: int = 64, temperature: float = 1.0) -> Writes:
    """The question with an idea that a model has for it: a perturbation.

    Args:
        lm: has the idea, anew for every sample (site `idea`).
        max_tokens, temperature: of the idea.
    """
    checks.count(max_tokens=max_tokens)
    checks.nonnegative(temperature=temperature)

    def with_an_idea(question: str) -> str:
        asked = f"{question}\n\nDo not solve this. In one sentence, say how one could go about it."
        return f"{question}\n\nIdea: {_said('idea', lm, asked, max_tokens, temperature)}"

    return with_an_idea


@checked
def rephrasing(lm: LanguageModel, *, max_tokens: int = 256, temperature: float = 1.0) -> Writes:
    """The question as a model says it in other words, beside the question itself.

    Args:
        lm: rephrases, anew for every sample (site `rephrasing`).
        max_tokens, temperature: of the rephrasing.
    """
    checks.count(max_tokens=max_tokens)
    checks.nonnegative(temperature=temperature)

    def rephrased(question: str) -> str:
        asked = f"{question}\n\nDo not solve this. Say the same question in other words."
        said = _said("rephrasing", lm, asked, max_tokens, temperature)
        return f"{question}\n\nIn other words: {said}"

    return rephrased


def _said(site: str, lm: LanguageModel, asked: str, max_tokens: int, temperature: float) -> str:
    """What a model replies, drawn at a site."""
    law = lm(lm.chat(asked), max_tokens=max_tokens, temperature=temperature)
    return str(pyro.sample(site, law).text.strip())


Writes = Callable[[str], str]
