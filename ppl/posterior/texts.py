"""Texts in files: token ids in blocks that prefixes share, and tokenizers that only read.

A search writes the same beginnings again and again: nodes, records and samples hold texts that
extend each other. Ids are stored in blocks of 64, each with the number of the block before it, so
that a prefix is stored once, as in the paged caches of inference engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ppl.errors import TokenizerError
from ppl.language.codec import Codec, Identity, Tokens

_BLOCK = 64


class Blocks:
    """Sequences of ids by number.

    Attributes:
        rows: per block the number of the block before it, or None, and its ids.
    """

    def __init__(self, rows: Sequence[Any] = ()) -> None:
        self.rows: list[Any] = list(rows)
        self._numbers: dict[tuple[int | None, Tokens], int] = {}
        self._read: dict[int, Tokens] = {}

    def add(self, ids: Tokens) -> int | None:
        """The number of a sequence; None if it is empty."""
        last: int | None = None
        for start in range(0, len(ids), _BLOCK):
            block = (last, ids[start : start + _BLOCK])
            known = self._numbers.setdefault(block, len(self.rows))
            if known == len(self.rows):
                self.rows.append([last, list(block[1])])
            last = known
        return last

    def read(self, number: int | None) -> Tokens:
        """The sequence of a number.

        Raises:
            ValueError: there is none.
        """
        if number is None:
            return ()
        if number in self._read:
            return self._read[number]
        parts: list[list[int]] = []
        block: int | None = number
        while block is not None:
            if type(block) is not int or not 0 <= block < len(self.rows):
                raise ValueError(f"there is no block {block!r} of token ids")
            before, ids = self.rows[block]
            if not isinstance(ids, list) or not all(type(i) is int for i in ids):
                raise ValueError(f"block {block} holds no token ids")
            if before is not None and (type(before) is not int or before >= block):
                raise ValueError(f"block {block} follows block {before!r}")
            parts.append(ids)
            block = before
        found = self._read[number] = tuple(i for part in reversed(parts) for i in part)
        return found


class StoredCodec(Codec):
    """A tokenizer as far as a file has it: reads the ids that occur there, encodes nothing."""

    def __init__(
        self,
        identity: Identity,
        size: int,
        *,
        end_tokens: Sequence[int],
        begin_tokens: Sequence[int],
        pieces: Mapping[int, bytes],
    ) -> None:
        self.name, self.size = identity.name, size
        self.end_tokens, self.begin_tokens = frozenset(end_tokens), tuple(begin_tokens)
        self._fingerprint, self._pieces = identity.fingerprint, dict(pieces)

    def fingerprint(self) -> str:
        """As the file says."""
        return self._fingerprint

    def piece(self, token: int) -> bytes:
        """See `Codec.piece`. Raises TokenizerError for an id that the file does not have."""
        if token not in self._pieces:
            self._refuse(f"say what the id {token} is")
        return self._pieces[token]

    def encode(self, string: str) -> NoReturn:
        """Raises TokenizerError."""
        self._refuse(f"encode {string[:40]!r}")

    def encode_after(self, string: str, *, plain: bool = False) -> NoReturn:
        """Raises TokenizerError."""
        self._refuse(f"encode {string[:40]!r}")

    def _refuse(self, what: str) -> NoReturn:
        raise TokenizerError(
            f"the tokenizer of {self.identity} is known from a file only, which cannot {what}: "
            "load its model and write on with lm.prompt(...) or lm.retokenize(...)"
        )
