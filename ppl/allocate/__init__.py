"""How to spend a budget of calls: which method, how many samples, which model, for which question.

Functions of records, as `ppl.study` writes them; they ask no model.
"""

from ppl.allocate.difficulty import AtBudget, Policy, by_difficulty
from ppl.allocate.exchange import exchange
from ppl.allocate.mix import mix, mix_coverage
from ppl.allocate.records import Record, records

__all__ = [
    "AtBudget",
    "Policy",
    "Record",
    "by_difficulty",
    "exchange",
    "mix",
    "mix_coverage",
    "records",
]
