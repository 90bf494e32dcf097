"""Which tokens are written with certain characters only."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl.lm.base import LanguageModel


def tokens_of(lm: LanguageModel, only: str | None, never: str, end: bool) -> Tensor:
    """Boolean mask `[V]` of the tokens whose characters are all among `only`, and none of `never`.

    Special tokens are out, but for those that end a text, which are in if `end` is true. A token
    that holds part of a character is in if it cannot become one that is not wanted.

    Args:
        lm: whose tokens.
        only: all characters that may be written; None for any.
        never: characters that may not.
        end: whether the text may end.
    """
    codec = lm.codec
    special = codec.special_tokens.keys() | codec.end_tokens
    wanted = None if only is None else frozenset(only)
    unwanted = frozenset(never)
    parts = wanted is None and never.isascii()  # of characters beyond ASCII
    mask = torch.zeros(codec.size, dtype=torch.bool)
    for token in range(codec.size):
        if token in special:
            mask[token] = end and token in codec.end_tokens
            continue
        try:
            piece = codec.piece(token).decode()
        except UnicodeDecodeError:
            mask[token] = parts
            continue
        mask[token] = (
            bool(piece)
            and unwanted.isdisjoint(piece)
            and (wanted is None or wanted.issuperset(piece))
        )
    return mask
