"""FOBAR end to end: votes of what was sampled, and backward draws for each different answer.

Jiang et al. 2023, "Forward-Backward Reasoning in Large Language Models for Mathematical
Verification", arXiv 2308.07758:

    P_f(a)  share of the forward chains that end with a
    P_b(a)  proportional to Z_a + eps, Z_a the backward draws that find a masked number back from a
    P(a)    proportional to P_f(a)^alpha P_b(a)^(1 - alpha)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from ppl.decide.candidates import Candidates
from ppl.decide.voting import shares
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.cost import Account, Cost
from ppl.lm.base import LanguageModel
from ppl.posterior.posterior import Posterior
from ppl.verifiers.generative.fobar import BACKWARD, FOBAR

A = TypeVar("A", bound=Hashable)


class ForwardBackward(dict[Any, float]):
    """Probabilities of the candidates, best first, and what they were made of.

    Attributes:
        forward: share of each candidate among the samples with an answer.
        backward: Z of each candidate.
        draws: backward draws for each candidate: masks * samples.
        cost: of the backward draws.
    """

    def __init__(
        self,
        probabilities: Mapping[Any, float],
        forward: Mapping[Any, float],
        backward: Mapping[Any, int],
        draws: int,
        cost: Cost,
    ) -> None:
        super().__init__(probabilities)
        self.forward, self.backward = dict(forward), dict(backward)
        self.draws, self.cost = draws, cost

    @property
    def best(self) -> Any:
        """The most probable candidate; None if there is none."""
        return next(iter(self), None)


@checked
def fobar(
    posterior: Posterior | Candidates | Sequence[Any],
    question: str,
    lm: LanguageModel,
    *,
    samples: int = 8,
    masks: int | None = None,
    alpha: float = 0.5,
    eps: float = 1e-8,
    weights: Any = "flat",
    key: Callable[[Any], Hashable] | None = None,
    prompt: str = BACKWARD,
    max_tokens: int = 256,
    temperature: float = 0.7,
    seed: int = 0,
) -> ForwardBackward:
    """Ranks the answers of a posterior by how they are reached and what they lead back to.

    Price: candidates * masks * samples generations, whatever the number of particles: answers of
    one class (`ppl.equality` for answers of texts, so that 1/2 and 0.5 are one) are one candidate.
    All go out as one batch.

    Args:
        posterior: a posterior, candidates, or plain answers.
        question: with numbers that can be masked.
        lm: the model that reasons backward.
        samples: backward draws per mask.
        masks: numbers of the question to mask, the first ones; None takes all.
        alpha: 1 is the vote (self-consistency, under flat weights), 0 ranks by Z alone.
        eps: added to every count, so that nothing is ruled out.
        weights, key: of the forward votes, as of `ppl.decide.vote`; `"posterior"` for particles of
            unequal weight.
        prompt, max_tokens, temperature, seed: of the backward draws, as of `FOBAR`.

    Returns:
        Probabilities of the candidates, best first, with `forward`, `backward` and `cost`; empty if
        there is no answer.

    Raises:
        VerifierError: the question has no number.
        ArgumentError: answers that cannot be told apart.
    """
    checks.probability(alpha=alpha)
    checks.positive(eps=eps)
    judge = FOBAR(
        lm,
        samples=samples,
        masks=masks,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    draws, account = judge.draws(question), Account()
    said = shares(posterior, weights, key=key)
    try:
        forward = dict(said)
    except TypeError as error:
        raise ArgumentError(
            f"posterior: its answers cannot be told apart ({error}); let the program return a "
            "string or a number"
        ) from error
    if not forward:
        return ForwardBackward({}, {}, {}, draws, account.cost)
    backward = judge.count(question, list(forward), account=account)
    found = forward_backward(forward, backward, alpha=alpha, epsilon=eps)
    return ForwardBackward(found, forward, backward, draws, account.cost)


@checked
def forward_backward(
    forward: Mapping[A, float],
    backward: Mapping[A, float],
    *,
    alpha: float = 0.5,
    epsilon: float = 1e-8,
) -> dict[A, float]:
    """The paper's combination of votes and backward counts, over a fixed set of candidates.

    P(a) is proportional to P_f(a)^alpha P_b(a)^(1 - alpha), with P_b proportional to Z_a + epsilon.
    Normalised over the candidates, so it ranks them and is no likelihood; `FOBAR` is one.

    Args:
        forward: votes of every candidate.
        backward: Z_a, backward draws that returned the masked number; missing means none.
        alpha: 1 is self-consistency, 0 ranks by Z alone.
        epsilon: added to every count, so that nothing is ruled out.

    Returns:
        Probabilities of the candidates, best first.
    """
    for votes in forward.values():
        checks.nonnegative(forward=votes)
    for draws in backward.values():
        checks.nonnegative(backward=draws)
    if not any(forward.values()):
        raise ValueError(f"forward={shown(forward)}: candidates, and votes for one of them")
    checks.positive(epsilon=epsilon)
    if not 0 <= alpha <= 1 or epsilon <= 0 or not forward:
        raise ValueError(
            f"alpha={alpha} must be in [0, 1], epsilon={epsilon} positive, and candidates given"
        )
    counts = {a: backward.get(a, 0.0) + epsilon for a in forward}
    total_f, total_b = math.fsum(forward.values()), math.fsum(counts.values())
    score = {
        a: (votes / total_f) ** alpha * (counts[a] / total_b) ** (1 - alpha)
        for a, votes in forward.items()
    }
    total = math.fsum(score.values())
    return {a: s / total for a, s in sorted(score.items(), key=lambda item: -item[1])}
