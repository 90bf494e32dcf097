"""Tokenizers: what a token id says, and where it says it.

Two laws. *A token belongs to one tokenizer*: ids carry the identity of what made them, a
fingerprint of the content, and are never read with another. *A string stands somewhere*: at the
start of a text many tokenizers put a space before it, in the middle they do not, and a token may
hold half a character. So there are two ways to encode and to decode, at the start and after other
tokens; the second adds up: what the parts say, joined, is what the whole says.
"""

from __future__ import annotations

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppl.errors import PromptError, TokenizerError
from ppl.language.cached import cached_property

Tokens = tuple[int, ...]
_LONGEST_CHARACTER = 4  # bytes of UTF-8
_Utf8 = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class Identity:
    """Which tokenizer made some ids. Equal where equal ids say equal strings.

    Attributes:
        name: for messages.
        fingerprint: of the tokenizer's content.
    """

    name: str = field(compare=False)
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name!r} ({self.fingerprint[:8]})"

    def refused(self, made_with: Identity, label: str) -> TokenizerError:
        """The error for what was made with another tokenizer and is to be read with this one."""
        return TokenizerError(
            f"{label} was made with the tokenizer of {made_with}, and is to be read with that of "
            f"{self}, where its ids say something else: take its string instead, "
            "lm.prompt(str(...)), or lm.retokenize(...)"
        )


class Codec(ABC):
    """Turns strings into token ids and back.

    Attributes:
        name: of the tokenizer, for messages.
        size: number of token ids, the largest plus one; some ids in between may say nothing.
        end_tokens: ids that end a generation.
        begin_tokens: what the tokenizer puts before a text by its own default, often nothing.
    """

    name: str
    size: int
    end_tokens: frozenset[int]
    begin_tokens: Tokens = ()

    @abstractmethod
    def encode(self, string: str) -> Tokens:
        """Token ids of `string` at the start of a text, without any special tokens added.

        Special tokens that the string spells out become those tokens.
        """

    @abstractmethod
    def piece(self, token: int) -> bytes:
        """What a token adds to a text that has begun, in UTF-8; perhaps part of a character.

        Special tokens, and ids that are no token, add nothing.
        """

    def encode_after(self, string: str, *, plain: bool = False) -> Tokens:
        """Token ids of `string` in the middle of a text, where no space is put before it.

        Args:
            string: what comes next.
            plain: read it as characters only, also where it spells out a special token.
        """
        return self.encode(string)

    def decode(self, tokens: Sequence[int]) -> str:
        """The string of `tokens` at the start of a text; special tokens are left out."""
        return self.decode_after(tokens)

    def decode_after(self, tokens: Sequence[int], before: Sequence[int] = ()) -> str:
        """What `tokens` add to a text that ends in `before`: the characters that they complete.

        A character belongs to the token that completes it. Until then it is not there; what can
        no longer become one is shown as U+FFFD.
        """
        return Reader(self, before).read(tokens)

    @property
    def special_tokens(self) -> Mapping[int, str]:
        """Ids that control a text and are no part of its string, and how they are written."""
        return {}

    def chat(self, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> Tokens:
        """Token ids of a conversation up to where the model goes on.

        Without a chat template the messages are read as plain paragraphs.

        Raises:
            PromptError: there are arguments, which nothing would read.
        """
        if arguments:
            raise PromptError(
                f"{self.name} has no chat template that could take {', '.join(arguments)}"
            )
        return self.encode("\n".join(m["content"] for m in messages) + "\n")

    def turn(self, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> Tokens:
        """Token ids of what stands between the assistant's words and its next ones: the end of its
        turn, further messages, and the beginning of another turn.

        Without a chat template the messages are further paragraphs.

        Raises:
            PromptError: as `chat`.
        """
        said = self.chat(messages, arguments)
        return self.encode_after("\n") + said

    @cached_property
    def identity(self) -> Identity:
        """Which tokenizer this is."""
        return Identity(self.name, self.fingerprint())

    def fingerprint(self) -> str:
        """A digest of what every id says."""
        return digest(self.piece(token) for token in range(self.size))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Codec)
            and self.end_tokens == other.end_tokens
            and self.identity == other.identity
        )

    def __hash__(self) -> int:
        return hash((self.identity.fingerprint, self.end_tokens))


class Reader:
    """Reads a text on, token by token: each time the characters that have become complete.

    Args:
        codec: its tokenizer.
        before: the tokens of the text so far, whose last ones may hold part of a character.
    """

    __slots__ = ("_codec", "_utf8")

    def __init__(self, codec: Codec, before: Sequence[int] = ()) -> None:
        self._codec, self._utf8 = codec, _Utf8("replace")
        # The last bytes are enough to know which character has begun.
        last = b""
        for token in reversed(before):
            if token in codec.end_tokens:
                break
            last = codec.piece(token) + last
            if (last[-1:].isascii() and last) or len(last) >= _LONGEST_CHARACTER:
                break
        self._utf8.decode(last)

    def read(self, tokens: Sequence[int]) -> str:
        """The characters that `tokens` complete. After an end token nothing can be completed."""
        final = bool(tokens) and tokens[-1] in self._codec.end_tokens
        return self._utf8.decode(b"".join(map(self._codec.piece, tokens)), final)


def digest(parts: Any) -> str:
    """A hash of some byte strings and of how they are divided."""
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def checked_string(value: object, label: str) -> str:
    """`value` if it is a string that has an encoding. Raises PromptError."""
    if not isinstance(value, str):
        raise PromptError(f"{label} takes a string, got {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"{label}: {value[error.start : error.end]!r} at position {error.start} is half of "
                "a surrogate pair and no character; decode the string's source as UTF-8 or UTF-16"
            ) from None
    return value
