"""What a search returns, its files and its pictures."""

from typing import TYPE_CHECKING

from ppl.lazy import attach

if TYPE_CHECKING:
    from ppl.posterior.posterior import Posterior, Sample
else:
    __getattr__, __dir__ = attach(__name__)

__all__ = ["Posterior", "Sample"]
