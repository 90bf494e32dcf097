"""Hugging Face decoders, run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl.errors import UnsupportedModelError
from ppl.language.cost import Ledger
from ppl.lm.base import LanguageModel, Tokens
from ppl.lm.engine.engine import Account, Engine
from ppl.lm.engine.slots import Slot
from ppl.lm.tokenizer import HFCodec


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
        graphs, compile: as in `ppl.load`.

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
        graphs: bool = False,
        compile: bool = False,
    ) -> None:
        self.name = name
        self.model = model.eval()
        self.engine = Engine(
            model,
            name=name,
            capacity=kv_bytes,
            context_length=context_length,
            graphs=graphs,
            compile=compile,
        )
        self.context_length = self.engine.context_length
        self.codec: HFCodec = HFCodec(tokenizer, _end_tokens(model, tokenizer), name)
        self._head = _checked_head(model, name)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits `[n, V]` from last hidden states `[n, hidden]`, in the same dtype."""
        with torch.inference_mode():
            return self._head(hidden)

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

    @property
    def token_count(self) -> int:
        return max(self.codec.size, int(self.model.config.get_text_config().vocab_size))

    def batch_rows(self, length: int) -> int:
        return self.engine.batch_rows(min(length, self.context_length))


@dataclass(slots=True)
class _Stem:
    """Rows that have the same text so far, and are computed as one.

    Attributes:
        text: the tokens.
        slot: where it runs; None as long as the engine knows all of it already.
    """

    text: Tokens
    slot: Slot | None


class HFDecoder:
    """Rows being decoded; see `ppl.lm.base.Decoder`.

    Rows with equal texts are computed as one until they draw different tokens. A row that draws
    what has been drawn from its text before computes nothing; it takes a slot when it leaves what
    is known.
    """

    def __init__(self, model: HFModel) -> None:
        self._model, self._engine = model, model.engine
        self._stems: list[_Stem] = []
        self._stem_of: list[int] = []  # per active row
        self._logits = torch.zeros(0)  # [stems, V]

    @property
    def logits(self) -> Tensor:
        single = len(self._stems) == len(self._stem_of)  # then rows and stems are in one order
        return self._logits if single else self._logits[self._stem_of]

    @torch.inference_mode()
    def join(self, prefixes: Sequence[Tokens], ledgers: Sequence[Ledger | None]) -> None:
        slots, hidden = self._engine.open(prefixes, _accounts(ledgers))
        first = len(self._stems)
        states = dict(zip(prefixes, hidden, strict=True))
        where = {text: first + i for i, text in enumerate(states)}
        self._stems += [_Stem(text, slots.get(text)) for text in states]
        self._stem_of += [where[text] for text in prefixes]
        logits = self._model.logits(torch.stack(list(states.values())))
        self._logits = torch.cat([self._logits, logits]) if first else logits

    @torch.inference_mode()
    def advance(self, keep: Sequence[int], tokens: Sequence[int]) -> None:
        engine, old, was = self._engine, self._stems, self._stem_of
        # A branch for every token that the rows of a stem have drawn: (old stem, token) -> number.
        branches: dict[tuple[int, int], int] = {}
        self._stem_of = [
            branches.setdefault((was[row], token), len(branches))
            for row, token in zip(keep, tokens, strict=True)
        ]
        self._stems = [_Stem((*old[stem].text, token), None) for stem, token in branches]
        states = [
            engine.known(new.text) if old[stem].slot is None else None
            for (stem, _), new in zip(branches, self._stems, strict=True)
        ]
        computing = [i for i, state in enumerate(states) if state is None]
        sources = [stem for stem, _ in branches]
        going = {sources[i] for i in computing}
        for number, stem in enumerate(old):
            if stem.slot is not None and number not in going:
                engine.close(stem.slot, stem.text)
        leaving = [old[number] for number in sorted(going) if old[number].slot is None]
        for stem, slot in zip(leaving, engine.seat([s.text for s in leaving]), strict=True):
            stem.slot = slot
        # The first branch goes on in its stem's slot, the others fork off it.
        forked: dict[int, Slot] = {}  # new stem -> the slot to copy
        for i in computing:
            source = old[sources[i]]
            assert source.slot is not None
            if sources[i] in going:
                going.remove(sources[i])
                self._stems[i].slot = source.slot
            else:
                forked[i] = source.slot
        for i, slot in zip(forked, engine.fork(list(forked.values())), strict=True):
            self._stems[i].slot = slot
        if computing:
            running = [self._stems[i] for i in computing]
            hidden = engine.step([s.slot for s in running if s.slot], [s.text for s in running])
            if len(computing) == len(states):  # no tensor a row: with many rows they cost a step
                self._logits = self._model.logits(hidden)
                return
            for i, state in zip(computing, hidden.unbind(), strict=True):
                states[i] = state
        if self._stems:
            self._logits = self._model.logits(torch.stack([s for s in states if s is not None]))


def _accounts(ledgers: Sequence[Ledger | None]) -> list[Account]:
    return [None if a is None else (a, "prompt_tokens", "reused_tokens") for a in ledgers]


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    ends: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for holder in (generation, model.config, tokenizer):
        value = getattr(holder, "eos_token_id", None)
        ends |= {value} if isinstance(value, int) else set(value or ())
    ends = {end for end in ends if end >= 0}  # some configurations say -1 for none
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
