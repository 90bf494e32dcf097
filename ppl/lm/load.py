"""Loading language models by name; schemes of one's own are registered here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from ppl.language import checks
from ppl.language.arguments import checked
from ppl.lm.base import LanguageModel
from ppl.lm.engine.quantised import name_with
from ppl.lm.huggingface import HFModel
from ppl.lm.origin import keeps_origin
from ppl.lm.pretrained import embedded, load_pretrained
from ppl.lm.server.model import ServerModel
from ppl.lm.server.pool import ServerPool

Loader = Callable[..., LanguageModel]
"""`(source, **settings) -> LanguageModel`: settings are those that the caller of `load` gave."""

_LOADERS: dict[str, Loader] = {}

# What others call the settings of `load`.
_ELSEWHERE = {
    "torch_dtype": "dtype=",
    "device_map": "device= (one device), or a server for models that need several",
    "adapter_name_or_path": "adapter=",
    "peft_model_id": "adapter=",
    "lora_path": "adapter=",
    "gguf_file": "the path of the file as source",
    "use_auth_token": "token=",
    "max_model_len": "context_length=",
    "max_length": "context_length=",
    "n_ctx": "context_length=",
    "quantization_config": "ppl.HFModel(model, tokenizer, name=...) on a model that you load",
    "load_in_8bit": "weights='int8' on a CPU, ppl.HFModel(model, tokenizer, name=...) on a GPU",
    "load_in_4bit": "ppl.HFModel(model, tokenizer, name=...) on a model that you load",
    "attn_implementation": "ppl.HFModel(model, tokenizer, name=...) on a model that you load",
}


def register(prefix: str, loader: Loader) -> None:
    """Lets `ppl.load` hand sources that start with `prefix` to `loader`.

    The longest prefix that fits wins.

    Args:
        prefix: such as `"mine:"`.
        loader: called with the source and those settings that the caller of `ppl.load` gave;
            returns a `LanguageModel`.

    Raises:
        ValueError: the prefix is empty or taken.
        TypeError: the loader cannot be called.

    Example:
        >>> import ppl
        >>> ppl.register("coin:", lambda source: ppl.TableLM(
        ...     {"h": float(source[5:]), "t": 1 - float(source[5:])}, symbols="^ht$"))
        >>> ppl.load("coin:0.3")
        TableLM('table')
    """
    if not isinstance(prefix, str) or not prefix:
        raise ValueError(f"prefix={prefix!r}: a string that sources start with, such as 'mine:'")
    if prefix in _LOADERS:
        raise ValueError(f"prefix={prefix!r} is taken; register another one")
    if not callable(loader):
        raise TypeError(f"loader={loader!r}: a function (source, **settings) -> LanguageModel")
    _LOADERS[prefix] = loader


@keeps_origin
def load(
    source: str | Path | Sequence[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
    context_length: int | None = None,
    kv_bytes: int = 2 << 30,
    pack: bool = True,
    weights: str | None = None,
    graphs: bool = False,
    compile: bool | Literal["auto"] = False,
    **others: Any,
) -> LanguageModel:
    """A language model, run in this process or by a server.

    Args:
        source: `"tiny"` or `"tiny-lines"` for an embedded model; a folder in Hugging Face format; a
            `.gguf` file (converted once and kept in the user's cache folder); a Hugging Face Hub
            id, with `:Q8_0` and the like for a GGUF file there; the folder of a LoRA adapter,
            which names its model; the address of a server, such as `"http://localhost:8000/v1"`, or
            those of several that run the same model, as a list or with commas between them; or what
            starts with a prefix of one's own (`ppl.register`).
        dtype: a floating-point type of torch or its name, or `"auto"` for that of the files.
            float32 on a CPU and bfloat16 on a GPU unless given.
        device: a GPU if there is one unless given.
        revision, token, trust_remote_code: as in `transformers`.
        adapter: a LoRA adapter, a folder or a Hub id, that is put into the weights.
        context_length: most tokens of a text; None takes it from the model's configuration.
        kv_bytes: memory for cached keys and values.
        pack: on a CPU, lay weights out for its matrix kernels: faster, but `lm.model` can then no
            longer be trained, saved, moved or cast.
        weights: on a CPU, `"int8"` rounds those of linear layers to eight bits, with a scale to
            every 64: quicker for few rows. That is another model, called `NAME@int8` wherever it is
            named. Needs a C++ compiler.
        graphs: on a GPU, capture decode steps as CUDA graphs, for models whose steps are too short
            for the processor to launch. Not measured on a GPU yet.
        compile: put decode steps through `torch.compile`, which needs a C++ compiler and, for each
            model, a minute once and some seconds at each later load (torch keeps its work where
            `TORCHINDUCTOR_CACHE_DIR` says). Pays for searches that take minutes. `"auto"` compiles
            on a CPU if it can be done, and else warns and runs without.
        others: for a server, and all that counts there: the settings of
            `ppl.lm.server.model.ServerModel` (`model`, `tokenizer`, `api_key`, ...); or those of a
            registered loader.

    Returns:
        An `HFModel`, a `ServerModel` for an address, a `ServerPool` for several, or what a
        registered loader gives.

    Raises:
        ModelNotFoundError: there is no such model.
        UnsupportedModelError: the model cannot be forked exactly, or not be captured or compiled.
        ServerError: the server is not there or cannot do what is needed.
        TypeError, ValueError: a setting that this kind of model does not have, or out of range.
    """
    settings: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "revision": revision,
        "token": token,
        "trust_remote_code": trust_remote_code,
        "adapter": adapter,
        "context_length": context_length,
        "kv_bytes": kv_bytes,
        "pack": pack,
        "weights": weights,
        "graphs": graphs,
        "compile": compile,
    }
    if isinstance(source, list | tuple):
        source = _addresses(source)
    if not isinstance(source, str | Path):
        raise TypeError(
            f"source: ppl.load takes a name, folder, file or address, got {type(source).__name__}; "
            "a model that you already hold is ppl.HFModel(model, tokenizer, name=...)"
        )
    for name in sorted(others.keys() & _ELSEWHERE.keys()):
        raise TypeError(f"ppl.load knows no {name}=; use {_ELSEWHERE[name]}")
    _check_settings(**settings)
    fitting = [prefix for prefix in _LOADERS if str(source).startswith(prefix)]
    if fitting:
        prefix = max(fitting, key=len)
        given = {n: v for n, v in settings.items() if v != _DEFAULTS[n]}
        model = _LOADERS[prefix](str(source), **given, **others)
        if not isinstance(model, LanguageModel):
            raise TypeError(
                f"the loader registered for {prefix!r} returned a {type(model).__name__}; it must "
                "return a ppl.LanguageModel"
            )
        return model
    if others:
        names = ", ".join(f"{name}=" for name in sorted(others))
        whose = "are settings of servers" if others.keys() <= _SERVER else "are not known"
        raise TypeError(f"ppl.load({str(source)!r}): {names} {whose}")
    return _local(source, **settings)


@checked
def _check_settings(
    dtype: torch.dtype | str | None,
    device: str | torch.device | None,
    revision: str | None,
    token: str | None,
    trust_remote_code: bool,
    adapter: str | Path | None,
    context_length: int | None,
    kv_bytes: int,
    pack: bool,
    weights: str | None,
    graphs: bool,
    compile: bool | Literal["auto"],
) -> None:
    """The numbers among the settings; their kinds are the annotations."""
    checks.count(kv_bytes=kv_bytes)
    if context_length is not None:
        checks.count(context_length=context_length)


_DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(load).parameters.items()
}
_SERVER = (
    inspect.signature(ServerModel).parameters.keys()
    | inspect.signature(ServerPool).parameters.keys()
)


def _local(
    source: str | Path,
    *,
    context_length: int | None,
    kv_bytes: int,
    graphs: bool,
    compile: bool | Literal["auto"],
    **files: Any,
) -> HFModel:
    folder = embedded(source, "lm")
    model, tokenizer = load_pretrained(AutoModelForCausalLM, folder, **files)
    name = str(source) if files["adapter"] is None else f"{source}+{files['adapter']}"
    return HFModel(
        model,
        tokenizer,
        name=name_with(name, files["weights"]),
        context_length=context_length,
        kv_bytes=kv_bytes,
        graphs=graphs,
        compile=compile,
    )


def _addresses(source: Sequence[Any]) -> str:
    """The addresses of a pool in one string."""
    schemes = ("http://", "https://")
    if not source or not all(isinstance(url, str) and url.startswith(schemes) for url in source):
        raise ValueError(
            f"source={source!r}: a list is one of addresses, such as 'http://localhost:8000/v1'"
        )
    return ",".join(source)


def _behind_a_server(source: str, **settings: Any) -> ServerModel:
    local = settings.keys() & (_DEFAULTS.keys() - {"context_length"})
    if local:
        names = ", ".join(f"{name}=" for name in sorted(local))
        raise ValueError(
            f"{source}: {names} are for models in this process; how this one runs is what the "
            "server decides"
        )
    if "," in source:
        return ServerPool([url.strip() for url in source.split(",")], **settings)
    return ServerModel(source, **settings)


register("http://", _behind_a_server)
register("https://", _behind_a_server)
