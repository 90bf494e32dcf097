"""The files of a run: whole lines, appended, whatever ends the process.

A line is written with its newline and brought to the disk; candidates before results, so that a
line of `results.jsonl` says that a cell is there with all that belongs to it. What a kill leaves
behind is at the ends of the files: a line without its newline, and candidates without a result.
`Records.open` takes both away. One process at a time writes in a folder: it holds a lock that the
system lets go when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from ppl.errors import StudyError
from ppl.posterior.container import sync_folder, write_whole

RESULTS, CANDIDATES, CONFIG, TREES, LOCK = (
    "results.jsonl",
    "candidates.jsonl",
    "config.json",
    "trees",
    ".lock",
)
_CELL = re.compile(rb'\{"cell": ?"([0-9a-f]{16})"')
_BLOCK = 1 << 16


class Records:
    """The open files of one run; a context manager.

    Args:
        folder: of the run; made if it is not there.

    Attributes:
        results: by cell, True if it ended with an error.

    Raises:
        StudyError: another process is writing there, or a file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.results: dict[str, bool] = {}
        self._handles: dict[str, int] = {}
        with _named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self.folder)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        for name in (RESULTS, CANDIDATES):
            with _named(self.folder / name):
                self._handles[name] = repaired(self.folder / name)
        self.results = dict(_cells(self.folder / RESULTS))
        known = [cell in self.results for cell in identities(self.folder / CANDIDATES)]
        if not all(known):  # written, and then the process was killed
            kept = iter(known)
            self._rewrite(CANDIDATES, lambda _: next(kept))

    def write(
        self,
        rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
        trees: Mapping[str, bytes] | None = None,
    ) -> None:
        """Adds results with their candidates, and the trees of some.

        Args:
            rows: a line for `results.jsonl` and one for `candidates.jsonl` each.
            trees: files by cell.

        Raises:
            StudyError: a file cannot be written; what was there is there still.
        """
        rows = list(rows)
        for cell, content in (trees or {}).items():
            replace(self.folder / TREES / f"{cell}.ppl", content)
        for name, place in ((CANDIDATES, 1), (RESULTS, 0)):
            with _named(self.folder / name):
                append(self._handles[name], [line(row[place]) for row in rows])
        for result, _ in rows:
            self.results[result["cell"]] = result["error"] is not None

    def forget_errors(self, cells: Iterable[str]) -> int:
        """Takes out the lines of those cells that failed, so that they run again; how many."""
        failed = {cell for cell in cells if self.results.get(cell)}
        if failed:
            # Results first: candidates without a result are taken away anyhow.
            for name in (RESULTS, CANDIDATES):
                self._rewrite(name, lambda cell: cell not in failed)
            self.results = {c: e for c, e in self.results.items() if c not in failed}
        return len(failed)

    def _rewrite(self, name: str, keep: Callable[[str], bool]) -> None:
        """Makes a file anew with some of its lines, whole or not at all."""
        path = self.folder / name
        beside = path.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
        with _named(path):
            try:
                with path.open("rb") as old, beside.open("wb") as new:
                    for content in old:
                        if keep(_identity(content, path, 0)):
                            new.write(content)
                    new.flush()
                    os.fsync(new.fileno())
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
            sync_folder(path.parent)
            os.close(self._handles.pop(name))
            self._handles[name] = repaired(path)

    def close(self) -> None:
        """Closes the files and lets others write here."""
        for handle in (*self._handles.values(), self._lock):
            with contextlib.suppress(OSError):
                os.close(handle)
        self._handles, self._lock = {}, -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def line(row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON; infinite numbers and NaN are the strings "inf", "-inf", "nan"."""
    return json.dumps(plain(row), ensure_ascii=True, allow_nan=False).encode() + b"\n"


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def read(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, without a last line that lacks its newline.

    Raises:
        StudyError: a line is no JSON object with a cell.
    """
    with _named(Path(path)), Path(path).open("rb") as file:
        for number, content in enumerate(file, start=1):
            if not content.endswith(b"\n"):
                return
            _identity(content, Path(path), number)
            try:
                row = json.loads(content)
            except ValueError as error:
                raise _damaged(Path(path), number) from error
            yield row


def identities(path: str | Path) -> Iterator[str]:
    """The cells of a file's lines, without reading what is in them."""
    with _named(Path(path)), Path(path).open("rb") as file:
        for number, content in enumerate(file, start=1):
            if content.endswith(b"\n"):
                yield _identity(content, Path(path), number)


def append(handle: int, lines: Iterable[bytes]) -> None:
    """Writes lines at the end, each at once, and brings them to the disk. If one does not fit, no
    part of it stays."""
    for content in lines:
        size = os.fstat(handle).st_size
        try:
            written = os.write(handle, content)
            while written < len(content):
                written += os.write(handle, content[written:])
        except BaseException:
            os.ftruncate(handle, size)
            raise
    os.fsync(handle)


def repaired(path: Path) -> int:
    """A file opened for appending, without a last line that lacks its newline."""
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    end = size = os.fstat(handle).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        at = os.pread(handle, end - start, start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if end < size:
        os.ftruncate(handle, end)
        os.fsync(handle)
    if new:
        sync_folder(path.parent)
    return handle


def replace(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    with _named(path):
        path.parent.mkdir(exist_ok=True)
        write_whole(path, content)


def locked(folder: Path) -> int:
    """The folder's lock, held; closing it, or the end of the process, lets it go.

    Raises:
        StudyError: another process holds it.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise StudyError(
            f"{folder}: a study is running there (process {holder}): wait for it, or run shards in "
            "folders of their own and merge them"
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def clean(folder: Path) -> None:
    """Takes away what a killed process has left half-written beside its targets."""
    for place in (folder, folder / TREES):
        for rest in place.glob(".*.tmp"):
            rest.unlink(missing_ok=True)


def _cells(path: Path) -> Iterator[tuple[str, bool]]:
    for row in read(path):
        yield row["cell"], row.get("error") is not None


def _identity(content: bytes, path: Path, number: int) -> str:
    match = _CELL.match(content)
    if match is None:
        raise _damaged(path, number)
    return match[1].decode()


def _damaged(path: Path, number: int) -> StudyError:
    return StudyError(
        f"{path}, line {number} is no line of a study: something else has written there; take the "
        "line out, its cell runs again"
    )


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror or error}") from error
