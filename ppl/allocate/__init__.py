"""How to spend a budget of calls: which method, how many samples, which model, for which question.

Functions of records, as `ppl.study` writes them; they ask no model.
"""

from ppl.allocate.difficulty import AtBudget, Policy, by_difficulty
from ppl.allocate.exchange import exchange
from ppl.allocate.hyper_scale import (
    Drawn,
    HyperScale,
    KVGain,
    KVPoint,
    KVRecord,
    hyper_scale,
    kv_records,
)
from ppl.allocate.mix import mix, mix_coverage
from ppl.allocate.records import Record, records

__all__ = [
    "AtBudget",
    "Drawn",
    "HyperScale",
    "KVGain",
    "KVPoint",
    "KVRecord",
    "Policy",
    "Record",
    "by_difficulty",
    "exchange",
    "hyper_scale",
    "kv_records",
    "mix",
    "mix_coverage",
    "records",
]
