"""Searches as training data: preference pairs, trajectories, labels of steps, as rows and files.

Rows have the names that trainers of preference, supervised and process reward models read (TRL:
`prompt`, `chosen`, `rejected`; `prompt`, `completion`; `prompt`, `completions`, `labels`). Whatever
grew the tree will do: every function takes a posterior, also one from a file, or a `ppl.Tree`.
"""

from ppl.export.labels import node_values, step_labels
from ppl.export.pairs import preference_pairs
from ppl.export.rows import trajectories, write_rows

__all__ = [
    "node_values",
    "preference_pairs",
    "step_labels",
    "trajectories",
    "write_rows",
]
