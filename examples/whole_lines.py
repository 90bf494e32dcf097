"""Files of JSON lines that runs append to, and go on from after they were cut."""

from __future__ import annotations

import os
from pathlib import Path


def cut_torn(path: Path) -> None:
    """Takes away a last line that has no end, to which the next would be joined."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())
