"""Models that think aloud before they answer: steps inside of the thought and behind it, and
thoughts that are made longer or shorter (budget forcing)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro

from ppl.errors import PromptError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.codec import Codec, Reader, checked_string
from ppl.language.steps import StepRule, Until
from ppl.language.text import Continuation, Text

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Thinking:
    r"""A step rule that asks where the text stands: within its thought, or behind it.

        lm(text, until=ppl.Thinking("\n\n", "\n"))

    Within the thought a step ends as `inside` says, and with the mark that ends the thought; behind
    it, as `after` says. A thought is over once the model has written `end`, or where the prompt
    ends with it (as templates write it for `enable_thinking=False`).

    Attributes:
        inside: rule of the thought's steps; None makes the thought one step.
        after: rule of the steps behind it; None makes the rest one step.
        end: what ends the thought.
    """

    inside: Until | StepRule = None
    after: Until | StepRule = None
    end: str = "</think>"

    def __post_init__(self) -> None:
        checked_string(self.end, "end")
        if not self.end:
            raise ValueError("end='': what ends the thought is a string, such as '</think>'")
        for name in ("inside", "after"):
            try:
                StepRule.of(getattr(self, name))
            except (TypeError, ValueError) as error:
                said = str(error).replace("until=", f"{name}=", 1)
                raise type(error)(said) from None

    def at(self, text: Text) -> StepRule:
        """The rule of the step that comes next in `text`.

        Raises:
            PromptError: the tokenizer writes `end` as a control token, which no text shows.
        """
        if self.over(text):
            return StepRule.of(self.after)
        if self.end in text.codec.special_tokens.values():
            raise PromptError(
                f"end={self.end!r}: the tokenizer of {text.codec.name} has it as a control token, "
                "which is no part of a text's string, so no step rule can see it"
            )
        inside = StepRule.of(self.inside)
        return replace(inside, strings=(*inside.strings, self.end))

    def over(self, text: Text) -> bool:
        """True if the thought has ended."""
        if self.end in text.text:
            return True
        # A few tokens of the prompt say whether it ends so: each is a character or more.
        tail = text.tokens[max(0, text.prompt_length - len(self.end) - 8) : text.prompt_length]
        return text.codec.decode_after(tail).rstrip().endswith(self.end)

    def thought(self, text: Text) -> str:
        """What the model has thought, without the mark."""
        return text.text.partition(self.end)[0] if self.end in text.text else self._unended(text)

    def said(self, text: Text) -> str:
        """What stands behind the thought; nothing while it goes on."""
        if self.end in text.text:
            return text.text.partition(self.end)[2]
        return text.text if self.over(text) else ""

    def _unended(self, text: Text) -> str:
        return "" if self.over(text) else text.text


@checked
def forced(
    name: str,
    lm: Callable[..., Any],
    text: Text,
    *,
    end: str | None = "</think>",
    words: str = "Wait",
    times: int = 1,
    least: int | None = None,
    most: int | None = None,
    **settings: Any,
) -> Text:
    """Lets a model think, for as long as it is told (budget forcing; Muennighoff et al. 2025,
    arXiv 2501.19393).

    Where the model would end its thought too early, the end is left out, `words` are written in
    its place, and it goes on; where it comes to `most` tokens, the end is written for it. Each draw
    is a site (`name`, then `name_1`, `name_2`, ...) with the model's own probability, also that of
    the end that is overruled; words written for it have none, and no weight changes. So what a
    search targets is this program: thoughts follow the model's law with its ends replaced, and what
    comes after is drawn behind the forced thought. With `times=0` it is
    `text + pyro.sample(name, lm(text, until=end))`, token for token.

    Args:
        name: of the first site.
        lm: the model.
        text: what is there so far.
        end: what ends the thought; None for the end of the text. A model that ends its text within
            the thought is forced, too.
        words: what is written in the place of an end.
        times: how many ends are overruled at least, if there is room.
        least: ends before so many tokens of the thought, words included, are overruled.
        most: tokens of the thought, words included and the end excluded; never exceeded.
        settings: further ones of `lm(text, ...)`: temperature, top_p, ...

    Returns:
        The text with thought and end.
    """
    checks.count(least=0, times=times)
    if least is not None and least < 0:
        raise ValueError(f"least={least}: a number of tokens, 0 or more")
    if most is not None:
        checks.count(most=most)
        if least is not None and least > most:
            raise ValueError(f"least={least}: more than most={most}")
    if end == "" or not words:
        raise ValueError("end, words: strings that are not empty (end=None: the end of the text)")
    literal = text.codec.encode_after(checked_string(words, "words"))
    used = number = overruled = 0
    while True:
        room = None if most is None else most - used
        site = f"{name}_{number}" if number else name
        piece: Continuation = pyro.sample(site, lm(text, until=end, max_tokens=room, **settings))
        number += 1
        if piece.reason == "length":  # there is no room for more
            return _closed(text + piece, end)
        kept, rest = _before_end(text.codec, text.tokens, piece, end)
        used += len(kept) + len(rest)
        early = overruled < times or (least is not None and used < least)
        if not early or (most is not None and used + len(literal) >= most):
            return text + piece
        if kept:
            said = text.codec.decode_after(kept, text.tokens)
            text = text + Continuation(kept, said, "until", piece.made_with)
        text = text.extended((*rest, *literal))
        used += len(literal)
        overruled += 1


def _closed(text: Text, end: str | None) -> Text:
    """The text with the end of its thought."""
    if end is not None:
        return text + end
    ended = Continuation((min(text.codec.end_tokens),), "", "end", text.codec.identity)
    return text + ended


def _before_end(
    codec: Codec, before: Tokens, piece: Continuation, end: str | None
) -> tuple[Tokens, Tokens]:
    """The tokens of a thought without its end; and of characters that share a token with it."""
    at = -1 if end is None else piece.text.find(end)
    if at < 0:  # the model ended the text
        return piece.tokens[:-1] if piece.finished else piece.tokens, ()
    reader, said = Reader(codec, before), ""
    for i, token in enumerate(piece.tokens):
        new = reader.read((token,))
        if len(said) + len(new) > at:
            shared = piece.text[len(said) : at]
            return piece.tokens[:i], codec.encode_after(shared) if shared else ()
        said += new
    return piece.tokens, ()
