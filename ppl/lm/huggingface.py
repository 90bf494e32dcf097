"""Hugging Face decoders, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ppl.cost import Ledger
from ppl.errors import PromptError, UnsupportedModelError
from ppl.lm.base import LanguageModel, Tokens
from ppl.lm.engine import Account, Engine
from ppl.lm.slots import Slot


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
        return _encoded(self, string)

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


@lru_cache(maxsize=4096)
def _encoded(codec: HFCodec, string: str) -> Tokens:
    """Every particle of a search asks the same question and appends the same literals."""
    return tuple(codec.tokenizer.encode(string, add_special_tokens=False))


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

    def decoder(self) -> HFDecoder:
        return HFDecoder(self)

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


@dataclass(slots=True)
class _Stem:
    """Rows that have the same text so far, and therefore one slot.

    Attributes:
        slot: where its keys and values are.
        tokens: the text.
    """

    slot: Slot
    tokens: list[int]


class HFDecoder:
    """Rows being decoded in slots of the engine; see `ppl.lm.base.Decoder`.

    Rows with equal texts are computed as one until they draw different tokens.
    """

    def __init__(self, model: HFModel) -> None:
        self._model, self._engine = model, model.engine
        self._stems: list[_Stem] = []
        self._stem_of: list[int] = []  # per active row
        self._hidden = torch.zeros(0)  # [stems, hidden]
        self._logits = torch.zeros(0)  # [stems, V]

    @property
    def logits(self) -> Tensor:
        single = len(self._stems) == len(self._stem_of)  # then rows and stems are in one order
        return self._logits if single else self._logits[self._stem_of]

    @torch.inference_mode()
    def join(self, prefixes: Sequence[Tokens], ledgers: Sequence[Ledger | None]) -> None:
        slots, hidden = self._engine.open(prefixes, _accounts(ledgers))
        first = len(self._stems)
        where = {text: first + i for i, text in enumerate(dict.fromkeys(prefixes))}
        self._stems += [_Stem(slot, list(text)) for slot, text in zip(slots, where, strict=True)]
        for text in prefixes:
            self._stem_of.append(where[text])
        states = dict(zip(prefixes, hidden, strict=True))
        new = torch.stack([states[text] for text in where])
        logits = self._model.logits(new)
        self._hidden = torch.cat([self._hidden, new]) if first else new
        self._logits = torch.cat([self._logits, logits]) if first else logits

    @torch.inference_mode()
    def advance(self, keep: Sequence[int], tokens: Sequence[int]) -> None:
        old, was = self._stems, self._stem_of
        # A stem goes on with the first token that one of its rows drew; others fork off it.
        branches: dict[tuple[int, int], int] = {}  # (old stem, token) -> new stem
        sources: list[int] = []
        self._stem_of = []
        for row, token in zip(keep, tokens, strict=True):
            branch = (was[row], token)
            if branch not in branches:
                branches[branch] = len(sources)
                sources.append(was[row])
            self._stem_of.append(branches[branch])
        going: set[int] = set()
        forked: list[int] = []
        for number, source in enumerate(sources):
            if source in going:
                forked.append(number)
            going.add(source)
        for number, stem in enumerate(old):
            if number not in going:
                self._engine.close(stem.slot, tuple(stem.tokens), self._hidden[number])
        copies = self._engine.fork([old[sources[i]].slot for i in forked])
        slots = [old[source].slot for source in sources]
        for i, copy in zip(forked, copies, strict=True):
            slots[i] = copy
        self._stems = [
            _Stem(slot, [*old[source].tokens, token])
            for slot, source, (_, token) in zip(slots, sources, branches, strict=True)
        ]
        if self._stems:
            self._hidden = self._engine.step(slots, [token for _, token in branches])
            self._logits = self._model.logits(self._hidden)


def _accounts(ledgers: Sequence[Ledger | None]) -> list[Account]:
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
