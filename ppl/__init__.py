"""ppl: probabilistic programs over language models.

A program says what a good generation is; a searcher decides where to spend compute on it; a
verifier is a likelihood inside it; the runtime turns every particle's waiting requests into one
batch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ppl.errors import PPLError
from ppl.language.answers import Answer, Equality, equality, extract_answer
from ppl.language.call import call
from ppl.language.cost import Budget, Cost
from ppl.language.perturbed import perturbed
from ppl.language.primitives import answer, condition, do, parallel, power, twist
from ppl.language.steps import StepRule
from ppl.language.text import Continuation, Text
from ppl.language.thinking import Thinking, forced
from ppl.lm import HFModel, LanguageModel, LMDistribution, LogitsModel, TableLM, load, register
from ppl.lm.writers import writers
from ppl.posterior.posterior import Posterior, Sample
from ppl.runtime.awrs import AWRS
from ppl.runtime.drafts import drafted
from ppl.runtime.enumeration import enumerate_program
from ppl.runtime.node import Node
from ppl.runtime.planning import plan
from ppl.runtime.replicas import Replicas as _Replicas  # noqa: F401 (what ppl.load hands over to)
from ppl.runtime.tree import Tree
from ppl.runtime.verdict import JudgeRequest, Verdict, Verifier

if TYPE_CHECKING:
    from ppl.programs.self_steering import selfsteer

__version__ = "0.1.0"

__all__ = [
    "AWRS",
    "Answer",
    "Budget",
    "Continuation",
    "Cost",
    "Equality",
    "HFModel",
    "JudgeRequest",
    "LMDistribution",
    "LanguageModel",
    "LogitsModel",
    "Node",
    "PPLError",
    "Posterior",
    "Sample",
    "StepRule",
    "TableLM",
    "Text",
    "Thinking",
    "Tree",
    "Verdict",
    "Verifier",
    "answer",
    "call",
    "condition",
    "do",
    "drafted",
    "enumerate_program",
    "equality",
    "extract_answer",
    "forced",
    "load",
    "parallel",
    "perturbed",
    "plan",
    "power",
    "register",
    "selfsteer",
    "twist",
    "writers",
]

_ROOMS = (
    "allocate",
    "calibration",
    "decide",
    "export",
    "programs",
    "searchers",
    "study",
    "tasks",
    "tools",
    "verifiers",
)


# Names of rooms that are the front's, too.
_FROM_ROOMS = {"selfsteer": "programs"}


def __getattr__(name: str) -> Any:
    """A room, imported when it is first asked for: `import ppl` alone stays quick."""
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _FROM_ROOMS:
        return getattr(importlib.import_module(f"{__name__}.{_FROM_ROOMS[name]}"), name)
    # Names that are looked for here and live in a room; tools ask for private ones all the time.
    asked = () if name.startswith("_") else ("searchers", "verifiers", "decide")
    for room in asked:
        if name in importlib.import_module(f"{__name__}.{room}").__all__:
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}: it is in {__name__}.{room}"
            )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
