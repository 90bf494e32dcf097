"""Kernels to compose samplers of, whose law is derived from their parts.

from ppl.searchers.kernels import Composed, extend, repeat, resample, weigh

smc = repeat(extend >> weigh >> resample("systematic", below=0.5))
posterior = Composed(16, smc).run(program, seed=0)     # SMC(16), bit for bit
"""

from ppl.searchers.kernels.check import check_kernel
from ppl.searchers.kernels.composed import Composed
from ppl.searchers.kernels.kernel import Chain, Cloud, Kernel, Law, Repeat
from ppl.searchers.kernels.moves import PIMH, Move, SuffixMH, TraceMH
from ppl.searchers.kernels.parts import Extend, Merge, Resample, Split, Twist, Untwist, Weigh

extend = Extend()
"""Every open particle to its next checkpoint."""
weigh = Weigh()
"""What was drawn goes into the weights."""
merge = Merge()
"""Siblings that chose the same become one."""
untwist = Untwist()
"""All twists are taken out of the weights."""
repeat = Repeat
"""`Repeat`: again and again."""
resample = Resample
"""`Resample`: ancestors by their weights."""
split = Split
"""`Split`: m particles of every open one."""
twist = Twist
"""`Twist`: a guess of what is to come."""
suffix_mh = SuffixMH
"""`SuffixMH`: the last steps anew."""
trace_mh = TraceMH
"""`TraceMH`: all from a random step on anew."""
pimh = PIMH
"""`PIMH`: a whole run of SMC anew."""

__all__ = [
    "PIMH",
    "Chain",
    "Cloud",
    "Composed",
    "Extend",
    "Kernel",
    "Law",
    "Merge",
    "Move",
    "Repeat",
    "Resample",
    "Split",
    "SuffixMH",
    "TraceMH",
    "Twist",
    "Untwist",
    "Weigh",
    "check_kernel",
    "extend",
    "merge",
    "pimh",
    "repeat",
    "resample",
    "split",
    "suffix_mh",
    "trace_mh",
    "twist",
    "untwist",
    "weigh",
]
