"""GGUF files: converted once to the format of Hugging Face, and kept."""

from __future__ import annotations

import functools
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers import modeling_gguf_pytorch_utils as gguf_reader

from ppl.errors import ModelNotFoundError
from ppl.lm.cache import cache_folder
from ppl.lm.quiet import quiet_transformers


def converted(path: Path) -> Path:
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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise _not_kept(path, folder, error) from error
    try:
        model, tokenizer = _read(path)
        try:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            _appear(partial, folder)
        except Exception as error:  # writers have errors of their own for a full disk
            raise _not_kept(path, folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def fetched(repository: str, part: str, *, revision: str | None, token: str | bool | None) -> Path:
    """The one GGUF file of a repository on the Hugging Face Hub whose name has this part.

    Raises:
        ModelNotFoundError: there is none, or several, or the Hub does not answer.
    """
    hub: dict[str, Any] = {"revision": revision, "token": token}
    try:
        with quiet_transformers():
            files = [f for f in HfApi().list_repo_files(repository, **hub) if f.endswith(".gguf")]
            fitting = [f for f in files if part.lower() in f.lower()]
            if len(fitting) == 1:
                return Path(hf_hub_download(repository, fitting[0], **hub))
    except Exception as error:  # of the Hub, of the net, of the disk
        raise ModelNotFoundError(
            f"{repository}: the Hugging Face Hub does not give its GGUF files; a file that is here "
            f"is loaded by its path ({_first_line(error)})"
        ) from error
    raise ModelNotFoundError(
        f"{repository} has {len(fitting)} GGUF files with {part!r} in their names; name one of "
        f"{', '.join(files) or 'none'}"
    )


def _read(path: Path) -> tuple[Any, Any]:
    """Model and tokenizer of the file. Raises ModelNotFoundError if it cannot be read."""
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    # transformers draws this one bar itself, whatever its progress bars are set to.
    silent = functools.partial(gguf_reader.tqdm, disable=True)
    try:
        with quiet_transformers(), mock.patch.object(gguf_reader, "tqdm", silent):
            # float32 keeps the dequantised weights exactly as the file states them.
            model = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
            return model, AutoTokenizer.from_pretrained(**source)
    except Exception as error:  # readers of a damaged file fail in any way (struct.error, ...)
        raise ModelNotFoundError(
            f"cannot read {path}: {_first_line(error)} (GGUF files need the extra ppl-search[gguf])"
        ) from error


def _appear(partial: Path, folder: Path) -> None:
    """Renames, unless another process was faster: a folder with files is never replaced."""
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _not_kept(path: Path, folder: Path, error: Exception) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"the conversion of {path} cannot be kept in {folder.parent}: {_first_line(error)}; make "
        "room there, or set PPL_CACHE to a folder that can be written"
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
