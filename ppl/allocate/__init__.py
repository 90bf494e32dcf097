"""How to spend a budget of calls: which method, how many samples, which model, for which question.

Functions of records, as `ppl.study` writes them; they ask no model.
"""

__all__: list[str] = []
