"""What others call the settings with which models are loaded: read as ours, or answered with what
to do instead."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch

from ppl.errors import PPLError
from ppl.language.arguments import shown

P = ParamSpec("P")
M = TypeVar("M")

# Other names for what there is.
_SAME = {"torch_dtype": "dtype", "device_map": "device", "use_auth_token": "token"}

# Placements of `device_map` that spread the layers over all GPUs there are.
_SPREADING = ("balanced", "balanced_low_0", "sequential")

_HOLD = "use ppl.HFModel(model, tokenizer, name=...) on a model that you load"
_NEEDLESS = "leave it out, it changes nothing here"
_FILES = "give the folder that huggingface_hub.snapshot_download(..., {name}=...) returns"
_ONE_DEVICE = "leave it out: a model is whole on one device, see device="
_LORA = "use lm.with_adapter(folder), or adapter= for a single one"
_DRAFTS = "use drafts='siblings', or drafts= a smaller model with the same tokenizer"
_EIGHT_BITS = "use kv='int8'"
_ROWS = "use kv_bytes=: as many rows run at once as fit, the others wait"
_DRAW = "give it where texts are drawn: lm(text, {name}=...)"

REMEDIES: Mapping[str, str] = {
    # transformers
    "gguf_file": "use the path of the file as source",
    "max_length": "use context_length=",
    "quantization_config": _HOLD,
    "load_in_8bit": f"use weights='int8' on a CPU, on a GPU {_HOLD}",
    "load_in_4bit": _HOLD,
    "attn_implementation": f"leave it out, attention is the engine's own; or {_HOLD}",
    "config": _HOLD,
    "state_dict": _HOLD,
    "low_cpu_mem_usage": _NEEDLESS,
    "use_safetensors": _NEEDLESS,
    "use_fast": _NEEDLESS,
    "use_cache": _NEEDLESS,
    "padding_side": _NEEDLESS,
    "output_loading_info": _NEEDLESS,
    "cache_dir": "set the environment variable HF_HUB_CACHE",
    "local_files_only": "set the environment variable HF_HUB_OFFLINE=1, or give a folder",
    "force_download": _FILES,
    "proxies": _FILES,
    "variant": _HOLD,
    "code_revision": _HOLD,
    "subfolder": "use the folder itself as source",
    "max_memory": _ONE_DEVICE,
    "offload_folder": _ONE_DEVICE,
    "offload_state_dict": _ONE_DEVICE,
    "tp_plan": f"{_ONE_DEVICE}; models that need several run behind a server",
    "assistant_model": _DRAFTS,
    "cache_implementation": "use kv=",
    # peft
    "adapter_name_or_path": "use adapter=",
    "peft_model_id": "use adapter=",
    "adapter_name": _LORA,
    # vLLM and llama.cpp
    "lora_path": "use adapter=",
    "enable_lora": _LORA,
    "lora_modules": _LORA,
    "lora_request": _LORA,
    "max_loras": _LORA,
    "max_model_len": "use context_length=",
    "n_ctx": "use context_length=",
    "n_gpu_layers": "use device=",
    "n_batch": _NEEDLESS,
    "n_ubatch": _NEEDLESS,
    "flash_attn": "leave it out, attention is the engine's own",
    "filename": "use 'owner/name:Q8_0' as source, or the path of the file",
    "type_k": _EIGHT_BITS,
    "type_v": _EIGHT_BITS,
    "kv_cache_dtype": _EIGHT_BITS,
    "kv_cache_memory_bytes": "use kv_bytes=",
    "swap_space": "use kv_bytes=",
    "max_num_seqs": _ROWS,
    "max_num_batched_tokens": _ROWS,
    "data_parallel_size": "use replicas=",
    "draft_model": _DRAFTS,
    "speculative_config": _DRAFTS,
    "speculative_model": _DRAFTS,
    "num_speculative_tokens": "use drafts=ppl.lm.drafts.Drafts(source, depth=...)",
    "n_threads": "call torch.set_num_threads",
    "quantization": _HOLD,
    "gpu_memory_utilization": "use kv_bytes=",
    "enforce_eager": "use graphs=False, compile=False, the defaults",
    "enable_prefix_caching": "leave it out, what texts have in common is always computed once",
    "tensor_parallel_size": f"{_ONE_DEVICE}; models that need several run behind a server",
    "temperature": _DRAW,
    "top_p": _DRAW,
    "top_k": _DRAW,
    "min_p": _DRAW,
    "max_tokens": _DRAW,
    "max_new_tokens": "give it where texts are drawn: lm(text, max_tokens=...)",
    "stop": "give it where texts are drawn: lm(text, until=...)",
    "seed": "use searcher.run(program, seed=...): draws are keyed by the search",
}
"""What to do about a setting of another library, by its name."""

NO_STEPS: Mapping[str, str] = {
    "graphs": "leave it out: a judge reads whole texts, and makes no steps to be captured",
    "compile": "leave it out: a judge reads whole texts, and makes no steps to be compiled",
    "replicas": "leave it out: a judge is one model; weights='int8' or device= may be what helps",
    "adapter": "use the adapter's folder as source, with base= the model that it stands beside",
}
"""What to do about settings of language models that judges do not have."""

SETTINGS_HELD = ("context_length", "kv_bytes", "kv", "graphs", "compile", "drafts")
"""The settings of a model that is held already (`ppl.HFModel`)."""

_LOADS = "leave it out: this model is loaded already; ppl.load takes {name}= for a folder or a name"

HELD: Mapping[str, str] = {
    "dtype": "use model.to(torch.bfloat16) before",
    "torch_dtype": "use model.to(torch.bfloat16) before",
    "device": "use model.to('cuda') before",
    "device_map": "use model.to('cuda') before",
    "adapter": "hand over the model of peft, or use lm.with_adapter(folder)",
    **dict.fromkeys(
        ("pack", "weights", "replicas", "revision", "token", "trust_remote_code"), _LOADS
    ),
}
"""What to do about settings of `ppl.load` that a model which is held does not have."""


def own_names(loader: Callable[P, M]) -> Callable[P, M]:
    """Decorates a function `(source, **settings)`: it may be called with the names that settings
    have in transformers, and its errors then speak of these."""
    known = inspect.signature(loader).parameters

    @functools.wraps(loader)
    def load(*args: P.args, **settings: P.kwargs) -> M:
        given: dict[str, Any] = dict(settings)
        said: list[tuple[str, str]] = []
        for other, ours in _SAME.items():
            if other not in given or other in known:
                continue
            value = given.pop(other)
            if value is None:
                continue
            if given.get(ours) is not None:
                raise TypeError(f"{other}= and {ours}= are the same setting; give {ours}= alone")
            given[ours] = device_of(value) if other == "device_map" else value
            if given[ours] is None:
                del given[ours]
                continue
            said.append((f"{ours}={given[ours]!r}", f"{other}={shown(value)}"))
            said.append((f"{ours}=", f"{other}="))
        try:
            return loader(*args, **given)  # type: ignore[arg-type]
        except (PPLError, TypeError, ValueError) as error:
            if said and len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (_in_words(error.args[0], said),)
            raise

    return load


def _in_words(message: str, said: Sequence[tuple[str, str]]) -> str:
    """A message that speaks of settings as they were given, `(our words, those)` of each."""
    for ours, theirs in said:
        message = theirs.join(re.split(rf"\b{re.escape(ours)}", message))
    return message


def device_of(placed: Any) -> Any:
    """The one device that a `device_map` of transformers speaks of; None for "auto", which leaves
    the choice.

    Raises:
        ValueError: it divides the layers among several, or names none.
    """
    if isinstance(placed, Mapping):
        where = {str(_of_number(value)): value for value in placed.values()}
        if len(where) != 1:
            raise _divided(placed, f"divides the layers among {', '.join(where) or 'no devices'}")
        return device_of(*where.values())
    if placed == "auto":
        return None
    if placed in _SPREADING:
        if torch.cuda.device_count() > 1:
            raise _divided(placed, f"divides the layers among {torch.cuda.device_count()} GPUs")
        return None
    if placed == "disk":
        raise _divided(placed, "leaves layers on the disk")
    return _of_number(placed)


def _of_number(device: Any) -> Any:
    """Numbers are GPUs, as in transformers."""
    whole = isinstance(device, int) and not isinstance(device, bool)
    return f"cuda:{device}" if whole and device >= 0 else device


def _divided(placed: Any, said: str) -> ValueError:
    return ValueError(
        f"device_map={shown(placed)} {said}; here a model is whole on one: device_map='auto', "
        "'cpu', 'cuda:0' or {'': 0}. One that is too large for that runs behind a server: "
        "ppl.load('http://host:8000/v1')"
    )


def refuse_unknown_settings(
    call: str,
    given: Collection[str],
    known: Collection[str],
    remedies: Mapping[str, str] = REMEDIES,
) -> None:
    """Raises TypeError for settings that are not known, with what to do instead.

    Args:
        call: what was called.
        given: names of the settings.
        known: those that there are.
        remedies: what to do about some of the others, besides `REMEDIES`.
    """
    for name in sorted(given):
        if name in known:
            continue
        remedy = remedies.get(name, REMEDIES.get(name, "")).format(name=name)
        if not remedy:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}=?" if close else f"there are {', '.join(known)}"
        raise TypeError(f"{call} knows no {name}=; {remedy}")
