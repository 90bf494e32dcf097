"""Inference engines: interchangeable policies over `tree.expand`, one file per family."""

from ppl.searchers.ab_mcts import ABMCTSA, ABMCTSM
from ppl.searchers.alive import AliveParticleFilter
from ppl.searchers.beam import BeamSearch, LookaheadSearch, StochasticBeamSearch
from ppl.searchers.best_first import AStar, BestFirst
from ppl.searchers.best_of_n import BestOfN
from ppl.searchers.dvts import DVTS
from ppl.searchers.greedy import Greedy
from ppl.searchers.gumbel_mcts import GumbelMCTS
from ppl.searchers.mcts import MCTS
from ppl.searchers.multi_perspective import MultiPerspective
from ppl.searchers.particle_filter import ParticleFilter
from ppl.searchers.particle_gibbs import ParallelTempering, ParticleGibbs
from ppl.searchers.phi_decoding import PhiDecoding
from ppl.searchers.rain import RAIN
from ppl.searchers.rebase import REBASE
from ppl.searchers.resample_move import ResampleMove
from ppl.searchers.rollover import RolloverBudgetForcing
from ppl.searchers.search import Search, Searcher, run_all
from ppl.searchers.smc import SMC
from ppl.searchers.steering import SMCSteering
from ppl.searchers.temperature import EntropicAnnealing, TargetESS
from ppl.searchers.tree_refinement import TreeRefinement
from ppl.searchers.vectorized import VectorizedSMC

__all__ = [
    "ABMCTSA",
    "ABMCTSM",
    "DVTS",
    "MCTS",
    "RAIN",
    "REBASE",
    "SMC",
    "AStar",
    "AliveParticleFilter",
    "BeamSearch",
    "BestFirst",
    "BestOfN",
    "EntropicAnnealing",
    "Greedy",
    "GumbelMCTS",
    "LookaheadSearch",
    "MultiPerspective",
    "ParallelTempering",
    "ParticleFilter",
    "ParticleGibbs",
    "PhiDecoding",
    "ResampleMove",
    "RolloverBudgetForcing",
    "SMCSteering",
    "Search",
    "Searcher",
    "StochasticBeamSearch",
    "TargetESS",
    "TreeRefinement",
    "VectorizedSMC",
    "run_all",
]
