"""Programs of papers, ready to run under any searcher: several models, rounds, prompts, selections.

Each is written with what `ppl` offers to everybody and can be read as an example of it.
"""

from ppl.programs.batch_prompt import BatchCost, BatchPrompt, batch_prompt
from ppl.programs.perturbations import INSTRUCTIONS, NOISE, ROLES, idea, rephrasing

__all__ = [
    "INSTRUCTIONS",
    "NOISE",
    "ROLES",
    "BatchCost",
    "BatchPrompt",
    "batch_prompt",
    "idea",
    "rephrasing",
]
