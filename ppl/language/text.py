"""Text and Continuation: immutable token sequences, the values that programs hand around.

Tokens are the truth and strings are views of them: a text is never decoded and re-encoded between
steps, and tokens of another tokenizer are refused. A `Text` remembers where its prompt ends and
where each sampled step ends, which is what a process reward model needs to know.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from ppl.errors import PromptError
from ppl.language.answers.extraction import Answer, extract_answer
from ppl.language.cached import cached_property
from ppl.language.codec import Codec, Identity, Reader, checked_string
from ppl.language.messages import checked_messages, question_of

StopReason = Literal["until", "end", "length", "open"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """What one draw from `lm(text, ...)` appends.

    Attributes:
        tokens: the new token ids, including the one at which the draw stopped.
        text: the characters that they complete where they stand (an end-of-text token says
            nothing; a character that is cut off at the end is not there yet).
        reason: `"until"` (the step rule came true), `"end"` (the model ended the text) or
            `"length"` (`max_tokens` was reached, or the model's context ended); `"open"` is only
            made by hand: the beginning of a step, to be observed.
        made_with: the tokenizer; None for ids put together by hand, which are taken at their word.
        kv: what the model that drew it kept of keys and values (`ppl.load(..., kv=)`); None where
            nobody drew it, or that is not known.
    """

    tokens: tuple[int, ...]
    text: str = field(compare=False)
    reason: StopReason = "until"
    made_with: Identity | None = field(default=None, compare=False, repr=False)
    kv: str | None = field(default=None, compare=False, repr=False)

    @property
    def finished(self) -> bool:
        """True if the model ended the text here, so that nothing can follow."""
        return self.reason == "end"

    def __str__(self) -> str:
        return self.text

    def __getstate__(self) -> tuple[Any, ...]:
        return self.tokens, self.text, self.reason, self.made_with, self.kv

    def __setstate__(self, state: Sequence[Any]) -> None:
        # What an earlier version stored has no tokenizer, or says nothing of keys and values.
        for name, value in zip(self.__slots__, (*state, None, None), strict=False):
            object.__setattr__(self, name, value)


class Text:
    """An immutable token sequence: a prompt and what was appended to it.

    `text + continuation` appends a step; `text + "literal"` appends the program's own words, which
    belong to no step. Equality and hash are those of the tokens, their tokenizer and their
    division into steps.

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
        )

    def _set(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Text is immutable: append with +, {name!r} cannot be set")

    def __add__(self, other: Continuation | str) -> Text:
        """The text with a step, or with the program's own words, at its end.

        Raises:
            TokenizerError: the continuation was made with another tokenizer.
            PromptError: the text is finished, or the words are no text.
        """
        step = isinstance(other, Continuation)
        if not step and not isinstance(other, str):
            return NotImplemented
        if self.finished:
            raise PromptError(
                f"the text is finished, {str(other)[:40]!r} cannot follow: leave the loop when "
                "step.finished is true, and go on with text.turn(question) or lm.chat([...])"
            )
        if isinstance(other, Continuation):
            mine = self.codec.identity
            made_with = other.made_with
            if made_with is not mine and made_with is not None and made_with != mine:
                raise mine.refused(made_with, f"the continuation {other.text[:40]!r}")
            tokens = self.tokens + other.tokens
            return self._child(tokens, (*self.step_ends, len(tokens)), other.finished)
        return self.extended(self.codec.encode_after(checked_string(other, "text + words")))

    def turn(self, messages: str | Sequence[Mapping[str, Any]], **template_arguments: Any) -> Text:
        """The conversation goes on: what was said, then further messages, up to the model's turn.

        Token in, token out: the tokens so far stay as they are, so that a model computes only the
        new ones, and what the chat template would change in earlier turns (many drop their
        thoughts) stays, too. Between stands what the template writes there. All of it is the new
        text's prompt: its steps, its answer and what verifiers say of it are those of the new turn.

        Args:
            messages: a question, or messages such as a tool's; if the last is the assistant's, the
                model goes on with it.
            **template_arguments: as for `lm.chat`.

        Raises:
            PromptError: as `lm.chat`; or the template does not write what the assistant said.
        """
        asked = checked_messages(messages)
        words: Sequence[int] = self.codec.turn(asked, template_arguments)
        # The model may have ended its turn itself.
        words = _behind_end(self.codec, words) if self.finished else words
        return Text((*self.tokens, *words), self.codec, prompt_string=question_of(asked))

    def extended(self, words: Sequence[int]) -> Text:
        """The text with tokens of its own tokenizer at its end, which belong to no step yet."""
        return self._child((*self.tokens, *words), self.step_ends, False)

    def _child(self, tokens: tuple[int, ...], step_ends: tuple[int, ...], finished: bool) -> Text:
        child = object.__new__(Text)  # all is checked, and this runs at every site
        child.__dict__.update(
            tokens=tokens,
            codec=self.codec,
            prompt_length=self.prompt_length,
            step_ends=step_ends,
            finished=finished,
            prompt_string=self.prompt_string,
            parent=self,
        )
        return child

    @cached_property
    def verdicts(self) -> dict[Hashable, Any]:
        """Verdicts pronounced on this very object, by verifier: a verifier's potential telescopes
        along the chain of texts it was asked about (see `ppl.runtime.verdict`)."""
        return {}

    @cached_property
    def text(self) -> str:
        """Everything after the prompt, as a string: the steps, and what follows the last.

        It reads as what follows a prompt does, so a word's space is there. A character that the
        last token cuts off is not there yet, see `Continuation.text`.
        """
        return "".join(self._parts)

    @cached_property
    def _parts(self) -> tuple[str, ...]:
        """The string of each step, and of what follows the last one."""
        reader = Reader(self.codec, self.tokens[: self.prompt_length])
        pairs = pairwise((self.prompt_length, *self.step_ends, len(self.tokens)))
        return tuple(reader.read(self.tokens[a:b]) for a, b in pairs)

    @property
    def prompt(self) -> str:
        """The prompt as the user wrote it (or as its tokens read)."""
        if self.prompt_string is not None:
            return self.prompt_string
        return self.codec.decode(self.tokens[: self.prompt_length])

    @property
    def steps(self) -> tuple[str, ...]:
        """The string of each step, which join to the text; literals count to the step that
        follows them, and so does a character that a step leaves incomplete."""
        return self._parts[:-1]

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
        same = self.tokens == other.tokens and self.step_ends == other.step_ends
        return same and self.codec.identity == other.codec.identity

    def __hash__(self) -> int:
        return hash((self.tokens, self.step_ends))

    def __getstate__(self) -> dict[str, Any]:
        # The chain of parents and verdicts serves a running program only.
        names = ("tokens", "codec", "prompt_length", "step_ends", "finished", "prompt_string")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(**state, parent=None)


def _behind_end(codec: Codec, words: Sequence[int]) -> Sequence[int]:
    """What follows the end token with which `words` begin; all if they begin with none."""
    for i, token in enumerate(words):
        if token in codec.end_tokens:
            return words[i + 1 :]
        if codec.piece(token).strip() or token in codec.special_tokens:
            break
    return words
