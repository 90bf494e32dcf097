"""How much rather a language model calls a text right than wrong: a potential, no probability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ppl.language.arguments import checked
from ppl.lm.base import LanguageModel
from ppl.runtime.verdict import JudgeRequest
from ppl.verifiers.generative.judge import Ask, Judge

CORRECT = {" correct": 1.0, " incorrect": 0.0}


class LogOdds(Judge):
    """log P(correct) - log P(incorrect), as a language model has the next word.

    A reward: observed True after every step it telescopes, so that the target is p(text) times the
    odds of the whole text, and what ranks by the likelihood (beam search) ranks partial texts by
    their log-odds. This is how the value function of Creswell and Shanahan (2022) scores a trace.

    Args:
        lm: the language model.
        ask: builds its prompt; the verdict is the next thing it says.
        verdicts: words, 1 for those that call it right and 0 for the others.
        name: shown in messages.
        floor: the probability of being right is clipped to [floor, 1 - floor] before.

    Raises:
        ValueError: the verdicts cannot be told apart, or the floor is not in (0, 0.5).
    """

    @checked
    def __init__(
        self,
        lm: LanguageModel,
        ask: Ask,
        *,
        verdicts: Mapping[str, float] = CORRECT,
        name: str | None = None,
        floor: float = 1e-6,
    ) -> None:
        if not 0 < floor < 0.5:
            raise ValueError(f"floor={floor}: log-odds are finite, so it lies in (0, 0.5)")
        super().__init__(lm, ask, verdicts=verdicts, name=name, meaning="reward", floor=floor)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """One log-odds per text, all prompts in one batch."""
        return [[self._odds(log_p)] for (log_p,) in super().judge(requests)]

    def _odds(self, log_p: float) -> float:
        p = min(max(math.exp(log_p), self.floor), 1.0 - self.floor)
        return math.log(p) - math.log1p(-p)
