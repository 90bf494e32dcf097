"""Programs of papers, ready to run under any searcher: several models, rounds, prompts, selections.

Each is written with what `ppl` offers to everybody and can be read as an example of it.
"""

from ppl.programs.selection_inference import (
    UNKNOWN,
    Inference,
    derivation,
    selection_inference,
    trace_value,
)

__all__ = [
    "UNKNOWN",
    "Inference",
    "derivation",
    "selection_inference",
    "trace_value",
]
