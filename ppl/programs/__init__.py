"""Programs of papers, ready to run under any searcher: several models, rounds, prompts, selections.

Each is written with what `ppl` offers to everybody and can be read as an example of it.
"""

from ppl.programs.mixture import mixture_of_agents

__all__ = [
    "mixture_of_agents",
]
