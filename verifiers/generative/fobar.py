"""FOBAR: forward-backward reasoning (Jiang et al. 2023, arXiv 2308.07758).

A number of the question is masked, the candidate answer is given, and the model is asked for the
number. The better the answer, the more often the number comes back: P(number | question without
it, answer) is a likelihood of the answer, estimated by counting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

from ppl.errors import VerifierError
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.randomness import key
from ppl.language.text import Text, extract_answer
from ppl.lm.base import ContinueRequest, LanguageModel
from ppl.runtime.verdict import JudgeRequest, Meaning, Verifier
from ppl.runtime.wave import ask
from ppl.verifiers.generative.judge import payer

A = TypeVar("A", bound=Hashable)

_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")  # 1000 or 1,000
BACKWARD = (
    "{masked}\nIf we know that the answer to the question above is {answer}, what is the value of "
    "the unknown variable x?"
)


class FOBAR(Verifier):
    """How often the model finds a masked number of the question back from the answer.

    The probability is Z / (masks * samples), Z the number of backward draws that return the masked
    number: an unbiased estimate of P(number | masked question, answer), averaged over the masks,
    so it is pseudo-marginal; every particle draws its own. (Raising zero to `floor` is the only
    bias.) It costs masks * samples generations for each text with an answer. A text without an
    answer yet is not judged (probability one).

    Args:
        lm: the language model that reasons backward.
        samples: backward draws per mask.
        masks: numbers of the question to mask, the first ones; None takes all.
        prompt: what is asked; `{masked}` is the question with x for the number.
        max_tokens, temperature: of the draws (the paper uses .7).
        floor: least probability (the paper's epsilon).
    """

    meaning: Meaning = "outcome"
    pseudo_marginal = True
    asks_models = True

    @checked
    def __init__(
        self,
        lm: LanguageModel,
        *,
        samples: int = 8,
        masks: int | None = None,
        prompt: str = BACKWARD,
        max_tokens: int = 256,
        temperature: float = 0.7,
        floor: float = 1e-8,
    ) -> None:
        checks.floor(floor=floor)
        checks.positive(floor=floor)
        checks.count(max_tokens=max_tokens)
        checks.nonnegative(temperature=temperature)
        if "{masked}" not in prompt or "{answer}" not in prompt:
            raise ValueError(f"prompt={shown(prompt)}: has places for {{masked}} and {{answer}}")
        if samples < 1 or (masks is not None and masks < 1):
            raise ValueError(f"samples={samples}, masks={masks}: at least one of each")
        self.name, self.lm, self.floor = f"FOBAR({lm.name})", lm, floor
        self.samples, self.masks, self.prompt = samples, masks, prompt
        self.max_tokens, self.temperature = max_tokens, temperature

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """Asks for every masked number back, `samples` times, all texts in one batch."""
        draws: list[ContinueRequest] = []
        owners: list[tuple[int, str]] = []  # the request of each draw, and the masked number
        for i, request in enumerate(requests):
            if request.text.answer is None:
                continue
            for m, (number, prompt) in enumerate(self._masked(request)):
                spec = self.lm(
                    prompt, max_tokens=self.max_tokens, temperature=self.temperature
                ).spec
                for k in range(self.samples):
                    word = key(request.key, "backward", m, k)
                    draws.append(
                        ContinueRequest(self.lm, spec, word, request.label, payer(request))
                    )
                    owners.append((i, number))
        found = [0] * len(requests)
        asked = [0] * len(requests)
        for (i, number), drawn in zip(owners, ask(draws), strict=True):
            asked[i] += 1
            found[i] += same_number(number, extract_answer(drawn.value.text))
        return [
            [math.log(max(z / n, self.floor)) if n else 0.0]
            for z, n in zip(found, asked, strict=True)
        ]

    def _masked(self, request: JudgeRequest) -> list[tuple[str, Text]]:
        question = request.text.prompt
        places = list(_NUMBER.finditer(question))[: self.masks]
        if not places:
            raise VerifierError(
                f"{self.name} at {request.label}: the question has no number to mask: {question!r}"
            )
        answer = str(request.text.answer)
        masked = [(p.group(), question[: p.start()] + "x" + question[p.end() :]) for p in places]
        return [
            (n, self.lm.chat(self.prompt.replace("{masked}", q).replace("{answer}", answer)))
            for n, q in masked
        ]


def same_number(number: str, answer: str | None) -> bool:
    """True if the last number of `answer` equals `number`."""
    found = _NUMBER.findall(answer or "")
    return bool(found) and _value(found[-1]) == _value(number)


def _value(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


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
