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
from ppl.verifiers.function import FunctionRanker, FunctionVerifier, ranker, verifier
from ppl.verifiers.laws import check
from ppl.verifiers.prm import PRM

__all__ = [
    "PRM",
    "Aggregate",
    "Cached",
    "FunctionRanker",
    "FunctionVerifier",
    "JudgeRequest",
    "Meaning",
    "Ranker",
    "Scorer",
    "Verdict",
    "Verifier",
    "check",
    "log_potential",
    "ranker",
    "verifier",
]
