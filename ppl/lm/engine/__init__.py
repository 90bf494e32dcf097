"""The in-process engine: batched, ragged, prefix-sharing passes through a decoder."""

from typing import TYPE_CHECKING

from ppl.lazy import attach

if not TYPE_CHECKING:
    __getattr__, __dir__ = attach(__name__)
