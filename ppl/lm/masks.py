"""Which tokens may be drawn: ids, a boolean mask, or a function that gives either.

Everything becomes a boolean mask `[V]`. Ids are convenient for a few tokens; for a grammar, which
allows or forbids most of the vocabulary, a mask spares a walk over tens of thousands of ids per
row and token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from ppl.errors import NoAllowedTokenError

Tokens = tuple[int, ...]
TokenSet = Collection[int] | Tensor | NDArray[np.bool_]
"""Token ids, or a boolean mask `[V]` as a torch tensor or a numpy array."""
Allowed = TokenSet | Callable[[Tokens], TokenSet | None] | None


def as_mask(tokens: TokenSet, size: int, codec_size: int) -> Tensor:
    """Boolean mask `[size]`, on the CPU, that is true at the given tokens.

    Args:
        tokens: ids, or a mask. A torch mask on the CPU is returned as it is, not copied.
        size: number of logits that the model has.
        codec_size: number of tokens that its tokenizer has; models often have some logits more,
            to make the number round. A mask may have either length.

    Raises:
        NoAllowedTokenError: there is no token, one that the model does not have, a mask of another
            length, or something that is neither ids nor a mask.
    """
    if isinstance(tokens, np.ndarray) and tokens.dtype == np.bool_:
        tokens = torch.tensor(tokens)
    if isinstance(tokens, Tensor) and tokens.dtype == torch.bool:
        mask = tokens.detach().cpu()
        if mask.shape == (codec_size,) != (size,):
            mask = pad(mask[:size], (0, max(0, size - codec_size)))
        if mask.shape != (size,):
            raise NoAllowedTokenError(
                f"allowed= is a mask of shape {list(mask.shape)}; the model needs [{codec_size}], "
                "one entry per token id"
            )
    else:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[_ids(tokens, size)] = True
    if not mask.numpy().any():  # twenty times as quick as torch's
        raise NoAllowedTokenError(
            "allowed= leaves no token; allow at least the end-of-text token where the text may end"
        )
    return mask


def _ids(tokens: TokenSet, size: int) -> Tensor:
    if isinstance(tokens, Tensor):
        tokens = tokens.detach().cpu().numpy()
    ids = np.asarray(list(tokens) if isinstance(tokens, Collection) else tokens)
    if ids.size == 0:
        return torch.zeros(0, dtype=torch.long)
    # Zeros and ones in bytes are a mask of the wrong type, not the ids 0 and 1.
    if ids.dtype.kind not in "iu" or ids.dtype.itemsize == 1 or ids.ndim != 1:
        raise NoAllowedTokenError(
            f"allowed= holds {ids.dtype} of shape {list(ids.shape)}; give token ids (integers), "
            "or a mask of dtype bool (a torch tensor or numpy array)"
        )
    strange = ids[(ids < 0) | (ids >= size)]
    if len(strange):
        raise NoAllowedTokenError(
            f"allowed= names the token {strange[0]}; the model has the ids 0 to {size - 1}"
        )
    return torch.from_numpy(ids.astype(np.int64))
