"""Files of posteriors and searches, for tests: made, changed, refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

import ppl
from ppl.errors import SearchStateError


def there_and_back(value, path: Path):
    """A value as the result of a program, saved and loaded."""
    sample = ppl.Sample(value, 0.0, -0.5, True, 0, None, ())
    ppl.Posterior([sample], log_evidence=None, cost=ppl.Cost()).save(path)
    return ppl.Posterior.load(path).samples[0].value


def rewrite(path: Path, changes) -> None:
    """Replaces entries of a file: a name to what becomes of its content, None to drop it."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for name, change in changes.items():
        entries[name] = change(entries.get(name, b""))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            if content is not None:
                archive.writestr(name, content)


def with_meta(**changes):
    return {"meta.json": lambda old: json.dumps(json.loads(old) | changes).encode()}


def refused(path: Path, match: str | None = None, load=ppl.Posterior.load) -> str:
    with pytest.raises(SearchStateError, match=match) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


class Payload:
    """A pickle of it runs code."""

    ran = False

    def __reduce__(self):
        return exec, ("import files; files.Payload.ran = True",)
