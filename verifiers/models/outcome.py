"""Outcome models: one number for a whole text, from a sequence-classification head.

A scalar reward (Bradley-Terry) only ranks: P(y1 better than y2) = sigmoid(z1 - z2), and z itself is
no probability of anything. So `RewardModel` is a `Ranker`. `RewardModel.potential(temperature)`
makes the target p_LM(x) exp(z(x) / temperature), which is the optimum of KL-regularised
reinforcement learning with that temperature (Korbak et al. 2022, arXiv 2205.11275);
`Calibrated(reward_model, Platt.fit(...), meaning="outcome")` makes a probability of it. Best-of-N
is the same for every monotone map of z; votes and SMC are not, so the choice has to be stated.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from ppl.errors import PRMFormatError, PromptError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.kv import KV
from ppl.lm.engine.linear import parameter_count
from ppl.lm.engine.quantised import name_with
from ppl.lm.eviction import Eviction
from ppl.lm.held import Held
from ppl.lm.huggingface import HFModel
from ppl.lm.origin import keeps_origin
from ppl.lm.pretrained import load_pretrained
from ppl.lm.settings import NO_STEPS, own_names, refuse_unknown_settings
from ppl.lm.tokenizer import HFCodec
from ppl.runtime.verdict import JudgeRequest, Meaning, Ranker, Verifier
from ppl.verifiers.escaping import escaped
from ppl.verifiers.models.heads import linear_beside, refuse_own

_SETTINGS = tuple(inspect.signature(load_pretrained).parameters)[2:]


def _beside(
    base: HFModel,
    source: str | Path,
    kind: str,
    kv_bytes: int,
    kv: str | Eviction,
    options: dict[str, Any],
) -> HFModel:
    own = {n: v for n, v in options.items() if n != "token"}
    refuse_own(
        **own,
        kv_bytes=None if kv_bytes == 2 << 30 else kv_bytes,
        kv=kv if KV.read(kv) else None,
    )
    name = f"{kind}({f'{base.plain_name}+{source}'!r})"
    return base.with_adapter(source, name=name, token=options.get("token"))


class _WholeText(Held):
    """A sequence-classification model read at the last token of the rendered conversation
    that is no padding.

    The text is rendered anew, with the model's chat template: prompt as the user's turn, the rest
    as the assistant's. A special token that the text itself spells out is broken by a space.

    Attributes:
        name: with what is kept of keys and values.
        labels: the outputs of the head, by the names that they have.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, name: str, kv_bytes: float | str, kv: str | Eviction
    ) -> None:
        capacity = checks.nbytes(kv_bytes=kv_bytes)
        keeps = KV.read(kv)
        self.name = name = keeps.named(name)
        self._lm: HFModel | None = model if isinstance(model, HFModel) else None
        if self._lm is not None:
            refuse_own(kv=kv if keeps else None)
            self.model, self.engine = self._lm.model, self._lm.engine
            self._head: Any = linear_beside(self._lm, "score", name)
            self.parameters = self._lm.parameters
            self.labels = {f"LABEL_{i}": i for i in range(self._head.out_features)}
        else:
            self.model, self._head = model.eval(), getattr(model, "score", None)
            if self._head is None:
                kind = type(model).__name__
                raise PRMFormatError(f"{name} is a {kind} without a head called score")
            self.engine = Engine(model, name=name, capacity=capacity, keeps=keeps)
            self.engine.refuse_small()
            self.parameters = parameter_count(model)
            self.labels = {str(label): int(i) for i, label in model.config.id2label.items()}
        self.codec = HFCodec(tokenizer, frozenset(), name)

    def _tokens(self, request: JudgeRequest) -> tuple[int, ...]:
        text, tokenizer = request.text, self.codec.tokenizer
        rendered = tokenizer.apply_chat_template(
            [
                {"role": "user", "content": escaped(text.prompt, tokenizer, "")},
                {"role": "assistant", "content": escaped(text.text, tokenizer, "")},
            ],
            tokenize=False,
        )
        tokens = self.codec.encode(rendered)
        # As transformers pools: where the end token is also the padding, the one before is read.
        while len(tokens) > 1 and tokens[-1] == self.model.config.pad_token_id:
            tokens = tokens[:-1]
        if len(tokens) > self.engine.context_length:
            raise PromptError(
                f"{request.label}: the text has {len(tokens)} tokens, {self.name} holds "
                f"{self.engine.context_length}"
            )
        return tokens

    @torch.inference_mode()
    def logits(self, requests: Sequence[JudgeRequest]) -> Tensor:
        """`[requests, labels]` float32 outputs of the head."""
        texts = [self._tokens(request) for request in requests]
        if self._lm is not None:
            texts = [self._lm.marked(tokens) for tokens in texts]
        hidden = self.engine.hidden(
            texts,
            [len(tokens) - 1 for tokens in texts],
            [
                None
                if r.ledger is None
                else (r.ledger.of(self), "verifier_tokens", "verifier_reused_tokens")
                for r in requests
            ],
        )
        last = torch.stack([states[-1] for states in hidden])
        out: Tensor = self._head(last if self._lm is None else last.float()).float()
        return out


