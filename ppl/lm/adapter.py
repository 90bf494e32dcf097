"""LoRA adapters in the format of peft, put into the weights of their model.

An adapter is a folder with `adapter_config.json` and pairs of thin matrices: a layer's weight `W`
becomes `W + s B A` (Hu et al. 2021, arXiv:2106.09685). peft itself is not needed for that. What is
more than that (other scalings of weights, prompts, layers repeated) is refused by name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from ppl.errors import ModelNotFoundError, UnsupportedModelError
from ppl.lm.quiet import quiet_transformers

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PAIR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?")
# What a configuration may ask for that is more than `W + s B A`, in the weights that the model has.
_MORE = {
    "use_dora": "scales weights (DoRA)",
    "use_qalora": "is given means of inputs (QA-LoRA)",
    "use_bdlora": "has matrices of blocks (BD-LoRA)",
    "kasa_config": "takes parts of the weights away (KaSA)",
    "monteclora_config": "is a mixture of several (MonteCLoRA)",
    "alora_invocation_tokens": "changes what follows some tokens, and nothing before (aLoRA)",
    "arrow_config": "chooses among several for each token (Arrow)",
    "layer_replication": "repeats layers or changes their order",
    "ensure_weight_tying": "changes embeddings and head together",
}
_NO_WEIGHTS = "alora_invocation_tokens", "arrow_config"  # do that
# How A and B were begun. Others take from the weights what A and B are at first (PiSSA, OLoRA,
# CorDA, LoRA-GA, LoftQ), so that the adapter belongs to what is left.
_BEGUN = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def holds_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter, and no model."""
    return (path / _CONFIG).is_file() and not (path / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The model that an adapter was made for.

    Raises:
        UnsupportedModelError: it does not say.
    """
    base = _read(folder / _CONFIG).get("base_model_name_or_path")
    if not base:
        raise UnsupportedModelError(
            f"{folder} holds an adapter, not a model, and does not say of which; give both, as in "
            f"ppl.load(model, adapter={str(folder)!r}), or load what its merge_and_unload() gives"
        )
    return str(base)


@dataclass(frozen=True)
class Adapter:
    """What the files of an adapter hold, by the names that layers and parameters have in its model.

    Attributes:
        source: where it is from.
        pairs: of layers, `A [r, in]` and `B [out, r]`, the latter scaled, in float32.
        whole: parameters that came whole.
        copied: ends of the names of layers that were copied to be trained whole: who had shared a
            parameter with one keeps its own.
    """

    source: str
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor]
    copied: tuple[str, ...] = ()

    @staticmethod
    def read(source: str | Path, hub: Mapping[str, Any]) -> Adapter:
        """Reads an adapter.

        Args:
            source: a folder, or the name of a repository on the Hugging Face Hub.
            hub: `token` for it.

        Raises:
            ModelNotFoundError: there is no such adapter.
            UnsupportedModelError: it is of another kind, or not all of its numbers are finite.
        """
        files = [_file(source, name, hub) for name in (_CONFIG, _WEIGHTS)]
        config, weights = _read(files[0]), load_file(files[1])
        if config.get("peft_type") != "LORA":
            raise _beyond(source, f"is of the kind {config.get('peft_type')}, not LORA")
        for setting, said in _MORE.items():
            if config.get(setting):
                said = f"{said}, by its {setting}={config[setting]!r}"
                if setting in _NO_WEIGHTS:
                    raise UnsupportedModelError(
                        f"adapter={str(source)!r} {said}, which no weights do; train a plain LoRA"
                    )
                raise _beyond(source, said)
        if (begun := config.get("init_lora_weights")) not in _BEGUN:
            raise _beyond(source, f"is of other weights, by its init_lora_weights={begun!r}")
        halves: dict[str, dict[str, Tensor]] = {}
        whole: dict[str, Tensor] = {}
        for key, tensor in weights.items():
            # A layer beside which there is one is called `base_layer` by peft.
            place = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
            if not tensor.isfinite().all():
                raise UnsupportedModelError(
                    f"adapter={str(source)!r}: {place} is not finite; its training has diverged, "
                    "or the file is damaged: take an earlier checkpoint, or save it again"
                )
            if found := _PAIR.fullmatch(place):
                halves.setdefault(found[1], {})[found[3]] = tensor.float()
            else:
                whole[place] = tensor
        if not weights:
            raise _beyond(source, "is empty")
        pairs = {}
        for place, half in halves.items():
            if half.keys() != {"A", "B"}:
                raise _beyond(source, f"has only half of what belongs to {place}")
            scale = _scale(config, place, half["A"].shape[0])
            pairs[place] = half["A"], scale * half["B"]
        copied = config.get("modules_to_save") or ()
        return Adapter(str(source), pairs, whole, tuple(copied))

    def beyond(self, said: str) -> UnsupportedModelError:
        """An error that says what there is no place for, and what to do."""
        return _beyond(self.source, said)

    def leaves(self, place: str, dtype: torch.dtype) -> UnsupportedModelError:
        """For numbers that are too large."""
        return UnsupportedModelError(
            f"adapter={self.source!r}: what it adds to {place} leaves the range of {dtype}; load "
            "the model with dtype=torch.bfloat16 or dtype=torch.float32, or take an earlier "
            "checkpoint, if its training has diverged"
        )

    def no_place(self, place: str) -> UnsupportedModelError:
        """For a layer or a parameter that the model does not have."""
        return self.beyond(f"has {place}, for which this model has no place")


def put_in(model: nn.Module, adapter: str | Path, hub: Mapping[str, Any]) -> None:
    """Adds an adapter to the weights of a model; arguments as in `Adapter.read`.

    Raises:
        ModelNotFoundError: there is no such adapter.
        UnsupportedModelError: it is of another kind, or of another model.
    """
    found = Adapter.read(adapter, hub)
    modules, own = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    shared = {parameter for parameter, count in Counter(own.values()).items() if count > 1}
    for place, tensor in found.whole.items():  # a layer that was trained whole, or a bias
        if place not in own or own[place].shape != tensor.shape:
            raise found.no_place(place)
        layer, _, name = place.rpartition(".")
        if own[place] in shared and layer.endswith(found.copied):
            setattr(modules[layer], name, nn.Parameter(tensor.to(own[place]), requires_grad=False))
        else:
            with torch.no_grad():
                own[place].copy_(tensor)
    for place, (a, b) in found.pairs.items():
        if not hasattr(modules.get(place), "weight"):
            raise found.no_place(place)
        change = b @ a
        weight: Any = modules[place].weight
        if isinstance(modules[place], Conv1D | nn.Embedding):
            change = change.T
        if change.shape != weight.shape:
            raise found.beyond(
                f"changes {place} by {tuple(change.shape)}, the model has {tuple(weight.shape)}"
            )
        changed = (weight.float() + change.to(weight.device)).to(weight.dtype)
        if not changed.isfinite().all() and weight.isfinite().all():
            raise found.leaves(place, weight.dtype)
        if weight in shared:  # of head and embeddings, the adapter changes the one that it names
            modules[place].weight = nn.Parameter(changed, requires_grad=False)
        else:
            with torch.no_grad():
                weight.copy_(changed)


@dataclass(frozen=True)
class Adapted:
    """An adapter that a model has beside its weights.

    Attributes:
        source: where it is from.
        number: by which the engine knows it.
        heads: parameters of heads that came with it and that the model does not have, such as
            those of a reward model.
    """

    source: str
    number: int
    heads: Mapping[str, Tensor]


def fitting(model: nn.Module, adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """The thin matrices of an adapter that are to stand beside the layers of a model.

    Raises:
        UnsupportedModelError: the model has no such layers, or of other sizes, or they have an
            adapter already.
    """
    modules, dtype = dict(model.named_modules()), next(model.parameters()).dtype
    for place, (a, b) in adapter.pairs.items():
        layer: Any = modules.get(place)
        if not all(part.to(dtype).isfinite().all() for part in (a, b)):
            raise adapter.leaves(place, dtype)
        if layer is None:
            raise adapter.no_place(place)
        if hasattr(layer, "lora_A"):
            raise adapter.beyond(f"changes {place}, which has an adapter of peft's beside it")
        if isinstance(layer, Conv1D):
            sizes = tuple(layer.weight.shape)
        elif hasattr(layer, "in_features"):
            sizes = (layer.in_features, layer.out_features)
        else:
            raise adapter.beyond(
                f"changes {place}, a {type(layer).__name__}, beside which it cannot stand"
            )
        if (a.shape[1], b.shape[0]) != sizes:
            raise adapter.beyond(
                f"changes {place} by {(b.shape[0], a.shape[1])}, the model has {sizes[::-1]}"
            )
    return dict(adapter.pairs)


def heads_of(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """The parameters of heads of its own that an adapter has, trained whole.

    Raises:
        UnsupportedModelError: it has others, those of layers that the model has itself.
    """
    modules, heads = dict(model.named_modules()), {}
    for place, tensor in adapter.whole.items():
        above, _, name = place.rpartition(".")
        if above not in modules and place.partition(".")[0] not in modules:
            heads[place] = tensor
            continue
        own = getattr(modules.get(above), name, None)  # may have come along as it was
        if not isinstance(own, Tensor) or not torch.equal(own, tensor.to(own)):
            raise adapter.beyond(
                f"has {place} trained whole, which models that share weights cannot have each for "
                "itself"
            )
    return heads


def _scale(config: Mapping[str, Any], place: str, rank: int) -> float:
    """As peft: alpha by rank, or by its square root; patterns are ends of names."""
    alpha = float(config.get("lora_alpha", 8))
    for pattern, other in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", place):
            alpha = float(other)
            break  # the first that fits counts
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _file(adapter: str | Path, name: str, hub: Mapping[str, Any]) -> Path:
    folder = Path(adapter).expanduser()
    if folder.exists():
        found: Any = folder / name if (folder / name).is_file() else None
    else:
        try:
            with quiet_transformers():
                found = cached_file(str(adapter), name, token=hub.get("token"))
        except (OSError, ValueError):
            found = None
    if found is None:
        raise ModelNotFoundError(
            f"adapter={str(adapter)!r} has no {name}: give a folder that peft's save_pretrained "
            "wrote, or the name of one on the Hugging Face Hub"
        )
    return Path(found)


def _read(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"cannot read {path}: {error}") from error
    return config


def _beyond(adapter: str | Path, said: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"adapter={str(adapter)!r} {said}; put it into the weights of its model with peft "
        "(PeftModel.from_pretrained(model, folder).merge_and_unload()), save that and load it"
    )
