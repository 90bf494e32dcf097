"""ppl: probabilistic programs over language models.

A program says what a good generation is; a searcher decides where to spend compute on it; a
verifier is a likelihood inside it; the runtime turns every particle's waiting requests into one
batch.
"""

from ppl.awrs import AWRS
from ppl.cost import Budget, Cost
from ppl.errors import PPLError
from ppl.exact import enumerate_program
from ppl.lm import HFModel, LanguageModel, LMDistribution, TableLM, load
from ppl.posterior import Posterior, Sample
from ppl.primitives import condition, do, twist
from ppl.steps import StepRule
from ppl.text import Continuation, Text, extract_answer
from ppl.tree import Node, Tree
from ppl.verdict import JudgeRequest, Verdict, Verifier

__version__ = "0.1.0"

__all__ = [
    "AWRS",
    "Budget",
    "Continuation",
    "Cost",
    "HFModel",
    "JudgeRequest",
    "LMDistribution",
    "LanguageModel",
    "Node",
    "PPLError",
    "Posterior",
    "Sample",
    "StepRule",
    "TableLM",
    "Text",
    "Tree",
    "Verdict",
    "Verifier",
    "condition",
    "do",
    "enumerate_program",
    "extract_answer",
    "load",
    "twist",
]