class RewardModel(Ranker):
    """A scalar reward model: higher is better, and that is all it says.

    Args:
        model: a sequence-classification model with one output; or an `HFModel` with an adapter that
            has such a head.
        tokenizer: its tokenizer, with a chat template.
        name: shown in messages.
        kv_bytes: memory for cached keys and values, as in `ppl.load`.
        kv: what is kept of them, as in `ppl.load`; what is not "full" is put behind the name.
    """

    @checked
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        kv_bytes: float | str = 2 << 30,
        kv: str | Eviction = "full",
    ) -> None:
        self._model = _WholeText(model, tokenizer, name=name, kv_bytes=kv_bytes, kv=kv)
        self.name = self._model.name
        if len(self._model.labels) != 1:
            raise PRMFormatError(
                f"{name} has {len(self._model.labels)} outputs; a reward model has one, for a "
                "classifier use OutcomeModel"
            )

    def __repr__(self) -> str:
        return self.name

    @staticmethod
    @own_names
    @keeps_origin
    @checked
    def load(
        source: str | Path,
        *,
        kv_bytes: float | str = 2 << 30,
        kv: str | Eviction = "full",
        base: HFModel | None = None,
        **options: Any,
    ) -> RewardModel:
        """A folder or a Hub id; further options as in `ppl.load`.

        Args:
            base: as in `PRM.load`.
        """
        kv_bytes = checks.nbytes(kv_bytes=kv_bytes)
        KV.read(kv)
        known = ("kv_bytes", "kv", "base", *_SETTINGS)
        refuse_unknown_settings("RewardModel.load", options, known, NO_STEPS)
        if base is not None:
            lm = _beside(base, source, "RewardModel", kv_bytes, kv, options)
            return RewardModel(lm, lm.codec.tokenizer, name=lm.name)
        model, tokenizer = load_pretrained(AutoModelForSequenceClassification, source, **options)
        name = f"RewardModel({name_with(str(source), options.get('weights'))!r})"
        return RewardModel(model, tokenizer, name=name, kv_bytes=kv_bytes, kv=kv)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """One reward per text, on the model's own scale."""
        return [[z] for z in self._model.logits(requests)[:, 0].tolist()]

    @checked
    def potential(self, temperature: float) -> Potential:
        """The likelihood exp(reward / temperature)."""
        return Potential(self, temperature)


class Potential(Verifier):
    """exp(number / temperature) of a ranker, as a factor of the target.

    The target is p_LM(x) exp(z(x) / temperature); the evidence is its normaliser, not a
    probability. Asked along the text, earlier numbers telescope away and only guide.

    Args:
        ranker: whose number.
        temperature: in units of the number; small ones trust it much.
    """

    meaning: Meaning = "reward"

    @checked
    def __init__(self, ranker: Ranker, temperature: float) -> None:
        checks.positive(temperature=temperature)
        self.ranker, self.temperature = ranker, temperature
        self.name = f"{ranker.name} / {temperature:g}"
        self.pseudo_marginal = ranker.pseudo_marginal

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """The last score of each text, divided by the temperature."""
        return [[scores[-1] / self.temperature] for scores in self.ranker.judge(requests)]


class OutcomeModel(Verifier):
    """A classifier of whole texts: P(label `good`), softmax over all its labels.

    Args:
        model: a sequence-classification model; or an `HFModel` with an adapter that has such a
            head.
        tokenizer: its tokenizer, with a chat template.
        name: shown in messages.
        good: the label that means "correct", as the model's configuration calls it.
        floor: probabilities are clipped to [floor, 1 - floor].
        kv_bytes: memory for cached keys and values, as in `ppl.load`.
        kv: what is kept of them, as in `ppl.load`; what is not "full" is put behind the name.

    Raises:
        PRMFormatError: the model has no such label.
    """

    meaning: Meaning = "outcome"

    @checked
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        good: str,
        floor: float = 1e-6,
        kv_bytes: float | str = 2 << 30,
        kv: str | Eviction = "full",
    ) -> None:
        checks.floor(floor=floor)
        self._model = _WholeText(model, tokenizer, name=name, kv_bytes=kv_bytes, kv=kv)
        labels = self._model.labels
        if good not in labels or len(labels) < 2:
            raise PRMFormatError(
                f"{name} has the labels {sorted(labels)}, not {good!r}: pass good="
            )
        self.name, self.floor, self._good = self._model.name, floor, labels[good]

    def __repr__(self) -> str:
        return self.name

    @staticmethod
    @own_names
    @keeps_origin
    @checked
    def load(
        source: str | Path,
        *,
        good: str = "LABEL_1",
        floor: float = 1e-6,
        kv_bytes: float | str = 2 << 30,
        kv: str | Eviction = "full",
        base: HFModel | None = None,
        **options: Any,
    ) -> OutcomeModel:
        """A folder or a Hub id; further options as in `ppl.load`.

        Args:
            base: as in `PRM.load`; the labels are then `"LABEL_0"`, `"LABEL_1"` and so on.
        """
        checks.floor(floor=floor)
        kv_bytes = checks.nbytes(kv_bytes=kv_bytes)
        KV.read(kv)
        known = ("good", "floor", "kv_bytes", "kv", "base", *_SETTINGS)
        refuse_unknown_settings("OutcomeModel.load", options, known, NO_STEPS)
        if base is not None:
            lm = _beside(base, source, "OutcomeModel", kv_bytes, kv, options)
            return OutcomeModel(lm, lm.codec.tokenizer, name=lm.name, good=good, floor=floor)
        model, tokenizer = load_pretrained(AutoModelForSequenceClassification, source, **options)
        name = f"OutcomeModel({name_with(str(source), options.get('weights'))!r})"
        return OutcomeModel(
            model, tokenizer, name=name, good=good, floor=floor, kv_bytes=kv_bytes, kv=kv
        )

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """Log-probability of the good class, one per text."""
        log_probs = torch.log_softmax(self._model.logits(requests).double(), dim=-1)
        return [[p] for p in log_probs[:, self._good].tolist()]
