"""The file format: a zip archive of named entries, written whole or not at all.

`meta.json` says what the file is, `*.jsonl` hold a row of named fields per line, `arrays/*.npy`
numbers. Nothing in a file is ever executed or unpickled, and nothing is unpacked to disk: entries
are read into memory, and only those with a name of the format. What an earlier version wrote, a
Python pickle, is refused by name.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ppl.errors import SearchStateError
from ppl.language.json_numbers import finite, no_constant

VERSION = 2  # 1 were pickles
Row = dict[str, Any]

_ENTRY = re.compile(r"meta\.json|state\.json|[a-z]{1,20}\.jsonl|arrays/[A-Za-z0-9_]{1,20}\.npy")
_PICKLES = re.compile(rb"ppl-(posterior|search)-1")
# An entry that unpacks to more than so many times its size is stored as it is, and refused
# otherwise: deflate reaches 1032, with which a small file could fill the memory.
_MOST_DEFLATED = 200
_SMALL = 1 << 16


# -- writing -------------------------------------------------------------------------------------


def write(
    path: str | Path,
    kind: str,
    meta: Mapping[str, Any],
    tables: Mapping[str, Sequence[Any]],
    arrays: Mapping[str, NDArray[Any]],
    state: Any = None,
) -> None:
    """Writes a file, whole or not at all.

    It is written beside the target, brought to the disk, and renamed. A new file has the
    permissions that the umask says, an existing one keeps its own; a symlink stays one.

    Args:
        path: the file.
        kind: what it holds, `"posterior"` or `"search"`.
        meta: for `meta.json`.
        tables: rows by name, for `NAME.jsonl`.
        arrays: by name, for `arrays/NAME.npy`.
        state: for `state.json`.

    Raises:
        SearchStateError: the file cannot be written; an old one is as it was.
    """
    head = {"format": f"ppl-{kind}", "version": VERSION, "library": _library(), **meta}
    entries = {"meta.json": _json(head)}
    if state is not None:
        entries["state.json"] = _json(state)
    for name, rows in tables.items():
        entries[f"{name}.jsonl"] = b"".join(_json(row) + b"\n" for row in rows)
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, allow_pickle=False)
        entries[f"arrays/{name}.npy"] = buffer.getvalue()
    replace_file(path, _zipped(entries))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _library() -> str:
    try:
        return metadata.version("ppl-search")
    except metadata.PackageNotFoundError:  # run from its sources
        return "unknown"


def _zipped(entries: Mapping[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)  # with a fixed date: equal contents make equal files
            info.external_attr = 0o600 << 16
            small = len(zlib.compress(content, 1)) * _MOST_DEFLATED // 2 < len(content)
            info.compress_type = zipfile.ZIP_STORED if small else zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return whole.getvalue()


def replace_file(path: str | Path, content: bytes) -> None:
    """Puts a file in place whole, as `write` says.

    Raises:
        SearchStateError: the file cannot be written; an old one is as it was.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise SearchStateError(
            f"{path} cannot be written ({error.strerror or error}); an old file of this name is as "
            "it was: save to a folder that can be written to and has room"
        ) from error


def write_whole(path: str | Path, content: bytes) -> None:
    """`replace_file` that raises what the system says (OSError)."""
    target = Path(os.path.realpath(path))
    beside = target.parent / f".ppl-{secrets.token_hex(8)}.tmp"
    mode = _mode(target)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None:
                os.fchmod(handle, mode)
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.replace(beside, target)  # noqa: PTH105 (one family of calls)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        raise
    sync_folder(target.parent)


def _mode(target: Path) -> int | None:
    """Permissions of an existing file."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "it exists and is no regular file")
    return stat.S_IMODE(found.st_mode)


def sync_folder(folder: Path) -> None:
    """The new name is on the disk too. Some file systems do not offer this for folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


# -- reading -------------------------------------------------------------------------------------


