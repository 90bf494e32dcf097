"""Which tokens may be drawn: ids, a boolean mask, or a function that gives either.

Everything becomes a boolean mask `[V]`. Ids are convenient for a few tokens; for a grammar, which
allows or forbids most of the vocabulary, a mask spares a walk over tens of thousands of ids per
row and token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from hashlib import blake2b

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


def kept(allowed: Allowed) -> Allowed:
    """A copy that stays as it is if the program goes on to change the original; a function is
    itself."""
    if allowed is None:
        return None
    if isinstance(allowed, Tensor):
        return allowed.detach().clone()
    if isinstance(allowed, np.ndarray):
        return allowed.copy()
    if callable(allowed) or isinstance(allowed, (tuple, frozenset, range, str, bytes)):
        return allowed
    return tuple(allowed) if isinstance(allowed, Collection) else allowed


def fingerprint(allowed: Allowed) -> tuple[object, ...]:
    """What identifies a choice of tokens: the set, however it is written, and nothing for None.

    A function goes by its own `fingerprint` if it has one, otherwise by its name.
    """
    if allowed is None:
        return ()
    if callable(allowed):
        own = getattr(allowed, "fingerprint", None)
        name = getattr(allowed, "__qualname__", type(allowed).__qualname__)
        return ("allowed", name) if own is None else ("allowed", *own)
    if isinstance(allowed, Tensor):
        allowed = allowed.numpy(force=True)
    array = allowed if isinstance(allowed, np.ndarray) else np.asarray([*allowed])
    if array.dtype == np.bool_:
        array = np.flatnonzero(array)
    ids = np.unique(array.astype(np.int64) if array.dtype.kind in "iu" else array.astype(str))
    return ("allowed", len(ids), blake2b(ids.tobytes(), digest_size=16).hexdigest())


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
        tokens = torch.from_numpy(tokens.copy())
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
        mask = torch.zeros(size, dtype=torch.bool, device="cpu")
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
        return torch.zeros(0, dtype=torch.long, device="cpu")
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
