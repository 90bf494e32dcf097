"""Choosing an answer from samples, and knowing when to stop paying for more.

Decision rules are functions of a posterior, or of answers with what is known of them; they ask no
model. `ppl.decide.scaling` says what rules would do with fewer or more samples.
"""

from ppl.decide.consensus import Consensus
from ppl.decide.seen import Seen
from ppl.decide.sequential import SequentialTest
from ppl.decide.stopping import EarlyStop, Settled, StoppingRule

__all__ = ["Consensus", "EarlyStop", "Seen", "SequentialTest", "Settled", "StoppingRule"]
