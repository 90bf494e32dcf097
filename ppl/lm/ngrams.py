"""What followed the last few tokens of texts, so that it can be guessed what follows them again.

Of each token that was drawn a store keeps the law it was drawn from, as far as it is likely: a few
tokens, each with the part of (0, 1) in which a uniform number draws it (`ppl.lm.sampling`). Whoever
draws after the same tokens knows its own number in advance, so it guesses what that number draws,
not what is likeliest: laws that are nearly the same give nearly always the same token.
(Tables of n-grams for drafts of sibling texts: STAND, Song et al. 2025, arXiv:2506.04708; uniforms
that draft and target share: Daliri, Musco and Suresh 2024, arXiv:2408.07978.)

Symbols: `n` rows, `V` tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Tokens of a law that are kept, and how likely they are at least.
_LEADING, _LEAST = 4, 0.02
# Probabilities that are summed up before anything is looked for among them.
_BLOCK = 256

Share = tuple[int, float, float]
"""A token, and from where to where a uniform number draws it."""

Law = Sequence[Share]


class Guess(NamedTuple):
    """What may follow.

    Attributes:
        token: this.
        kind: guesses of one kind are right about equally often; see `Ngrams.kinds`.
    """

    token: int
    kind: int


class Ngrams:
    """Laws by the tokens before them.

    Args:
        longest: most tokens of a context.
        most: contexts that are kept, the latest: half a kilobyte each.

    Attributes:
        kinds: how many kinds of guesses there are: by the length of the context; whether a longer
            one was known and says something else; and how likely the token was, or that it was
            seen in a text that nobody drew.
    """

    def __init__(self, longest: int = 4, most: int = 1 << 16) -> None:
        self.longest, self._most = longest, most
        self.kinds = longest * 2 * len(_SURE)
        self._where: list[dict[int, int]] = [{} for _ in range(longest)]
        self._keys: list[tuple[int, ...]] = []  # of each place, those of its contexts
        self._laws: list[Law] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._laws)

    def note(self, context: Sequence[int], law: Law) -> None:
        """After a context, of which the last tokens count, this law was drawn from."""
        keys = self._keys_of(context)
        if not keys or not law:
            return
        at = self._where[-1].get(keys[-1], -1) if len(keys) == self.longest else -1
        if at < 0:
            at, self._next = self._next, (self._next + 1) % self._most
            if at == len(self._laws):
                self._laws.append(law)
                self._keys.append(keys)
            else:
                for where, key in zip(self._where, self._keys[at], strict=False):
                    if where.get(key) == at:
                        del where[key]
                self._keys[at] = keys
        elif len(law) == 1 and len(self._laws[at]) > 1 and law[0][2] > 1:
            return  # a text that says less than what is known
        self._laws[at] = law
        for where, key in zip(self._where, keys, strict=False):
            where[key] = at

    def read(self, text: Sequence[int]) -> None:
        """A text that nobody drew: each of its tokens followed those before it.

        Stops, from its end, where it has been read before.
        """
        seen = 0
        for at in range(len(text) - 1, 0, -1):
            context = text[max(0, at - self.longest) : at]
            keys = self._keys_of(context)
            seen = seen + 1 if keys[-1] in self._where[len(keys) - 1] else 0
            if seen > 2 * self.longest:
                break
            if not seen:
                self.note(context, [(text[at], 0.0, _SEEN)])

    def guess(self, context: Sequence[int], uniform: float) -> Guess | None:
        """What a uniform number draws after a context: from the law of the longest that is known
        and says so."""
        keys = self._keys_of(context)
        other = 0
        for size in range(len(keys) - 1, -1, -1):
            at = self._where[size].get(keys[size])
            if at is None:
                continue
            for token, low, high in self._laws[at]:
                if low <= uniform < high:
                    sure = sum(high - low >= least for least in _SURE[1:])
                    return Guess(token, (size * 2 + other) * len(_SURE) + sure)
            other = 1
        return None

    def _keys_of(self, context: Sequence[int]) -> tuple[int, ...]:
        """Of its last token, its last two, and so on."""
        last = tuple(context[-self.longest :])
        return tuple(hash(last[i:]) for i in range(len(last) - 1, -1, -1))


# A token that was seen in a text has a share that is wider than any law's.
_SEEN = 4.0
_SURE = (0.0, 0.4, 0.7, 0.9, 2.0)


def leading(probs: Tensor) -> list[list[Share]]:
    """The likeliest tokens of laws `[n, V]`, in float32, and which uniforms draw them."""
    rows, size = probs.shape
    tops, tokens = probs.topk(min(_LEADING, size), sorted=False)
    blocks = -(-size // _BLOCK)
    if size % _BLOCK:
        probs = torch.nn.functional.pad(probs, (0, blocks * _BLOCK - size))
    parts = probs.view(rows, blocks, _BLOCK)
    mass = parts.sum(-1).double().cumsum(-1)
    which = tokens // _BLOCK
    before = torch.where(which > 0, mass.gather(1, (which - 1).clamp(min=0)), 0.0)
    inside = parts.gather(1, which[:, :, None].expand(-1, -1, _BLOCK)).double().cumsum(-1)
    ends = before + inside.gather(2, (tokens % _BLOCK)[:, :, None]).squeeze(2)
    ends, tops = ends / mass[:, -1:], tops / mass[:, -1:]
    found = zip(tokens.tolist(), (ends - tops).tolist(), ends.tolist(), strict=True)
    return [
        [share for share in zip(*row, strict=True) if share[2] - share[1] >= _LEAST]
        for row in found
    ]


def share_of(token: int, log_prob: float, uniform: float) -> Share:
    """About where the share of a token lies that was drawn with this probability by this number."""
    prob = float(np.exp(min(log_prob, 0.0)))
    low = uniform * (1 - prob)
    return token, low, low + prob
