"""Verifiers: likelihoods of "correct so far", one file per kind."""

from ppl.verdict import Aggregate, JudgeRequest, Verdict, Verifier, log_potential
from ppl.verifiers.function import FunctionVerifier, verifier
from ppl.verifiers.prm import PRM

__all__ = [
    "PRM",
    "Aggregate",
    "FunctionVerifier",
    "JudgeRequest",
    "Verdict",
    "Verifier",
    "log_potential",
    "verifier",
]
