"""Passes of a few tokens a row, of unlike numbers, for which the program of a step serves: each
token is a row of its own, at its position in the slot that it shares with its neighbours.

Nothing is padded. What the tokens of a slot have before them is read once for all of them where
that saves something; where it does not, each reads it for itself, as a step does, and its numbers
are those of a step to the last bit.

Symbols: `T` tokens of all rows together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl.lm.engine.beside import ID
from ppl.lm.engine.runs import Slot, Tokens, Trunk
from ppl.lm.engine.slots import Slots, Window
from ppl.lm.engine.spans import Span


@dataclass
class Blocks:
    """The missing ends of some texts, as the rows of a pass.

    Attributes:
        inputs: `[3, T, 1]` ids, positions, and places in the slots.
        window: the memory.
        spans: tokens that are in one slot.
        texts, trunks: of each token.
    """

    inputs: Tensor
    window: Window
    spans: list[Span]
    texts: list[Tokens]
    trunks: list[Trunk]


def blocks_of(slots: Slots, rows: Sequence[tuple[Tokens, Slot]], price: int) -> Blocks:
    """A pass over what the slots do not hold yet of these texts; keys are read together where so
    many are saved (`ppl.lm.engine.passes.Passes.price`)."""
    ids: list[int] = []
    positions: list[int] = []
    columns: list[int] = []
    where: list[Slot] = []
    spans: list[Span] = []
    texts: list[Tokens] = []
    trunks: list[Trunk] = []
    for text, slot in rows:
        new, start = len(text) - slot.length, len(ids)
        ids += text[slot.length :]
        positions += range(slot.length, len(text))
        columns += range(slot.tail, slot.tail + new)
        where += [slot] * new
        texts += [text] * new
        trunks += [slot.trunk] * new
        # What is before them is read for all of them at once: the longer of trunk, which they have
        # in common with other rows, too, and slot.
        saves = slot.tail > slot.base and (new - 1) * slot.tail > price
        common = slot.tail if saves else 0
        spans.append(Span(start, start + new, slot.tail + new, common, start))
    table = np.array([ids, positions, columns], dtype=np.int64)
    table[0] &= ID
    inputs = torch.from_numpy(table)[:, :, None]
    window = slots.addressed(where, inputs[2], max(columns) + 1)
    return Blocks(inputs, window, spans, texts, trunks)
