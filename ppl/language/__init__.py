"""What a program is written with."""

from typing import TYPE_CHECKING

from ppl.lazy import attach

if not TYPE_CHECKING:
    __getattr__, __dir__ = attach(__name__)
