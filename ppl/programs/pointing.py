"""Choices that a language model makes by pointing: at one of some words, at labels of a list.

Masks for `lm(text, allowed=...)`. Everything outside has probability zero, so nothing can be
invented; among what is left the model's own probabilities are renormalised, token by token, and
`log_prob` is that of this law.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from ppl.language import checks
from ppl.language.codec import Codec
from ppl.language.text import Continuation

Tokens = tuple[int, ...]


class Words:
    """Exactly one of some words: a mask, and with `over` the rule that ends the choice.

    Args:
        codec: the tokenizer of the model that chooses.
        words: no word begins with another, as strings and as tokens.

    Raises:
        ValueError: fewer than two words, an empty one, or some that cannot be told apart.
    """

    def __init__(self, codec: Codec, words: Sequence[str]) -> None:
        if len(set(words)) < 2 or not all(words):
            raise ValueError(f"words={list(words)}: a choice is between at least two")
        self.words = tuple(words)
        self._codes = [codec.encode_after(word) for word in words]
        _told_apart(self._codes, words, "words")
        if any(a != b and b.startswith(a) for a in words for b in words):
            raise ValueError(f"words={list(words)}: one begins with another")

    def __call__(self, new: Tokens) -> list[int]:
        """The tokens that may come next."""
        return _next(self._codes, new)

    def over(self, said: str) -> bool:
        """Whether a word is complete."""
        return said in self.words

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Equal for equal choices."""
        return ("words", *self.words)


class Labels:
    """A list of labels `1` to `count`, each at most once, such as `2, 5]`: a mask, and its reader.

    Args:
        codec: the tokenizer of the model that points.
        count: how many there are.
        most: labels in a list; a list has at least one.
        between, end: what stands behind a label that is not the last, and behind the last. They
            hold no digits, and the end is no part of what stands between.

    Raises:
        ValueError: a number is not positive, or lists could not be told apart.
    """

    def __init__(self, codec: Codec, count: int, most: int, between: str, end: str) -> None:
        checks.count(count=count, most=most)
        marks = between + end
        if not between or not end or end in between or any(c.isdigit() for c in marks):
            raise ValueError(
                f"between={between!r}, end={end!r}: two marks without digits, and the end is no "
                "part of the other"
            )
        self.count, self.most, self.between, self.end = count, most, between, end
        labels = range(1, count + 1)
        self._more = {codec.encode_after(f"{label}{between}"): label for label in labels}
        self._last = {codec.encode_after(f"{label}{end}"): label for label in labels}
        _told_apart([*self._more, *self._last], (between, end), "between, end")

    def __call__(self, new: Tokens) -> list[int]:
        """The tokens that may come next: those of labels that the list does not have yet."""
        chosen: list[int] = []
        begun = 0
        for stop in range(1, len(new) + 1):
            label = self._more.get(new[begun:stop])
            if label is not None:
                chosen.append(label)
                begun = stop
        codes = [code for code, label in self._last.items() if label not in chosen]
        if len(chosen) + 1 < min(self.most, self.count):
            codes += [code for code, label in self._more.items() if label not in chosen]
        return _next(codes, new[begun:])

    def read(self, drawn: Continuation) -> tuple[int, ...]:
        """The labels of a list."""
        said = drawn.text.removesuffix(self.end)
        return tuple(int(label) for label in said.split(self.between))

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """Equal for equal masks."""
        return ("labels", self.count, self.most, self.between, self.end)


@lru_cache(maxsize=512)
def words_of(codec: Codec, words: tuple[str, ...]) -> Words:
    """Made once for a tokenizer."""
    return Words(codec, words)


@lru_cache(maxsize=512)
def labels_of(codec: Codec, count: int, most: int, between: str, end: str) -> Labels:
    """Made once for a tokenizer."""
    return Labels(codec, count, most, between, end)


def _next(codes: Sequence[Tokens], begun: Tokens) -> list[int]:
    n = len(begun)
    found = {code[n] for code in codes if len(code) > n and code[:n] == begun}
    # Asked about what no choice begins with (a given value is scored): its probability is zero
    # already, whatever is allowed now.
    return sorted(found or {code[0] for code in codes})


def _told_apart(codes: Iterable[Tokens], given: Sequence[str], name: str) -> None:
    """Raises ValueError unless no code is empty or begins another."""
    for a, b in pairwise(sorted(codes)):  # in order, a beginning stands right before
        if b[: len(a)] == a:
            raise ValueError(f"{name}={list(given)}: their tokens {a} and {b} cannot be told apart")
