"""FOBAR: forward-backward reasoning (Jiang et al. 2023, arXiv 2308.07758).

A number of the question is masked, the candidate answer is given, and the model is asked for the
number. The better the answer, the more often the number comes back: P(number | question without
it, answer) is a likelihood of the answer, estimated by counting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence

from ppl.errors import VerifierError
from ppl.language import checks
from ppl.language.answers import Equality, equality, extract_answer
from ppl.language.arguments import checked, shown
from ppl.language.cost import Account
from ppl.language.placeholders import filled
from ppl.language.randomness import key
from ppl.language.text import Text
from ppl.lm.base import ContinueRequest, LanguageModel
from ppl.runtime.verdict import JudgeRequest, Meaning, Verifier
from ppl.runtime.wave import ask
from ppl.verifiers.generative.judge import payer

Candidate = tuple[str, str]  # a question and an answer to it
Payer = tuple[str, Account | None]  # who asks, for error messages, and pays

_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")  # 1000 or 1,000
_STATED = re.compile(r"[-+*/^$%.,0-9 ]+")  # a number and what belongs to it
_MOST = 100_000  # candidates that are remembered
BACKWARD = (
    "{masked}\nIf we know that the answer to the question above is {answer}, what is the value of "
    "the unknown variable x?"
)


class FOBAR(Verifier):
    """How often the model finds a masked number of the question back from the answer.

    The probability is Z / (masks * samples), Z the number of backward draws that return the masked
    number: an unbiased estimate of P(number | masked question, answer), averaged over the masks.
    (Raising zero to `floor` is the only bias.) It is drawn once for each question and candidate
    answer, from `seed`, and remembered: all particles with this answer share it. So the verifier
    is one (noisy) function of the text, an evidence is unbiased over seeds, and the price is
    masks * samples generations for each candidate, whatever the number of particles. Who asks
    first pays. A text without an answer yet is not judged (probability one).

    Args:
        lm: the language model that reasons backward.
        samples: backward draws per mask.
        masks: numbers of the question to mask, the first ones; None takes all.
        prompt: what is asked; `{masked}` is the question with x for the number.
        max_tokens, temperature: of the draws (the paper uses .7).
        floor: least probability (the paper's epsilon).
        seed: of the draws.
    """

    meaning: Meaning = "outcome"
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
        seed: int = 0,
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
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed
        self._counts: dict[Candidate, tuple[int, int]] = {}  # Z, of so many draws

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """Asks for every masked number back, `samples` times, once a distinct candidate."""
        candidates = [_candidate(request) for request in requests]
        asked: dict[Candidate, Payer] = {}
        for candidate, request in zip(candidates, requests, strict=True):
            if candidate is not None:
                asked.setdefault(candidate, (request.label, payer(request)))
        known = {c: math.log(max(z / n, self.floor)) for c, (z, n) in self._counted(asked).items()}
        return [[0.0 if c is None else known[c]] for c in candidates]

    @checked
    def count(
        self, question: str, answers: Sequence[Hashable], *, account: Account | None = None
    ) -> dict[Hashable, int]:
        """Z of each answer: how many of the backward draws find the masked number back.

        Every answer that was not asked about before costs `draws(question)` generations, one that
        was costs nothing, whoever asked. All of them go out as one batch.

        Args:
            question: with the numbers to mask.
            answers: candidates; equal ones are asked about once.
            account: pays, as for anything else that a model writes; None counts nothing.

        Raises:
            VerifierError: the question has no number.
            BudgetExhausted: the account cannot pay; nothing is known then.
        """
        who: Payer = ("a count", None if account is None else account.of(self.lm))
        found = self._counted({(question, str(answer)): who for answer in answers})
        return {answer: found[question, str(answer)][0] for answer in answers}

    @checked
    def draws(self, question: str) -> int:
        """Backward draws for each candidate answer to a question: masks * samples."""
        return len(self._places(question, "a count")) * self.samples

    def _counted(self, asked: Mapping[Candidate, Payer]) -> dict[Candidate, tuple[int, int]]:
        """Z and the number of draws of each candidate, remembered or drawn."""
        known = {c: self._counts[c] for c in asked if c in self._counts}
        new = {c: who for c, who in asked.items() if c not in known}
        requests: list[ContinueRequest] = []
        owners: list[tuple[Candidate, str]] = []  # of each draw, with the masked number
        for candidate, (label, account) in new.items():
            for m, (number, prompt) in enumerate(self._masked(candidate, label)):
                spec = self.lm(
                    prompt, max_tokens=self.max_tokens, temperature=self.temperature
                ).spec
                for k in range(self.samples):
                    word = key(self.seed, "backward", *candidate, m, k)
                    requests.append(ContinueRequest(self.lm, spec, word, label, account))
                    owners.append((candidate, number))
        found: dict[Candidate, list[bool]] = {candidate: [] for candidate in new}
        for (candidate, number), drawn in zip(owners, ask(requests), strict=True):
            found[candidate].append(same_number(number, extract_answer(drawn.value.text)))
        counts = {candidate: (sum(hits), len(hits)) for candidate, hits in found.items()}
        self._counts |= counts
        while len(self._counts) > _MOST:
            del self._counts[next(iter(self._counts))]
        return known | counts

    def _places(self, question: str, label: str) -> list[re.Match[str]]:
        """Where the numbers stand that are masked."""
        places = list(_NUMBER.finditer(question))[: self.masks]
        if not places:
            raise VerifierError(
                f"{self.name} at {label}: the question has no number to mask: {question!r}"
            )
        return places

    def _masked(self, candidate: Candidate, label: str) -> list[tuple[str, Text]]:
        question, answer = candidate
        places = self._places(question, label)
        masked = [(p.group(), question[: p.start()] + "x" + question[p.end() :]) for p in places]
        return [(n, self.lm.chat(filled(self.prompt, masked=q, answer=answer))) for n, q in masked]


def _candidate(request: JudgeRequest) -> Candidate | None:
    """The question and the answer of a text."""
    answer = request.text.answer
    return None if answer is None else (request.text.prompt, str(answer))


def same_number(number: str, answer: str | None) -> bool:
    """Whether `answer` states this number: as a whole, or by the last number of a sentence.

    Read with its sign and whatever makes another number of it: -5, 1/5 and 5% are not 5.
    """
    if answer is None:
        return False
    if equality(number, answer) is Equality.EQUAL:
        return True
    if "\\" in answer or not re.search(r"[A-Za-z]{2}", answer):
        return False  # a formula, which is read above or not at all
    runs = [run for run in _STATED.finditer(answer) if re.search(r"[0-9]", run.group())]
    if not runs:
        return False
    stated = runs[-1].group()
    before, after = answer[: runs[-1].start()], answer[runs[-1].end() :]
    # A letter or bracket that touches it makes it a part of something else.
    touching = before[-1:] * (stated[0] != " ") + after[:1] * (stated[-1] not in " .,")
    alone = not re.search(r"[A-Za-z0-9(){}\[\]^_]", touching)
    return alone and equality(number, stated.strip(" .,")) is Equality.EQUAL
