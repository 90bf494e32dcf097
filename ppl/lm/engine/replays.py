"""Several decode steps as replays of one CUDA graph, in which the next token is drawn, too.

Between two captured steps a GPU waits: for the logits to be drawn from, for the processor to look
at what was drawn, and for the next step to be asked for. Captured with its head and its draw, a
step leaves its token where the next one reads it, and several are launched one after the other with
nobody between them. They do not end where a row does: what such a row computes further is for
nobody, and takes no time, as the others are in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl.lm.engine.engine import Engine
from ppl.lm.engine.graphs import StepGraphs, keys_bucket
from ppl.lm.engine.leading import Asked
from ppl.lm.engine.runs import Slot, Tokens
from ppl.lm.sampling import Warp, draw_plainly

# Steps of one burst. The processor looks at what they drew while the device waits: the more steps,
# the less, and the more is computed for nobody.
_MOST = 16


class Replays:
    """Bursts of one model whose steps are captured; see `ppl.lm.engine.leading.Bursts`.

    Args:
        engine: what makes its passes.
        head: from last hidden states `[n, hidden]` to logits `[n, V]`.

    Attributes:
        graphs: the captured steps.

    Raises:
        RuntimeError: its steps are not captured, or there is no embedding for each logit.
    """

    few = 1
    pausing = shares = False

    def __init__(self, engine: Engine, head: Callable[[Tensor], Tensor]) -> None:
        self._runner, self._slots, self._head = engine.runner, engine.slots, head
        if self._runner.graphs is None:
            raise RuntimeError("its steps are not captured")
        hidden = torch.zeros(
            1, engine.slots.layout.hidden, dtype=self._runner.dtype, device=self._runner.device
        )
        if head(hidden).shape[1] > engine.vocabulary:
            raise RuntimeError("it has more logits than embeddings")
        self.graphs = StepGraphs(self._step, engine.device)

    def takes(self, warps: Sequence[Warp]) -> int:
        """How many steps of rows that draw so one burst may be; 0 for none: where anything is left
        out of a law."""
        plain = all(warp.only_heats for warp in warps) and not self._runner.adapters.there
        return _MOST if plain else 0

    def __call__(
        self,
        slots: Sequence[Slot],
        texts: Sequence[Tokens],
        slot_of: Sequence[int],
        asked: Asked,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """See `ppl.lm.engine.leading.Bursts`; rows make as many steps as there are numbers."""
        most = len(asked.uniforms)
        low, where, inputs, window, spans, standing = self._runner.place(slots, texts, most)
        if spans is not None or standing is not None:
            return None
        rows = inputs.shape[1]
        numbers = np.full((1 + _MOST, rows), 0.5)
        numbers[0] = 1.0
        numbers[0, where] = asked.temperatures
        numbers[1 : 1 + most, where] = asked.uniforms
        found = self.graphs.run(
            self._slots.generation,
            low,
            keys_bucket(window.visible, self._slots.length),
            inputs,
            torch.from_numpy(numbers),
            torch.zeros(_MOST, 2, rows, dtype=torch.float64),
            replays=most,
        )
        tokens, log_probs = found[-most:].cpu().numpy()[:, :, where].swapaxes(0, 1)
        finite = np.isfinite(log_probs).all(axis=1)
        made = most if finite.all() else int(finite.argmin()) + 1
        self._runner.count(rows * most, len(slots) * made, most)
        for slot in slots:
            slot.length += made
        return tokens[:made].astype(np.int64), log_probs[:made]

    def _step(
        self, table: Tensor, numbers: Tensor, drawn: Tensor, low: int, visible: int
    ) -> Tensor:
        """One step, its head and its draw; leaves its tensors as the next is to find them.

        Args:
            table: `[3, B, 1]` ids, positions and columns.
            numbers: `[1 + T, B]` temperatures, and by what to draw.
            drawn: `[T, 2, B]` tokens and log-probabilities, the latest last.
            low, visible: as for a captured step.
        """
        states = self._runner.captured_pass(table, low, visible)[:, 0]
        logits = self._head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits / numbers[0].to(logits.dtype)[:, None]
        tokens, log_probs = draw_plainly(logits, numbers[1])
        numbers[1:] = numbers[1:].roll(-1, 0)
        drawn.copy_(torch.cat([drawn[1:], torch.stack([tokens.double(), log_probs])[None]]))
        table[0, :, 0] = tokens
        table[1:] += 1
        # Rows that are not there write where nobody reads.
        table[2].clamp_(max=self._slots.length)
        return drawn
