"""Hugging Face decoders, run in this process."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ppl.errors import UnsupportedModelError
from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.cost import Account
from ppl.lm.adapter import Adapted, Adapter, fitting, heads_of
from ppl.lm.base import LanguageModel, Tokens
from ppl.lm.company import Company
from ppl.lm.decode import LogitsModel, Session
from ppl.lm.drafting import DraftSession
from ppl.lm.drafts import Drafts, drafts_of
from ppl.lm.engine.adapted import add_adapter
from ppl.lm.engine.admission import base_of, not_finite, without_wrapper
from ppl.lm.engine.beside import marked
from ppl.lm.engine.bursts import bursts_of
from ppl.lm.engine.decoder import EngineDecoder, payers_of
from ppl.lm.engine.drafts import DraftDecoder, refuse_drafts
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.inversion import invert, invert_alike
from ppl.lm.engine.kv import KV
from ppl.lm.engine.leading import LeadingDecoder
from ppl.lm.engine.linear import parameter_count
from ppl.lm.engine.quantised import name_with, weights_of
from ppl.lm.engine.setting import inferring
from ppl.lm.engine.use import KVUse
from ppl.lm.eviction import Eviction
from ppl.lm.guessing import Drafting
from ppl.lm.held import Held
from ppl.lm.leading import LeadingSession
from ppl.lm.origin import Origin
from ppl.lm.sampling import Invert
from ppl.lm.settings import HELD, SETTINGS_HELD, refuse_unknown_settings
from ppl.lm.tokenizer import HFCodec


class HFModel(Held, LogitsModel):
    """Any Hugging Face causal language model that keeps keys and values of its tokens.

    Prompts are computed once, forks share what their ancestors computed, and all rows of a request
    run as one ragged batch. Use `ppl.load` unless you already hold the model and its tokenizer.

    Args:
        model: a causal language model in evaluation mode; one of peft's runs with the adapter that
            is active (another one needs another `HFModel`: what was computed stays).
        tokenizer: its tokenizer.
        name: shown in messages; models with the same name and tokenizer are taken as the same.
        context_length: most tokens of a text; None takes it from the configuration.
        kv_bytes: memory for cached keys and values, and the most that one batch may take; as in
            `ppl.load`.
        kv: as in `ppl.load`; what is not "full" is put behind the name.
        graphs, compile, drafts: as in `ppl.load`.
        unknown: nothing; a setting of `ppl.load` that a model which is held cannot have, or a name
            that another library uses, is answered with what to do.

    Attributes:
        drafts: what was guessed and how much of it was right; None without `drafts`.
        adapter: what it has beside its weights, see `with_adapter`; None for the model alone.
        invert: what draws tokens that nothing reshapes, where `ppl.lm.sampling` alone need not.
        engine: what computes; of several adapters it is one, which takes each text as `marked`.

    Raises:
        UnsupportedModelError: the model cannot be forked exactly, or has no head that gives logits.
        TypeError: `model` or `tokenizer` is none, or there is no such setting.
    """

    @checked
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        context_length: int | None = None,
        kv_bytes: float | str = 2 << 30,
        kv: str | Eviction = "full",
        graphs: bool = False,
        compile: bool | Literal["auto"] = False,
        drafts: str | LanguageModel | Drafts | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown_settings("ppl.HFModel", unknown, SETTINGS_HELD, HELD)
        keeps = KV.read(kv)
        _check_held(model, tokenizer)
        model = without_wrapper(model, name)
        self._bare, self._keeps, self.kv = name, keeps, str(keeps)
        self.name = name = keeps.named(name)
        self.model = model.eval()
        make = partial(
            Engine,
            model,
            name=name,
            capacity=checks.nbytes(kv_bytes=kv_bytes),
            context_length=context_length,
            graphs=graphs,
            keeps=keeps,
        )
        self.engine = _compiled_or_not(make, model) if compile == "auto" else make(compile=compile)
        self.engine.refuse_small()
        compiled = self.engine.runner.compiled
        native = compiled is not None and compiled.native
        self.company = Company(self.engine.lock)
        self.engine.slots.give_way = self.company.give_way
        self.context_length = self.engine.context_length
        self.codec: HFCodec = HFCodec(tokenizer, _end_tokens(model, tokenizer), name)
        self.parameters = parameter_count(model)
        self._head = _checked_head(model, name)
        heads = model.config.get_text_config(), model.get_output_embeddings()
        self._bursts = bursts_of(self.engine, *heads, self._head)
        # One program draws, by itself, within a burst or after a guess: with the same digits.
        own = native or self._bursts is not None
        self.invert: Invert = invert if own else invert_alike
        self.adapter: Adapted | None = None
        self._alone: HFModel | None = None
        self.drafts: Drafting | None = None
        if drafts is not None:
            refuse_drafts(self.engine, graphs)
            self.drafts = Drafting(drafts_of(drafts, self), self.engine.vocabulary)

    @checked
    def with_adapter(
        self,
        adapter: str | Path,
        *,
        name: str | None = None,
        token: str | bool | None = None,
    ) -> HFModel:
        """This model with a LoRA adapter beside its weights.

        Both are used side by side, with as many others as there are: they have one copy of the
        weights and one engine, their rows run in the same passes, and each draws as a model with
        the adapter in its weights would (`ppl.load(model, adapter=...)`, which is faster where one
        is all there is). What was computed for a text with one is never taken for another's. An
        adapter goes when nobody holds its model any more.

        Args:
            adapter: a folder that peft wrote, or the name of one on the Hugging Face Hub.
            name: shown in messages; None makes it of the names of model and adapter. What the
                model has of `weights=` and `kv=` is put behind it.
            token: for the Hub.

        Raises:
            ModelNotFoundError: there is no such adapter.
            UnsupportedModelError: it is of another model, more than LoRA, or layers of this model
                cannot have one beside them.
            ValueError: this model has an adapter beside its weights already.

        Example:
            base = ppl.load("some/model")
            writer, judge = base.with_adapter("writer-lora"), base.with_adapter("judge-lora")
        """
        if self.adapter is not None:
            raise ValueError(
                f"{self.name} has an adapter beside its weights already; call with_adapter of the "
                f"model without one, {self.together.name}"
            )
        found = Adapter.read(adapter, {"token": token})
        weights = weights_of(self.model)
        name = f"{self._bare}+{adapter}" if name is None else name_with(name, weights)
        name = self._keeps.named(name)
        pairs, heads = fitting(self.model, found), heads_of(self.model, found)
        number = add_adapter(self.engine, self.model, pairs, name)
        view = copy.copy(self)
        view.name, view.adapter = name, Adapted(found.source, number, heads)
        view._alone = self
        self.engine.runner.adapters.belongs(number, view)
        view.parameters = (self.parameters or 0) + sum(
            a.numel() + b.numel() for a, b in pairs.values()
        )
        # Put into weights that are rounded then, an adapter gives another model.
        origin = vars(self).get("origin") if weights is None else None
        vars(view).pop("origin", None)
        if isinstance(origin, Origin) and origin.settings.get("adapter") is None:
            settings = {**origin.settings, "adapter": str(adapter)}
            vars(view)["origin"] = replace(origin, settings=settings)
        return view

    @property
    def plain_name(self) -> str:
        """Its name without what it has of `weights=` and `kv=`."""
        return self._bare.removesuffix(f"@{weights_of(self.model)}")

    @property
    def together(self) -> HFModel:
        """The model without an adapter, whose running batch takes the requests of all of them."""
        return self if self._alone is None else self._alone

    def marked(self, text: Tokens) -> Tokens:
        """A text as the engine knows it: told apart from the same one with another adapter."""
        return marked(text, self.adapter.number if self.adapter else 0)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits `[n, V]` from last hidden states `[n, hidden]`, in the same dtype."""
        numbers = [self.adapter.number] * len(hidden) if self.adapter else []
        with inferring(), self.engine.runner.adapters.running(numbers):
            return self._head(hidden)

    def fresh(self) -> None:
        """See `LogitsModel`."""
        with self.engine.lock:
            self.engine.pool.clear()
            self.engine.runner.snapshots.clear()
        drafts = self.together.drafts
        if drafts is not None:
            drafts.fresh()

    def decoder(self) -> EngineDecoder:
        """A decoder whose rows share this model's engine."""
        return EngineDecoder(self.engine, self._head, self.marked if self.adapter else None)

    def session(self) -> Session:
        """A running batch that requests join and leave."""
        model = self.together
        if model.drafts is None:
            return LeadingSession(model, LeadingDecoder(model.engine, model._head, model._bursts))
        decoder = DraftDecoder(model.drafts, model.engine, model._head)
        return DraftSession(model, model.drafts, decoder)

    def logits_along(
        self,
        prefixes: Sequence[Tokens],
        continuations: Sequence[Tokens],
        ledgers: Sequence[Account | None],
    ) -> Iterator[Tensor]:
        """Logits `[T, V]` before each token of every continuation, from one batch of passes."""
        with inferring():
            texts = [self.marked(p + c[:-1]) for p, c in zip(prefixes, continuations, strict=True)]
            hidden = self.engine.hidden(texts, [len(p) - 1 for p in prefixes], payers_of(ledgers))
        for states in hidden:
            yield self.logits(states)

    @property
    def bursts(self) -> bool:
        """Whether several decode steps may be made in one call: those of small models on a CPU, and
        captured ones. What is drawn, paid and shown is the same either way."""
        return self._bursts is not None

    @property
    def token_count(self) -> int:
        """Rows of the model's head, or ids of its tokenizer, whichever are more."""
        return max(self.codec.size, int(self.model.config.get_text_config().vocab_size))

    def batch_rows(self, length: int) -> int:
        """How many texts of `length` tokens fit into the engine's memory at once."""
        return self.engine.batch_rows(min(length, self.context_length))

    def most_rows(self, texts: Sequence[Tokens], lengths: Sequence[int]) -> int:
        """How many texts fit at once that go on from such beginnings to such lengths."""
        if self.adapter:
            texts = [self.marked(text) for text in texts]
        return self.engine.most_rows(texts, [min(n, self.context_length) for n in lengths])

    @checked
    def kv_use(self, prompt: int, new: Sequence[int]) -> KVUse:
        """Bytes of keys and values that the steps of a batch read, and most that are kept at once:
        in closed form from `kv=`, nothing is run.

        Args:
            prompt: tokens that all rows begin with.
            new: tokens that each row draws.

        Raises:
            ValueError: no rows, numbers below 1, or texts beyond `context_length`.
        """
        checks.count(prompt=prompt)
        if not new:
            raise ValueError("new: tokens of each row, one number at least")
        for number in new:
            checks.count(new=number)
        if prompt + max(new) > self.context_length:
            raise ValueError(
                f"prompt={prompt} and {max(new)} of new= are more than {self.name} takes, "
                f"{self.context_length} tokens: give fewer, or load it with more context_length="
            )
        return self.engine.kv_use(prompt, new)


