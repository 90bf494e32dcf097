"""What a study is with every name told, and that in the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppl.errors import StudyError
from ppl.study import sources
from ppl.study.config import FORMAT, VERSION, distinct, here, read, together, write
from ppl.study.plan import Plan
from ppl.study.records import CONFIG, RESULTS, plain


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
        "budgets": distinct(g.limits for g in groups),
        "seeds": distinct(g.seed for g in groups),
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
