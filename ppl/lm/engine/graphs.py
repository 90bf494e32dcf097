"""Decode steps as CUDA graphs: captured once for a shape, replayed for every token after.

A step of a small model on a GPU is hundreds of short kernels, and the processor cannot launch them
as fast as they run. A captured step is one launch. Its shapes are fixed, so rows and keys are
rounded up to buckets; rows that are not there compute for nobody, as padding does.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Captured steps that are kept; each holds the memory of its inputs and results.
_MOST = 64
_KEYS = 128
# All captures of a process are made on one stream (torch's), whichever engine they are of.
_CAPTURING = threading.Lock()


def rows_bucket(rows: int) -> int:
    """1, 2, 4, 8, and then multiples of 8: at most 8 rows too many."""
    return 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8


def keys_bucket(keys: int, most: int) -> int:
    """Multiples of 128, but no more keys than there are."""
    return min(-(-keys // _KEYS) * _KEYS, most)


def cuda_graph(
    step: Callable[[], Tensor], device: torch.device, pool: Any = None
) -> Callable[[], Tensor]:
    """Captures a step that reads and writes the same memory each time; returns its replay.

    Raises:
        ValueError: the device is no GPU.
        RuntimeError: the step does something that cannot be captured, such as looking at a value.
    """
    if device.type != "cuda":
        raise ValueError(f"graphs=True: CUDA graphs need a GPU, the model is on {device}")
    with _CAPTURING, torch.cuda.device(device):
        return _captured(step, pool)


def _captured(step: Callable[[], Tensor], pool: Any) -> Callable[[], Tensor]:
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):  # libraries set themselves up in first calls, outside the graph
        for _ in range(2):
            step()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate meanwhile, and wait for what they drew.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        output = step()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


@dataclass
class _Captured:
    given: tuple[Tensor, ...]
    replay: Callable[[], Tensor]


class StepGraphs:
    """The captured steps of one engine.

    Args:
        step: `(table, ..., low, visible) -> result`, one pass over the slots from `low` on: `table`
            `[3, B, 1]` has token ids, positions and columns, `visible` bounds the positions.
        device: where.
        capture: makes a replay of a step without arguments; None: `cuda_graph`.

    Attributes:
        captured: steps captured so far, replayed ones not counted.
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        device: torch.device,
        capture: Callable[[Callable[[], Tensor], torch.device], Callable[[], Tensor]] | None = None,
    ) -> None:
        self._step, self._device = step, device
        self._sharing = capture is None and device.type == "cuda"
        self._capture = capture or cuda_graph
        self._known: OrderedDict[tuple[Any, ...], _Captured] = OrderedDict()
        self.captured = 0
        self._forget()

    def run(self, memory: int, low: int, visible: int, *given: Tensor, replays: int = 1) -> Tensor:
        """What one pass returns, the states `[B, 1, hidden]` say; overwritten by the next of the
        same shape.

        Args:
            memory: which allocation of keys and values. What was captured for another is dropped.
            low, visible, given: what the step is called with.
            replays: how often; the step may leave in its tensors what the next is to be given.
        """
        if any(key[0] != memory for key in self._known):
            self._forget()
        key = memory, low, visible, *(tensor.shape for tensor in given)
        if key not in self._known:
            own = tuple(tensor.to(self._device, copy=True) for tensor in given)
            replay = self._capture(lambda: self._step(*own, low, visible), self._device)
            self._known[key] = _Captured(own, replay)
            self.captured += 1
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        captured = self._known[key]
        for own_one, one in zip(captured.given, given, strict=True):
            own_one.copy_(one, non_blocking=True)
        for _ in range(replays - 1):
            captured.replay()
        return captured.replay()

    def _forget(self) -> None:
        self._known.clear()
        if self._sharing:
            # One after the other, and the result of each is copied before the next: all can use the
            # same memory for what lies in between. Without its last graph a pool takes no more.
            self._capture = functools.partial(cuda_graph, pool=torch.cuda.graph_pool_handle())
