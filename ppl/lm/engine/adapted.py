"""Adds an adapter to an engine that runs: its thin matrices, and a look at whether they count."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ppl.errors import UnsupportedModelError
from ppl.lm.engine import admission
from ppl.lm.engine.beside import Adapters, Pair, marked
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.runs import Stem
from ppl.lm.engine.setting import inferring

_REMEDY = "put the adapter into the weights, as ppl.load(model, adapter=folder) does"


def add_adapter(engine: Engine, model: nn.Module, pairs: Mapping[str, Pair], name: str) -> int:
    """Adds an adapter, whose texts are from then on told apart by its number (`beside.marked`).

    Args:
        model: whose layers are named; the engine's own model is in it.
        pairs: the thin matrices, by the name of the layer.
        name: of model and adapter, for messages.

    Raises:
        UnsupportedModelError: passes with it are not exact.
    """
    if engine.runner.graphs is not None:
        raise UnsupportedModelError(
            f"{name}: captured steps have no adapters beside their weights; load the model with "
            f"graphs=False, or {_REMEDY}"
        )
    adapters = engine.runner.adapters
    with engine.lock, inferring():
        if not engine.runner.takes_whole(1):
            return _added(engine, model, pairs, name)
        try:
            return _added(engine, model, pairs, name)
        except UnsupportedModelError:  # it may be the program of a step that gives something else
            adapters.agrees = False
        try:
            return _added(engine, model, pairs, name)
        except BaseException:
            adapters.agrees = True
            raise


def _added(engine: Engine, model: nn.Module, pairs: Mapping[str, Pair], name: str) -> int:
    adapters = engine.runner.adapters
    number = adapters.add(model, pairs, next(engine.base.parameters()))
    before = engine.slots.clock
    try:
        _look(engine, adapters, number, name)
    except BaseException:
        adapters.drop({number})
        engine.slots.drop_since(before)
        raise
    return number


def _look(engine: Engine, adapters: Adapters, number: int, name: str) -> None:
    """Compares passes whose rows have unlike adapters with passes of one text."""
    size = engine.vocabulary
    # Other ones for each adapter: what is known already is not computed.
    own, other = [
        tuple((token + number) % size for token in text)
        for text in admission.samples(size, engine.context_length)
    ]
    mine = marked(own, number)
    before = adapters.calls(engine.base, number)
    hidden = engine.hidden([mine, other], [len(own) - 1, len(other) - 1])
    _refuse_uncalled(adapters.calls(engine.base, number), before, name, "reads its weight itself")
    again = tuple(reversed(own))
    mine = marked(again, number)
    slots = engine.seat([mine[:-1], other[:-1]])
    before = adapters.calls(engine.base, number)
    steps = engine.step(slots, [mine, other])  # may run in another way than a text
    _refuse_uncalled(adapters.calls(engine.base, number), before, name, "compiles what is in it")
    for slot, text in zip(slots, [mine, other], strict=True):
        engine.close(slot, text)
    plainly, rounds = engine.runner.plainly, engine.slots.keeps.int8
    found = [(other, hidden[1]), (other, steps[1:])], [(own, hidden[0]), (again, steps[:1])]
    if engine.runner.takes_whole(1):  # many tokens at once are another program
        stems = [Stem(text, (), ()) for text in (other, marked(own, number))]
        for rows, text, (_, piece) in zip(
            found, (other, own), engine.runner.segments(stems), strict=True
        ):
            rows.append((text, piece.states))
    for rows, of in zip(found, (0, number), strict=True):
        with adapters.running([of], len(own)):
            texts, last = zip(*rows, strict=True)
            if of and not all(part.isfinite().all() for part in last):
                raise UnsupportedModelError(
                    f"{name}: last hidden states are not finite with the adapter, though its "
                    f"numbers are: what it adds leaves the range of {engine.dtype}; load the model "
                    "with dtype=torch.float32, or take an earlier checkpoint of the adapter"
                )
            admission.compare(plainly, engine.base, name, texts, last, rounds=rounds)


def _refuse_uncalled(
    after: Mapping[str, int], before: Mapping[str, int], name: str, said: str
) -> None:
    """A layer that was not called has given no row what its adapter adds."""
    for place, calls in after.items():
        if calls == before[place]:
            raise UnsupportedModelError(
                f"{name}: the adapter changes {place}, but the model {said} (packed layers, "
                f"pack=True on a CPU, are asked in compiled steps, too); {_REMEDY}"
            )
