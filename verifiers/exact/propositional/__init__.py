"""Propositional logic: formulas, a kernel that checks proof terms, and tactics that make them."""
