"""Several language models that write one text, each with its own tokenizer.

    write = ppl.writers({"small": small, "large": large})
    text = write.chat(question)
    for t in range(8):
        who = write.choose(f"llm_{t}")
        step = pyro.sample(f"step_{t}", write(who, text, until="\\n"))
        text = text + step

A `Written` is the same words in the tokens of every writer. What one writes is encoded anew for the
others, step by step, so that a text only grows and no model computes its beginning twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl.errors import PromptError
from ppl.language.arguments import checked
from ppl.language.text import Continuation, Text
from ppl.lm.base import LanguageModel, LMDistribution


@dataclass(frozen=True)
class Written:
    """One text in the tokens of several models: an immutable value.

    Attributes:
        texts: by the writer's name.
    """

    texts: Mapping[str, Text]
    _models: Mapping[str, LanguageModel]

    def __add__(self, step: Continuation) -> Written:
        """The text with a step more, whoever wrote it."""
        if not isinstance(step, Continuation):
            return NotImplemented
        texts = {}
        for name, text in self.texts.items():
            model = self._models[name]
            same = step.made_with in (None, model.codec.identity)
            texts[name] = text + (step if same else model.retokenize(step))
        return Written(MappingProxyType(texts), self._models)

    def of(self, name: str) -> Text:
        """The text in a writer's tokens, such as for a verifier that reads with them."""
        if name not in self.texts:
            raise PromptError(f"name={name!r}: the writers are {', '.join(map(repr, self.texts))}")
        return self.texts[name]

    @property
    def _first(self) -> Text:
        return next(iter(self.texts.values()))

    @property
    def text(self) -> str:
        """What was written."""
        return self._first.text

    @property
    def finished(self) -> bool:
        """True once a writer has ended the text."""
        return self._first.finished

    @property
    def answer(self) -> str | None:
        """The answer in what was written, as of a `Text`."""
        return self._first.answer

    def __str__(self) -> str:
        return str(self._first)


class Writers:
    """See `writers`."""

    def __init__(self, models: Mapping[str, LanguageModel]) -> None:
        self.models = MappingProxyType(dict(models))
        self.names = tuple(self.models)

    def prompt(self, string: str) -> Written:
        """The beginning of a text, as each model's `prompt` has it."""
        return self._written({name: lm.prompt(string) for name, lm in self.models.items()})

    def chat(self, messages: str | Sequence[Mapping[str, Any]]) -> Written:
        """A question, in each model's own chat template."""
        return self._written({name: lm.chat(messages) for name, lm in self.models.items()})

    def _written(self, texts: Mapping[str, Text]) -> Written:
        return Written(MappingProxyType(dict(texts)), self.models)

    @checked
    def choose(self, site: str) -> str:
        """Who writes next: a choice of the program, all equally likely, which a searcher may make
        (`ABMCTSA(n, actions="llm")` for sites `llm_0`, `llm_1`, ...)."""
        number = pyro.sample(site, dist.Categorical(torch.ones(len(self.names))))
        return self.names[int(number)]

    def __call__(self, who: str, text: Written, **settings: Any) -> LMDistribution:
        """What a writer appends to the text.

        Args:
            who: its name.
            text: from `prompt` or `chat`, with what was written since.
            settings: as of `lm(text, ...)`.
        """
        if not isinstance(text, Written):
            raise TypeError(
                f"text: writers continue what write.prompt or write.chat began, got "
                f"{type(text).__name__}"
            )
        own = text.of(who)
        return self.models[who](own, **settings)

    def __repr__(self) -> str:
        return f"writers({', '.join(self.names)})"


@checked
def writers(models: Mapping[str, LanguageModel]) -> Writers:
    """Language models that write one text by turns, whatever their tokenizers.

    Args:
        models: by the names that programs and records use.
    """
    if not models:
        raise ValueError("models={}: at least one writer")
    return Writers(models)
