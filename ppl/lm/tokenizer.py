"""Hugging Face tokenizers as codecs.

What a token says in the middle of a text is read off the tokenizer's own decoder: what it adds
behind another token. Where that is part of a character, the token's name gives its bytes. So the
families need no rules of their own: byte-level BPE, SentencePiece with and without a space in
front, byte fallback, WordPiece, and whatever normalises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ppl.errors import PromptError
from ppl.language.cached import cached_property
from ppl.language.codec import Codec, Tokens, checked_string, digest
from ppl.lm.conversation import render

_REPLACED = "\ufffd"
_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
# What a string may stand behind while it is encoded: one that merges with nothing.
_FRONTS = ("\n", "a", "0", ".", "\x00")


class HFCodec(Codec):
    """A Hugging Face tokenizer as a codec; equal to any codec whose ids say the same.

    Args:
        tokenizer: the tokenizer. It must not be changed afterwards.
        end_tokens: ids that end a generation.
        name: for messages.

    Attributes:
        tokenizer, end_tokens, name: as given.
        size: the largest id plus one; vocabularies may have gaps.
    """

    def __init__(self, tokenizer: Any, end_tokens: frozenset[int], name: str) -> None:
        self.tokenizer, self.end_tokens, self.name = tokenizer, end_tokens, name
        self.size = 1 + max(self._vocabulary().values(), default=len(tokenizer) - 1)
        # How long texts may be is the model's affair: transformers notes here what it has said.
        getattr(tokenizer, "deprecation_warnings", {})[_TOO_LONG] = True
        self._pieces: dict[int, bytes] = {}
        # Every particle of a search asks the same question and appends the same literals.
        self._encoded = lru_cache(maxsize=4096)(self._encode)
        self._encoded_after = lru_cache(maxsize=4096)(self._encode_after)
        self._asked = lru_cache(maxsize=256)(self._chat)

    def __reduce__(self) -> tuple[Any, ...]:
        return HFCodec, (self.tokenizer, self.end_tokens, self.name)

    def _vocabulary(self) -> Mapping[str, int]:
        vocabulary: Mapping[str, int] = getattr(self.tokenizer, "get_vocab", dict)()
        return vocabulary

    # -- encoding ----------------------------------------------------------------------------------

    def encode(self, string: str) -> Tokens:
        """Token ids of a string at the start of a text; strings are remembered."""
        return self._encoded(string)

    def encode_after(self, string: str, *, plain: bool = False) -> Tokens:
        """Token ids of a string in the middle of a text."""
        if plain:
            parts = without(list(self.special_tokens.values()), string)
            return tuple(token for part in parts for token in self._encoded_after(part))
        return self._encoded_after(string)

    def _encode(self, string: str) -> Tokens:
        checked_string(string, f"{self.name}'s tokenizer")
        return tuple(self.tokenizer.encode(string, add_special_tokens=False))

    def _encode_after(self, string: str) -> Tokens:
        """As it stands if that reads right, else behind another string that is taken off again."""
        alone = self._encode(string)
        if self.decode_after(alone) == string or not string:
            return alone
        behind = None
        for front in _FRONTS:
            head, whole = self._encode(front), self._encode(front + string)
            if not head:  # it writes no white space, and sets words apart by itself
                return alone
            if whole[: len(head)] == head:
                rest = whole[len(head) :]
                if self.decode_after(rest) == string:
                    return rest
                behind = rest if behind is None else behind
        # The tokenizer cannot write the string: it normalises, or knows no such character.
        return alone if behind is None else behind

    @cached_property
    def begin_tokens(self) -> Tokens:  # type: ignore[override]
        """What the tokenizer itself puts before a text, such as Llama's `<s>`."""
        plain = list(self.tokenizer.encode("a", add_special_tokens=False))
        whole = list(self.tokenizer.encode("a"))
        for start in range(len(whole) - len(plain) + 1):
            if plain and whole[start : start + len(plain)] == plain:
                return tuple(whole[:start])
        return ()

    # -- decoding ----------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int]) -> str:
        """The string of `tokens` at the start of a text, as the tokenizer joins them."""
        string: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return string

    def piece(self, token: int) -> bytes:
        """What a token adds to a text that has begun, in UTF-8."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token)
        return piece

    def _piece(self, token: int) -> bytes:
        if token in self.special_tokens:
            return b""
        front, said = self._front
        string = self.decode((front, token)) if said else ""
        string = string[len(said) :] if said and string.startswith(said) else self.decode((token,))
        name = self._name(token)
        if self._word_end and name is not None:  # a space follows the word, if anything does
            return name.replace(self._word_end, " ").encode()
        if _REPLACED not in string or name is None:
            return string.encode()
        byte = _BYTE_NAME.fullmatch(name)
        if byte:
            return bytes([int(byte[1], 16)])
        if all(letter in _BYTE_OF for letter in name):
            return bytes(_BYTE_OF[letter] for letter in name)
        return string.encode()

    def _name(self, token: int) -> str | None:
        named = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        name = named(token) if named is not None else None
        return name if isinstance(name, str) else None

    @cached_property
    def _front(self) -> tuple[int, str]:
        """A token that says something, and what it says at the start of a text."""
        for token in range(self.size):
            said = self.decode((token,))
            if said.isascii() and said.isalnum() and self.decode((token,) * 2) != said:
                return token, said
        return 0, ""

    @cached_property
    def _word_end(self) -> str:
        """The mark at the end of words, of decoders that turn it into a space (GPT-1)."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        decoder: Any = getattr(backend, "decoder", None)
        return str(decoder.suffix) if type(decoder).__name__ == "BPEDecoder" else ""

    @cached_property
    def special_tokens(self) -> Mapping[int, str]:  # type: ignore[override]
        """The tokenizer's added tokens that it calls special."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return {i: str(token) for i, token in added.items() if getattr(token, "special", True)}

    def fingerprint(self) -> str:
        """A digest of vocabulary, special tokens and decoder: equal in every process, other for a
        tokenizer that was trained again under the same name."""
        vocabulary = self._vocabulary()
        if not vocabulary:
            return super().fingerprint()
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        how = type(self.tokenizer).__name__.encode() if decoder is None else decoder.__getstate__()
        what = [sorted((i, s) for s, i in vocabulary.items()), sorted(self.special_tokens)]
        return digest([how, json.dumps(what).encode()])

    # -- conversations -----------------------------------------------------------------------------

    def chat(self, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> Tokens:
        """Token ids of a conversation, rendered with the tokenizer's chat template.

        Raises:
            PromptError: see `ppl.lm.conversation.render`.
        """
        return self._conversation(messages, arguments, False)

    def turn(self, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> Tokens:
        """What the chat template writes behind the assistant's words, up to where it goes on."""
        return self._conversation(messages, arguments, True)

    def _conversation(
        self, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any], behind: bool
    ) -> Tokens:
        try:
            asked = json.dumps([messages, arguments, behind])
        except TypeError:  # tools may be functions
            return self._rendered(messages, arguments, behind)
        return self._asked(asked)

    def _chat(self, asked: str) -> Tokens:
        return self._rendered(*json.loads(asked))

    def _rendered(
        self, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any], behind: bool
    ) -> Tokens:
        if not getattr(self.tokenizer, "chat_template", None):
            raise PromptError(
                f"{self.name} has no chat template: use lm.prompt(string), or a chat model"
            )
        first, *rest = render(self.tokenizer, self.name, messages, arguments, behind=behind)
        begin = self.encode_after(first) if behind else self.encode(first)
        return begin + tuple(t for part in rest for t in self.encode_after(part))


def without(words: Sequence[str], string: str) -> list[str]:
    """`string` in parts that join to it, none of which contains one of `words`.

    Raises:
        PromptError: one of the words is a single character, which cannot be divided.
    """
    found = [word for word in words if word in string]
    if not found:
        return [string]
    for word in found:
        if len(word) == 1:
            raise PromptError(f"the special token {word!r} cannot be written as a character")
    at = min(string.index(word) for word in found) + 1
    return [string[:at], *without(words, string[at:])]


def _bytes_of_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write bytes with (GPT-2): printable bytes are
    themselves, the others are the letters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + i): byte for i, byte in enumerate(others)},
    }


_BYTE_OF = _bytes_of_letters()
