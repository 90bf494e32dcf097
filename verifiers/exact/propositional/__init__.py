"""Propositional logic: formulas, a kernel that checks proof terms, and tactics that make them."""

from typing import TYPE_CHECKING

from ppl.lazy import attach

if not TYPE_CHECKING:
    __getattr__, __dir__ = attach(__name__)
