"""What an engine does once, when it is made: it compares its passes with the model's own on a few
tokens, so that a model whose positions or masks work differently is refused rather than run
wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ppl.errors import UnsupportedModelError
from ppl.lm.engine import admission
from ppl.lm.engine.memory import Sharing
from ppl.lm.engine.passes import Passes
from ppl.lm.engine.prefix import PrefixPool
from ppl.lm.engine.runs import Held, Part, Segment, Slot, Stem, Tokens
from ppl.lm.engine.slots import Slots


class Checked(Protocol):
    """What is looked at of an engine, which is above this file: see `ppl.lm.engine.engine`."""

    base: nn.Module
    name: str
    vocabulary: int
    context_length: int
    resumes: bool
    runner: Passes
    sharing: Sharing
    slots: Slots
    pool: PrefixPool

    def hidden(self, texts: Sequence[Tokens], first: Sequence[int]) -> list[Tensor]:
        """Last hidden states of each text from a position on."""

    def open(self, texts: Sequence[Tokens]) -> tuple[dict[Tokens, Slot], list[Tensor]]:
        """Slots of texts, and their last hidden states."""

    def step(self, slots: Sequence[Slot], texts: Sequence[Tokens]) -> Tensor:
        """One token more in each slot."""

    def extend(self, slots: Sequence[Slot], texts: Sequence[Tokens]) -> list[Tensor]:
        """Several tokens more in each slot."""

    def close(self, slot: Slot, tokens: Tokens) -> None:
        """Ends a row."""


def checked(engine: Checked) -> None:
    """Finds out how the model can be run.

    Raises:
        UnsupportedModelError: in no way that is exact.
    """
    # Without steps that are one program first: those of many rows run so, and compiled ones.
    whole, engine.runner.whole = engine.runner.whole, None
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
    if whole is not None:
        _forget(engine)
        engine.runner.whole, whole.fills = whole, False
        if not _runs_whole(engine):
            engine.runner.whole = None
        else:
            whole.fills = True
            whole.fills = _fills(engine)
        _forget(engine)


def _runs_whole(engine: Checked) -> bool:
    """Whether steps that are one program give what the model gives. Where they do not, they are
    made as others are."""
    try:
        _compare(engine)
        return _stands(engine) if engine.sharing.able else True
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model that is called otherwise fails in any way
        return False


def _fills(engine: Checked) -> bool:
    """Whether passes over many tokens of some texts that are one program give what the model gives:
    from nothing, behind tokens of their own, and on a trunk."""
    texts = admission.samples(engine.vocabulary, engine.context_length)
    runner, at = engine.runner, 2
    try:
        begun = [piece for _, piece in runner.segments([Stem(text, (), ()) for text in texts])]
        trunk = (Part(Segment(begun[1], 0, Held()), 0, at),)
        stems = [Stem(texts[0], (), [(0, begun[0][:at])]), Stem(texts[1], trunk, ())]
        gone_on = [piece.states[at - start :] for start, piece in runner.segments(stems)]
        for states in ([piece.states for piece in begun], gone_on):
            admission.compare(
                runner.plainly, engine.base, engine.name, texts, states, strict=engine.resumes
            )
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model that is called otherwise fails in any way
        return False
    return True


def _compare(engine: Checked) -> None:
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
    if any(steps is not None for steps in (runner.graphs, runner.compiled, runner.whole)):
        try:
            stepped = _stepped(engine, texts, [len(text) - 1 for text in texts])
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as refusal:
            if runner.graphs is not None:
                admission.refuse_steps(engine.name, "captured as CUDA graphs", "graphs", refusal)
            admission.refuse_steps(engine.name, "compiled", "compile", refusal)
    for states in filter(None, (ours, stepped, extended)):
        admission.compare(
            runner.plainly,
            engine.base,
            engine.name,
            texts,
            states,
            strict=engine.resumes,
            rounds=engine.slots.keeps.int8,
        )


def _stands(engine: Checked) -> bool:
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
        states, rounds = torch.cat([first, rest]), engine.slots.keeps.int8
        plainly = engine.runner.plainly
        admission.compare(plainly, engine.base, engine.name, [text], [states], rounds=rounds)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, UnsupportedModelError):  # attention of other keys, or of another kind
        return False
    finally:
        engine.sharing.price, engine.sharing.block = before.price, before.block
        _forget(engine)
    return stands


def _forget(engine: Checked) -> None:
    for slot in engine.slots.busy:
        engine.slots.drop(slot)
    engine.pool.clear()
    engine.runner.snapshots.clear()


def _stepped(engine: Checked, texts: Sequence[Tokens], first: Sequence[int]) -> list[Tensor]:
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


def _extended(engine: Checked, texts: Sequence[Tokens], first: Sequence[int]) -> list[Tensor]:
    """Last hidden states from `first` on, each text's in one pass."""
    starts, slots = _opened(engine, texts, first)
    states = [engine.extend([slots[s]], [t])[0] for s, t in zip(starts, texts, strict=True)]
    for start, text in zip(starts, texts, strict=True):
        engine.close(slots[start], text)
    return states


def _opened(
    engine: Checked, texts: Sequence[Tokens], first: Sequence[int]
) -> tuple[list[Tokens], dict[Tokens, Slot]]:
    engine.pool.clear()
    starts = [text[:at] for text, at in zip(texts, first, strict=True)]
    return starts, engine.open(starts)[0]
