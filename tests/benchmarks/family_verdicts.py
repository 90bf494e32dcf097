"""The verdict by family of models: exact in batched passes, or refused, and why.

Run from the repository's root:

    PYTHONPATH=tests python tests/benchmarks/family_verdicts.py [NAME ...]

Prints a table in Markdown, the one of docs/models.md. Each family that the installed transformers
has is built small and random (tests/families.py), with windows and chunks shorter than the texts,
and runs through what tests/test_families.py asks of it: ragged, forked, rolled back, evicted. What
is called exact differed from a forward of whole texts without a cache by less than 1e-4, relative
to the largest number among the states, in float32.
"""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Iterator

import families
import torch
import transformers
from test_families import read_fork_step_and_evict

from ppl.errors import UnsupportedModelError
from ppl.lm.engine.engine import Engine

CODE = {
    "half of an encoder-decoder": "half of an encoder-decoder",
    "is an encoder": "an encoder: its words look at what follows them",
    "has layers of kind": "keys are selected or compressed as the text grows",
    "keeps no keys and values": "no keys and values per token, no state that can be handed over",
    "differ from the model's own": "its positions or masks are made from the place in the pass",
    "two probabilities": "its single steps are not its passes over texts (transformers)",
    "way of its own": "windows inside an attention of its own",
    "does not run on token ids": "does not run on token ids alone",
    "takes no mask and positions": "takes no mask, positions or cache of ours",
    "no last hidden states": "no base model that gives last hidden states",
}
"""Reasons in short, by a part of the message."""


def verdict(name: str) -> tuple[str, str]:
    """What group a family belongs to, and why."""
    try:
        model = families.random_model(families.config_of(name))
        engine = Engine(model, name=name, capacity=1 << 24)
    except UnsupportedModelError as refusal:
        said = str(refusal)
        return "refused", next((short for part, short in CODE.items() if part in said), said)
    except families.NotMade as error:
        return "not made", " ".join(str(error).split())[:80]
    with torch.inference_mode():
        read_fork_step_and_evict(engine)  # raises if it is not exact
    return "exact", ", ".join(_kinds(engine))


def _kinds(engine: Engine) -> Iterator[str]:
    plan = engine.runner.plan
    if plan.states:
        keeps = any(plan.layout.layers)
        yield "states and attention" if keeps else "states only"
    elif plan.windows:
        yield "windows or chunks that move"
    elif len(plan.layout.groups) > 1:
        yield "latent attention or layers of unlike shapes"
    else:
        yield "attention to all tokens"


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows: dict[tuple[str, str], list[str]] = {}
    for name in names or [name for name in families.NAMES if name not in families.LARGE]:
        rows.setdefault(verdict(name), []).append(name)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| verdict | because of | families |\n|---|---|---|")
    for (what, why), found in sorted(rows.items(), key=lambda row: (row[0][0], -len(row[1]))):
        print(f"| {what} | {why} | {len(found)}: {' '.join(found)} |")
    print()
    for what in ("exact", "refused", "not made"):
        print(f"{what}: {sum(len(f) for (w, _), f in rows.items() if w == what)}")
    if families.LARGE and not names:
        print(textwrap.fill(f"left out, too large: {' '.join(sorted(families.LARGE))}", 100))


if __name__ == "__main__":
    main(sys.argv[1:])
