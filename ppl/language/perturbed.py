"""Diversified sampling: every sample answers its own wording of the question (DivSampling; Wang et
al. 2025, arXiv 2502.11027).

    diverse = ppl.perturbed(["", "You are a careful accountant.", idea(lm)])(solve)
    BestOfN(12).run(diverse, question)

Which perturbation a sample has is a latent choice with a uniform prior, so the program's law is
the mean over perturbations, p(y | x) = mean_r p(y | x, r), and weights, evidence and votes are
those of this mixture: nothing is divided by p(r). Stratified, samples that set out together share
out the perturbations as evenly as can be. Each still has every one with the same probability, so
that means and evidences stay unbiased; but no two repeat each other before they have to. Of R
samples that are right with probabilities p_r, none is with prod (1 - p_r), where independent ones
have (1 - mean p)^R, which is more unless all are equal. That is coverage: a vote may gain nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl.errors import ArgumentError
from ppl.language.arguments import checked, shown
from ppl.language.randomness import generator
from ppl.language.site import Draw, Site, Visit

Perturbation = str | Callable[[str], str]


class Stratum(Site, dist.Categorical):  # type: ignore[misc]
    """One of R numbers, each with probability 1 / R; of those who set out together no two numbers
    are more than one apart in how often they are drawn."""

    decidable = True

    def __init__(self, count: int) -> None:
        self.count = count
        probabilities = torch.full((count,), 1 / count, dtype=torch.float64)
        super().__init__(probabilities, validate_args=False)

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """Each R places take a random order of their own: with one order for all, two choices of R
        numbers would make R pairs and no others."""
        shared, place = visit.together(msg["name"])
        turn, place = divmod(place, self.count)
        order = generator(shared, "strata", turn).permutation(self.count)
        value = torch.tensor(int(order[place]))
        return value, -math.log(self.count), None

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """log 1 / R."""
        return float(self.log_prob(torch.as_tensor(value)))

    def support(self) -> list[tuple[Any, float]]:  # type: ignore[override]
        """All numbers."""
        return [(torch.tensor(r), -math.log(self.count)) for r in range(self.count)]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Many independent numbers, as inside of a plate."""
        return self if not len(batch_shape) else dist.Categorical(self.probs).expand(batch_shape)

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Its kind and R."""
        return ("stratum", self.count)


@checked
def perturbed(
    perturbations: Sequence[str | Callable[[str], str]],
    *,
    stratified: bool = True,
    name: str = "perturbation",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wraps a program so that every sample has its own wording of the question.

    Args:
        perturbations: at least one; each is as likely. A string with `{question}` in it is a prompt
            around the question; any other string stands before the question, and the empty one
            leaves it as it is; a function makes a question of it, and may ask models for that
            (`ppl.programs.idea`, `ppl.programs.rephrasing`).
        stratified: share them out among samples that set out together; otherwise each draws by
            itself. Searchers whose laws need independent draws get them in both cases.
        name: of the choice. Searchers can make it, as in `ModelSwitch(4, "perturbation")`.

    Returns:
        What makes of a program, whose first argument is the question as a string, the perturbed
        program.
    """
    if not perturbations:
        raise ArgumentError("perturbations=[]: at least one; '' is the question as it is")
    return functools.partial(_wrapped, tuple(perturbations), bool(stratified), name)


def _wrapped(
    perturbations: Sequence[Perturbation], stratified: bool, name: str, program: Callable[..., Any]
) -> Callable[..., Any]:
    if not callable(program):
        raise ArgumentError(f"program={shown(program)}: a function of the question")
    return functools.partial(_perturbed, perturbations, stratified, name, program)


def _perturbed(
    perturbations: Sequence[Perturbation],
    stratified: bool,
    name: str,
    program: Callable[..., Any],
    question: str,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not isinstance(question, str):
        raise ArgumentError(
            f"question={shown(question)}: a perturbed program takes the question first, a string"
        )
    count = len(perturbations)
    law = Stratum(count) if stratified else dist.Categorical(torch.ones(count).double() / count)
    perturbation = perturbations[int(pyro.sample(name, law))]
    return program(_asked(perturbation, question), *args, **kwargs)


def _asked(perturbation: Perturbation, question: str) -> str:
    if callable(perturbation):
        made = perturbation(question)
        if not isinstance(made, str):
            raise ArgumentError(
                f"perturbations: {perturbation!r} made {shown(made)} of the question; a string"
            )
        return made
    if "{question}" in perturbation:
        return perturbation.replace("{question}", question)
    return f"{perturbation}\n\n{question}" if perturbation else question
