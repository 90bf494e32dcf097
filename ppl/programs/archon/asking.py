"""Whom operators ask: models, functions, and what puts numbers on texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution

from ppl.errors import ArgumentError
from ppl.language.arguments import shown
from ppl.language.primitives import parallel
from ppl.language.site import Draw, Site, Visit
from ppl.language.text import Text
from ppl.lm.base import LanguageModel
from ppl.programs.archon.drafts import Draft
from ppl.runtime.verdict import JudgeRequest, Scorer, log_potential

Writer = LanguageModel | Callable[[str], Any]
"""A language model, or a function of a prompt that returns a string or a `Text`: a program, whose
sites are sites of this one."""


def replies(
    name: str, writers: Sequence[Writer], prompts: Sequence[str], **settings: Any
) -> list[tuple[str, Text | None]]:
    """What writers say to prompts, side by side: strings, and texts where there are any.

    Args:
        name: sites are called `name/0/reply`, `name/1/reply`, ...
        writers: one for each prompt.
        prompts: what they are asked.
        settings: of `lm(text, ...)`.
    """
    asked = [partial(_reply, w, p, settings) for w, p in zip(writers, prompts, strict=True)]
    return parallel(asked, name=name)


def _reply(writer: Writer, prompt: str, settings: dict[str, Any]) -> tuple[str, Text | None]:
    if isinstance(writer, LanguageModel):
        asked = writer.chat(prompt)
        text = asked + pyro.sample("reply", writer(asked, **settings))
        return text.text, text
    said = writer(prompt)
    if isinstance(said, Text):
        return said.text, said
    if not isinstance(said, str):
        raise ArgumentError(f"writer: {writer!r} said {shown(said)}; a string or a Text")
    return said, None


def scores(name: str, scorer: Scorer, drafts: Sequence[Draft]) -> list[float]:
    """log A of each draft, as a verifier or ranker has it; nothing is observed or weighed."""
    for draft in drafts:
        if draft.written is None:
            raise ArgumentError(
                f"{scorer.name} judges texts in a model's tokens, and {draft.origin} gave a bare "
                "string: let the writer be a language model, or return the Text"
            )
    asked = [partial(pyro.sample, "score", Scored(scorer, d.written)) for d in drafts if d.written]
    return [float(score) for score in parallel(asked, name=name)]


class Scored(Site, TorchDistribution):  # type: ignore[misc]
    """What a scorer says of a text: a number that is told, with probability one."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (the name is torch's)
    has_rsample = False
    told = True

    def __init__(self, scorer: Scorer, text: Text) -> None:
        self.scorer, self.text = scorer, text
        super().__init__(validate_args=False)

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """Asks in the batch of all particles."""
        asked = visit.key(visit.site, "judge")
        request = JudgeRequest(self.scorer, self.text, 0, visit.label, visit.ledger, asked)
        return log_potential(visit.ask(request), self.scorer.aggregate), 0.0, None

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """A number that is given is taken at its word."""
        return 0.0 if isinstance(value, float) else -math.inf

    def sample(self, sample_shape: Any = ()) -> float:  # type: ignore[override]
        """Asks by itself."""
        (found,) = self.scorer.judge_checked([JudgeRequest(self.scorer, self.text)])
        return log_potential(found, self.scorer.aggregate)

    def log_prob(self, value: Any) -> torch.Tensor:
        """Zero: it is no part of the law."""
        return torch.zeros((), dtype=torch.float64)

    def support(self) -> list[tuple[Any, float]]:
        """What it says."""
        return [(self.sample(), 0.0)]

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Who says it, and of which tokens."""
        return ("scored", self.scorer.name, self.text.tokens)
