"""Decode steps captured as CUDA graphs: replayed for other rows, checked when a model is loaded."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest
import torch
from engines import (
    FAMILIES,
    emulated,
    make,
    step_graphs,
)

from ppl.errors import UnsupportedModelError
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.graphs import StepGraphs, cuda_graph, keys_bucket, rows_bucket


@torch.inference_mode()
def test_captured_steps_are_replayed_for_other_rows_and_lengths():
    lm, plain = make(), make()
    lm.engine.runner.graphs = step_graphs(lm.engine)
    texts = [tuple(3 + (i * j) % 90 for j in range(1, 6 + i)) for i in range(1, 6)]
    slots = [list(m.engine.open(texts)[0].values()) for m in (lm, plain)]
    for t in range(60):
        rows = range(5) if t % 2 else range(3)
        texts = [(*text, 3 + t) if i in rows else text for i, text in enumerate(texts)]
        asked = [texts[i] for i in rows]
        ours = lm.engine.step([slots[0][i] for i in rows], asked)
        theirs = plain.engine.step([slots[1][i] for i in rows], asked)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # 4 and 8 rows, twice: memory is allocated anew when the texts outgrow it.
    assert lm.engine.runner.graphs.captured <= 4


@torch.inference_mode()
def test_steps_are_not_captured_again_where_the_same_rows_lie_elsewhere():
    engine = make().engine
    engine.runner.graphs = step_graphs(engine)
    texts = [tuple(range(3 + i, 12 + i)) for i in range(24)]
    slots = list(engine.open(texts)[0].values())
    for first in range(16):  # eight neighbours, which begin at every place in turn
        part = slice(first, first + 8)
        texts[part] = [(*text, 50) for text in texts[part]]
        engine.step(slots[part], texts[part])
    assert engine.runner.graphs.captured <= 5


def test_captured_steps_share_a_pool_until_all_of_them_are_dropped(monkeypatch):
    """A pool whose last graph is gone takes no new one (torch: `use_count > 0`)."""
    alive, pools = weakref.WeakSet(), {}

    class Replay:
        def __call__(self):
            return None

    def capture(step, device, pool):
        assert pool not in pools or any(r in alive for r in pools[pool]), "a pool that is closed"
        replay = Replay()
        alive.add(replay)
        pools.setdefault(pool, weakref.WeakSet()).add(replay)
        return replay

    class Table:
        shape = (3, 2, 1)

        def to(self, device, copy):
            return self

        def copy_(self, other, non_blocking):
            return self

    handles = iter(range(9))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr("ppl.lm.engine.graphs.cuda_graph", capture)
    graphs = StepGraphs(lambda *_: None, torch.device("cuda"))
    for memory in (0, 0, 1, 2):
        for low in (0, 1):
            graphs.run(memory, low, 128, Table())
    assert graphs.captured == 6
    assert len(pools) == 3


def test_captures_in_several_threads_are_made_one_after_the_other(monkeypatch):
    """They share a stream; what other threads do beside a capture is no fault of theirs."""
    under_way, modes = [], []

    class Fake:
        def wait_stream(self, other):
            pass

        def replay(self):
            pass

    @contextmanager
    def graph(graph, pool, capture_error_mode="global"):
        modes.append(capture_error_mode)
        yield

    def step():
        under_way.append(threading.get_ident())
        time.sleep(0.01)
        assert set(under_way) == {threading.get_ident()}
        if len(under_way) == 3:  # two to warm up, and the captured one
            under_way.clear()
        return torch.zeros(1)

    for name in ("current_stream", "Stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, Fake)
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, nullcontext)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    with ThreadPoolExecutor(4) as threads:
        made = [threads.submit(cuda_graph, step, torch.device("cuda")) for _ in range(4)]
        for one in made:
            assert one.result()() == 0
    assert modes == ["thread_local"] * 4


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match="need a GPU"):
        Engine(make().model, name="small", capacity=1 << 20, graphs=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_are_checked_at_loading(family, monkeypatch):
    monkeypatch.setattr("ppl.lm.engine.graphs.cuda_graph", emulated)
    model = make(family).model
    engine = Engine(model, name="small", capacity=1 << 20, graphs=True)
    assert engine.runner.graphs.captured == 1
    monkeypatch.setattr("ppl.lm.engine.graphs.cuda_graph", lambda step, device: lambda: 2 * step())
    with pytest.raises(UnsupportedModelError, match="differ"):
        Engine(model, name="small", capacity=1 << 20, graphs=True)

    def fails(step, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("ppl.lm.engine.graphs.cuda_graph", fails)
    with pytest.raises(UnsupportedModelError, match=r"not permitted.*graphs=False"):
        Engine(model, name="small", capacity=1 << 20, graphs=True)


@pytest.mark.parametrize(
    ("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (64, 64), (65, 72)]
)
def test_row_buckets(rows, bucket):
    assert rows_bucket(rows) == bucket


def test_key_buckets_end_where_the_memory_does():
    assert [keys_bucket(n, 300) for n in (1, 128, 129, 256, 257, 300)] == [
        128,
        128,
        256,
        256,
        300,
        300,
    ]
