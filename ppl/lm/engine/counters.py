"""What an engine has done and how it runs, for people: nothing goes by it."""

from __future__ import annotations

from typing import Literal

import torch

from ppl.lm.engine.memory import Memory
from ppl.lm.engine.passes import Passes


class Counters:
    """The part of an `Engine` that is read, never called. Numbers count since it was made."""

    name: str
    device: torch.device
    dtype: torch.dtype
    capacity: int
    runner: Passes
    _memory: Memory

    @property
    def passes(self) -> int:
        """Forward passes made."""
        return self.runner.made

    @property
    def tokens_computed(self) -> int:
        """Tokens that passes computed for a row."""
        return self.runner.tokens_computed

    @property
    def tokens_padded(self) -> int:
        """Tokens that passes computed for nobody."""
        return self.runner.tokens_padded

    @property
    def peak_nbytes(self) -> int:
        """Most bytes that slots and tree took together."""
        return self._memory.peak_nbytes

    @property
    def steps(self) -> Literal["graphs", "whole", "compiled", "plain"]:
        """How steps of one token a row run: captured as CUDA graphs; as one program of the
        engine's own, where there is one for the model, its dtype and this machine, and nothing
        needs its layers; through `torch.compile`; or layer by layer, as the model itself does."""
        if self.runner.graphs is not None:
            return "graphs"
        if self.runner.takes_whole(1):
            return "whole"
        return "plain" if self.runner.compiled is None else "compiled"

    def __repr__(self) -> str:
        return (
            f"<Engine of {self.name}: {str(self.dtype).removeprefix('torch.')} on {self.device}, "
            f"{self.steps} steps, {self.passes} passes, "
            f"{self.tokens_computed} tokens computed, {self.tokens_padded} padded, at most "
            f"{self.peak_nbytes / 1e6:.1f} of {self.capacity / 1e6:.1f} MB>"
        )
