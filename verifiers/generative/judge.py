"""Generative verifiers: a language model is asked for a verdict, its token probabilities are read.

The verdict comes from the same `lm(...)` distribution as everything else, so any language model
will do, and what is asked is priced: all its tokens are booked as verifier tokens.

The probability is that of the good words among all verdict words (summed over spellings), from
log-probabilities. Average probabilities and not log-probabilities over rationales: that is the
unbiased estimate of P(Yes | x), and an unbiased positive estimate is a right weight even with one
rationale (pseudo-marginal), only a noisier one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import logsumexp

from ppl.errors import VerifierError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.cost import Account
from ppl.language.randomness import key
from ppl.language.text import Continuation, Text
from ppl.lm.base import ContinueRequest, LanguageModel, ScoreRequest, Tokens
from ppl.runtime.verdict import Aggregate, JudgeRequest, Meaning, Verifier, check_declared
from ppl.runtime.wave import ask
from ppl.verifiers.escaping import escaped

Ask = Callable[[LanguageModel, Text], Text]
"""Builds the prompt with which a language model is asked about a text."""

YES_NO = {w: float("y" in w.lower()) for w in ("Yes", " Yes", "yes", "No", " No", "no")}
TRUE_FALSE = {"A": 1.0, " A": 1.0, "B": 0.0, " B": 0.0}


@checked
def chat(template: str) -> Ask:
    """Asks in a new conversation; `{question}` and `{solution}` stand for prompt and text.

    A special token that the text itself spells out is broken by a space, so that a solution cannot
    end the user's turn and answer in the judge's place.
    """

    def ask(lm: LanguageModel, text: Text) -> Text:
        tokenizer = getattr(lm.codec, "tokenizer", None)
        parts = {"question": text.prompt, "solution": text.text}
        # No str.format: questions and solutions contain braces. In one pass: and placeholders, too.
        return lm.chat(
            re.sub(
                r"\{(question|solution)\}",
                lambda m: parts[m[1]] if tokenizer is None else escaped(parts[m[1]], tokenizer, ""),
                template,
            )
        )

    return ask


class Judge(Verifier):
    """A language model says which of some words is its verdict.

    The probability is sum_w P(w) right(w) / sum_w P(w), P the model's own next-word probability.
    With graded words ("1" to "5") that is G-Eval's expected grade (Liu et al. 2023).

    Args:
        lm: the language model.
        ask: builds its prompt; the verdict is the next thing it says.
        verdicts: words, and how probable it is that the text is right if the model says so.
        name: shown in messages.
        meaning, aggregate: what the number says and how it combines along a text.
        floor: probabilities are clipped to [floor, 1 - floor].

    Raises:
        ValueError: the verdicts cannot be told apart.
    """

    asks_models = True

    @checked
    def __init__(
        self,
        lm: LanguageModel,
        ask: Ask,
        *,
        verdicts: Mapping[str, float] = YES_NO,
        name: str | None = None,
        meaning: Meaning = "outcome",
        aggregate: Aggregate = "last",
        floor: float = 1e-6,
    ) -> None:
        checks.floor(floor=floor)
        self.name = name or f"{type(self).__name__}({lm.name})"
        check_declared(self.name, meaning, aggregate)
        self.meaning, self.aggregate, self.floor = meaning, aggregate, floor
        self.lm, self.ask = lm, ask
        self._words = _encoded(lm, verdicts, self.name)
        self._right = np.log(np.maximum(list(self._words.values()), 1e-300))

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """Log-probability of the good words against all words, all prompts in one batch."""
        asked = self._asked(requests)
        words = list(self._words)
        scores = ask(
            [
                ScoreRequest(
                    self.lm,
                    self.lm(text, max_tokens=len(word)).spec,
                    Continuation(word, self.lm.codec.decode_after(word), "length"),
                    request.label,
                    payer(request),
                )
                for request, texts in zip(requests, asked, strict=True)
                for text in texts
                for word in words
            ]
        )
        per_text = np.array(scores).reshape(-1, len(words))  # [texts, words]
        results: list[Sequence[float]] = []
        for request, texts in zip(requests, asked, strict=True):
            mine, per_text = per_text[: len(texts)], per_text[len(texts) :]
            mass = logsumexp(mine, axis=1)
            if not np.isfinite(mass).all():
                raise VerifierError(
                    f"{self.name} at {request.label} gives none of its verdicts any probability "
                    f"for {request.text.text!r}; word the question so that it answers with one"
                )
            log_probs = logsumexp(mine + self._right, axis=1) - mass
            results.append([min(0.0, float(logsumexp(log_probs) - np.log(len(texts))))])
        return results

    def _asked(self, requests: Sequence[JudgeRequest]) -> list[list[Text]]:
        """For each request the texts after which the verdict is read."""
        return [[self.ask(self.lm, request.text)] for request in requests]


GENRM = (
    "Question: {question}\nSolution: {solution}\n"
    "You are a math teacher. Grade the solution, verifying correctness step by step."
)
VERDICT = "\nIs the answer correct (Yes/No)?"


class GenRM(Judge):
    """A generative verifier (Zhang et al. 2024, arXiv 2408.15240): direct, or with rationales.

    Direct: P(Yes | question, solution, "Is the answer correct?"). With K rationales v_k drawn from
    the model: (1/K) sum_k P(Yes | question, solution, v_k, "Is the answer correct?"), an unbiased
    estimate of the marginal over rationales; every particle draws its own.

    A rationale ends where the model comes to the verdict question by itself, ends its text, or
    after `max_tokens`; the question is then asked in any case, so that none is ever missing.

    Args:
        lm: the language model.
        rationales: K; 0 is direct.
        ask: builds the prompt.
        verdict: the string after which the verdict is read.
        max_tokens: most tokens of a rationale.
        temperature: of the rationales; it is part of what the marginal means.
        verdicts, name, meaning, aggregate, floor: as in `Judge`.

    Raises:
        ValueError: rationales are negative, or their estimates are to be combined by minimum or
            geometric mean, which would not be unbiased.
    """

    @checked
    def __init__(
        self,
        lm: LanguageModel,
        *,
        rationales: int = 0,
        ask: Ask | None = None,
        verdict: str = VERDICT,
        max_tokens: int = 256,
        temperature: float = 1.0,
        verdicts: Mapping[str, float] = YES_NO,
        name: str | None = None,
        meaning: Meaning = "outcome",
        aggregate: Aggregate = "last",
        floor: float = 1e-6,
    ) -> None:
        checks.count(least=0, rationales=rationales)
        checks.count(max_tokens=max_tokens)
        checks.nonnegative(temperature=temperature)
        if not verdict:
            raise ValueError("verdict='': the string after which the model's verdict is read")
        if rationales and aggregate in ("min", "geomean"):
            # E[min] is not the min of expectations; products and means of independent draws are.
            raise ValueError(
                f"aggregate={aggregate!r} of estimates is biased: with rationales= take 'last', "
                "'prod' or 'mean'"
            )
        super().__init__(
            lm,
            ask or chat(GENRM),
            verdicts=verdicts,
            name=name,
            meaning=meaning,
            aggregate=aggregate,
            floor=floor,
        )
        self.rationales, self.verdict = rationales, verdict
        self.max_tokens, self.temperature = max_tokens, temperature
        self.pseudo_marginal = rationales > 0

    def _asked(self, requests: Sequence[JudgeRequest]) -> list[list[Text]]:
        prompts = [self.ask(self.lm, request.text) for request in requests]
        if not self.rationales:
            return [[prompt + self.verdict] for prompt in prompts]
        drawn = ask(
            [
                ContinueRequest(
                    self.lm,
                    self.lm(
                        prompt,
                        until=self.verdict,
                        max_tokens=self.max_tokens,
                        temperature=self.temperature,
                    ).spec,
                    key(request.key, "rationale", k),
                    request.label,
                    payer(request),
                )
                for request, prompt in zip(requests, prompts, strict=True)
                for k in range(self.rationales)
            ]
        )
        asked = []
        for i, prompt in enumerate(prompts):
            mine = drawn[i * self.rationales : (i + 1) * self.rationales]
            asked.append([self._to_the_verdict(prompt, d.value) for d in mine])
        return asked

    def _to_the_verdict(self, prompt: Text, rationale: Continuation) -> Text:
        if rationale.reason == "until":
            return prompt + rationale
        ends = self.lm.codec.end_tokens
        tokens = tuple(t for t in rationale.tokens if t not in ends)
        return prompt + Continuation(tokens, rationale.text, "length") + self.verdict


P_TRUE = "Is the solution above correct so far?\n(A) True\n(B) False\nAnswer with A or B."


class SelfEvaluation(Judge):
    """P(True): the model that wrote the text is asked whether it is right (Kadavath et al. 2022).

    The question follows the text's own tokens, whose keys and values the engine still holds, so it
    costs the question's tokens only. Errors of writer and judge are correlated: take it as a weak
    verifier (see `Ensemble`).

    Args:
        lm: the model that wrote the text.
        question: what it is asked, as the next turn of the user where it has a chat template.
        verdicts, name, meaning, aggregate, floor: as in `Judge`.
    """

    @checked
    def __init__(
        self,
        lm: LanguageModel,
        *,
        question: str = P_TRUE,
        verdicts: Mapping[str, float] = TRUE_FALSE,
        name: str | None = None,
        meaning: Meaning = "value",
        aggregate: Aggregate = "last",
        floor: float = 1e-6,
    ) -> None:
        super().__init__(
            lm,
            self._after,
            verdicts=verdicts,
            name=name,
            meaning=meaning,
            aggregate=aggregate,
            floor=floor,
        )
        if not question:
            raise ValueError("question='': what the model is asked about its text")
        self._turn = _next_turn(lm, question)

    def _after(self, lm: LanguageModel, text: Text) -> Text:
        if text.codec.identity != lm.codec.identity:
            raise VerifierError(
                f"{self.name} judges texts of its own language model only; for others use Judge"
            )
        turn = self._turn
        # The assistant's end token comes before the question, once.
        if text.tokens[-1] in lm.codec.end_tokens and turn[0] == text.tokens[-1]:
            turn = turn[1:]
        return Text(text.tokens + turn, text.codec)


def _next_turn(lm: LanguageModel, question: str) -> Tokens:
    """Tokens that end the assistant's turn, let the user ask, and give the turn back."""
    tokenizer = getattr(lm.codec, "tokenizer", None)
    if getattr(tokenizer, "chat_template", None) is None:
        return lm.codec.encode_after(question)
    assert tokenizer is not None
    mark = "(the text)"
    rendered: str = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": mark},
            {"role": "user", "content": question},
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    return lm.codec.encode_after(rendered.partition(mark)[2])


def _encoded(lm: LanguageModel, verdicts: Mapping[str, float], name: str) -> dict[Tokens, float]:
    words: dict[Tokens, float] = {}
    for word, right in verdicts.items():
        tokens = lm.codec.encode_after(word)
        if not tokens or not 0 <= right <= 1 or words.get(tokens, right) != right:
            raise ValueError(
                f"{name}: verdicts: {word!r}: {right}; give words a probability in [0, 1], and "
                "another word to another one"
            )
        words[tokens] = right
    for a in words:
        for b in words:
            if a != b and b[: len(a)] == a:
                raise ValueError(
                    f"{name}: verdict {lm.codec.decode_after(b)!r} begins with another one, "
                    f"{lm.codec.decode_after(a)!r}; their probabilities would be counted twice"
                )
    if len(set(words.values())) < 2:
        raise ValueError(f"{name}: the verdicts {verdicts} all say the same")
    return words


def payer(request: JudgeRequest) -> Account | None:
    """Who pays for what a verifier asks: all of it counts as verifier tokens."""
    return None if request.ledger is None else request.ledger.for_verifier()
