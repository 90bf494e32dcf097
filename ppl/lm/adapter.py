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
        whole: parameters that were trained whole.
    """

    source: str
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor]

    @staticmethod
    def read(source: str | Path, hub: Mapping[str, Any]) -> Adapter:
        """Reads an adapter.

        Args:
            source: a folder, or the name of a repository on the Hugging Face Hub.
            hub: `token` for it.

        Raises:
            ModelNotFoundError: there is no such adapter.
            UnsupportedModelError: it is of another kind.
        """
        files = [_file(source, name, hub) for name in (_CONFIG, _WEIGHTS)]
        config, weights = _read(files[0]), load_file(files[1])
        if config.get("peft_type") != "LORA":
            raise _beyond(source, f"is of the kind {config.get('peft_type')}, not LORA")
        halves: dict[str, dict[str, Tensor]] = {}
        whole: dict[str, Tensor] = {}
        for key, tensor in weights.items():
            place = key.removeprefix("base_model.model.")
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
        return Adapter(str(source), pairs, whole)

    def beyond(self, said: str) -> UnsupportedModelError:
        """An error that says what there is no place for, and what to do."""
        return _beyond(self.source, said)

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
    modules, own = dict(model.named_modules()), dict(model.named_parameters())
    everywhere = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    shared = {parameter for parameter, count in everywhere.items() if count > 1}
    for place, tensor in found.whole.items():  # a layer that was trained whole, or a bias
        if place not in own or own[place].shape != tensor.shape:
            raise found.no_place(place)
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
    modules = dict(model.named_modules())
    for place, (a, b) in adapter.pairs.items():
        layer: Any = modules.get(place)
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
    modules = dict(model.named_modules())
    for place in adapter.whole:
        above = place.rpartition(".")[0]
        if above in modules or place.partition(".")[0] in modules:
            raise adapter.beyond(
                f"has {place} trained whole, which models that share weights cannot have each for "
                "itself"
            )
    return dict(adapter.whole)


def _scale(config: Mapping[str, Any], place: str, rank: int) -> float:
    """As peft: alpha by rank, or by its square root; patterns are ends of names."""
    alpha = float(config.get("lora_alpha") or rank)
    for pattern, other in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", place):
            alpha = float(other)
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
