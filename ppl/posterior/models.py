"""Models in files: named, with how they were loaded and the fingerprint of their tokenizer."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ppl.errors import SearchStateError
from ppl.language.codec import Codec
from ppl.lm.origin import LOADERS, Origin
from ppl.posterior.values import torch_dtype

_ROOMS = ("ppl.lm.", "ppl.verifiers.")
# As files of before say it: no name that a package gives is that of its module any more.
_RENAMED = {"ppl.lm.load:load": "ppl.lm.loading:load"}


def about(model: Any) -> dict[str, Any]:
    """What a file says of a model or verifier."""
    origin, codec = getattr(model, "origin", None), getattr(model, "codec", None)
    loaded = None
    if isinstance(origin, Origin):
        settings = {name: _setting(value) for name, value in origin.settings.items()}
        loaded = {"loader": origin.loader, "source": origin.source, "settings": settings}
        loaded["withheld"] = list(origin.withheld)
    tokenizer = codec.identity.fingerprint if isinstance(codec, Codec) else None
    return {"name": model.name, "loaded": loaded, "tokenizer": tokenizer}


def load_again(rows: Sequence[Any], given: Mapping[str, Any]) -> list[Any]:
    """The models that a file names: those given by name, the others loaded as they were.

    Only functions of this library load them, of sources that the file names as in `ppl.load`, and
    never with `trust_remote_code`.

    Raises:
        SearchStateError: one has to be given, or has another tokenizer.
        PPLError: one cannot be loaded.
    """
    unknown = sorted(given.keys() - {row["name"] for row in rows})
    if unknown:
        names = ", ".join(repr(row["name"]) for row in rows) or "none"
        raise SearchStateError(f"models={unknown[0]!r}: the file names {names}")
    models = []
    for row in rows:
        name = row["name"]
        model = given[name] if name in given else _loaded(name, row["loaded"])
        fingerprint = about(model)["tokenizer"]
        if fingerprint != row["tokenizer"]:
            raise SearchStateError(
                f"the model {name!r} had the tokenizer {row['tokenizer']}, now it has "
                f"{fingerprint}; give the right one: models={{{name!r}: model}}"
            )
        models.append(model)
    return models


def _loaded(name: str, loaded: dict[str, Any] | None) -> Any:
    remedy = f"give it: Search.load(path, models={{{name!r}: model}})"
    if loaded is None:
        raise SearchStateError(
            f"how the model {name!r} was made is not known (it was not loaded by name); {remedy}"
        )
    if loaded["withheld"]:
        raise SearchStateError(
            f"the model {name!r} was loaded with {', '.join(loaded['withheld'])}, which files do "
            f"not keep; {remedy}"
        )
    path = str(loaded["loader"])
    path = _RENAMED.get(path, path)
    if path not in LOADERS and path.startswith(_ROOMS):
        try:
            importlib.import_module(path.partition(":")[0])
        except ImportError as error:
            raise SearchStateError(f"{path!r} cannot be imported: {error}; {remedy}") from error
    if path not in LOADERS:
        raise SearchStateError(
            f"{path!r} is no function of this library that loads models; {remedy}"
        )
    settings = {str(k): _of_setting(v) for k, v in loaded["settings"].items()}
    if "trust_remote_code" in settings:
        raise SearchStateError(f"the file asks to run code of the model {name!r}; {remedy}")
    return LOADERS[path](str(loaded["source"]), **settings)


def _setting(value: Any) -> Any:
    """A setting as JSON; see `ppl.lm.origin` for what there is."""
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device | Path):
        return str(value)
    if isinstance(value, tuple):
        return [_setting(each) for each in value]
    return value


def _of_setting(value: Any) -> Any:
    if isinstance(value, list):
        return [_of_setting(each) for each in value]
    return torch_dtype(value["dtype"]) if isinstance(value, dict) else value
