"""Batch prompting: several questions in one call (Cheng et al. 2023, arXiv 2301.08721).

    program = batch_prompt(questions, size=6)
    posterior = BestOfN(5).run(program, lm)
    posterior.best                                   {0: "18", 1: None, 2: "7", ...}
    vote([s.value[2] for s in posterior.samples])    one answer of each reply: independent

What all questions of a call share (the instruction, examples, the chat template), E tokens, is paid
once, so that a question of q tokens costs E / b + q of prompt. Answers are read by their numbers:
one that is left out is None, and none of the others moves. Answers of one call depend on each
other: they carry its number, and rules that count independent votes refuse two of one call. How
accuracy changes with b goes both ways: it rose on multi-task benchmarks (MTI Bench, 2024) and falls
for reasoning models under load (REST, arXiv 2507.10541), so measure it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution

from ppl.errors import ArgumentError
from ppl.language import checks, primitives
from ppl.language.answers import extract_answer
from ppl.language.answers.joint import JointAnswer
from ppl.language.arguments import check_fields, checked
from ppl.language.site import Draw, Site, Visit
from ppl.language.text import Continuation
from ppl.lm.base import LanguageModel
from ppl.programs.marked import items

INSTRUCTION = (
    "Answer every question below. Begin the answer to question Q[1] with A[1]: on a line of its "
    "own, that to Q[2] with A[2]:, and so on."
)


@dataclass(frozen=True)
class BatchCost:
    """Prompt tokens of batched questions.

    Attributes:
        questions, calls: how many.
        shared: E, the mean of what a call pays besides its questions.
        own: q, the mean of a question's own tokens.
    """

    questions: int
    calls: int
    shared: float
    own: float

    @property
    def per_question(self) -> float:
        """E / b + q, where b is the mean number of questions in a call."""
        return self.shared * self.calls / self.questions + self.own

    @property
    def alone(self) -> float:
        """E + q: what a question costs in a call of its own, but for the mark's digits."""
        return self.shared + self.own


@dataclass(frozen=True)
class BatchPrompt:
    """The program; see `batch_prompt`."""

    questions: tuple[str, ...]
    size: int = 6
    examples: tuple[tuple[str, str], ...] = ()
    instruction: str = INSTRUCTION
    read: Callable[[str], str | None] = extract_answer
    tokens_each: int = 64

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(size=self.size, tokens_each=self.tokens_each)
        if not self.questions or not all(question.strip() for question in self.questions):
            raise ArgumentError("questions: at least one, and none of them empty")

    def __call__(self, lm: LanguageModel, **settings: Any) -> dict[int, str | None]:
        """Asks all questions, the calls side by side.

        Args:
            lm: who answers.
            settings: of `lm(text, ...)`, such as `temperature=`.

        Returns:
            For each question's place in `questions` its answer, None where the reply has none.
        """
        asked = [partial(self._asked, lm, number, settings) for number in range(self.calls)]
        answers: dict[int, str | None] = {}
        for found in primitives.parallel(asked, name="batch"):
            answers |= found
        return answers

    def _asked(
        self, lm: LanguageModel, number: int, settings: dict[str, Any]
    ) -> dict[int, str | None]:
        members = self.members(number)
        text = lm.chat(self.prompt(number))
        most = self.tokens_each * len(members)
        over = partial(_over, len(members))
        given = {"until": over, "max_tokens": most, **settings}
        reply: Continuation = pyro.sample("reply", lm(text, **given))
        call = int(pyro.sample("call", _CallNumber()))
        numbers = range(1, len(members) + 1)
        said = items(reply.text, "A", numbers, cut=reply.reason == "length")
        answers = {n: self.read(item) for n, item in said.items()}
        return {
            place: None if (one := answers.get(n)) is None else JointAnswer(one, call)
            for n, place in zip(numbers, members, strict=True)
        }

    @property
    def calls(self) -> int:
        """How many calls it takes."""
        return -(-len(self.questions) // self.size)

    def members(self, number: int) -> range:
        """Places of the questions of a call."""
        return range(number * self.size, min((number + 1) * self.size, len(self.questions)))

    def prompt(self, number: int) -> str:
        """What a call asks."""
        parts = [self.instruction]
        for start in range(0, len(self.examples), self.size):
            shown = self.examples[start : start + self.size]
            parts.append("\n".join(_marked("Q", i, q) for i, (q, _) in enumerate(shown, 1)))
            parts.append("\n".join(_marked("A", i, a) for i, (_, a) in enumerate(shown, 1)))
        parts.append("\n".join(self._blocks(number)))
        return "\n\n".join(parts)

    def _blocks(self, number: int) -> list[str]:
        return [_marked("Q", i, self.questions[m]) for i, m in enumerate(self.members(number), 1)]

    def cost(self, lm: LanguageModel) -> BatchCost:
        """What it costs in prompt tokens of a model; nothing is asked.

        Args:
            lm: whose tokens are counted.
        """
        own = whole = 0
        for number in range(self.calls):
            whole += len(lm.chat(self.prompt(number)).tokens)
            own += sum(len(lm.codec.encode_after(f"{b}\n")) for b in self._blocks(number))
        count = len(self.questions)
        return BatchCost(count, self.calls, (whole - own) / self.calls, own / count)


@checked
def batch_prompt(
    questions: Sequence[str],
    size: int = 6,
    *,
    examples: Sequence[tuple[str, str]] = (),
    instruction: str = INSTRUCTION,
    read: Callable[[str], str | None] = extract_answer,
    tokens_each: int = 64,
) -> BatchPrompt:
    """A program that asks a model several questions in one call and returns {place: answer}.

    Args:
        questions: any number; `size` of them go into a call, the rest into the last.
        size: b, questions in a call; 6 as published.
        examples: questions with answers that stand before, in groups of `size`.
        instruction: says how answers are marked: `A[1]:` at the beginning of a line.
        read: the answer in what stands behind a mark.
        tokens_each: most tokens of a reply, times its questions. A reply that is cut off loses its
            last item, which may not be whole.

    Returns:
        The program; its argument is the model. `cost(lm)` says what it costs.
    """
    return BatchPrompt(
        tuple(questions),
        size,
        tuple((asked, said) for asked, said in examples),
        instruction,
        read,
        tokens_each,
    )


def _over(count: int, reply: str) -> bool:
    """Whether all is answered, and the model goes on with questions of its own."""
    at = reply.rfind("\nQ[")
    return at >= 0 and len(items(reply[:at], "A", range(1, count + 1))) == count


def _marked(letter: str, number: int, said: str) -> str:
    return f"{letter}[{number}]: {said.strip()}"


class _CallNumber(Site, TorchDistribution):  # type: ignore[misc]
    """A number of the call: forks of a particle have the same, others have others."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (the name is torch's)
    has_rsample = False
    told = True

    def __init__(self) -> None:
        super().__init__(validate_args=False)

    def draw(self, visit: Visit, msg: Any, key: int, target: Any = None) -> Draw:
        """A key of the particle and the site: no part of the model's law."""
        return key, 0.0, None

    def score(self, visit: Visit, msg: Any, value: Any) -> float:
        """Any number will do."""
        return 0.0

    def sample(self, sample_shape: Any = ()) -> int:  # type: ignore[override]
        """A new number."""
        return int(torch.randint(0, 2**62, ()))

    def log_prob(self, value: Any) -> torch.Tensor:
        """Zero: it is no part of the model's law."""
        return torch.zeros((), dtype=torch.float64)

    def support(self) -> list[tuple[Any, float]]:
        """One is all there is."""
        return [(0, 0.0)]
