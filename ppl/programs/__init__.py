"""Programs of papers, ready to run under any searcher: several models, rounds, prompts, selections.

Each is written with what `ppl` offers to everybody and can be read as an example of it.
"""

from ppl.language.answers.joint import JointAnswer
from ppl.programs.archon import Archon, search_architectures
from ppl.programs.batch_prompt import BatchCost, BatchPrompt, batch_prompt
from ppl.programs.multilingual import (
    checklist_once,
    cross_mbr,
    greedy_flags,
    hedged,
    pick_flip_rate,
    temperature_by_language,
)
from ppl.programs.perturbations import INSTRUCTIONS, NOISE, ROLES, idea, rephrasing

__all__ = [
    "INSTRUCTIONS",
    "NOISE",
    "ROLES",
    "Archon",
    "BatchCost",
    "BatchPrompt",
    "JointAnswer",
    "batch_prompt",
    "checklist_once",
    "cross_mbr",
    "greedy_flags",
    "hedged",
    "idea",
    "pick_flip_rate",
    "rephrasing",
    "search_architectures",
    "temperature_by_language",
]
