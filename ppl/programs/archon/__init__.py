"""Archon: operators on texts, architectures of them, and the search for one (Saad-Falcon et al.
2024, arXiv 2409.15254)."""

from ppl.programs.archon.architecture import Archon
from ppl.programs.archon.drafts import Draft, Drafts
from ppl.programs.archon.operators import Operator, critique, fuse, generate, rank, verify
from ppl.programs.archon.search import Found, Trial, search_architectures
from ppl.programs.archon.space import Space
from ppl.programs.archon.testing import run_tests, write_tests

__all__ = [
    "Archon",
    "Draft",
    "Drafts",
    "Found",
    "Operator",
    "Space",
    "Trial",
    "critique",
    "fuse",
    "generate",
    "rank",
    "run_tests",
    "search_architectures",
    "verify",
    "write_tests",
]
