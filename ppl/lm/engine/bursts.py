"""Which models make several steps at once, and whether they draw what they draw step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl.lm import sampling
from ppl.lm.engine.admission import samples
from ppl.lm.engine.burst import Burst
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.inversion import invert
from ppl.lm.engine.leading import Asked, Bursts
from ppl.lm.engine.replays import Replays
from ppl.lm.engine.setting import inferring

# A head after which logits are reshaped is no product alone.
_RESHAPED = "final_logit_softcapping", "logit_scale", "logits_scaling"


def bursts_of(
    engine: Engine, config: Any, product: Any, head: Callable[[Tensor], Tensor]
) -> Bursts | None:
    """Bursts of a model, if it can have them, and draws with them what it draws step by step.

    Args:
        engine: what makes its passes.
        config: the model's.
        product: its head, a layer.
        head: the same with what comes after, from last hidden states to logits.
    """
    try:
        if engine.runner.graphs is not None:
            bursts: Bursts = Replays(engine, head)
        elif any(getattr(config, name, None) is not None for name in _RESHAPED):
            return None
        else:
            bursts = Burst(engine.runner, engine.base, product)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, RuntimeError):  # of another kind, in one way or another
        return None
    with engine.lock, inferring():
        found = _agrees(bursts, engine, head)
        for slot in engine.slots.busy:
            engine.drop(slot)
        engine.pool.clear()
        engine.runner.forget()
    return bursts if found else None


def _agrees(bursts: Bursts, engine: Engine, head: Callable[[Tensor], Tensor]) -> bool:
    """Whether a burst is the steps that it stands for; may leave rows."""
    text, *_ = samples(engine.vocabulary, engine.context_length)
    start, uniforms = text[: len(text) - 2], np.array([[0.3], [0.7]])
    if len(start) < 2:
        return False
    (slot,) = engine.open([start[:-1]])[0].values()
    no_pauses = np.zeros(engine.vocabulary, dtype=np.uint8)
    try:
        made = bursts([slot], [start], [0], Asked(uniforms, [no_pauses], [1.0], [2], False))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # what cannot be captured
        return False
    engine.drop(slot)
    engine.pool.clear()
    (slot,) = engine.open([start[:-1]])[0].values()
    drawn: list[tuple[list[int], list[float]]] = []
    for number in uniforms:
        states = engine.step([slot], [(*start, *(tokens[0] for tokens, _ in drawn))])
        drawn.append(sampling.draw(head(states), [sampling.PLAIN], [None], number, invert))
    if made is None:
        return False
    tokens, log_probs = (np.array(part) for part in zip(*drawn, strict=True))
    return np.array_equal(made[0], tokens) and np.allclose(made[1], log_probs, rtol=0, atol=1e-4)
