"""Verifiers: likelihoods of "correct so far", one file per kind."""

from ppl.verdict import (
    Aggregate,
    JudgeRequest,
    Meaning,
    Ranker,
    Scorer,
    Verdict,
    Verifier,
    log_potential,
)
from ppl.verifiers.cache import Cached
from ppl.verifiers.formats import FORMATS, PRMFormat, tagged
from ppl.verifiers.function import FunctionRanker, FunctionVerifier, ranker, verifier
from ppl.verifiers.heads import Labels, Layers, Words
from ppl.verifiers.laws import check
from ppl.verifiers.prm import PRM

__all__ = [
    "FORMATS",
    "PRM",
    "Aggregate",
    "Cached",
    "FunctionRanker",
    "FunctionVerifier",
    "JudgeRequest",
    "Labels",
    "Layers",
    "Meaning",
    "PRMFormat",
    "Ranker",
    "Scorer",
    "Verdict",
    "Verifier",
    "Words",
    "check",
    "log_potential",
    "ranker",
    "tagged",
    "verifier",
]
