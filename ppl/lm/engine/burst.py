"""Several decode steps as one program of our own (`burst.cpp`), for models that are small.

A step of a small model takes less than what is around it: looking up where its rows are, asking for
it, drawing. Where the step is one program (`ppl.lm.engine.whole`) and so is the draw
(`ppl.lm.engine.inversion`), one call makes several, each of the tokens drawn after the one before,
with the digits that each has by itself. It ends where a row may, or makes what this row was last
given again and again while the others go on, as long as that costs less than another call. And it
ends where rows of one text, which are one row to it, draw different tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ppl.lm.engine import inversion
from ppl.lm.engine.building import built, returning
from ppl.lm.engine.leading import Asked
from ppl.lm.engine.linear import LaidOutLinear
from ppl.lm.engine.passes import Passes
from ppl.lm.engine.runs import Slot, Tokens
from ppl.lm.engine.unaltered import Unaltered
from ppl.lm.sampling import PLAIN, Warp

# Bytes of weights that a burst reads: some ten milliseconds, in which nobody else is asked.
_BYTES = 1 << 27
# Steps of one burst.
_MOST = 16
# Of these a position is turned by the same angles, however long the text is.
_ROTATIONS = ("default", "linear", "llama3", "yarn")
_POINTER, _INT64, _INT32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class Burst:
    """Bursts of one model; see `ppl.lm.engine.leading.Bursts`.

    Args:
        runner: what makes its passes.
        base: the decoder without its head.
        head: its head, from last hidden states to logits, with nothing after it.

    Raises:
        RuntimeError: its steps, its head or its draws are no programs of our own, or it is too
            large for bursts to pay.
    """

    few = 4
    pausing = shares = True

    def __init__(self, runner: Passes, base: Any, head: Any) -> None:
        if runner.whole is None or runner.windows:
            raise RuntimeError("its steps are not one program, or do not look at all before them")
        if not isinstance(head, LaidOutLinear) or not head.own_rows:
            raise RuntimeError("its head is no product of our own")
        weight = base.embed_tokens.weight
        fits = type(base.embed_tokens) is nn.Embedding and weight.is_contiguous()
        fits &= weight.shape[1] == head.in_features and len(weight) >= head.out_features
        if not fits or weight.dtype != runner.dtype:
            raise RuntimeError("its embeddings are of another kind, or not one for each logit")
        if getattr(base.rotary_emb, "rope_type", "default") not in _ROTATIONS:
            raise RuntimeError("it turns positions by the length of the text")
        if not inversion.draws_alike(runner.dtype):
            raise RuntimeError("its draws are no program of our own")
        layers = [m for m in (head, *base.modules()) if isinstance(m, LaidOutLinear)]
        size = sum(part.nbytes for layer in layers for part in layer.memory)
        self.most = min(_MOST, _BYTES // size)
        if self.most < 2:
            raise RuntimeError("it is too large")
        self._runner, self._whole, self._base, self._head = runner, runner.whole, base, head
        self._embeddings, self._where = base.embed_tokens, weight.data_ptr()
        self._embedding = weight.detach()  # kept: the program has only its address
        self._unaltered = Unaltered(head)
        half = runner.dtype == torch.bfloat16
        draw = ctypes.cast(inversion.program(half), _POINTER).value
        step = ctypes.cast(self._whole.program, _POINTER).value
        dim = self._whole.dim
        self._model = np.array([step, draw, *head.addresses, self._where, dim], dtype=np.int64)
        self._run = _program(half)

    def takes(self, warps: Sequence[Warp]) -> int:
        """How many steps of rows that draw so one burst may be; 0 for none: where anything is left
        out of a law, or logits of half precision are to be divided in a higher one."""
        rows, halves = len(warps), self._runner.dtype == torch.bfloat16
        if not all(warp == PLAIN if halves else warp.only_heats for warp in warps):
            return 0
        head, embeddings = self._head, self._embeddings
        as_was = self._unaltered() and embeddings.weight.data_ptr() == self._where
        if not as_was or rows > head.own_rows or not self._runner.takes_whole(rows):
            return 0
        return self.most

    def __call__(
        self,
        slots: Sequence[Slot],
        texts: Sequence[Tokens],
        slot_of: Sequence[int],
        asked: Asked,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """See `ppl.lm.engine.leading.Bursts`."""
        uniforms, pauses, temperatures, steps, patient = asked
        most, draws = uniforms.shape
        _, _, inputs, window, spans, standing = self._runner.place(slots, texts, most)
        rows = len(slots)
        if window.slots is None:
            return None  # layers have come to do something else since `takes` was asked
        x, *turns = self._whole.begun(inputs[0], inputs[1] + torch.arange(most))
        with self._runner.adapters.seated(1):
            call, kept = self._whole.asked(x, inputs[1], window, spans or (), standing)
        of = np.array(slot_of)
        numbers = np.ascontiguousarray(np.minimum(uniforms, 1 - 2.0**-52))
        ends = np.array([each.ctypes.data for each in pauses])
        allowed, drawn = np.zeros((2, rows), dtype=np.int64)
        np.maximum.at(allowed, of, steps)
        heat = None
        if any(each != 1 for each in temperatures):
            heat = np.array(temperatures, dtype=np.float32)
        ids = inputs[0].contiguous()
        tokens, log_probs = np.empty((most, draws), dtype=np.int64), np.empty((most, draws))
        logits = x.new_empty(rows, self._head.out_features)
        in_order = draws == rows and (of == np.arange(rows)).all()
        read = None if in_order and heat is None else logits.new_empty(draws, logits.shape[1])
        out = torch.empty_like(x)
        states = window.states
        made = self._run(
            self._model.ctypes.data,
            most,
            # A step of all costs about what asking for another burst does.
            rows if patient else 0,
            states.data_ptr(),
            states.stride(0),
            states.stride(1),
            draws,
            of.ctypes.data,
            ends.ctypes.data,
            allowed.ctypes.data,
            None if heat is None else heat.ctypes.data,
            numbers.ctypes.data,
            ids.data_ptr(),
            tokens.ctypes.data,
            log_probs.ctypes.data,
            drawn.ctypes.data,
            logits.data_ptr(),
            None if read is None else read.data_ptr(),
            *call,
            *(part.data_ptr() for part in (window.slots, *turns, x, out)),
        )
        del kept
        self._runner.count(rows * made, int(drawn.sum()), made)
        for slot, count in zip(slots, drawn.tolist(), strict=True):
            slot.length += count
        tokens = np.where(np.arange(made)[:, None] < drawn[of], tokens[:made], -1)
        return tokens, log_probs[:made]


@cache
def _program(half: bool) -> Any:
    takes: list[Any] = [_POINTER, _INT64, _INT64, _POINTER, _INT64, _INT64, _INT64]
    takes += [*[_POINTER] * 11, _POINTER, ctypes.c_float, ctypes.c_float, _INT64, _INT32]
    takes += [*[_POINTER] * 5, _INT64, _POINTER, *[_INT64] * 4, *[_POINTER] * 6]
    return returning(built("burst.cpp", HALF=int(half)).burst, *takes, kind=_INT64)
