"""Where the library keeps what it makes once: converted models, built programs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$PPL_CACHE`, else `$XDG_CACHE_HOME/ppl` or its default."""
    if "PPL_CACHE" in os.environ:
        return Path(os.environ["PPL_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ppl"
