"""Choosing an answer from samples, and knowing when to stop paying for more.

Decision rules are functions of a posterior, or of answers with what is known of them; they ask no
model. `ppl.decide.scaling` says what rules would do with fewer or more samples.
"""
