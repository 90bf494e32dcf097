"""The engine's own programs in C++, built for this processor once and kept.

A program is one source beside this file, with what it includes from there. What was built is found
again by all that it was built from: these, their settings, the compiler, and what the processor can
do.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from ppl.lm.cache import cache_folder

# Sums may be reordered, which vectors need; -ffast-math would also change how the whole process
# treats tiny numbers.
_FLAGS = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno"]
_FLAGS += ["-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]


# What was said of what cannot be built, by the name that it would have.
_refused: dict[str, str] = {}


def built(source: str, **defines: int) -> ctypes.CDLL:
    """The library of a source beside this file, with these macros.

    Raises:
        RuntimeError: there is no compiler, or it refuses.
    """
    named = os.environ.get("CXX", "").strip() or "g++"
    try:
        compiler = shlex.split(named)
    except ValueError as error:
        raise RuntimeError(f"CXX={named!r} names no C++ compiler: {error}") from error
    found = shutil.which(compiler[0])
    if found is None:
        raise RuntimeError(
            f"there is no C++ compiler {compiler[0]!r}; install one, or name it in CXX"
        )
    path = Path(__file__).with_name(source)
    command = [*compiler, *_FLAGS, *(f"-D{name}={value}" for name, value in defines.items())]
    digest = hashlib.blake2b(digest_size=10)
    for text in _texts(path):
        digest.update(text)
    program = Path(found).resolve()
    of_compiler = program.stat()
    made_by = program, of_compiler.st_size, of_compiler.st_mtime_ns, *command[1:], _processor()
    digest.update("\0".join(map(str, made_by)).encode())
    kept = cache_folder() / "native" / f"{path.stem}-{digest.hexdigest()}.so"
    if _of_this_user(kept):
        with contextlib.suppress(OSError):  # a damaged one is built anew
            return ctypes.CDLL(str(kept))
    if kept.name in _refused:  # every layer of a model asks
        raise RuntimeError(_refused[kept.name])
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / kept.name
            command += [str(path), "-o", str(library)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            with contextlib.suppress(OSError):  # a cache that cannot be written is none
                _keep(library, kept)
            return ctypes.CDLL(str(library))  # stays loaded when its file is gone
    except (subprocess.CalledProcessError, OSError) as refusal:
        said = (getattr(refusal, "stderr", "") or str(refusal)).strip()
        said = f"{' '.join(command)}: {said}"
        if isinstance(refusal, subprocess.CalledProcessError):  # it will do so again
            _refused[kept.name] = said
        raise RuntimeError(said) from refusal


def returning(function: Any, *arguments: Any, kind: Any = ctypes.c_int32) -> Any:
    """A function of such a library that takes these; it raises MemoryError where it has got none
    (`shortage.h`)."""
    function.argtypes, function.restype, function.errcheck = arguments, kind, _with_memory
    return function


def _with_memory(said: int, function: Any, arguments: Any) -> int:
    if said < 0:
        raise MemoryError(
            "there is no memory for what the engine computes between attention and products; let "
            "fewer rows run at once (fewer particles, or a smaller kv_bytes=), or free some"
        )
    return said


def _texts(path: Path) -> list[bytes]:
    """A source, and what it includes from beside it."""
    text = path.read_bytes()
    names = re.findall(rb'^#include "(.+)"', text, re.MULTILINE)
    return [text, *(part for name in names for part in _texts(path.with_name(name.decode())))]


def _of_this_user(kept: Path) -> bool:
    """Whether the file is there, and nobody else can have put it there: it will be run."""
    try:
        stats = [kept.stat(), kept.parent.stat()]
    except OSError:
        return False
    return all(stat.st_uid == os.getuid() and not stat.st_mode & 0o022 for stat in stats)


def _keep(library: Path, kept: Path) -> None:
    """Appears by a rename, so it is whole or not there."""
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(prefix=".partial-", dir=kept.parent)
    os.close(handle)
    partial = Path(name)
    try:
        shutil.copyfile(library, partial)
        partial.replace(kept)
    finally:
        partial.unlink(missing_ok=True)


@cache
def _processor() -> str:
    """What code for this processor alone depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        kinds = ("model", "flags", "Features", "CPU part")
        about = {line for line in lines if line.split(":")[0].strip() in kinds}
        return "\n".join(sorted(about))
    return " ".join(platform.uname()[4:]) + platform.processor()
