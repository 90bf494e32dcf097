"""Files of this library: tagged pickles, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from ppl.errors import SearchStateError

T = TypeVar("T")


def save(path: str | Path, tag: str, value: Any, *, remedy: str) -> None:
    """Pickles `value` under `tag`, next to the target and then renamed: no partial file is seen.

    Raises:
        SearchStateError: the value cannot be pickled; ends with `remedy`.
    """
    try:
        content = pickle.dumps((tag, value))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        name = type(value).__name__.lower()
        raise SearchStateError(f"the {name} cannot be saved ({error}); {remedy}") from error
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: str | Path, tag: str, kind: type[T]) -> T:
    """Reads what `save` wrote under `tag`. Unpickling runs code: load only files you trust.

    Raises:
        SearchStateError: there is no such file, or it holds something else.
    """
    try:
        with Path(path).open("rb") as file:
            found, value = pickle.load(file)
    except Exception as error:  # a broken pickle may raise anything
        raise SearchStateError(f"{path} holds no saved {kind.__name__}: {error}") from error
    if found != tag or not isinstance(value, kind):
        raise SearchStateError(f"{path} holds {found!r}, not {tag!r}")
    return value
