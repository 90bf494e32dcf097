"""Inference engines: interchangeable policies over `tree.expand`, one file per family."""

from ppl.searchers.beam import BeamSearch
from ppl.searchers.best_of_n import BestOfN
from ppl.searchers.mcts import MCTS
from ppl.searchers.particle_filter import ParticleFilter
from ppl.searchers.search import Search, Searcher
from ppl.searchers.smc import SMC

__all__ = [
    "MCTS",
    "SMC",
    "BeamSearch",
    "BestOfN",
    "ParticleFilter",
    "Search",
    "Searcher",
]
