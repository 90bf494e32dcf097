"""What an engine does once, when it is made: it compares its passes with the model's own on a few
tokens, so that a model whose positions or masks work differently is refused rather than run
wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl.errors import UnsupportedModelError
from ppl.lm.engine import admission
from ppl.lm.engine.memory import Sharing
from ppl.lm.engine.runs import Slot, Tokens


def checked(engine: Any) -> None:
    """Finds out how the model can be run.

    Args:
        engine: a `ppl.lm.engine.engine.Engine`, which is not imported: it imports this.

    Raises:
        UnsupportedModelError: in no way that is exact.
    """
    try:
        _compare(engine)
    except UnsupportedModelError:
        if not engine.resumes:
            raise
        # Some read several tokens as if nothing were before them: then one at a time.
        engine.runner.stepwise = True
        _forget(engine)
        _compare(engine)
    if engine.sharing.able:
        engine.sharing.able = _stands(engine)


def _compare(engine: Any) -> None:
    runner = engine.runner
    texts = admission.samples(engine.vocabulary, engine.context_length)
    first = [min(3, len(text) - 1) for text in texts]
    try:
        # One goes on, the other begins: shows masks made from where a pass begins.
        engine.hidden([texts[1][:4]], [min(3, len(texts[1]) - 1)])
        ours, stepped, extended = engine.hidden(texts, first), [], []
        if engine.resumes and all(first):
            stepped = _stepped(engine, texts, first)
            extended = _extended(engine, texts, first)
    except torch.OutOfMemoryError:
        raise
    except Exception as refusal:
        admission.refuse_batches(engine.base, engine.name, refusal)
    if runner.graphs is not None or runner.compiled is not None:
        try:
            stepped = _stepped(engine, texts, [len(text) - 1 for text in texts])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as refusal:
            if runner.graphs is not None:
                admission.refuse_steps(engine.name, "captured as CUDA graphs", "graphs", refusal)
            admission.refuse_steps(engine.name, "compiled", "compile", refusal)
    for states in filter(None, (ours, stepped, extended)):
        admission.compare(engine.base, engine.name, texts, states, strict=engine.resumes)


def _stands(engine: Any) -> bool:
    """Whether rows that stand on a trunk give what the model gives. Where they do not, each row has
    its beginning with it."""
    text = admission.samples(engine.vocabulary, engine.context_length)[0]
    stem, next_one = text[:3], text[:4]
    if len(text) < 6:
        return False
    before = Sharing(**vars(engine.sharing))
    engine.sharing.price, engine.sharing.block = -1, 1
    _forget(engine)
    try:
        slot = engine.open([stem, stem])[0][stem]
        stands = bool(slot.trunk)
        first = engine.step([slot], [next_one])
        (rest,) = engine.extend([slot], [text])
        engine.close(slot, text)
        admission.compare(engine.base, engine.name, [text], [torch.cat([first, rest])])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, UnsupportedModelError):  # attention of other keys, or of another kind
        return False
    finally:
        engine.sharing.price, engine.sharing.block = before.price, before.block
        _forget(engine)
    return stands


def _forget(engine: Any) -> None:
    for slot in engine.slots.busy:
        engine.slots.drop(slot)
    engine.pool.clear()
    engine.runner.snapshots.clear()


def _stepped(engine: Any, texts: Sequence[Tokens], first: Sequence[int]) -> list[Tensor]:
    """Last hidden states from `first` on, token by token."""
    starts, slots = _opened(engine, texts, first)
    states: list[list[Tensor]] = [[] for _ in texts]
    for t in range(max(map(len, texts))):
        rows = [i for i, at in enumerate(first) if at + t < len(texts[i])]
        if rows:
            longer = [texts[i][: first[i] + t + 1] for i in rows]
            running = [slots[starts[i]] for i in rows]
            for i, state in zip(rows, engine.step(running, longer), strict=True):
                states[i].append(state)
    for start, text in zip(starts, texts, strict=True):
        engine.close(slots[start], text)
    return [torch.stack(row) for row in states]


def _extended(engine: Any, texts: Sequence[Tokens], first: Sequence[int]) -> list[Tensor]:
    """Last hidden states from `first` on, each text's in one pass."""
    starts, slots = _opened(engine, texts, first)
    states = [engine.extend([slots[s]], [t])[0] for s, t in zip(starts, texts, strict=True)]
    for start, text in zip(starts, texts, strict=True):
        engine.close(slots[start], text)
    return states


def _opened(
    engine: Any, texts: Sequence[Tokens], first: Sequence[int]
) -> tuple[list[Tokens], dict[Tokens, Slot]]:
    engine.pool.clear()
    starts = [text[:at] for text, at in zip(texts, first, strict=True)]
    return starts, engine.open(starts)[0]
