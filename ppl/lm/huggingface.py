"""Hugging Face decoders, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl.cost import Ledger
from ppl.errors import PromptError, UnsupportedModelError
from ppl.lm.base import LanguageModel, Tokens
from ppl.lm.engine import Buffer, Engine

# Rows that have stopped stay in the buffer as padding until this fraction of it is left.
_COMPACT_BELOW = 0.75
# Tokens of room with which a decode buffer starts; it doubles when they are used up.
_ROOM = 32


class HFCodec:
    """A Hugging Face tokenizer as a codec; equal to any codec of the same tokenizer.

    Attributes:
        tokenizer: the tokenizer.
        end_tokens: ids that end a generation.
        size: number of ids.
    """

    def __init__(self, tokenizer: Any, end_tokens: frozenset[int], name: str) -> None:
        self.tokenizer, self.end_tokens, self.name = tokenizer, end_tokens, name
        self.size = len(tokenizer)

    def encode(self, string: str) -> Tokens:
        return tuple(self.tokenizer.encode(string, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        string: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return string

    def chat(self, messages: Sequence[Mapping[str, str]]) -> Tokens:
        """Token ids of a conversation up to where the model's turn begins."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise PromptError(
                f"{self.name} has no chat template: use lm.prompt(string), or a chat model"
            )
        rendered = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False
        )
        return self.encode(rendered)

    def _identity(self) -> tuple[str, int, frozenset[int]]:
        return self.name, self.size, self.end_tokens

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HFCodec) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())


class HFModel(LanguageModel):
    """Any Hugging Face causal language model with full attention.

    Prompts are computed once, forks share what their ancestors computed, and all rows of a request
    run as one ragged batch. Use `ppl.load` unless you already hold the model and its tokenizer.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        name: shown in messages; models with the same name and tokenizer are taken as the same.
        context_length: most tokens of a text; None takes it from the configuration.
        kv_bytes: memory for cached keys and values, and the most that one batch may take.

    Raises:
        UnsupportedModelError: the model cannot be forked exactly.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        context_length: int | None = None,
        kv_bytes: int = 2 << 30,
    ) -> None:
        self.name = name
        self.model = model.eval()
        self.engine = Engine(model, name=name, capacity=kv_bytes, context_length=context_length)
        self.context_length = self.engine.context_length
        self.codec: HFCodec = HFCodec(tokenizer, _end_tokens(model, tokenizer), name)
        self._head = _checked_head(model, name)

    def _chat_tokens(self, messages: Sequence[Mapping[str, str]]) -> Tokens:
        return self.codec.chat(messages)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits `[n, V]` in float32 from last hidden states `[n, hidden]`."""
        with torch.inference_mode():
            return self._head(hidden).float()

    @torch.inference_mode()
    def start(self, prefixes: Sequence[Tokens], ledgers: Sequence[Ledger | None]) -> HFDecoder:
        buffer, hidden = self.engine.open(
            prefixes, [len(p) - 1 for p in prefixes], _accounts(ledgers), room=_ROOM
        )
        return HFDecoder(self, buffer, list(prefixes), torch.cat(hidden))

    def logits_along(
        self,
        prefixes: Sequence[Tokens],
        continuations: Sequence[Tokens],
        ledgers: Sequence[Ledger | None],
    ) -> Iterator[Tensor]:
        with torch.inference_mode():
            texts = [p + c[:-1] for p, c in zip(prefixes, continuations, strict=True)]
            hidden = self.engine.hidden(texts, [len(p) - 1 for p in prefixes], _accounts(ledgers))
        for states in hidden:
            yield self.logits(states)

    def batch_rows(self, length: int) -> int:
        return self.engine.batch_rows(min(length, self.context_length))