class Container:
    """A file that was read: its entries, as JSON and arrays. Runs nothing.

    Args:
        path: the file.
        kind: what it must hold, `"posterior"` or `"search"`.

    Attributes:
        meta: what `meta.json` says.

    Raises:
        SearchStateError: there is no such file, or it holds something else.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path, self.kind = path, kind
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise SearchStateError(f"{path} cannot be read: {error.strerror}") from error
        if not content.startswith(b"PK\x03\x04"):
            self._refuse_other(content)
        self._entries = self._unpacked(content)
        self.meta = self.json("meta.json")
        if not isinstance(self.meta, dict):
            self.refuse("meta.json is no JSON object")
        self._check_format()

    def refuse(self, why: str) -> NoReturn:
        """Raises the error for this file."""
        raise SearchStateError(f"{self.path} holds no saved {self.kind}: {why}")

    def _refuse_other(self, content: bytes) -> NoReturn:
        if content[:1] == b"\x80" and len(content) > 1 and content[1] <= 5:
            tag = _PICKLES.search(content[:200])
            whose = f"of format {tag[0].decode()!r}, " if tag else ""
            self.refuse(
                f"it is a Python pickle, {whose}as earlier versions of this library wrote. Reading "
                "it would run code from the file, which this version never does: load it with the "
                "version that wrote it and note what you need, or run the search again and save it"
            )
        self.refuse(f"it is no file of this library (it begins with {content[:8]!r})")

    def _unpacked(self, content: bytes) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for info in archive.infolist():
                    self._check_entry(info, found)
                    found[info.filename] = archive.read(info)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            self.refuse(f"it is damaged ({error})")
        except (EOFError, ValueError, OverflowError) as error:
            self.refuse(f"it is damaged ({type(error).__name__}: {error})")
        return found

    def _check_entry(self, info: zipfile.ZipInfo, found: Mapping[str, bytes]) -> None:
        name = info.filename
        if not _ENTRY.fullmatch(name):
            self.refuse(f"its entry {name!r} has no name of this format")
        if name in found:
            self.refuse(f"it has two entries {name!r}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            self.refuse(f"its entry {name!r} is compressed in a way that this format does not use")
        if info.file_size > _SMALL + _MOST_DEFLATED * info.compress_size:
            self.refuse(
                f"its entry {name!r} would unpack {info.compress_size} bytes to {info.file_size}"
            )

    def _check_format(self) -> None:
        meta = self.meta
        if meta.get("format") != f"ppl-{self.kind}":
            self.refuse(f"its format is {meta.get('format')!r}, not 'ppl-{self.kind}'")
        if meta.get("version") != VERSION:
            self.refuse(
                f"it has version {meta.get('version')!r} of the format, written by library "
                f"{meta.get('library')!r}; this library reads version {VERSION}"
            )

    def json(self, name: str) -> Any:
        """The content of one JSON entry."""
        if name not in self._entries:
            self.refuse(f"its entry {name!r} is missing")
        return self._parsed(self._entries[name], name)

    def rows(self, name: str) -> list[Any]:
        """The rows of `NAME.jsonl`; none if there is no such entry."""
        lines = self._entries.get(f"{name}.jsonl", b"").splitlines()
        return [
            self._parsed(line, f"{name}.jsonl, line {i}") for i, line in enumerate(lines, start=1)
        ]

    def _parsed(self, content: bytes, where: str) -> Any:
        try:
            return json.loads(content, parse_constant=no_constant, parse_float=finite)
        except (ValueError, RecursionError) as error:
            self.refuse(f"{where} is no JSON ({error})")

    def array(self, name: str) -> NDArray[Any]:
        """The array of `arrays/NAME.npy`."""
        entry = f"arrays/{name}.npy"
        if entry not in self._entries:
            self.refuse(f"its entry {entry!r} is missing")
        try:
            array: NDArray[Any] = np.lib.format.read_array(
                io.BytesIO(self._entries[entry]), allow_pickle=False
            )
        except (ValueError, EOFError, OSError, SyntaxError, TypeError, MemoryError) as error:
            self.refuse(f"{entry} is no array of numbers ({error})")
        return array
