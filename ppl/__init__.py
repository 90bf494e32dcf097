"""ppl: probabilistic programs over language models.

A program says what a good generation is; a searcher decides where to spend compute on it; a
verifier is a likelihood inside it; the runtime turns every particle's waiting requests into one
batch.
"""

from typing import TYPE_CHECKING, Any

from ppl.lazy import attach, public
from ppl.lm.copies import runs_replicas

if TYPE_CHECKING:
    from ppl import allocate as allocate
    from ppl import calibration as calibration
    from ppl import decide as decide
    from ppl import export as export
    from ppl import programs as programs
    from ppl import searchers as searchers
    from ppl import study as study
    from ppl import tasks as tasks
    from ppl import tools as tools
    from ppl import verifiers as verifiers
    from ppl.errors import PPLError
    from ppl.language.answers import Answer, Equality, equality, extract_answer
    from ppl.language.call import call
    from ppl.language.cost import Budget, Cost
    from ppl.language.perturbed import perturbed
    from ppl.language.primitives import answer, condition, do, parallel, power, twist
    from ppl.language.steps import StepRule
    from ppl.language.text import Continuation, Text
    from ppl.language.thinking import Thinking, forced
    from ppl.lm.base import LanguageModel, LMDistribution
    from ppl.lm.decode import LogitsModel
    from ppl.lm.huggingface import HFModel
    from ppl.lm.loading import load, register
    from ppl.lm.table import TableLM
    from ppl.lm.writers import writers
    from ppl.posterior.posterior import Posterior, Sample
    from ppl.programs.self_steering import selfsteer
    from ppl.runtime.awrs import AWRS
    from ppl.runtime.drafts import drafted
    from ppl.runtime.enumeration import enumerate_program
    from ppl.runtime.node import Node
    from ppl.runtime.planning import plan
    from ppl.runtime.tree import Tree
    from ppl.runtime.verdict import JudgeRequest, Verdict, Verifier
else:

    def _elsewhere(name: str) -> str:
        """Where a name is that is looked for here."""
        if name.startswith("_"):  # tools ask for private ones all the time
            return ""
        rooms = (f"ppl.{room}" for room in ("searchers", "verifiers", "decide"))
        return next((f": it is in {room}" for room in rooms if name in public(room)), "")

    __getattr__, __dir__ = attach(__name__, hint=_elsewhere)

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


def _replicas(source: Any, devices: Any, **settings: Any) -> Any:
    from ppl.runtime.replicas import Replicas

    return Replicas(source, devices, **settings)


runs_replicas(_replicas)  # what `ppl.load(replicas=)` hands over to
