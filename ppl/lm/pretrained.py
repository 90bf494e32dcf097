"""Models and tokenizers in the format of Hugging Face: from folders, GGUF files and the Hub."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from ppl.errors import ModelNotFoundError, UnsupportedModelError
from ppl.lm.adapter import base_of, holds_adapter, put_in
from ppl.lm.engine.linear import pack_linears
from ppl.lm.engine.quantised import quantise_linears
from ppl.lm.engine.setting import on_the_cpu
from ppl.lm.gguf import converted, fetched
from ppl.lm.placement import check_weights, device_here, dtype_of
from ppl.lm.quiet import quiet_transformers
from ppl.lm.sources import EMBEDDED, file_on_hub


def load_pretrained(
    kind: Any,
    source: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | int | torch.device | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
    pack: bool = True,
    weights: str | None = None,
) -> tuple[Any, Any]:
    """A Hugging Face model of class `kind` and its tokenizer; arguments as in `ppl.load`.

    Raises:
        ModelNotFoundError: there is no such model, or not all of it.
        UnsupportedModelError: it is a model of another kind, or an adapter of which that is not
            known.
        ValueError: `device`, `dtype` or `weights` is none that there is here.
    """
    where_to_run = device_here(device)
    check_weights(weights, where_to_run, pack)
    default = torch.float32 if where_to_run.type == "cpu" else torch.bfloat16
    kept = default if dtype is None else dtype_of(dtype)
    path = Path(source).expanduser()
    if holds_adapter(path):
        if adapter is not None:
            raise ValueError(f"adapter={str(adapter)!r}: {path} is an adapter itself; give a model")
        source, adapter = base_of(path), path
        path = Path(source).expanduser()
    elif not path.exists() and (named := file_on_hub(str(source))):
        path = fetched(*named, revision=revision, token=token)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"no GGUF file at {path}")
        path = converted(path)
    elif path.exists() and not (path / "config.json").is_file():
        raise ModelNotFoundError(f"{path} holds no model: a model folder has a config.json")
    where = str(path) if path.exists() else str(source)
    hub = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    try:
        with quiet_transformers(), on_the_cpu():
            model, report = kind.from_pretrained(where, dtype=kept, output_loading_info=True, **hub)
            tokenizer = AutoTokenizer.from_pretrained(where, **hub)
    except (OSError, ValueError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise UnsupportedModelError(
                f"{source!s} has code of its own, which runs only with trust_remote_code=True: "
                "read it first, or give a model of a family that transformers has itself"
            ) from error
        _refuse_other_kinds(where, hub, str(source), error)
        raise ModelNotFoundError(
            f"cannot load {source!s} as {kind.__name__}: {_looked_for(str(source), path, error)}"
        ) from error
    if (judge := _judge(model)) is not None:
        raise UnsupportedModelError(f"{source!s} is a {judge}")
    if report["missing_keys"]:  # transformers would fill them with random numbers
        held = getattr(model.config, "architectures", None) or ["model of another kind"]
        whole = type(model).__name__ not in held
        what = f"no {kind.__name__} but a {held[0]}" if whole else f"no whole {held[0]}"
        raise ModelNotFoundError(
            f"{source!s} is {what}: its files lack the weights "
            f"{', '.join(sorted(report['missing_keys'])[:3])}"
        )
    if adapter is not None:
        put_in(model, adapter, hub)
    model = model.to(where_to_run).eval().requires_grad_(False)
    with on_the_cpu():
        few = {"input_ids": torch.arange(4)[None], "use_cache": False}
        if weights is not None:
            quantise_linears(model, weights, lambda: model(**few), str(source))
        elif pack and where_to_run.type == "cpu":
            pack_linears(model, lambda: model(**few))
    return model, tokenizer


def _looked_for(source: str, path: Path, error: Exception) -> str:
    """Where a model was looked for that is not there, and what may be meant."""
    detail = f"({str(error).splitlines()[0]})"
    if path.exists():
        return f"its files cannot be read {detail}"
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        return "there is no such folder or file"
    if ":" in source:
        return "it is no name; the address of a server is written 'http://host:8000/v1'"
    close = difflib.get_close_matches(source.lower().replace("_", "-"), EMBEDDED, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    return (
        f"it is neither an embedded model, {' or '.join(EMBEDDED)}{meant}, nor a folder here, nor "
        f"a model that the Hugging Face Hub hands out {detail}"
    )


def _judge(model: Any) -> str | None:
    """What a checkpoint is that was loaded as a language model and is a judge, whose head would
    be left out without a word."""
    if not type(model).__name__.endswith("ForCausalLM"):
        return None
    for saved in getattr(model.config, "architectures", None) or ():
        if saved.endswith(("ForTokenClassification", "ForProcessRewardModel")):
            return f"reward model ({saved}), which writes no texts; load it with PRM.load"
        if saved.endswith("ForSequenceClassification"):
            return (
                f"reward model or classifier ({saved}), which writes no texts; load it with "
                "RewardModel.load or OutcomeModel.load"
            )
    return None


def _refuse_other_kinds(where: str, hub: dict[str, Any], name: str, error: Exception) -> None:
    """Raises UnsupportedModelError if there is a model, but one that does not continue texts."""
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(where, **hub)
    except (OSError, ValueError, TypeError, AttributeError):
        return  # not even that can be read: the first error says it
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder ({config.model_type}); use a decoder-only model"
        ) from error
