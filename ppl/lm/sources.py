"""What the source of a model names: an embedded model, a GGUF file, or a file on the Hub."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

TINY = Path(__file__).resolve().parents[1] / "tiny"
EMBEDDED = {"tiny": TINY, "tiny-lines": TINY / "lines"}  # folders with lm/ and prm/


def embedded(source: str | Path, part: str) -> str | Path:
    """The folder of an embedded model's part, `lm` or `prm`; other sources as they are."""
    folder = EMBEDDED.get(str(source))
    return source if folder is None else folder / part


def file_here(source: str | Path) -> Path | None:
    """The GGUF file of this machine that a source names; None if it names something else."""
    path = Path(source).expanduser()
    return path if path.suffix == ".gguf" and path.is_file() else None


def name_of(source: str | Path) -> str:
    """What a model is called that is loaded from there: a GGUF file that is here by its own name,
    so that records of two machines agree wherever it lies; anything else as it is given."""
    path = file_here(source)
    return str(source) if path is None else path.stem


def contents(path: Path) -> str:
    """16 hex digits that tell files of one name apart: by their size and last MiB, which is of
    weights."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 20)))
        return hashlib.blake2b(b"%d:" % size + file.read(), digest_size=8).hexdigest()


def file_on_hub(source: str) -> tuple[str, str] | None:
    """Repository and file, or part of its name, of sources such as `owner/name:Q8_0` or
    `owner/name/file.gguf`; None for others."""
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+)|/([\w./-]+\.gguf))", source)
    return (found[1], found[2] or found[3]) if found else None
