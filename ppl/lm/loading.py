"""Loading language models by name; schemes of one's own are registered here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ppl.language import checks
from ppl.language.arguments import checked
from ppl.lm import copies
from ppl.lm.base import LanguageModel
from ppl.lm.drafts import Drafts
from ppl.lm.engine.kv import KV
from ppl.lm.eviction import Eviction
from ppl.lm.origin import keeps_origin
from ppl.lm.placement import device_here
from ppl.lm.server.model import ServerModel
from ppl.lm.server.pool import ServerPool
from ppl.lm.settings import own_names, refuse_unknown_settings

Loader = Callable[..., LanguageModel]
"""`(source, **settings) -> LanguageModel`: settings are those that the caller of `load` gave."""

_LOADERS: dict[str, Loader] = {}


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


@own_names
@keeps_origin
def load(
    source: str | Path | Sequence[str],
    *,
    dtype: torch.dtype | str | None = None,
    device: str | int | torch.device | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
    context_length: int | None = None,
    kv_bytes: float | str = 2 << 30,
    kv: str | Eviction = "full",
    pack: bool = True,
    weights: str | None = None,
    graphs: bool = False,
    compile: bool | Literal["auto"] = False,
    drafts: str | LanguageModel | Drafts | None = None,
    replicas: int | Sequence[str] | None = None,
    **others: Any,
) -> LanguageModel:
    """A language model, run in this process or by a server.

    Args:
        source: `"tiny"` or `"tiny-lines"` for an embedded model; a folder in Hugging Face format; a
            `.gguf` file (converted once and kept in the user's cache folder; the model is called by
            the file's name without folder and suffix); a Hugging Face Hub id, with `:Q8_0` and the
            like for a GGUF file there; the folder of a LoRA adapter, which names its model; the
            address of a server, such as `"http://localhost:8000/v1"`, or those of several that run
            the same model, as a list or with commas between them; or what starts with a prefix of
            one's own (`ppl.register`).
        dtype: a floating-point type of torch or its name, or `"auto"` for that of the files.
            float32 on a CPU and bfloat16 on a GPU unless given. `torch_dtype` is the same.
        device: a GPU if there is one unless given; a number is that of a GPU. `device_map` is the
            same where it names one device (`"auto"`, `"cpu"`, `"cuda:0"`, `{"": 0}`): a model is
            whole on it.
        revision, token, trust_remote_code: as in `transformers`.
        adapter: a LoRA adapter, a folder or a Hub id, that is put into the weights.
        context_length: most tokens of a text; None takes it from the model's configuration.
        kv_bytes: memory for cached keys and values, in bytes or as `"2GiB"` or `"2GB"` (10^9 each);
            rows that do not fit wait, but one always runs.
        kv: what is kept of them: `"full"`, `"int8"`, `"window(512, 4)"` for those of the last 512
            tokens and the first 4, `"delayed(4, 256)"` for one of four behind the last 256, either
            behind `"int8+"`, or an eviction, such as a trained one (`ppl.lm.eviction`). What is not
            full is another model, with laws of its own: its name says so, and what it drew is not
            scored by the full one.
        pack: on a CPU, lay weights out for its matrix kernels: faster, but `lm.model` can then no
            longer be trained, saved, moved or cast.
        weights: on a CPU, `"int8"` rounds those of linear layers to eight bits, with a scale to
            every 64: quicker for few rows. That is another model, called `NAME@int8` wherever it is
            named. Needs a C++ compiler.
        graphs: on a GPU, capture decode steps as CUDA graphs, for models whose steps are too short
            for the processor to launch: docs/performance.md has what was measured.
        compile: put decode steps through `torch.compile`, which needs a C++ compiler and, for each
            model, a minute once and some seconds at each later load (torch keeps its work where
            `TORCHINDUCTOR_CACHE_DIR` says). Pays for searches that take minutes. `"auto"` compiles
            on a CPU if it can be done, and else warns and runs without.
        drafts: guess what rows draw next, and compute the guesses along with what they have drawn:
            `"siblings"` from what followed the same tokens before, in any text; or a smaller model
            with the same tokenizer, which draws guesses. Laws, and draws for a seed, are those
            without, up to rounding. Guesses are computed as far as they were seen to pay, which is
            for few rows of texts that repeat themselves or each other; `ppl.lm.drafts.Drafts` has
            more settings. Not for recurrent layers, `graphs`, `replicas`, or where `kv` forgets.
        replicas: so many copies of the model, each in a process of its own, behind one model: on as
            many GPUs, or each on its share of the processors, NUMA node by NUMA node; or the
            devices of the copies, such as `["cuda:0", "cuda:2"]`. `kv_bytes` is that of each.
            Draws are those of one model; see `ppl.runtime.replicas.Replicas`.
        others: for a server, and all that counts there: the settings of
            `ppl.lm.server.model.ServerModel` (`model`, `tokenizer`, `api_key`, ...); or those of a
            registered loader.

    Returns:
        An `HFModel`, `Replicas` of one, a `ServerModel` for an address, a `ServerPool` for several,
        or what a registered loader gives.

    Raises:
        ModelNotFoundError: there is no such model.
        UnsupportedModelError: the model cannot be forked exactly, or not be captured or compiled.
        WorkerError: a process of a replica does not start.
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
        "kv": kv,
        "pack": pack,
        "weights": weights,
        "graphs": graphs,
        "compile": compile,
        "drafts": drafts,
        "replicas": replicas,
    }
    if isinstance(source, list | tuple):
        source = _addresses(source)
    if not isinstance(source, str | Path):
        raise TypeError(
            f"source: ppl.load takes a name, folder, file or address, got {type(source).__name__}; "
            "a model that you already hold is ppl.HFModel(model, tokenizer, name=...)"
        )
    _check_settings(**settings)
    settings["kv_bytes"] = checks.nbytes(kv_bytes=kv_bytes)
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
        call = f"ppl.load({str(source)!r})"
        refuse_unknown_settings(call, others.keys() - _SERVER, settings)
        names = ", ".join(f"{name}=" for name in sorted(others))
        raise TypeError(f"{call}: {names} are settings of servers")
    if replicas is not None:
        if settings.pop("drafts") is not None:
            raise ValueError("replicas= and drafts=: copies draw without guesses; give one of them")
        devices = _devices_of(replicas, settings.pop("device"))
        del settings["replicas"]
        model = copies.RUN[0](source, devices, **settings)
        assert isinstance(model, LanguageModel)
        return model
    from ppl.lm.local import local  # transformers, which servers and registered loaders do not need

    return local(source, **settings)


