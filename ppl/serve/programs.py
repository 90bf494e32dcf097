"""What a request asks, and the programs that answer it: a chain of steps, and whole answers.

A program of the operator's own takes the same `Question` and returns what is to be said: a `Text`,
or anything that reads well as a string.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pyro

from ppl.errors import PromptError
from ppl.language.cached import cached_property
from ppl.language.primitives import twist
from ppl.language.text import Continuation, Text
from ppl.lm.base import LanguageModel, LMDistribution
from ppl.runtime.verdict import Verifier


@dataclass(frozen=True, eq=False)
class Question:
    """What one request asks of a program.

    Attributes:
        lm: the model.
        verifier: what judges it, or None.
        messages: of a chat, or None.
        prompt: of a completion, as a string or token ids, or None.
        max_tokens: most tokens of an answer; None for what the context holds.
        stop: strings before which an answer ends.
        warp: temperature, top_p, top_k and min_p, where they are given.
        step: what ends a step of a chain.
    """

    lm: LanguageModel
    verifier: Verifier | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    prompt: str | tuple[int, ...] | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    warp: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    step: str = "\n"

    @cached_property
    def text(self) -> Text:
        """What the model continues. Raises PromptError."""
        try:
            if self.messages is not None:
                return self.lm.chat(self.messages)
            if isinstance(self.prompt, tuple):
                return Text(self.lm.continuation(self.prompt).tokens, self.lm.codec)
            return self.lm.prompt(self.prompt or "")
        except ValueError as error:  # a tokenizer without such a character
            raise PromptError(f"the prompt cannot be encoded: {error}") from error

    def room(self, text: Text) -> int:
        """How many tokens may follow `text`."""
        left = self.lm.context_length - len(text.tokens)
        if self.max_tokens is not None:
            left = min(left, self.max_tokens - (len(text.tokens) - len(self.text.tokens)))
        return left

    def more(self, text: Text, until: str = "") -> LMDistribution:
        """What the model appends to `text`: up to `until`, a stop string, or the end."""
        ends = tuple(s for s in (until, *self.stop) if s)
        return self.lm(text, until=ends or None, max_tokens=self.room(text), **self.warp)

    def over(self, text: Text) -> bool:
        """True if the answer ends here, whether or not the model has ended it."""
        said = text.text if self.stop else ""
        return self.room(text) <= 0 or any(s in said for s in self.stop)


def steps(question: Question) -> Text:
    """An answer step by step, each judged if there is a verifier, and marked if there is none."""
    text = question.text
    for t in itertools.count():
        step: Continuation = pyro.sample(f"step_{t}", question.more(text, question.step))
        text = text + step
        if question.verifier is None:
            twist(f"end_{t}", 0.0)
        else:
            pyro.sample(f"ok_{t}", question.verifier(text), obs=True)
        if step.finished or question.over(text):
            break
    return text


def whole(question: Question) -> Text:
    """A whole answer, judged at its end if there is a verifier."""
    text = question.text
    answer: Continuation = pyro.sample("answer", question.more(text))
    text = text + answer
    if question.verifier is not None:
        pyro.sample("ok", question.verifier(text), obs=True)
    return text


Answering = Callable[[Question], Any]
READY: Mapping[str, Answering] = MappingProxyType({"steps": steps, "whole": whole})
