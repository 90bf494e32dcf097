"""From last hidden states to log-odds: the three kinds of head that reward models have.

No code from a checkpoint is ever run: the backbone is `transformers`' own class, and what a
checkpoint's own code would add on top is loaded here from its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification
from transformers.utils import cached_file

from ppl.errors import PRMFormatError
from ppl.language.arguments import check_fields
from ppl.lm.engine.linear import pack_linears
from ppl.lm.huggingface import HFModel, _checked_head
from ppl.lm.pretrained import load_pretrained

LogOdds = Callable[[Tensor], Tensor]
"""Maps hidden states `[n, hidden]` to float32 log-odds of "good" `[n]`.

Log-odds and not probabilities: in half precision a probability near 1 is 1, and one near 0 is 0.
"""


class Head(Protocol):
    """Where a reward model's number comes from."""

    def load(self, source: str | Path, **options: Any) -> tuple[Any, Any]:
        """Model and tokenizer; options as in `ppl.load`."""
        ...

    def log_odds(self, model: Any, tokenizer: Any, name: str) -> LogOdds:
        """The head of a loaded model. Raises PRMFormatError if it is not as declared."""
        ...


@dataclass(frozen=True)
class Labels:
    """Two labels of a token-classification head: softmax(bad, good)[good]."""

    bad: str = "bad"
    good: str = "good"

    def __post_init__(self) -> None:
        check_fields(self)

    def load(self, source: str | Path, **options: Any) -> tuple[Any, Any]:
        """A token classifier and its tokenizer."""
        return load_pretrained(AutoModelForTokenClassification, source, **options)

    def log_odds(self, model: Any, tokenizer: Any, name: str) -> LogOdds:
        """Difference of the logits of the two labels."""
        labels: dict[int, str] = {int(i): str(s) for i, s in model.config.id2label.items()}
        index = {label: i for i, label in labels.items()}
        if self.good not in index or self.bad not in index:
            raise PRMFormatError(
                f"{name} has the labels {sorted(index)}, none called {self.good!r} or none called "
                f"{self.bad!r}: pass good= and bad= as the model's configuration calls them"
            )
        layer = getattr(model, "score", getattr(model, "classifier", None))
        if layer is None:
            raise PRMFormatError(
                f"{name} is a {type(model).__name__} without a token-level head (score or "
                "classifier)"
            )
        good, bad = index[self.good], index[self.bad]

        def log_odds(hidden: Tensor) -> Tensor:
            logits = layer(hidden).float()
            difference: Tensor = logits[:, good] - logits[:, bad]
            return difference

        return log_odds

    def beside(self, lm: HFModel, name: str) -> LogOdds:
        """As `log_odds`, of a head that came with an adapter: its outputs are (bad, good)."""
        for layer in ("score", "classifier"):
            if f"{layer}.weight" in _came_with(lm):
                linear = linear_beside(lm, layer, name)
                if linear.out_features == 2:
                    return _difference(linear)
                raise PRMFormatError(
                    f"{name}: its head {layer} has {linear.out_features} outputs, where the two "
                    f"labels (bad, good) are read; {_WHOLE}"
                )
        raise _headless(lm, name, "score or classifier")


@dataclass(frozen=True)
class Words:
    """Two words that a language model would say next: softmax over their two logits."""

    bad: str = "-"
    good: str = "+"

    def __post_init__(self) -> None:
        check_fields(self)

    def load(self, source: str | Path, **options: Any) -> tuple[Any, Any]:
        """A causal language model and its tokenizer."""
        return load_pretrained(AutoModelForCausalLM, source, **options)

    def log_odds(self, model: Any, tokenizer: Any, name: str) -> LogOdds:
        """Difference of the logits of the two words' tokens."""
        head = _checked_head(model, name)
        good, bad = (self._token(tokenizer, word, name) for word in (self.good, self.bad))

        def log_odds(hidden: Tensor) -> Tensor:
            logits = head(hidden).float()
            difference: Tensor = logits[:, good] - logits[:, bad]
            return difference

        return log_odds

    def beside(self, lm: HFModel, name: str) -> LogOdds:
        """As `log_odds`, of a model with an adapter beside its weights."""
        good, bad = (self._token(lm.codec.tokenizer, w, name) for w in (self.good, self.bad))

        def log_odds(hidden: Tensor) -> Tensor:
            logits = lm.logits(hidden).float()
            difference: Tensor = logits[:, good] - logits[:, bad]
            return difference

        return log_odds

    def _token(self, tokenizer: Any, word: str, name: str) -> int:
        token = tokenizer.encode(word, add_special_tokens=False)[-1]
        if tokenizer.decode([token]).strip() != word:
            raise PRMFormatError(
                f"{name}: its tokenizer has no single token for {word!r}, which the format reads"
            )
        return int(token)


