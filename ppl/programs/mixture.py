"""Mixture of agents with one model, as patched into OptiLLM (Sharma 2024, arXiv:2407.18521).

    candidates = `samples` answers to the question, at temperature 1
    critique   = one reading of all of them
    answer     = one more answer, from the question, the candidates and the critique

Published: 3 candidates of at most 4096 tokens, a critique of 512 and an answer of 8192 at
temperature .1; candidates that were cut off are left out, and the first that was not takes their
places. The model is asked five times. It is a program and no search: a searcher draws it several
times, weighs it, or steers it by what is observed behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pyro

from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.placeholders import filled
from ppl.language.primitives import parallel, twist
from ppl.language.text import Text
from ppl.lm.base import LanguageModel

CRITIQUE = """Original query: {question}

Here are candidate responses to the original query. Analyze and critique each of them, for itself: \
its strengths and its weaknesses.

{candidates}

Your critique of each candidate:"""

SYNTHESISE = """Original query: {question}

Write a final response to the original query, based on these candidate responses and their \
critiques.

{candidates}

Critiques of all candidates:
{critique}

Your final, best response to the original query:"""


@checked
def mixture_of_agents(
    lm: LanguageModel,
    samples: int = 3,
    critique: str = CRITIQUE,
    synthesise: str = SYNTHESISE,
    *,
    system: str | None = None,
    temperature: float = 1.0,
    reading_temperature: float = 0.1,
    max_tokens: int = 4096,
    critique_tokens: int = 512,
    answer_tokens: int = 8192,
) -> Callable[[str], Text]:
    """A program that answers a question in `samples + 2` calls of a model.

        moa = ppl.programs.mixture_of_agents(lm)
        BestOfN(1).run(moa, question).best.text

    Candidates that did not end within `max_tokens`, or said nothing, are left out, and the first
    usable one stands in their places, so that what is read always has as many. If none is usable
    there is nothing to read: the first is returned as it is, unfinished or empty, after `samples`
    calls. Candidates are drawn side by side (`samples/0/candidate`, ...), `critique` and `answer`
    after them, each a step. Judge the text that is returned in a program around this one.

    Args:
        lm: writes all of it.
        samples: how many candidates.
        critique: asks for the critique; `{question}` and `{candidates}` stand for what they say.
        synthesise: asks for the answer; `{critique}` too.
        system: a system message for all calls.
        temperature: of the candidates.
        reading_temperature: of critique and answer.
        max_tokens, critique_tokens, answer_tokens: most tokens of a candidate, of the critique, of
            the answer; the context's end cuts earlier.

    Returns:
        A program `(question) -> Text`, the answer (`.finished` is False if it was cut off).
    """
    checks.count(
        samples=samples,
        max_tokens=max_tokens,
        critique_tokens=critique_tokens,
        answer_tokens=answer_tokens,
    )
    checks.nonnegative(temperature=temperature, reading_temperature=reading_temperature)
    return functools.partial(
        _mixture,
        lm=lm,
        samples=samples,
        prompts=(critique, synthesise),
        system=system,
        temperatures=(temperature, reading_temperature),
        limits=(max_tokens, critique_tokens, answer_tokens),
    )


def _mixture(
    question: str,
    *,
    lm: LanguageModel,
    samples: int,
    prompts: tuple[str, str],
    system: str | None,
    temperatures: tuple[float, float],
    limits: tuple[int, int, int],
) -> Text:
    (critique, synthesise), (warm, cool) = prompts, temperatures

    def ask(name: str, request: str, temperature: float, most: int) -> Text:
        asked = [{"role": "user", "content": request}]
        if system is not None:
            asked.insert(0, {"role": "system", "content": system})
        text = lm.chat(asked)
        most = min(most, max(1, lm.context_length - len(text.tokens)))
        said: Text = text + pyro.sample(name, lm(text, max_tokens=most, temperature=temperature))
        return said

    draw = functools.partial(ask, "candidate", question, warm, limits[0])
    candidates = parallel([draw] * samples, name="samples")
    twist("drafted", 0.0)  # steps: a search may go on from the same candidates
    usable = [text for text in candidates if text.finished and text.text.strip()]
    if not usable:
        first: Text = candidates[0]
        return first
    usable += usable[:1] * (samples - len(usable))
    parts = {
        "question": question,
        "candidates": "\n\n".join(
            f"Candidate {i}:\n{text.text}" for i, text in enumerate(usable, 1)
        ),
    }
    parts["critique"] = ask("critique", filled(critique, **parts), cool, limits[1]).text
    twist("read", 0.0)
    return ask("answer", filled(synthesise, **parts), cool, limits[2])
