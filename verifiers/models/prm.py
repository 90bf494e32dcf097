"""Process reward models: a head that says, at the end of each step, how good it was.

Runs on the same engine as language models: a step's score costs the step's tokens, the prefix is
reused. Probabilities come from log-odds in float32, never from a rounded probability.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl.errors import ModelNotFoundError, PRMFormatError, PromptError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.codec import Codec
from ppl.language.text import Text
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.kv import KV
from ppl.lm.engine.linear import parameter_count
from ppl.lm.engine.quantised import name_with
from ppl.lm.eviction import Eviction
from ppl.lm.held import Held
from ppl.lm.huggingface import HFModel
from ppl.lm.origin import keeps_origin
from ppl.lm.settings import NO_STEPS, own_names, refuse_unknown_settings
from ppl.lm.sources import embedded, name_of
from ppl.lm.tokenizer import HFCodec
from ppl.runtime.verdict import Aggregate, JudgeRequest, Meaning, Verifier, check_declared
from ppl.verifiers.escaping import escaped
from ppl.verifiers.models.formats import (
    FORMATS,
    TOKEN_CLASSIFICATION,
    PRMFormat,
    format_of,
    self_check,
)
from ppl.verifiers.models.heads import Labels, LogOdds, beside, log_sigmoid, refuse_own

Tokens = tuple[int, ...]


class PRM(Held, Verifier):
    """A process reward model of a declared format.

    Plain token-classification models read the text's own token ids where language model and reward
    model share a vocabulary; otherwise prompt and steps are encoded one by one with the reward
    model's tokenizer, so that a step's tokens never depend on what follows. All other formats
    render the text anew from its strings: steps are stripped, blank ones have no score, and a tag
    or special token that the text itself contains is broken by a space.

    Args:
        model: the model in evaluation mode, as its format's head loads it; or an `HFModel` with an
            adapter (`HFModel.with_adapter`), whose engine and memory are then used.
        tokenizer: its tokenizer.
        name: shown in messages.
        format: how it wants to be asked.
        meaning, aggregate: what its number says and how step scores form the potential; the
            format's own unless given. Where neither gives an aggregate, it is the product of steps
            (`"step"`) and the latest of anything else.
        good, bad: names of the two labels of a token-classification model.
        floor: scores are clipped to [floor, 1 - floor].
        kv_bytes: memory for cached keys and values, as in `ppl.load`.
        kv: what is kept of them, as in `ppl.load`; what is not "full" is put behind the name.
        context_length: most tokens of a text; None takes it from the model's configuration.

    Attributes:
        log_odds: the head, from `states` `[n, hidden]` to log-odds `[n]`.

    Raises:
        PRMFormatError: the model or its tokenizer are not of the declared format.
        UnsupportedModelError: the model cannot be forked exactly.
    """

    @checked
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        format: PRMFormat = TOKEN_CLASSIFICATION,
        meaning: Meaning | None = None,
        aggregate: Aggregate | None = None,
        good: str | None = None,
        bad: str | None = None,
        floor: float = 1e-6,
        kv_bytes: float | str = 2 << 30,
        kv: str | Eviction = "full",
        context_length: int | None = None,
    ) -> None:
        keeps = KV.read(kv)
        name = keeps.named(name)
        self.name, self.floor = name, floor
        self.meaning = meaning or format.meaning
        natural: Aggregate = "prod" if self.meaning == "step" else "last"
        self.aggregate = aggregate or format.aggregate or natural
        check_declared(name, self.meaning, self.aggregate)
        checks.floor(floor=floor)
        capacity = checks.nbytes(kv_bytes=kv_bytes)
        self.format = _with_labels(format, good, bad)
        self_check(self.format, tokenizer, name)
        self._lm: HFModel | None = model if isinstance(model, HFModel) else None
        self.log_odds: LogOdds
        if self._lm is not None:
            if context_length is not None:
                raise ValueError(f"{name}: context_length={context_length} is that of the base")
            refuse_own(kv=kv if keeps else None)
            self.log_odds, self.engine = beside(self.format.head, self._lm, name), self._lm.engine
            self.parameters = self._lm.parameters
        else:
            self.log_odds = self.format.head.log_odds(model, tokenizer, name)
            self.engine = Engine(
                model.eval(),
                name=name,
                capacity=capacity,
                context_length=context_length,
                keeps=keeps,
            )
            self.engine.refuse_small()
            self.parameters = parameter_count(model)
        self.codec = HFCodec(tokenizer, frozenset(), name)
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._same: dict[Codec, bool] = {}

    def __repr__(self) -> str:
        return self.name

    @staticmethod
    @own_names
    @keeps_origin
    @checked
    def load(
        source: str | Path,
        *,
        format: PRMFormat | str | None = None,
        meaning: Meaning | None = None,
        aggregate: Aggregate | None = None,
        good: str | None = None,
        bad: str | None = None,
        floor: float = 1e-6,
        dtype: torch.dtype | str | None = None,
        device: str | int | torch.device | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        weights: str | None = None,
        kv_bytes: float | str = 2 << 30,
        kv: str | Eviction = "full",
        context_length: int | None = None,
        base: HFModel | None = None,
        **unknown: Any,
    ) -> PRM:
        """A reward model by name: `"tiny"`, `"tiny-lines"`, a folder, or a Hugging Face Hub id.

        Args:
            format: a format, or its name in `FORMATS`; None goes by the model's name and
                configuration, see `format_of`. Other arguments as in the class and `ppl.load`.
            base: a loaded model of which `source` is a LoRA adapter: the reward model stands
                beside its weights, in its engine and memory, and keeps what that keeps. A head that
                was trained with the adapter (`modules_to_save`) is the adapter's own; a token
                classifier's two outputs are (bad, good).
            unknown: nothing; a name that another library uses is answered with what to do.

        Raises:
            ModelNotFoundError: there is no such model.
            PRMFormatError: it is not of the declared format.
            TypeError: there is no such setting.
        """
        if unknown.get("trust_remote_code"):
            raise TypeError(
                "PRM.load runs no code of a checkpoint; leave trust_remote_code= out, and pass "
                f"format=, one of {', '.join(FORMATS)} or a PRMFormat"
            )
        others = unknown.keys() - {"trust_remote_code"}
        refuse_unknown_settings("PRM.load", others, _SETTINGS, NO_STEPS)
        if isinstance(format, str):
            if format not in FORMATS:
                raise PRMFormatError(f"no format {format!r}: known are {', '.join(FORMATS)}")
            format = FORMATS[format]
        guessed = format is None
        format = format or format_of(source)
        judges: dict[str, Any] = {
            "format": format,
            "meaning": meaning,
            "aggregate": aggregate,
            "good": good,
            "bad": bad,
            "floor": floor,
        }
        KV.read(kv)
        kv_bytes = checks.nbytes(kv_bytes=kv_bytes)
        name = f"PRM({name_with(name_of(source), weights)!r})"
        if base is not None:
            refuse_own(
                dtype=dtype,
                device=device,
                revision=revision,
                weights=weights,
                kv_bytes=None if kv_bytes == 2 << 30 else kv_bytes,
                kv=kv if KV.read(kv) else None,
            )
            name = f"PRM({f'{base.plain_name}+{source}'!r})"
            lm = base.with_adapter(source, name=name, token=token)
            name = lm.name  # with what the base keeps
            return PRM(lm, lm.codec.tokenizer, name=name, context_length=context_length, **judges)
        try:
            model, tokenizer = format.head.load(
                embedded(source, "prm"),
                dtype=dtype,
                device=device,
                revision=revision,
                token=token,
                weights=weights,
            )
        except ModelNotFoundError as error:
            if guessed and "lack the weights" in str(error):
                meant = next((say for kind, say in _OTHER_DOORS.items() if kind in str(error)), "")
                raise PRMFormatError(
                    f"{error}; {meant}its name and configuration were taken to mean the format "
                    f"{format.name!r}: if it is of another, pass format=, one of "
                    f"{', '.join(FORMATS)} or a PRMFormat"
                ) from error
            raise
        return PRM(
            model,
            tokenizer,
            name=name,
            kv_bytes=kv_bytes,
            kv=kv,
            context_length=context_length,
            **judges,
        )

    @torch.inference_mode()
    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """Log-probability of "good" for every new step, all texts in batches."""
        found = self.states(requests)
        sizes = [len(states) for states in found]
        if not any(sizes):
            return [[] for _ in requests]
        log_probs = iter(log_sigmoid(self.log_odds(torch.cat(found))))
        return [list(itertools.islice(log_probs, size)) for size in sizes]

    @torch.inference_mode()
    def states(self, requests: Sequence[JudgeRequest]) -> list[Tensor]:
        """Per request the hidden states `[n, hidden]` where its n new scores are read.

        They know no gradients: `clone()` them for a head that is trained.
        """
        results = [torch.zeros(0)] * len(requests)
        # Texts that only gained blank steps have nothing new to be read.
        asked = [
            (i, tokens, positions)
            for i, request in enumerate(requests)
            for tokens, positions in [self._render(request)]
            if positions
        ]
        lm = self._lm
        rows = self.engine.batch_rows(max((len(tokens) for _, tokens, _ in asked), default=1))
        for begin in range(0, len(asked), rows):
            part = asked[begin : begin + rows]
            ledgers = [requests[i].ledger for i, _, _ in part]
            hidden = self.engine.hidden(
                [tokens if lm is None else lm.marked(tokens) for _, tokens, _ in part],
                [positions[0] for _, _, positions in part],
                [None if a is None else (a.of(self), "verifier_tokens", _REUSED) for a in ledgers],
            )
            for states, (i, _, positions) in zip(hidden, part, strict=True):
                if len(states) > len(positions):
                    states = states[[p - positions[0] for p in positions]]
                results[i] = states
        return results

    def _render(self, request: JudgeRequest) -> tuple[Tokens, list[int]]:
        """Token ids up to the last score, and the positions of the new scores."""
        text, since = request.text, request.since
        if self.format.render is not None:
            tokens, wanted = self._formatted(text, since)
        else:
            same = self._shares_vocabulary(text)
            tokens, ends = (text.tokens, text.step_ends) if same else self._encode(text)
            wanted = ends[since:] or (len(tokens),)
        if wanted and wanted[-1] > self.engine.context_length:
            # Truncation would silently drop steps.
            raise PromptError(
                f"{request.label}: the text has {wanted[-1]} tokens, verifier {self.name} holds "
                f"{self.engine.context_length}: take fewer or shorter steps"
            )
        return tokens[: wanted[-1] if wanted else 0], [end - 1 for end in wanted]

    def _formatted(self, text: Text, since: int) -> tuple[Tokens, tuple[int, ...]]:
        """The rendered tokens, and the ends of the new steps that are not blank."""
        assert self.format.render is not None
        tokenizer, tag = self.codec.tokenizer, self.format.tag
        stripped = [step.strip() for step in text.steps]
        steps = [escaped(step, tokenizer, tag) for step in stripped if step]
        if not any(stripped[since:]):
            return (), ()
        pieces = self.format.render(tokenizer, escaped(text.prompt, tokenizer, tag), steps)
        tokens: Tokens = ()
        ends: list[int] = []
        for piece in pieces:
            tokens += piece
            ends.append(len(tokens))
        return tokens, tuple(ends[sum(map(bool, stripped[:since])) :])

    def _encode(self, text: Text) -> tuple[Tokens, tuple[int, ...]]:
        tokens = self.codec.chat([{"role": "user", "content": text.prompt}], {})
        ends = []
        for step in text.steps:
            tokens += self.codec.encode_after(step, plain=True)
            ends.append(len(tokens))
        return tokens, tuple(ends)

    def _shares_vocabulary(self, text: Text) -> bool:
        codec = text.codec
        if codec not in self._same:
            tokenizer = getattr(codec, "tokenizer", None)
            self._same[codec] = tokenizer is not None and tokenizer.get_vocab() == self._vocabulary
        return self._same[codec]


_SETTINGS = tuple(inspect.signature(PRM.load).parameters)[1:-1]
_REUSED = "verifier_reused_tokens"
# What takes a model that is no reward model of steps, by the end of its class's name.
_OTHER_DOORS = {
    "ForSequenceClassification": "RewardModel.load takes one with a single output, "
    "OutcomeModel.load one with labels; ",
    "ForCausalLM:": "a language model judges as ppl.verifiers.Judge(ppl.load(...)) or GenRM; ",
}


def _with_labels(format: PRMFormat, good: str | None, bad: str | None) -> PRMFormat:
    if good is None and bad is None:
        return format
    if not isinstance(format.head, Labels):
        raise PRMFormatError(f"good= and bad= are for labels; format {format.name!r} has none")
    head = Labels(bad=bad or format.head.bad, good=good or format.head.good)
    return dataclasses.replace(format, head=head)
