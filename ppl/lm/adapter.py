"""LoRA adapters in the format of peft, put into the weights of their model.

An adapter is a folder with `adapter_config.json` and pairs of thin matrices: a layer's weight `W`
becomes `W + s B A` (Hu et al. 2021, arXiv:2106.09685). peft itself is not needed for that. What is
more than that (other scalings of weights, prompts, layers repeated) is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from ppl.errors import ModelNotFoundError, UnsupportedModelError

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


def put_in(model: nn.Module, adapter: str | Path, hub: Mapping[str, Any]) -> None:
    """Adds an adapter to the weights of a model.

    Args:
        adapter: a folder, or the name of a repository on the Hugging Face Hub.
        hub: `token` for it.

    Raises:
        ModelNotFoundError: there is no such adapter.
        UnsupportedModelError: it is of another kind, or of another model.
    """
    files = [_file(adapter, name, hub) for name in (_CONFIG, _WEIGHTS)]
    config, weights = _read(files[0]), load_file(files[1])
    if config.get("peft_type") != "LORA":
        raise _beyond(adapter, f"is of the kind {config.get('peft_type')}, not LORA")
    modules, own = dict(model.named_modules()), dict(model.named_parameters())
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        place = key.removeprefix("base_model.model.")
        found = _PAIR.fullmatch(place)
        if found and hasattr(modules.get(found[1]), "weight"):
            pairs.setdefault(found[1], {})[found[3]] = tensor
        elif place in own and own[place].shape == tensor.shape:
            with torch.no_grad():  # a layer that was trained whole, or a bias
                own[place].copy_(tensor)
        else:
            raise _beyond(adapter, f"has {key}, for which this model has no place")
    if not weights:
        raise _beyond(adapter, "is empty")
    for place, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise _beyond(adapter, f"has only half of what belongs to {place}")
        change = _scale(config, place, pair["A"].shape[0]) * (pair["B"].float() @ pair["A"].float())
        weight: Any = modules[place].weight
        if isinstance(modules[place], Conv1D | nn.Embedding):
            change = change.T
        if change.shape != weight.shape:
            raise _beyond(
                adapter,
                f"changes {place} by {tuple(change.shape)}, the model has {tuple(weight.shape)}",
            )
        with torch.no_grad():
            weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


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
