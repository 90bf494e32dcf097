"""Loading models: by name, from a folder, from a GGUF file, or behind a server."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers import modeling_gguf_pytorch_utils as gguf_reader
from transformers.utils import logging as transformers_logging

from ppl.errors import ModelNotFoundError
from ppl.lm.base import LanguageModel
from ppl.lm.engine.linear import pack_linears
from ppl.lm.huggingface import HFModel
from ppl.lm.server.model import ServerModel

TINY = Path(__file__).resolve().parents[1] / "tiny"


def load(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    context_length: int | None = None,
    kv_bytes: int = 2 << 30,
    pack: bool = True,
    graphs: bool = False,
    compile: bool = False,
    **server: Any,
) -> LanguageModel:
    """A language model, run in this process or by a server.

    Args:
        source: `"tiny"` for the embedded model; a folder in Hugging Face format; a `.gguf` file
            (converted once and kept in the user's cache folder); a Hugging Face Hub id; or the
            address of a server, such as `"http://localhost:8000/v1"`.
        dtype: float32 on a CPU and bfloat16 on a GPU unless given.
        device: a GPU if there is one unless given.
        revision, token, trust_remote_code: as in `transformers`.
        context_length: most tokens of a text; None takes it from the model's configuration.
        kv_bytes: memory for cached keys and values.
        pack: on a CPU, lay weights out for its matrix kernels: faster, but `lm.model` can then no
            longer be trained, saved, moved or cast.
        graphs: on a GPU, capture decode steps as CUDA graphs, for models whose steps are too short
            for the processor to launch. Not measured on a GPU yet.
        compile: put decode steps through `torch.compile`, which needs a C++ compiler and, for each
            model, a minute once and some seconds at each later load (torch keeps its work where
            `TORCHINDUCTOR_CACHE_DIR` says). Pays for searches that take minutes. Not measured on a
            GPU yet.
        server: for a server only, and all that counts there: the settings of
            `ppl.lm.server.model.ServerModel` (`model`, `tokenizer`, `api_key`, ...).

    Returns:
        An `HFModel`, or a `ServerModel` for an address.

    Raises:
        ModelNotFoundError: there is no such model.
        UnsupportedModelError: the model cannot be forked exactly, or not be captured or compiled.
        ServerError: the server is not there or cannot do what is needed.
        TypeError, ValueError: a setting of the one kind of model for the other.
    """
    if str(source).startswith(("http://", "https://")):
        if any((dtype, device, revision, token, trust_remote_code, graphs, compile)):
            raise ValueError(
                f"{source}: how the model runs is what the server decides; settings such as "
                "dtype= and device= are for models in this process"
            )
        return ServerModel(str(source), context_length=context_length, **server)
    if server:
        raise TypeError(f"ppl.load({str(source)!r}): {sorted(server)} are settings of servers")
    model, tokenizer = load_pretrained(
        AutoModelForCausalLM,
        TINY / "lm" if str(source) == "tiny" else source,
        dtype=dtype,
        device=device,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
        pack=pack,
    )
    return HFModel(
        model,
        tokenizer,
        name=str(source),
        context_length=context_length,
        kv_bytes=kv_bytes,
        graphs=graphs,
        compile=compile,
    )


def load_pretrained(
    kind: Any,
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    pack: bool = True,
) -> tuple[Any, Any]:
    """A Hugging Face model of class `kind` and its tokenizer; arguments as in `load`."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"no GGUF file at {path}")
        path = _converted(path)
    elif path.exists() and not (path / "config.json").is_file():
        raise ModelNotFoundError(f"{path} holds no model: a model folder has a config.json")
    where = str(path) if path.exists() else str(source)
    hub = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    try:
        with quiet_transformers():
            model, report = kind.from_pretrained(
                where, dtype=dtype, output_loading_info=True, **hub
            )
            tokenizer = AutoTokenizer.from_pretrained(where, **hub)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelNotFoundError(
            f"cannot load {source!s} as {kind.__name__}: it is neither a folder here nor a model "
            f"the Hugging Face Hub would hand out ({str(error).splitlines()[0]})"
        ) from error
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise ModelNotFoundError(
            f"{source!s} is no {kind.__name__}: its files lack the weights "
            f"{', '.join(sorted(report['missing_keys'])[:3])}"
        )
    model = model.to(device).eval().requires_grad_(False)
    if pack and device.type == "cpu":
        few = torch.arange(4, device=device)[None]
        pack_linears(model, lambda: model(input_ids=few, use_cache=False))
    return model, tokenizer


def cache_folder() -> Path:
    """Where converted models are kept: `$PPL_CACHE`, else `$XDG_CACHE_HOME/ppl` or its default."""
    if "PPL_CACHE" in os.environ:
        return Path(os.environ["PPL_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ppl"


def _converted(path: Path) -> Path:
    """The folder with `path` in Hugging Face format, made on first use.

    The name carries size and modification time, so a changed file is converted anew. The folder
    appears by a rename, so it is either complete or not there.
    """
    stat = path.stat()
    identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    digest = hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
    folder = cache_folder() / "gguf" / f"{path.stem}-{digest}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        # transformers draws this one bar itself, whatever its progress bars are set to.
        silent = functools.partial(gguf_reader.tqdm, disable=True)
        with quiet_transformers(), mock.patch.object(gguf_reader, "tqdm", silent):
            source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
            # float32 keeps the dequantised weights exactly as the file states them.
            model = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
            model.save_pretrained(partial)
            AutoTokenizer.from_pretrained(**source).save_pretrained(partial)
        with contextlib.suppress(OSError):  # another process may have been faster
            partial.rename(folder)
    except Exception as error:  # readers of a damaged file fail in any way (struct.error, ...)
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelNotFoundError(
            f"cannot read {path}: {first_line} (GGUF files need the extra ppl-search[gguf])"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars and notices while loading, and only then."""
    bars, level = (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
    )
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