def _compiled_or_not(make: Callable[..., Engine], model: Any) -> Engine:
    """With compiled steps on a CPU, if they can be; else without, and it says why."""
    if model.device.type != "cpu":
        return make(compile=False)
    try:
        return make(compile=True)
    except UnsupportedModelError as refusal:
        engine = make(compile=False)  # or the model cannot be run at all
        warnings.warn(f"steps run uncompiled: {refusal}", stacklevel=4)
        return engine


def _check_held(model: Any, tokenizer: Any) -> None:
    """Raises TypeError for what is no model or no tokenizer."""
    if not (hasattr(model, "eval") and hasattr(model, "config")):
        raise TypeError(
            f"model={shown(model)}: a causal language model of transformers or peft; one that is "
            "not loaded yet is ppl.load(name)"
        )
    if not hasattr(tokenizer, "encode"):
        raise TypeError(
            f"tokenizer={shown(tokenizer)}: the model's own, as AutoTokenizer.from_pretrained gives"
        )


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
    if embeddings is None:
        raise UnsupportedModelError(
            f"{name}: {type(model).__name__} has no head that gives logits of next tokens; load it "
            "with AutoModelForCausalLM"
        )
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
    with inferring():
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        ours = head(base_of(model)(input_ids=ids, use_cache=False).last_hidden_state[0]).float()
    if not own.isfinite().all():
        raise UnsupportedModelError(f"{name}: {not_finite(model, 'logits')}")
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if not torch.allclose(own, ours, rtol=tolerance, atol=tolerance * float(own.abs().max())):
        raise UnsupportedModelError(
            f"{name}: its logits are not a plain function of its last hidden state "
            "(unknown scaling); this model is not supported"
        )
    return head
