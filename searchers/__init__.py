"""Inference engines: interchangeable policies over `tree.expand`, one file per family."""

from ppl.decide.consensus import Consensus
from ppl.decide.sequential import SequentialTest
from ppl.decide.stopping import EarlyStop, Settled
from ppl.runtime.result import Result
from ppl.runtime.weights import Weights
from ppl.searchers.beams.beam import BeamSearch, LookaheadSearch, StochasticBeamSearch
from ppl.searchers.beams.best_first import AStar, BestFirst
from ppl.searchers.beams.dvts import DVTS
from ppl.searchers.beams.greedy import Greedy
from ppl.searchers.beams.multi_perspective import MultiPerspective
from ppl.searchers.beams.phi_decoding import PhiDecoding
from ppl.searchers.beams.rebase import REBASE
from ppl.searchers.laws import check_searcher
from ppl.searchers.particles.alive import AliveParticleFilter
from ppl.searchers.particles.particle_filter import ParticleFilter
from ppl.searchers.particles.particle_gibbs import ParallelTempering, ParticleGibbs
from ppl.searchers.particles.power import PowerSMC
from ppl.searchers.particles.power_mh import PowerMH, PowerTempering
from ppl.searchers.particles.resample_move import ResampleMove
from ppl.searchers.particles.smc import SMC
from ppl.searchers.particles.steering import SMCSteering
from ppl.searchers.particles.temperature import EntropicAnnealing, TargetESS
from ppl.searchers.particles.vectorized import VectorizedSMC
from ppl.searchers.sampling.adaptive import AdaptiveSampling
from ppl.searchers.sampling.best_of_n import BestOfN
from ppl.searchers.sampling.first_finish import FirstFinish
from ppl.searchers.sampling.fractured import FracturedSampling
from ppl.searchers.sampling.gated import Gated, MomentumUncertainty
from ppl.searchers.sampling.hedged import Hedged
from ppl.searchers.sampling.iterative import IterativeAgentDecoding, feedback
from ppl.searchers.sampling.model_switch import ModelSwitch
from ppl.searchers.sampling.rollover import RolloverBudgetForcing
from ppl.searchers.sampling.self_aggregation import RecursiveSelfAggregation, others
from ppl.searchers.search import Search, Searcher, run_all
from ppl.searchers.state import Frontier, Particles, State
from ppl.searchers.trees.ab_mcts import ABMCTSA, ABMCTSM
from ppl.searchers.trees.gumbel_mcts import GumbelMCTS
from ppl.searchers.trees.mcts import MCTS
from ppl.searchers.trees.rain import RAIN
from ppl.searchers.trees.tree_refinement import TreeRefinement
from ppl.searchers.trees.vgb import VGB

__all__ = [
    "ABMCTSA",
    "ABMCTSM",
    "DVTS",
    "MCTS",
    "RAIN",
    "REBASE",
    "SMC",
    "VGB",
    "AStar",
    "AdaptiveSampling",
    "AliveParticleFilter",
    "BeamSearch",
    "BestFirst",
    "BestOfN",
    "Consensus",
    "EarlyStop",
    "EntropicAnnealing",
    "FirstFinish",
    "FracturedSampling",
    "Frontier",
    "Gated",
    "Greedy",
    "GumbelMCTS",
    "Hedged",
    "IterativeAgentDecoding",
    "LookaheadSearch",
    "ModelSwitch",
    "MomentumUncertainty",
    "MultiPerspective",
    "ParallelTempering",
    "ParticleFilter",
    "ParticleGibbs",
    "Particles",
    "PhiDecoding",
    "PowerMH",
    "PowerSMC",
    "PowerTempering",
    "RecursiveSelfAggregation",
    "ResampleMove",
    "Result",
    "RolloverBudgetForcing",
    "SMCSteering",
    "Search",
    "Searcher",
    "SequentialTest",
    "Settled",
    "State",
    "StochasticBeamSearch",
    "TargetESS",
    "TreeRefinement",
    "VectorizedSMC",
    "Weights",
    "check_searcher",
    "feedback",
    "others",
    "run_all",
]
