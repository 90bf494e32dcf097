"""Three programs that are ready: a chain of steps, whole answers, a model that thinks aloud.

A program of a study is `program(problem, lm, verifier, **settings) -> answer`; one with a parameter
`task` is given the task, whose `extract` knows where a response states its answer. These three are
Pyro models as any other and read as examples for your own. They return None, no answer, where the
text did not end, also where the model's context ended first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro

from ppl.language.text import Text
from ppl.lm.base import LanguageModel
from ppl.tasks import Problem, Task


def steps(
    problem: Problem,
    lm: LanguageModel,
    verifier: Any,
    *,
    task: Task,
    until: str | Sequence[str] = "\n",
    max_steps: int = 64,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    prompt: str = "{question}",
    system: str | None = None,
    chat: bool = True,
) -> str | None:
    """A chain of steps, each a checkpoint; the verifier is a likelihood of every step.

    Args:
        problem: what is asked.
        lm: writes.
        verifier: observes every step; None for none, and then searchers have nothing to go by.
        task: knows where a response states its answer.
        until: a step ends with it.
        max_steps: a text of more steps has no answer.
        max_tokens: of a step.
        temperature, top_p: of the steps; the target has them too.
        prompt: the question is put in place of `{question}`.
        system: a system message.
        chat: through the model's chat template; else the prompt as it stands.
    """
    text = asked(lm, problem, prompt, system, chat)
    for t in range(max_steps):
        step = lm(text, until=until, max_tokens=max_tokens, temperature=temperature, top_p=top_p)
        text = text + pyro.sample(f"step_{t}", step)
        _observe(verifier, text, f"ok_{t}")
        if text.finished:
            return task.extract(problem, text.text)
        if _full(lm, text):
            break  # one that rambles has no answer; the others' search goes on
    return None


def whole(
    problem: Problem,
    lm: LanguageModel,
    verifier: Any,
    *,
    task: Task,
    max_tokens: int = 2048,
    temperature: float = 1.0,
    top_p: float = 1.0,
    prompt: str = "{question}",
    system: str | None = None,
    chat: bool = True,
) -> str | None:
    """One draw that is the whole response, then the verifier, if there is one.

    For verifiers of whole answers, and for sampling and voting. Arguments as in `steps`.
    """
    text = asked(lm, problem, prompt, system, chat)
    response = lm(text, max_tokens=max_tokens, temperature=temperature, top_p=top_p)
    text = text + pyro.sample("response", response)
    _observe(verifier, text, "ok")
    return task.extract(problem, text.text) if text.finished else None


def thinking(
    problem: Problem,
    lm: LanguageModel,
    verifier: Any,
    *,
    task: Task,
    opening: str = "",
    closing: str = "</think>",
    until: str | Sequence[str] = "\n\n",
    max_steps: int = 64,
    max_tokens: int = 512,
    answer_tokens: int = 1024,
    temperature: float = 1.0,
    top_p: float = 1.0,
    prompt: str = "{question}",
    system: str | None = None,
    chat: bool = True,
) -> str | None:
    """A model that thinks aloud before it answers: thoughts are steps, the answer is one more.

    Only what follows the thoughts is searched for the answer. Thoughts that do not end within
    `max_steps` are closed by the program, and the model answers with what it has (budget forcing,
    Muennighoff et al. 2025, arXiv 2501.19393).

    Args:
        problem, lm, verifier, task, temperature, top_p, prompt, system, chat: as in `steps`.
        opening: written before the thoughts, for templates that do not open them.
        closing: ends the thoughts.
        until: ends a thought.
        max_steps, max_tokens: how many thoughts, and the tokens of one.
        answer_tokens: of the answer.
    """
    text = asked(lm, problem, prompt, system, chat)
    if opening:
        text = text + opening
    ends = [until] if isinstance(until, str) else list(until)
    closed = False
    for t in range(max_steps):
        thought = lm(
            text,
            until=[*ends, closing],
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
        )
        text = text + pyro.sample(f"thought_{t}", thought)
        _observe(verifier, text, f"ok_{t}")
        closed = closing in text.text
        if closed or text.finished or _full(lm, text):
            break
    if not text.finished:
        if not closed:
            text = text + closing
        if _full(lm, text):
            return None
        response = lm(text, max_tokens=answer_tokens, temperature=temperature, top_p=top_p)
        text = text + pyro.sample("response", response)
        _observe(verifier, text, "ok")
    answered = text.finished and closing in text.text
    return task.extract(problem, text.text.rpartition(closing)[2]) if answered else None


def asked(lm: LanguageModel, problem: Problem, prompt: str, system: str | None, chat: bool) -> Text:
    """The text that asks a model a problem's question."""
    question = prompt.replace("{question}", problem.question)
    if not chat:
        return lm.prompt(question if system is None else f"{system}\n{question}")
    if system is None:
        return lm.chat(question)
    return lm.chat([{"role": "system", "content": system}, {"role": "user", "content": question}])


def _full(lm: LanguageModel, text: Text) -> bool:
    """Whether the model can write nothing more: its context has ended."""
    return len(text.tokens) >= lm.context_length


def _observe(verifier: Any, text: Text, site: str) -> None:
    if verifier is not None:
        pyro.sample(site, verifier(text), obs=True)
