"""Programs of papers, ready to run under any searcher: several models, rounds, prompts, selections.

Each is written with what `ppl` offers to everybody and can be read as an example of it.
"""

from ppl.programs.prompted_math import algebraic_template, math_prompter
from ppl.programs.revise import revise, revision_prompt, revisions, rounds_and_rows

__all__ = [
    "algebraic_template",
    "math_prompter",
    "revise",
    "revision_prompt",
    "revisions",
    "rounds_and_rows",
]
