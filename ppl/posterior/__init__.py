"""What a search returns, its files and its pictures."""

from ppl.posterior.posterior import Posterior, Sample

__all__ = ["Posterior", "Sample"]
