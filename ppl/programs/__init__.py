"""Programs of papers, ready to run under any searcher: several models, rounds, prompts, selections.

Each is written with what `ppl` offers to everybody and can be read as an example of it.
"""

from ppl.programs.mixture import mixture_of_agents
from ppl.programs.self_steering import Attempt, SelfSteered, selfsteer
from ppl.programs.steering import Fault, Steering

__all__ = [
    "Attempt",
    "Fault",
    "SelfSteered",
    "Steering",
    "mixture_of_agents",
    "selfsteer",
]
