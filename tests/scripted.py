"""A language model that says what a function says: for tests of programs that read replies."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import ppl

ASKED, END = "\x02", "\x03"  # where a prompt and a reply end


class Scripted(ppl.TableLM):
    """Replies to a prompt with `reply(prompt)`, a token for every character.

    Attributes:
        asked: all prompts.
    """

    def __init__(self, reply: Callable[[str], str], name: str = "scripted") -> None:
        self.asked: list[str] = []
        self._replies: dict[str, str] = {}

        def after(prefix: str) -> dict[str, float]:
            prompt, _, said = prefix.partition(ASKED)
            if prompt not in self._replies:
                self.asked.append(prompt)
                self._replies[prompt] = reply(prompt) + END
            return {self._replies[prompt][len(said)]: 1.0}

        symbols = "".join(c for c in string.printable if c not in "\x0b\x0c") + ASKED + END
        super().__init__(after, symbols=symbols, end=END, context_length=8000, name=name)

    def chat(self, messages: Any, **_: Any) -> ppl.Text:
        """The question, and a mark where the reply begins."""
        return self.prompt(f"{messages}{ASKED}")
