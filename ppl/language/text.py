"""Text and Continuation: immutable token sequences, the values that programs hand around.

Tokens are the truth and strings are views of them: a text is never decoded and re-encoded between
steps. A `Text` remembers where its prompt ends and where each sampled step ends, which is what a
process reward model needs to know.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol

from ppl.language.answers.extraction import Answer, extract_answer

StopReason = Literal["until", "end", "length"]


class Codec(Protocol):
    """Turns strings into token ids and back. Must be lossless on its own output."""

    @property
    def size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a generation."""
        ...

    def encode(self, string: str) -> tuple[int, ...]:
        """Token ids of `string`, without any special tokens added."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The string of `tokens`; special tokens are left out."""
        ...

    def __hash__(self) -> int:
        """Equal codecs hash alike."""
        ...


@dataclass(frozen=True, slots=True)
class Continuation:
    """What one draw from `lm(text, ...)` appends.

    Attributes:
        tokens: the new token ids, including the one at which the draw stopped.
        text: their string (an end-of-text token decodes to nothing).
        reason: `"until"` (the step rule came true), `"end"` (the model ended the text) or
            `"length"` (`max_tokens` was reached).
    """

    tokens: tuple[int, ...]
    text: str = field(compare=False)
    reason: StopReason = "until"

    @property
    def finished(self) -> bool:
        """True if the model ended the text here, so that nothing can follow."""
        return self.reason == "end"

    def __str__(self) -> str:
        return self.text


class Text:
    """An immutable token sequence: a prompt and what was appended to it.

    `text + continuation` appends a step; `text + "literal"` appends the program's own words, which
    belong to no step. Equality and hash are those of the tokens and their division into steps.

    Attributes:
        tokens: all token ids, prompt included.
        prompt_length: number of tokens in the prompt.
        step_ends: for every appended continuation, the number of tokens up to its end.
        finished: True if the last thing appended was a continuation that ended the text.
    """

    tokens: tuple[int, ...]
    codec: Codec
    prompt_length: int
    step_ends: tuple[int, ...]
    finished: bool
    prompt_string: str | None
    parent: Text | None
    verdicts: dict[Hashable, Any]

    def __init__(
        self,
        tokens: Sequence[int],
        codec: Codec,
        *,
        prompt_length: int | None = None,
        step_ends: tuple[int, ...] = (),
        finished: bool = False,
        prompt_string: str | None = None,
        parent: Text | None = None,
    ) -> None:
        tokens = tuple(tokens)
        self._set(
            tokens=tokens,
            codec=codec,
            prompt_length=len(tokens) if prompt_length is None else prompt_length,
            step_ends=step_ends,
            finished=finished,
            prompt_string=prompt_string,
            parent=parent,
            # Verdicts pronounced on this very object, by verifier: a verifier's potential
            # telescopes along the chain of texts it was asked about (see `ppl.runtime.verdict`).
            verdicts={},
        )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Text is immutable: append with +, {name!r} cannot be set")

    def __add__(self, other: Continuation | str) -> Text:
        if isinstance(other, Continuation):
            tokens = self.tokens + other.tokens
            return self._child(tokens, (*self.step_ends, len(tokens)), other.finished)
        if isinstance(other, str):
            return self._child(self.tokens + self.codec.encode(other), self.step_ends, False)
        return NotImplemented

    def _child(self, tokens: tuple[int, ...], step_ends: tuple[int, ...], finished: bool) -> Text:
        return Text(
            tokens,
            self.codec,
            prompt_length=self.prompt_length,
            step_ends=step_ends,
            finished=finished,
            prompt_string=self.prompt_string,
            parent=self,
        )

    @cached_property
    def text(self) -> str:
        """Everything after the prompt, as a string."""
        return self.codec.decode(self.tokens[self.prompt_length :])

    @property
    def prompt(self) -> str:
        """The prompt as the user wrote it (or as its tokens read)."""
        if self.prompt_string is not None:
            return self.prompt_string
        return self.codec.decode(self.tokens[: self.prompt_length])

    @property
    def steps(self) -> tuple[str, ...]:
        """The string of each step; literals count to the step that follows them."""
        pairs = pairwise((self.prompt_length, *self.step_ends))
        return tuple(self.codec.decode(self.tokens[a:b]) for a, b in pairs)

    @property
    def answer(self) -> Answer | None:
        r"""The final answer of a finished text, else None: an unfinished text has no answer.

        See `extract_answer` for where it is looked for.
        """
        return extract_answer(self.text) if self.finished else None

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Text({self.text!r}, tokens={len(self.tokens)}, finished={self.finished})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Text):
            return NotImplemented
        return self.tokens == other.tokens and self.step_ends == other.step_ends

    def __hash__(self) -> int:
        return hash((self.tokens, self.step_ends))

    def __getstate__(self) -> dict[str, Any]:
        # The chain of parents and verdicts serves a running program only.
        names = ("tokens", "codec", "prompt_length", "step_ends", "finished", "prompt_string")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(**state, parent=None, verdicts={})
