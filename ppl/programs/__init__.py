"""Programs of papers, ready to run under any searcher: several models, rounds, prompts, selections.

Each is written with what `ppl` offers to everybody and can be read as an example of it.
"""

from ppl.programs.prompted_math import algebraic_template, math_prompter

__all__ = [
    "algebraic_template",
    "math_prompter",
]