class HFDecoder:
    """Rows being decoded in one buffer; see `ppl.lm.base.Decoder`."""

    def __init__(self, model: HFModel, buffer: Buffer, texts: list[Tokens], hidden: Tensor) -> None:
        self._model, self._buffer = model, buffer
        self._texts = [list(text) for text in texts]  # tokens whose keys are in the buffer
        self._stored = [len(text) for text in texts]  # how many of them the pool already has
        self._slots = list(range(len(texts)))  # active row -> buffer row
        self._hidden = hidden  # [A, hidden]
        self.logits = model.logits(hidden)

    @torch.inference_mode()
    def advance(self, keep: Sequence[int], tokens: Sequence[int]) -> None:
        self._leave(set(range(len(self._slots))) - set(keep))
        self._slots = [self._slots[j] for j in keep]
        self._texts = [self._texts[j] for j in keep]
        self._stored = [self._stored[j] for j in keep]
        self._make_room()
        rows = len(self._buffer.lengths)
        ids = torch.zeros((rows, 1), dtype=torch.long)
        ids[self._slots, 0] = torch.tensor(tokens, dtype=torch.long)
        # Rows that left compute along at their own last position, unseen by anyone.
        positions = torch.tensor(self._buffer.lengths)[:, None]
        hidden = self._model.engine.forward(self._buffer, ids, positions)[:, 0]
        for slot, text, token in zip(self._slots, self._texts, tokens, strict=True):
            self._buffer.lengths[slot] += 1
            text.append(token)
        self._hidden = hidden if len(self._slots) == rows else hidden[self._slots]
        self.logits = self._model.logits(self._hidden)

    def _make_room(self) -> None:
        """Compacts the buffer when many rows have left, and widens it when it is full."""
        size = self._buffer.kv.shape[4]
        full = max(self._buffer.lengths) + 1 > size
        if full or len(self._slots) <= _COMPACT_BELOW * len(self._buffer.lengths):
            wanted = max(self._buffer.lengths[s] for s in self._slots) + 1
            self._buffer = self._buffer.select(self._slots, 2 * size if wanted > size else size)
            self._slots = list(range(len(self._slots)))

    def _leave(self, rows: set[int]) -> None:
        """Hands what the given active rows computed to the prefix pool."""
        pool = self._model.engine.pool
        for j in rows:
            start, text = self._stored[j], tuple(self._texts[j])
            if len(text) > start:
                kv = self._buffer.kv[:, :, self._slots[j], :, start : len(text)]
                pool.insert(text, start, kv, self._hidden[j])

    @torch.inference_mode()
    def close(self) -> None:
        self._leave(set(range(len(self._slots))))
        self._slots, self._texts, self._stored = [], [], []
        self._model.engine.pool.trim()


def _accounts(ledgers: Sequence[Ledger | None]) -> list[tuple[Ledger, str, str] | None]:
    return [None if a is None else (a, "prompt_tokens", "reused_tokens") for a in ledgers]


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    ends: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for holder in (generation, model.config, tokenizer):
        value = getattr(holder, "eos_token_id", None)
        ends |= {value} if isinstance(value, int) else set(value or ())
    if not ends:
        raise UnsupportedModelError("the model and its tokenizer name no end-of-text token")
    return frozenset(ends)


def _checked_head(model: Any, name: str) -> Callable[[Tensor], Tensor]:
    """The map from hidden states to logits, compared once with the model's own.

    Computing logits ourselves means computing them only where a token is drawn.
    """
    embeddings = model.get_output_embeddings()
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies
    divisor = getattr(config, "logits_scaling", None)  # Granite divides

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = embeddings(hidden)
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        return logits

    ids = torch.arange(4, device=next(model.parameters()).device)[None]
    with torch.inference_mode():
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        ours = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]).float()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if not torch.allclose(own, ours, rtol=tolerance, atol=tolerance * float(own.abs().max())):
        raise UnsupportedModelError(
            f"{name}: its logits are not a plain function of its last hidden state "
            "(unknown scaling); this model is not supported"
        )
    return head
