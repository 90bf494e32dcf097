"""From a posterior to OpenAI's answer: which texts, in which order, and what they cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ppl.language.answers import extract_answer
from ppl.language.classes import tally
from ppl.language.text import Text
from ppl.posterior.posterior import Posterior, Sample
from ppl.posterior.votes import ranked
from ppl.serve.asked import Asked
from ppl.serve.refusal import RefusedError

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Said:
    """One candidate, as it is told.

    Attributes:
        content: its string, up to the first stop string.
        reason: why it ends.
        key: what of it is voted on, or None.
        probability: the particle's weight among all.
        log_likelihood: what its observations say of it.
        tokens: how many were generated for it.
    """

    content: str
    reason: Reason
    key: Any = None
    probability: float = 0.0
    log_likelihood: float | None = None
    tokens: int = 0


@dataclass(frozen=True)
class Found:
    """What a search has to say.

    Attributes:
        name: of the request.
        created: seconds since 1970.
        choices: the best first, each with the probability of its answer.
        posterior: all of it.
    """

    name: str
    created: int
    choices: list[tuple[Said, float]]
    posterior: Posterior


def found(name: str, asked: Asked, posterior: Posterior) -> Found:
    """What is said of a posterior. Raises RefusedError if it has nothing to say."""
    choices = chosen(asked, posterior)
    if not choices:
        raise RefusedError(
            422, "the search ended before any of its particles had an answer", code="no_answer"
        )
    return Found(name, int(time.time()), choices, posterior)


def chosen(asked: Asked, posterior: Posterior) -> list[tuple[Said, float]]:
    """The texts to be told, the best first, at most `asked.answers`, no two alike.

    By `"vote"`, one of each class of equal answers, the heaviest class first and spelled as
    `Posterior.vote` spells it; then the other texts. By `"best"`, texts by falling likelihood. A
    search that was stopped before it had an answer tells how far its heaviest particle came, which
    may be nowhere.

    Returns:
        Each with the total weight of its answer.
    """
    pairs = list(zip(posterior.samples, posterior.probabilities.tolist(), strict=True))
    heard = [
        _said(asked, sample.value, sample, p)
        for sample, p in pairs
        if sample.answered and sample.value is not None and p > 0
    ]
    if not heard:
        open_ = [(s, p) for s, p in pairs if s.text is not None and not s.answered]
        furthest = max(open_, key=lambda pair: pair[1], default=None)
        if furthest is not None:
            sample, p = furthest
            return [(_said(asked, sample.text, sample, p), p)]
        return [(Said("", "length"), 0.0)] if posterior.stopped == "budget" else []
    voting = [(i, said) for i, said in enumerate(heard) if said.key is not None]
    tallied = tally([said.key for _, said in voting], [said.probability for _, said in voting])
    classes = [(weight, voting[i][0]) for weight, i in tallied]
    weights = {i: weight for weight, i in classes}
    order = sorted(range(len(heard)), key=lambda i: -(heard[i].log_likelihood or 0.0))
    if asked.rule == "vote":
        order = [*(classes[k][1] for k in ranked([weight for weight, _ in classes])), *order]
    told: dict[str, tuple[Said, float]] = {}
    for i in order:
        told.setdefault(heard[i].content, (heard[i], weights.get(i, heard[i].probability)))
    return list(told.values())[: asked.answers]


def _said(asked: Asked, value: Any, sample: Sample, probability: float) -> Said:
    drawn = sample.text
    about: dict[str, Any] = {
        "probability": probability,
        "log_likelihood": sample.log_likelihood,
        "tokens": 0 if drawn is None else len(drawn.tokens) - drawn.prompt_length,
    }
    if not isinstance(value, Text):
        return Said(str(value), "stop", value, **about)
    content = value.text
    ends = [at for stop in asked.question.stop if (at := content.find(stop)) >= 0]
    if ends:
        content = content[: min(ends)]
    if not ends and not value.finished:
        return Said(content, "length", **about)
    read = asked.offered.answer or extract_answer
    return Said(content, "stop", read(content), **about)


# -- as JSON -----------------------------------------------------------------------------------


def whole(asked: Asked, found: Found) -> dict[str, Any]:
    """The answer in one piece."""
    choices = []
    for i, (said, weight) in enumerate(found.choices):
        choice: dict[str, Any] = {"index": i, "finish_reason": said.reason, "logprobs": None}
        if asked.form == "chat":
            choice["message"] = {"role": "assistant", "content": said.content, "refusal": None}
        else:
            choice["text"] = said.content
        choices.append({**choice, "ppl": _about_choice(said, weight)})
    kind = "chat.completion" if asked.form == "chat" else "text_completion"
    return {
        **_head(asked, found, kind),
        "choices": choices,
        "usage": usage(asked, found),
        "ppl": about(asked, found.posterior),
    }


def pieces(asked: Asked, found: Found) -> Iterator[dict[str, Any]]:
    """The answer as events: each choice line by line, then why it ends; the usage if wanted."""
    chat = asked.form == "chat"
    head = _head(asked, found, "chat.completion.chunk" if chat else "text_completion")
    ppl = about(asked, found.posterior)
    for i, (said, weight) in enumerate(found.choices):
        lines = said.content.splitlines(keepends=True)
        for j, line in enumerate(lines or [""]):
            delta = {"role": "assistant", "content": line} if j == 0 else {"content": line}
            choice = {"delta": delta} if chat else {"text": line}
            yield {**head, "choices": [{"index": i, **choice, "finish_reason": None}]}
        end: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        end |= {"index": i, "finish_reason": said.reason, "ppl": _about_choice(said, weight)}
        yield {**head, "choices": [end], "ppl": ppl}
    if asked.usage:
        yield {**head, "choices": [], "usage": usage(asked, found), "ppl": ppl}


def usage(asked: Asked, found: Found) -> dict[str, Any]:
    """What the search used, in OpenAI's words and in ours.

    `completion_tokens` are all that were generated, also those of candidates that are not told:
    they were computed. `prompt_tokens` are those of the prompt, once.
    """
    cost = found.posterior.cost
    prompt = len(asked.question.text.tokens)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": cost.lm_tokens,
        "total_tokens": prompt + cost.lm_tokens,
        "ppl": {
            "lm_tokens": cost.lm_tokens,
            "prompt_tokens": cost.prompt_tokens,
            "reused_tokens": cost.reused_tokens,
            "verifier_tokens": cost.verifier_tokens,
            "lm_calls": cost.lm_calls,
            "verifier_calls": cost.verifier_calls,
            "answer_tokens": sum(said.tokens for said, _ in found.choices),
            "seconds": round(cost.seconds, 6),
        },
    }


def about(asked: Asked, posterior: Posterior) -> dict[str, Any]:
    """How the answer was found: with these settings it is found again."""
    return {
        "searcher": posterior.searcher,
        "program": asked.program_name,
        "rule": asked.rule,
        "seed": asked.seed,
        "stopped": posterior.stopped,
        "particles": len(posterior.samples),
        "ess": posterior.ess,
        "log_evidence": _number(posterior.log_evidence),
    }


def _head(asked: Asked, found: Found, kind: str) -> dict[str, Any]:
    return {
        "id": found.name,
        "object": kind,
        "created": found.created,
        "model": asked.model,
        "system_fingerprint": None,
    }


def _about_choice(said: Said, weight: float) -> Mapping[str, Any]:
    return {
        "answer": None if said.key is None else str(said.key),
        "probability": weight,
        "log_likelihood": _number(said.log_likelihood),
    }


def _number(value: float | None) -> float | None:
    """JSON has no infinities."""
    return value if value is not None and math.isfinite(value) else None
