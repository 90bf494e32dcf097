"""Programs of papers, ready to run under any searcher: several models, rounds, prompts, selections.

Each is written with what `ppl` offers to everybody and can be read as an example of it.
"""

from ppl.language.answers.joint import JointAnswer
from ppl.programs.archon import Archon, search_architectures
from ppl.programs.batch_prompt import BatchCost, BatchPrompt, batch_prompt
from ppl.programs.mixture import mixture_of_agents
from ppl.programs.multilingual import (
    checklist_once,
    cross_mbr,
    greedy_flags,
    hedged,
    pick_flip_rate,
    temperature_by_language,
)
from ppl.programs.perturbations import INSTRUCTIONS, NOISE, ROLES, idea, rephrasing
from ppl.programs.prompted_math import algebraic_template, math_prompter
from ppl.programs.revise import revise, revision_prompt, revisions, rounds_and_rows
from ppl.programs.selection_inference import (
    UNKNOWN,
    Inference,
    derivation,
    selection_inference,
    trace_value,
)
from ppl.programs.self_steering import Attempt, SelfSteered, selfsteer
from ppl.programs.steering import Fault, Steering

__all__ = [
    "INSTRUCTIONS",
    "NOISE",
    "ROLES",
    "UNKNOWN",
    "Archon",
    "Attempt",
    "BatchCost",
    "BatchPrompt",
    "Fault",
    "Inference",
    "JointAnswer",
    "SelfSteered",
    "Steering",
    "algebraic_template",
    "batch_prompt",
    "checklist_once",
    "cross_mbr",
    "derivation",
    "greedy_flags",
    "hedged",
    "idea",
    "math_prompter",
    "mixture_of_agents",
    "pick_flip_rate",
    "rephrasing",
    "revise",
    "revision_prompt",
    "revisions",
    "rounds_and_rows",
    "search_architectures",
    "selection_inference",
    "selfsteer",
    "temperature_by_language",
    "trace_value",
]
