"""Choosing an answer from samples, and knowing when to stop paying for more.

Decision rules are functions of a posterior, or of answers with what is known of them; they ask no
model, but for aggregators. `ppl.decide.scaling` says what rules would do with fewer samples, or
more.
"""

from typing import TYPE_CHECKING

from ppl.lazy import attach

if TYPE_CHECKING:
    from ppl.decide.aggregation import (
        Aggregated,
        aggregate,
        flip_rate,
        sample_set_answer,
        universal_self_consistency,
    )
    from ppl.decide.bayes_risk import minimum_bayes_risk
    from ppl.decide.candidates import Candidates
    from ppl.decide.certainty import DeepConf, self_certainty, token_confidence, trace_confidence
    from ppl.decide.columns import Columns, Weighting
    from ppl.decide.confidence import soft_self_consistency
    from ppl.decide.conformal import AnswerSet, ConformalSets
    from ppl.decide.consensus import Consensus
    from ppl.decide.laws import best_of_n_divergence, best_of_n_law, vote_law
    from ppl.decide.perplexity import RPC
    from ppl.decide.pessimism import Pessimistic, PessimisticLaw, pessimistic_law
    from ppl.decide.ranks import Borda, MajorityOfTheBests
    from ppl.decide.risk import (
        RiskCoverage,
        SelectiveScore,
        answering_threshold,
        risk_coverage,
        selective_score,
    )
    from ppl.decide.seen import Seen
    from ppl.decide.selective import Abstained, answer_or_abstain
    from ppl.decide.sequential import SequentialTest
    from ppl.decide.set_aggregator import SampleSetAggregator
    from ppl.decide.stopping import EarlyStop, Settled, StoppingRule
    from ppl.decide.voting import best, draw, shares, vote
else:
    __getattr__, __dir__ = attach(__name__)

__all__ = [
    "RPC",
    "Abstained",
    "Aggregated",
    "AnswerSet",
    "Borda",
    "Candidates",
    "Columns",
    "ConformalSets",
    "Consensus",
    "DeepConf",
    "EarlyStop",
    "MajorityOfTheBests",
    "Pessimistic",
    "PessimisticLaw",
    "RiskCoverage",
    "SampleSetAggregator",
    "Seen",
    "SelectiveScore",
    "SequentialTest",
    "Settled",
    "StoppingRule",
    "Weighting",
    "aggregate",
    "answer_or_abstain",
    "answering_threshold",
    "best",
    "best_of_n_divergence",
    "best_of_n_law",
    "draw",
    "flip_rate",
    "minimum_bayes_risk",
    "pessimistic_law",
    "risk_coverage",
    "sample_set_answer",
    "selective_score",
    "self_certainty",
    "shares",
    "soft_self_consistency",
    "token_confidence",
    "trace_confidence",
    "universal_self_consistency",
    "vote",
    "vote_law",
]
