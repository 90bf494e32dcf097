"""Verifiers: likelihoods of "correct so far", one file per kind."""

from typing import TYPE_CHECKING

from ppl.lazy import attach

if TYPE_CHECKING:
    from ppl.runtime.verdict import (
        Aggregate,
        JudgeRequest,
        Meaning,
        Ranker,
        Scorer,
        Verdict,
        Verifier,
        log_potential,
    )
    from ppl.verifiers.combine.acceptance import FalsePositives, false_positive_rate, fit_types
    from ppl.verifiers.combine.cache import Cached
    from ppl.verifiers.combine.calibration import (
        Calibrated,
        Isotonic,
        Platt,
        Temperature,
        log_odds,
        step_scores,
    )
    from ppl.verifiers.combine.ensemble import DawidSkene, Ensemble, Votes
    from ppl.verifiers.combine.groups import GroupPlatt, Refit, reliability_by_group, step_groups
    from ppl.verifiers.combine.imperfect import ImperfectVerifier, ValueCurve
    from ppl.verifiers.combine.noise import Channel, Flipped, LogitNoise, QuestionBias
    from ppl.verifiers.combine.reliability import Reliability, reliability
    from ppl.verifiers.exact.grammar import Grammar, JsonSchema, Regex
    from ppl.verifiers.exact.lean import LeanProof, LeanRepl
    from ppl.verifiers.exact.math_answer import MathAnswer, MathComparer
    from ppl.verifiers.exact.proof_state import ProofState, Prover, TacticError
    from ppl.verifiers.exact.propositional.prover import Propositional
    from ppl.verifiers.exact.sandbox import Check, Outcome, Sandbox
    from ppl.verifiers.exact.similarity import Embedder, Similarity, clusters, semantic_entropy
    from ppl.verifiers.exact.unit_tests import UnitTests
    from ppl.verifiers.function import FunctionRanker, FunctionVerifier, ranker, verifier
    from ppl.verifiers.generative.backward import ForwardBackward, fobar, forward_backward
    from ppl.verifiers.generative.fobar import FOBAR
    from ppl.verifiers.generative.judge import GenRM, Judge, SelfEvaluation, chat
    from ppl.verifiers.generative.log_odds import LogOdds
    from ppl.verifiers.generative.math_prompter import Agreement, MathPrompter, agreement
    from ppl.verifiers.laws import check_verifier
    from ppl.verifiers.models.confidence import ConfidenceHead
    from ppl.verifiers.models.formats import FORMATS, PRMFormat, tagged
    from ppl.verifiers.models.heads import Labels, Layers, Words
    from ppl.verifiers.models.outcome import OutcomeModel, Potential, RewardModel
    from ppl.verifiers.models.prm import PRM
    from ppl.verifiers.models.quantile import (
        fit_quantiles,
        pinball,
        quantile_head,
        quantile_head_of,
        samples_needed,
    )
else:
    __getattr__, __dir__ = attach(__name__)

__all__ = [
    "FOBAR",
    "FORMATS",
    "PRM",
    "Aggregate",
    "Agreement",
    "Cached",
    "Calibrated",
    "Channel",
    "Check",
    "ConfidenceHead",
    "DawidSkene",
    "Embedder",
    "Ensemble",
    "FalsePositives",
    "Flipped",
    "ForwardBackward",
    "FunctionRanker",
    "FunctionVerifier",
    "GenRM",
    "Grammar",
    "GroupPlatt",
    "ImperfectVerifier",
    "Isotonic",
    "JsonSchema",
    "Judge",
    "JudgeRequest",
    "Labels",
    "Layers",
    "LeanProof",
    "LeanRepl",
    "LogOdds",
    "LogitNoise",
    "MathAnswer",
    "MathComparer",
    "MathPrompter",
    "Meaning",
    "Outcome",
    "OutcomeModel",
    "PRMFormat",
    "Platt",
    "Potential",
    "ProofState",
    "Propositional",
    "Prover",
    "QuestionBias",
    "Ranker",
    "Refit",
    "Regex",
    "Reliability",
    "RewardModel",
    "Sandbox",
    "Scorer",
    "SelfEvaluation",
    "Similarity",
    "TacticError",
    "Temperature",
    "UnitTests",
    "ValueCurve",
    "Verdict",
    "Verifier",
    "Votes",
    "Words",
    "agreement",
    "chat",
    "check_verifier",
    "clusters",
    "false_positive_rate",
    "fit_quantiles",
    "fit_types",
    "fobar",
    "forward_backward",
    "log_odds",
    "log_potential",
    "pinball",
    "quantile_head",
    "quantile_head_of",
    "ranker",
    "reliability",
    "reliability_by_group",
    "samples_needed",
    "semantic_entropy",
    "step_groups",
    "step_scores",
    "tagged",
    "verifier",
]
