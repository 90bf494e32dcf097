"""Rows being decoded on the engine; see `ppl.lm.decode.Decoder`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from ppl.language.cost import Account
from ppl.lm.engine.beside import number_of
from ppl.lm.engine.engine import Engine, Payer
from ppl.lm.engine.runs import Slot, Tokens
from ppl.lm.engine.setting import inferring

P = ParamSpec("P")
R = TypeVar("R")
D = TypeVar("D", bound="EngineDecoder")


@dataclass(slots=True)
class Stem:
    """Rows that have the same text so far, and are computed as one.

    Attributes:
        text: the tokens.
        slot: where it runs; None as long as the engine knows all of it already.
    """

    text: Tokens
    slot: Slot | None


def whole(
    method: Callable[Concatenate[D, P], R],
) -> Callable[Concatenate[D, P], R]:
    """One thread at a time; and if the method raises, no row is left and every slot is free."""

    @functools.wraps(method)
    def run(self: D, /, *args: P.args, **kwargs: P.kwargs) -> R:
        before = self._stems
        with self._engine.lock, inferring():
            clock = self._engine.slots.clock
            try:
                return method(self, *args, **kwargs)
            except BaseException:
                for stem in (*before, *self._stems):
                    if stem.slot is not None:
                        self._engine.drop(stem.slot)
                self._engine.slots.drop_since(clock)  # taken, and not given to a row yet
                self._stems, self._stem_of, self._logits = [], [], self._logits[:0]
                raise

    return run


class EngineDecoder:
    """Rows with equal texts are computed as one until they draw different tokens.

    A row that draws what has been drawn from its text before computes nothing; it takes a slot when
    it leaves what is known.

    Args:
        engine: what computes.
        head: from last hidden states `[n, hidden]` to logits `[n, V]`.
        known_as: from texts to those that the engine knows, see `ppl.lm.engine.beside`; None where
            they are the same.
    """

    def __init__(
        self,
        engine: Engine,
        head: Callable[[Tensor], Tensor],
        known_as: Callable[[Tokens], Tokens] | None = None,
    ) -> None:
        self._engine, self._head_of_all, self._known_as = engine, head, known_as
        self._stems: list[Stem] = []
        self._stem_of: list[int] = []  # per active row
        self._logits = torch.zeros(0)  # [stems, V]

    @property
    def logits(self) -> Tensor:
        """`[A, V]` next-token logits of the active rows."""
        if len(self._stems) == len(self._stem_of):  # then rows and stems are in one order
            return self._logits
        where = torch.tensor(self._stem_of, dtype=torch.int64, device=self._logits.device)
        return self._logits.index_select(0, where)

    @whole
    def join(self, prefixes: Sequence[Tokens], ledgers: Sequence[Account | None]) -> None:
        """See `Decoder`."""
        if self._known_as is not None:
            prefixes = [self._known_as(text) for text in prefixes]
        slots, hidden = self._engine.open(prefixes, payers_of(ledgers))
        first = len(self._stems)
        states = dict(zip(prefixes, hidden, strict=True))
        where = {text: first + i for i, text in enumerate(states)}
        self._stems = [*self._stems, *(Stem(text, slots.get(text)) for text in states)]
        self._stem_of += [where[text] for text in prefixes]
        logits = self._head(torch.stack(list(states.values())), states)
        self._logits = torch.cat([self._logits, logits]) if first else logits

    @whole
    def advance(self, keep: Sequence[int], tokens: Sequence[int]) -> None:
        """See `Decoder`."""
        states = self._grow(keep, [(token,) for token in tokens])
        self._logits = self._logits[:0] if states is None else self._head(states, self._texts)

    @whole
    def extend(self, keep: Sequence[int], blocks: Sequence[Tokens]) -> list[Tensor]:
        """See `Decoder`."""
        states = self._grow(keep, blocks)
        if states is None:
            self._logits = self._logits[:0]
            return []
        sizes = [0] * len(self._stems)
        for stem, block in zip(self._stem_of, blocks, strict=True):
            sizes[stem] = len(block)
        texts = [text for text, size in zip(self._texts, sizes, strict=True) for _ in range(size)]
        logits = torch.split(self._head(states, texts), sizes)
        self._logits = torch.stack([rows[-1] for rows in logits])
        return [logits[stem] for stem in self._stem_of]

    @whole
    def rewind(self, counts: Sequence[int]) -> None:
        """See `Decoder`."""
        old, was, before = self._stems, self._stem_of, self._logits
        for number in {stem for stem, count in zip(was, counts, strict=True) if count}:
            self._close(old[number])  # remembered, so that all its beginnings are known
        numbers: dict[Tokens, int] = {}
        stems: list[Stem] = []
        same: dict[int, int] = {}  # new stem -> the old one whose logits it has
        self._stem_of = []
        for stem, count in zip(was, counts, strict=True):
            text = old[stem].text[: len(old[stem].text) - count]
            number = numbers.setdefault(text, len(stems))
            if number == len(stems):
                stems.append(Stem(text, None))
            if not count:
                same[number] = stem
                stems[number].slot = stems[number].slot or old[stem].slot
            self._stem_of.append(number)
        taken = {stem.slot for stem in stems}
        for left in old:
            if left.slot not in taken:
                self._close(left)
        self._stems = stems
        moved = [i for i in range(len(stems)) if i not in same]
        if moved:
            texts = [stems[i].text for i in moved]
            states = self._engine.hidden(texts, [len(text) - 1 for text in texts])
            rows = dict(zip(moved, self._head(torch.cat(states), texts), strict=True))
            rows |= {number: before[stem] for number, stem in same.items()}
            self._logits = torch.stack([rows[i] for i in range(len(stems))])
        else:
            self._logits = before[[same[i] for i in range(len(stems))]]

    def park(self, first: int) -> None:
        """Gives up the slots of all rows but so many first ones, as far as none of these runs in
        them; rows take others when they go on."""
        with self._engine.lock, inferring():
            for number in {*self._stem_of[first:]} - {*self._stem_of[:first]}:
                self._close(self._stems[number])

    @property
    def _texts(self) -> list[Tokens]:
        return [stem.text for stem in self._stems]

    def _head(self, states: Tensor, texts: Iterable[Tokens]) -> Tensor:
        """Logits of last hidden states, each with the text whose adapter counts."""
        adapters = self._engine.runner.adapters
        with adapters.running([number_of(text) for text in texts] if adapters.there else []):
            return self._head_of_all(states)

    def _close(self, stem: Stem) -> None:
        if stem.slot is not None:
            self._engine.close(stem.slot, stem.text)
            stem.slot = None

    def _grow(self, keep: Sequence[int], blocks: Sequence[Tokens]) -> Tensor | None:
        """Appends to each kept row its block: the last hidden states `[n, hidden]` after all new
        tokens of all stems, stem by stem; None if no row is kept."""
        engine, states = self._engine, self._branch(keep, blocks)
        computing = [i for i, state in enumerate(states) if state is None]
        if computing:
            running = [self._stems[i] for i in computing]
            slots, texts = [s.slot for s in running if s.slot], [s.text for s in running]
            if max(map(len, blocks)) == 1:
                hidden = engine.step(slots, texts)
                if len(computing) == len(states):  # no tensor a row: with many they cost a step
                    return hidden
                computed = list(torch.split(hidden, 1))
            else:
                computed = engine.extend(slots, texts)
            for i, state in zip(computing, computed, strict=True):
                states[i] = state
        return torch.cat([s for s in states if s is not None]) if states else None

    def _branch(self, keep: Sequence[int], blocks: Sequence[Tokens]) -> list[Tensor | None]:
        """Appends to each kept row its block, and computes nothing: of each stem the states of the
        new tokens that are known, or None and a slot that has what is before them."""
        engine, old, was = self._engine, self._stems, self._stem_of
        # A branch for everything that the rows of a stem go on with: (old stem, block) -> number.
        branches: dict[tuple[int, Tokens], int] = {}
        self._stem_of = [
            branches.setdefault((was[row], block), len(branches))
            for row, block in zip(keep, blocks, strict=True)
        ]
        self._stems = [Stem(old[stem].text + block, None) for stem, block in branches]
        states = [
            engine.known_from(new.text, len(old[stem].text)) if old[stem].slot is None else None
            for (stem, _), new in zip(branches, self._stems, strict=True)
        ]
        computing = [i for i, state in enumerate(states) if state is None]
        sources = [stem for stem, _ in branches]
        branches_of: dict[int, int] = {}
        for i in computing:
            branches_of[sources[i]] = branches_of.get(sources[i], 0) + 1
        going = set(branches_of)
        for number, stem in enumerate(old):
            if number not in going:
                self._close(stem)
        leaving = [number for number in sorted(going) if old[number].slot is None]
        if leaving:
            texts = [old[number].text for number in leaving]
            seats = engine.seat(texts, [branches_of[number] for number in leaving])
            for number, slot in zip(leaving, seats, strict=True):
                old[number].slot = slot
        # The first branch goes on in its stem's slot, the others fork off it.
        forked: dict[int, Slot] = {}  # new stem -> the slot to copy
        for i in computing:
            source = old[sources[i]]
            assert source.slot is not None
            if sources[i] in going:
                going.remove(sources[i])
                self._stems[i].slot = source.slot
            else:
                forked[i] = source.slot
        if forked:
            for i, slot in zip(forked, engine.fork(list(forked.values())), strict=True):
                self._stems[i].slot = slot
        return states


def payers_of(ledgers: Sequence[Account | None]) -> list[Payer]:
    """Under which names language models book prefix tokens."""
    return [None if a is None else (a, "prompt_tokens", "reused_tokens") for a in ledgers]