@checked
def _check_settings(
    dtype: torch.dtype | str | None,
    device: str | int | torch.device | None,
    revision: str | None,
    token: str | bool | None,
    trust_remote_code: bool,
    adapter: str | Path | None,
    context_length: int | None,
    kv_bytes: float | str,
    kv: str | Eviction,
    pack: bool,
    weights: str | None,
    graphs: bool,
    compile: bool | Literal["auto"],
    drafts: str | LanguageModel | Drafts | None,
    replicas: int | Sequence[str] | None,
) -> None:
    """The numbers among the settings; their kinds are the annotations."""
    KV.read(kv)
    if context_length is not None:
        checks.count(context_length=context_length)
    if isinstance(replicas, int):
        checks.count(replicas=replicas)


_DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(load).parameters.items()
}
_SERVER = (
    inspect.signature(ServerModel).parameters.keys()
    | inspect.signature(ServerPool).parameters.keys()
) - {"url", "urls", "settings"}


def _devices_of(replicas: int | Sequence[str], device: Any) -> list[str]:
    """One for each copy.

    Raises:
        ValueError: there are too few, or they are given twice.
    """
    if not isinstance(replicas, int):
        if device is not None:
            raise ValueError("device= and the devices in replicas= are given both; give one")
        if not replicas or not all(isinstance(each, str) for each in replicas):
            raise ValueError(f"replicas={replicas!r}: a number, or names of devices")
        return [str(device_here(each)) for each in replicas]
    first = device_here(device)
    if first.type == "cpu":
        return ["cpu"] * replicas
    there = torch.cuda.device_count()
    if first.index is not None or replicas > there:
        raise ValueError(
            f"replicas={replicas}, device={device!r}: here are {there} GPUs, each for one copy; "
            "give replicas= their names, such as ['cuda:0', 'cuda:1'], or device='cpu'"
        )
    return [f"{first.type}:{i}" for i in range(replicas)]


def _addresses(source: Sequence[Any]) -> str:
    """The addresses of a pool in one string."""
    schemes = ("http://", "https://")
    if not source or not all(isinstance(url, str) and url.startswith(schemes) for url in source):
        raise ValueError(
            f"source={source!r}: a list is one of addresses, such as 'http://localhost:8000/v1'"
        )
    return ",".join(source)


def _behind_a_server(source: str, **settings: Any) -> ServerModel:
    refuse_unknown_settings(f"ppl.load({source!r})", settings, [*_DEFAULTS, *_SERVER])
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
