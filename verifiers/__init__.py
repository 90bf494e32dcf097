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
from ppl.verifiers.fobar import FOBAR, forward_backward
from ppl.verifiers.formats import FORMATS, PRMFormat, tagged
from ppl.verifiers.function import FunctionRanker, FunctionVerifier, ranker, verifier
from ppl.verifiers.generative import GenRM, Judge, SelfEvaluation, chat
from ppl.verifiers.heads import Labels, Layers, Words
from ppl.verifiers.laws import check
from ppl.verifiers.outcome import OutcomeModel, Potential, RewardModel
from ppl.verifiers.prm import PRM

__all__ = [
    "FOBAR",
    "FORMATS",
    "PRM",
    "Aggregate",
    "Cached",
    "FunctionRanker",
    "FunctionVerifier",
    "GenRM",
    "Judge",
    "JudgeRequest",
    "Labels",
    "Layers",
    "Meaning",
    "OutcomeModel",
    "PRMFormat",
    "Potential",
    "Ranker",
    "RewardModel",
    "Scorer",
    "SelfEvaluation",
    "Verdict",
    "Verifier",
    "Words",
    "chat",
    "check",
    "forward_backward",
    "log_potential",
    "ranker",
    "tagged",
    "verifier",
]