@dataclass(frozen=True)
class Layers:
    """Linear layers of the checkpoint with ReLU between them, on top of a plain backbone.

    One output is a log-odds (sigmoid), two are the logits of bad and good (softmax).

    Attributes:
        names: the layers' names in the checkpoint, `"score.0"` for `score.0.weight` and
            `score.0.bias`.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.names:
            raise ValueError("names=(): at least one layer")

    def load(self, source: str | Path, **options: Any) -> tuple[Any, Any]:
        """A bare model with the named layers on top, and its tokenizer."""
        model, tokenizer = load_pretrained(AutoModel, source, **options)
        hub = {k: options.get(k) for k in ("revision", "token")}
        layers: list[nn.Module] = []
        for name in self.names:
            weight, bias = _tensors(source, name, **hub)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            linear.weight.data = weight.float()
            if bias is not None:
                linear.bias.data = bias.float()
            layers += [nn.ReLU()] * bool(layers) + [linear]
        head = nn.Sequential(*layers).to(model.device).requires_grad_(False)
        if model.device.type == "cpu":  # a row's result is then the same whatever its company
            width: Any = layers[0].in_features
            pack_linears(head, lambda: head(torch.zeros(1, width)))
        model.reward_head = head
        return model, tokenizer

    def log_odds(self, model: Any, tokenizer: Any, name: str) -> LogOdds:
        """What the layers give: a log-odds, or the difference of the logits of (bad, good)."""
        head = getattr(model, "reward_head", None)
        if head is None:
            raise PRMFormatError(f"{name}: load it with PRM.load, which adds the layers {self}")
        width, outputs = head[0].in_features, head[-1].out_features
        if width != model.config.get_text_config().hidden_size or outputs not in (1, 2):
            raise PRMFormatError(
                f"{name}: its layers {self.names} map {width} to {outputs} numbers; a head maps "
                "the hidden state to one log-odds or to the logits of (bad, good)"
            )

        def log_odds(hidden: Tensor) -> Tensor:
            out: Tensor = head(hidden.float())
            return out[:, 0] if outputs == 1 else out[:, 1] - out[:, 0]

        return log_odds

    def beside(self, lm: HFModel, name: str) -> LogOdds:
        """As `log_odds`, of layers that came with an adapter."""
        layers: list[nn.Module] = []
        for layer in self.names:
            layers += [nn.ReLU()] * bool(layers) + [linear_beside(lm, layer, name)]
        head = nn.Sequential(*layers)
        if (outputs := head[-1].out_features) not in (1, 2):
            raise PRMFormatError(
                f"{name}: its layers {self.names} give {outputs} numbers, not 1, 2"
            )
        if outputs == 2:
            return _difference(head)

        def log_odds(hidden: Tensor) -> Tensor:
            out: Tensor = head(hidden.float())
            return out[:, 0]

        return log_odds


_WHOLE = "load model and adapter as one: save what merge_and_unload() gives, and load that folder"


def beside(head: Head, lm: HFModel, name: str) -> LogOdds:
    """The head of a reward model that is an adapter beside a language model's weights.

    Raises:
        PRMFormatError: it came with no such head.
    """
    made = getattr(head, "beside", None)
    if made is None:
        raise PRMFormatError(f"{name}: a {type(head).__name__} has no beside(lm, name); {_WHOLE}")
    log_odds: LogOdds = made(lm, name)
    return log_odds


def refuse_own(**settings: Any) -> None:
    """Raises ValueError for what an adapter beside a base has from the base."""
    given = ", ".join(f"{name}=" for name, value in settings.items() if value is not None)
    if given:
        raise ValueError(f"{given} with base= are those of the base; set them where it is loaded")


def _difference(layer: nn.Module) -> LogOdds:
    """The second output minus the first."""

    def log_odds(hidden: Tensor) -> Tensor:
        out: Tensor = layer(hidden.float())
        return out[:, 1] - out[:, 0]

    return log_odds


def _came_with(lm: HFModel) -> Mapping[str, Tensor]:
    return lm.adapter.heads if lm.adapter else {}


def _headless(lm: HFModel, name: str, layers: str) -> PRMFormatError:
    heads = ", ".join(sorted(_came_with(lm))) or "no head"
    return PRMFormatError(
        f"{name}: its adapter has {heads}, not {layers}; pass the format that it was trained for, "
        f"or {_WHOLE}"
    )


def linear_beside(lm: HFModel, layer: str, name: str) -> nn.Linear:
    """A layer that came with the adapter of a model, in float32."""
    heads = _came_with(lm)
    weight, bias = heads.get(f"{layer}.weight"), heads.get(f"{layer}.bias")
    if weight is None or weight.dim() != 2:
        raise _headless(lm, name, layer)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight.data = weight.float()
    if bias is not None:
        linear.bias.data = bias.float()
    return linear.to(lm.engine.device).requires_grad_(False)


def _tensors(
    source: str | Path, layer: str, revision: str | None, token: str | None
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias (or None) of a layer, from the checkpoint's safetensors files."""

    def file(name: str) -> str | None:
        path: str | None = cached_file(
            str(source),
            name,
            revision=revision,
            token=token,
            _raise_exceptions_for_missing_entries=False,
        )
        return path

    def tensor(name: str) -> Tensor | None:
        index = file("model.safetensors.index.json")
        shards = json.loads(Path(index).read_text())["weight_map"] if index else {}
        path = file(shards.get(name, "model.safetensors"))
        if path is None:
            return None
        with safe_open(path, framework="pt") as checkpoint:
            return checkpoint.get_tensor(name) if name in checkpoint.keys() else None  # noqa: SIM118

    weight = tensor(f"{layer}.weight")
    if weight is None:
        raise PRMFormatError(
            f"{source}: no tensor {layer}.weight in its safetensors files, so it is not of the "
            "declared format (older .bin checkpoints must be converted to safetensors first)"
        )
    return weight, tensor(f"{layer}.bias")


def log_sigmoid(log_odds: Tensor) -> list[float]:
    """Log-probabilities from log-odds, in float64."""
    values: list[float] = torch.nn.functional.logsigmoid(log_odds.double()).tolist()
    return values
