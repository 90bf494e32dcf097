"""Texts and continuations in a model's own tokens: prompts, conversations, what is made by hand."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import index
from typing import Any, overload

from ppl.errors import PromptError
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.codec import Codec, checked_string
from ppl.language.messages import checked_messages, question_of
from ppl.language.text import Continuation, StopReason, Text

Tokens = tuple[int, ...]


class TextMaker(ABC):
    """What every language model can do with its tokenizer alone.

    Attributes:
        name: shown in messages and used to tell models apart.
        codec: the tokenizer.
        context_length: most tokens of prompt and continuation together.
    """

    name: str
    codec: Codec
    context_length: int

    def encode(self, string: str) -> Tokens:
        """Token ids of `string` at the start of a text, without special tokens."""
        return self.codec.encode(checked_string(string, "lm.encode"))

    def prompt(self, string: str, *, begin: bool = True) -> Text:
        """A `Text` that starts with `string`.

        Special tokens that the string spells out become those tokens.

        Args:
            string: the prompt, as it stands.
            begin: put the begin-of-text token first where the tokenizer does so by default (as
                those of Llama and Gemma do), unless the string begins with it. Models were trained
                on texts that begin so.

        Raises:
            PromptError: `string` is empty, no text, or longer than the context.
        """
        checks.flag(begin=begin)
        tokens = self.codec.encode(checked_string(string, "lm.prompt"))
        first = self.codec.begin_tokens if begin and tokens else ()
        if tokens[: len(first)] != first:
            tokens = first + tokens
        return self._checked(tokens, string)

    def chat(self, messages: str | Sequence[Mapping[str, Any]], **template_arguments: Any) -> Text:
        """A `Text` that asks the model for its turn, rendered with the model's chat template.

        What messages say are characters: control tokens that they spell out are encoded as such.
        If the last message is the assistant's, the model goes on with it.

        Args:
            messages: a question, or a list of `{"role": ..., "content": ...}`.
            **template_arguments: for the template, such as `enable_thinking=False`.

        Raises:
            PromptError: nothing is asked; a message lacks its role or content; the template
                refuses or drops a message, or knows no such argument; or the prompt is longer than
                the context.
        """
        asked = checked_messages(messages)
        tokens = self.codec.chat(asked, template_arguments)
        return self._checked(tokens, question_of(asked))

    def _checked(self, tokens: Tokens, string: str) -> Text:
        if not tokens:
            raise PromptError(
                f"string={string!r}: the prompt is empty, it needs at least one token"
            )
        if len(tokens) >= self.context_length:
            raise PromptError(
                f"the prompt has {len(tokens)} tokens, {self.name} holds {self.context_length}: "
                "shorten it"
            )
        return Text(tokens, self.codec, prompt_string=string)

    def continuation(
        self, value: str | Sequence[int], *, finished: bool | None = None
    ) -> Continuation:
        """A continuation made by hand, to be observed or compared.

        Observed, it is what `finished` says. Its probability is that a draw *is* this: a step that
        ends here (None), or the whole text (True); or that a draw *begins* with it (False).

        Args:
            value: a string, encoded as what follows a text, or token ids.
            finished: None for a whole step, which has to end where the model's `until=` or
                `max_tokens=` ends it; True to append the end-of-text token; False for the beginning
                of a step, after which the model may write on.

        Raises:
            PromptError: the string is no text.
            ValueError: an id is no token of the model.
        """
        if finished is not None:
            checks.flag(finished=finished)
        if isinstance(value, str):
            tokens = self.codec.encode_after(checked_string(value, "lm.continuation, value"))
        elif isinstance(value, Iterable) and not isinstance(value, Mapping | bytes | bytearray):
            tokens = tuple(map(self._token, value))
        else:
            raise TypeError(f"value={shown(value)}: a string, or token ids")
        ends = self.codec.end_tokens
        if finished and not (tokens and tokens[-1] in ends):
            tokens = (*tokens, min(ends))
        reason: StopReason = "open" if finished is False else "until"
        if tokens and tokens[-1] in ends:
            reason = "end"
        said = self.codec.decode_after(tokens)
        return Continuation(tokens, said, reason, self.codec.identity)

    def _token(self, value: object) -> int:
        try:
            token = index(value)  # type: ignore[arg-type]
        except TypeError:
            token = -1
        if not 0 <= token < self.token_count:
            raise ValueError(
                f"value={value!r} is no token id of {self.name}: give integers from 0 to "
                f"{self.token_count - 1}, or a string"
            )
        return token

    @property
    def token_count(self) -> int:
        """Number of ids that the model can give; it may have more than its tokenizer."""
        return self.codec.size

    @overload
    def retokenize(self, value: Continuation) -> Continuation: ...
    @overload
    def retokenize(self, value: Text, *, onto: Text | None = None) -> Text: ...

    @checked
    def retokenize(
        self, value: Text | Continuation, *, onto: Text | None = None
    ) -> Text | Continuation:
        """What another tokenizer wrote, encoded with this model's.

        The strings stay, the tokens do not: probabilities of one say nothing about the other.

        Args:
            value: a text or continuation of any model.
            onto: what the steps of a text are put behind, such as `lm.chat(question)`; None is
                `lm.prompt(value.prompt)`.

        Returns:
            A continuation that says the same and ends for the same reason; or a text with the
            same steps.
        """
        if isinstance(value, Continuation):
            made = self.continuation(self._plain(value.text), finished=value.finished or None)
            return replace(made, text=value.text, reason=value.reason)
        text = self.prompt(value.prompt) if onto is None else onto
        for i, step in enumerate(value.steps):
            ends = (value.finished and i + 1 == len(value.steps)) or None
            text = text + self.continuation(self._plain(step), finished=ends)
        rest = self._plain(value.text[sum(map(len, value.steps)) :])
        return text.extended(rest) if rest else text

    def _plain(self, string: str) -> Tokens:
        return self.codec.encode_after(string, plain=True)
