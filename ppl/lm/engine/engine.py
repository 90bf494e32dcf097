"""Batched, ragged, prefix-sharing forward passes through any Hugging Face decoder.

A row lives in a slot (`ppl.lm.engine.slots`); what a row has computed is known to the prefix tree
(`ppl.lm.engine.prefix`) and never computed again. Passes (`ppl.lm.engine.passes`) cover
many slots, each row at its own position, however long the others are.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ppl.language.cost import Account
from ppl.lm.engine import admission, selfcheck
from ppl.lm.engine.counters import Counters
from ppl.lm.engine.kv import KV
from ppl.lm.engine.memory import Memory
from ppl.lm.engine.passes import Passes
from ppl.lm.engine.runs import Match, Slot, State, Tokens, common_prefix
from ppl.lm.engine.setting import inferring
from ppl.lm.engine.use import KVUse, use_of
from ppl.locks import lock

# Shared prefixes shorter than this are not worth a pass of their own, which on a GPU costs much.
_CPU_MIN_SHARED, _GPU_MIN_SHARED = 1, 8
# So often room is made for what has been found before it is taken as it is.
_TRIES = 4

Payer = tuple[Account, str, str] | None
"""A ledger and the names under which computed and reused tokens are booked, or None."""

# One lock a model, not an engine: a pass sets the attention of the model's configuration.
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

P = ParamSpec("P")
R = TypeVar("R")


def alone(method: Callable[Concatenate[Engine, P], R]) -> Callable[Concatenate[Engine, P], R]:
    """One thread at a time; and if the method raises, the slots that it took are free again."""

    @functools.wraps(method)
    def run(self: Engine, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock, inferring():
            before = self.slots.clock
            try:
                return method(self, *args, **kwargs)
            except BaseException:
                self.slots.drop_since(before)
                raise

    return run


class Engine(Counters):
    """Forward passes of one model for many texts at once. Safe to use from several threads.

    Args:
        model: any Hugging Face decoder (with whatever head; only its base model is used).
        capacity: bytes for keys, values and last hidden states. Up to half of it is for slots, the
            rest for what the prefix tree keeps besides.
        context_length: most tokens of a text; None takes it from the model's configuration.
        graphs: on a GPU, capture decode steps as CUDA graphs.
        compile: compile decode steps.
        keeps: what is kept of keys and values.

    Raises:
        UnsupportedModelError: the model cannot be forked exactly, or not be captured or compiled.
        ValueError: `graphs` without a GPU, or the model has fewer positions than `context_length`.

    Attributes:
        slots, pool: the memory, see `ppl.lm.engine.memory`.
        runner: what makes the passes.
        sharing: when rows that begin alike have that as one copy.
        vocabulary: how many token ids the model has.
        resumes: whether it has recurrent layers, whose texts go on from snapshots.
        lock: held while anything of the model runs; whoever makes several calls that belong
            together may hold it around them.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        capacity: int,
        context_length: int | None = None,
        graphs: bool = False,
        compile: bool = False,
        keeps: KV = KV(),  # noqa: B008 (a frozen value)
    ) -> None:
        self.name = name
        admission.refuse_adapters(model, name)
        self.base = admission.base_of(model)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        config = model.config.get_text_config()
        self.context_length = admission.context_length(config, context_length, name)
        self.capacity = capacity
        self.lock: Any = _locks.setdefault(self.base, lock())
        if getattr(model.config, "is_encoder_decoder", False):
            admission.refuse_halves(self.base, name)
        self.vocabulary = admission.vocabulary(self.base, config)
        with self.lock, inferring():
            most = self.context_length
            plan = admission.plan_of(self.base, config, name, most, self.device, keeps)
            # Where a text is its state, states take a part of the budget.
            snapshots = capacity // 4 if plan.states else 0
            self._memory = Memory(
                plan.layout,
                self.dtype,
                self.device,
                capacity=capacity - snapshots,
                context_length=self.context_length,
                state_nbytes=plan.states.nbytes,
                keeps=keeps,
            )
            self.slots, self.pool = self._memory.slots, self._memory.pool
            self.runner = Passes(
                self.base,
                config,
                plan,
                vocabulary=self.vocabulary,
                name=name,
                slots=self.slots,
                snapshots=snapshots,
                graphs=graphs,
                compile=compile,
            )
            self.sharing = self._memory.sharing
            self.sharing.able, self.sharing.price = self.runner.shares, self.runner.price
            self.resumes = bool(plan.states)
            selfcheck.checked(self)
        self.pool.clear()
        self.runner.snapshots.clear()
        self.runner.forget()
        self._memory.slides = self.sharing.able and plan.gives_up(keeps, most)

    def refuse_small(self) -> None:
        """Raises ValueError for a budget that is less than the shortest row takes: rows would run
        one by one, each beyond it, and it was meant in another unit."""
        if self.capacity < self._memory.least:
            raise ValueError(
                f"kv_bytes={self.capacity}: {self.name} takes {self._memory.least:,} bytes for its "
                "shortest row; kv_bytes= are bytes, such as 2 << 30 (2 GiB, the default)"
            )

    def batch_rows(self, length: int) -> int:
        """Most rows of `length` tokens that fit the byte budget, at least one."""
        return self._memory.batch_rows(length)

    def most_rows(self, texts: Sequence[Tokens], lengths: Sequence[int]) -> int:
        """Most rows that fit the byte budget, at least one, if they go on from such texts to such
        lengths: what several of them begin with is counted once."""
        with self.lock:
            counts, outside = Counter(texts), 0
            bases: dict[Tokens, int] = {}
            parts: dict[int, int] = {}
            for text in counts:
                match = self.pool.match(text)
                own, apart = self._memory.rest(text, match, counts)
                own = own if match.through is None else len(text) - match.through.base
                bases[text] = len(text) - (0 if apart else own)
                outside += apart
                parts |= {id(p.segment): p.segment.piece.nbytes for p in self._memory.trunk(match)}
            longest = max(n - bases[text] for text, n in zip(texts, lengths, strict=True))
            if outside * self._memory.bytes_per_token + sum(parts.values()) > self.capacity // 2:
                return self.batch_rows(max(lengths))
            return self.batch_rows(self._memory.bounded(longest))

    def kv_use(self, prompt: int, new: Sequence[int]) -> KVUse:
        """What rows take that draw so many `new` tokens each, after one prompt of so many."""
        with self.lock:
            return use_of(self._memory, prompt, new)

    @alone
    def hidden(
        self, texts: Sequence[Tokens], first: Sequence[int], payers: Sequence[Payer] = ()
    ) -> list[Tensor]:
        """Last hidden states `[n, hidden]` of each text, from position `first[i]` to its end."""
        return self._hidden(texts, first, payers, {})

    def _hidden(
        self,
        texts: Sequence[Tokens],
        first: Sequence[int],
        payers: Sequence[Payer],
        weights: Mapping[Tokens, int],
    ) -> list[Tensor]:
        wanted = 1 if weights else len(texts)  # beginnings are of a batch that has its share
        weights = {**weights, **{t: 1 << 30 for t in texts if self._memory.crowded(len(t))}}
        longest = max([*map(len, texts), *(slot.tail for slot in self.slots.busy)], default=1)
        rows = self._memory.free_rows(longest, wanted)
        states: list[Tensor] = []
        for at in range(0, len(texts), rows):
            part = slice(at, at + rows)
            slots, computed = self._run(texts[part], first[part], payers[part], weights)
            for slot in slots.values():
                self.slots.leave(slot)
            states += computed
        return states

    @alone
    def open(
        self, texts: Sequence[Tokens], payers: Sequence[Payer] = ()
    ) -> tuple[dict[Tokens, Slot], list[Tensor]]:
        """Computes of every text what is not known, and keeps the slots in which that was done.

        Returns:
            The slots of the texts that were computed, to be handed back with `close` (the others
            can be given one with `seat`), and each text's last hidden state `[hidden]`.
        """
        slots, states = self._run(texts, [len(t) - 1 for t in texts], payers, Counter(texts))
        return slots, [s[-1] for s in states]

    @alone
    def seat(self, texts: Sequence[Tokens], rows: Sequence[int] = ()) -> list[Slot]:
        """A slot for each of the texts, to go on from there.

        Args:
            rows: how many will go on from each; what they begin with is made one copy where that
                pays.
        """
        if not texts:
            return []
        weights = Counter(texts)
        for text, count in zip(texts, rows or [1] * len(texts), strict=True):
            weights[text] += count - 1
        slots = self._filled(self._founded(*self._found(list(weights), weights)))
        twins = iter(self.fork([slots[t] for i, t in enumerate(texts) if t in texts[:i]]))
        return [next(twins) if t in texts[:i] else slots[t] for i, t in enumerate(texts)]

    @alone
    def known(self, text: Tokens) -> Tensor | None:
        """The last hidden state `[hidden]` of a text, None if it would have to be computed."""
        states = self.known_from(text, len(text) - 1)
        return None if states is None else states[0]

    @alone
    def known_from(self, text: Tokens, first: int) -> Tensor | None:
        """Last hidden states `[n, hidden]` from position `first` on, None if any of them would have
        to be computed."""
        match = self.pool.match(text, first)
        return None if match.length < len(text) else self.pool.states(match, first)

    @alone
    def close(self, slot: Slot, tokens: Tokens) -> None:
        """Ends a row; `tokens` are all that its slot holds."""
        self.pool.insert(tokens[: slot.length], slot)
        self.runner.snapshots.keep(tokens[: slot.length], slot.state)
        self.slots.leave(slot)

    @alone
    def fork(self, slots: Sequence[Slot]) -> list[Slot]:
        """A new row for each of the given ones, which stands where that one stands."""
        return self._memory.fork(slots) if slots else []

    @alone
    def drop(self, slot: Slot) -> None:
        """Ends a row that has failed; nothing that it computed is remembered."""
        if slot.busy:
            self.slots.drop(slot)

    @alone
    def step(self, slots: Sequence[Slot], texts: Sequence[Tokens]) -> Tensor:
        """Computes the last token of each row's text, all others of which its slot holds: last
        hidden states `[rows, hidden]`."""
        self.room(slots, [1] * len(slots))
        return self.runner.step(slots, texts)

    @alone
    def extend(self, slots: Sequence[Slot], texts: Sequence[Tokens]) -> list[Tensor]:
        """Computes the last tokens of each row's text, those that its slot does not hold yet, in
        one pass: last hidden states `[n, hidden]` of these."""
        more = [len(t) - slot.length for t, slot in zip(texts, slots, strict=True)]
        self.room(slots, more)
        starts = [slot.length for slot in slots]
        self.runner.extend(list(zip(texts, slots, strict=True)))
        return [
            self.slots.view(slot, start, slot.length).states.clone()
            for slot, start in zip(slots, starts, strict=True)
        ]

    def room(self, slots: Sequence[Slot], counts: Sequence[int]) -> None:
        """Makes room for so many more tokens of each row."""
        self._memory.slide(slots, counts)
        longest = max(slot.tail + n for slot, n in zip(slots, counts, strict=True))
        if longest > self.slots.length:
            self._memory.reserve(0, longest)

    def _run(
        self,
        texts: Sequence[Tokens],
        first: Sequence[int],
        payers: Sequence[Payer],
        weights: Mapping[Tokens, int],
    ) -> tuple[dict[Tokens, Slot], list[Tensor]]:
        """Computes what is missing of every text.

        Args:
            weights: how many rows will go on from a text; 1 where nothing is said.

        Returns:
            The slots of the texts that were not known, and the last hidden states asked for.
        """
        unique = list(dict.fromkeys(texts))
        payers = payers or [None] * len(texts)
        shared = self._shared(unique, weights) if len(unique) > 1 else {}
        if shared:
            who = dict(zip(reversed(texts), reversed(payers), strict=True))  # who asks first pays
            # Memory is made before anything is looked up: what is found stays where it is.
            self._reserve(unique, weights, shared)
            self._share_prefixes(shared, unique, who)
        wanted: dict[Tokens, int] = {}
        for text, start in zip(texts, first, strict=True):
            wanted[text] = min(start, wanted.get(text, start))
        matches, apart = self._found(unique, weights, wanted)
        self._book(texts, matches, payers)
        missing = [text for text, match in matches.items() if match.length < len(text)]
        matches = self._founded(matches, apart, wanted)
        slots = self._filled({text: matches[text] for text in missing})
        states = [
            self.slots.states_of(slots[text], start)
            if text in slots and not self._memory.slides  # else some of it may be elsewhere
            else self.pool.states(self.pool.known(text), start)  # runs were split since
            for text, start in zip(texts, first, strict=True)
        ]
        self.pool.trim()
        return slots, states

    def _found(
        self,
        texts: Sequence[Tokens],
        weights: Mapping[Tokens, int],
        first: Mapping[Tokens, int] | None = None,
    ) -> tuple[dict[Tokens, Match], set[Tokens]]:
        """What is known of each text, for the rest of which there is memory, and which become one
        copy. What follows `first` is wanted of those that go on; else each text is given a slot."""
        self._reserve(texts, weights, {})
        for attempt in itertools.count():
            # Runs end where the texts leave them, so that matches can be placed.
            for text in texts:
                self.pool.cut(text)
            matches = {text: self._match(text, (first or {}).get(text)) for text in texts}
            placed = {t: m for t, m in matches.items() if first is None or m.length < len(t)}
            apart, outside, needed = set(), 0, 0
            for text in sorted(matches, key=len):
                own, rest = self._memory.rest(text, matches[text], weights)
                if rest and self._memory.fits(outside + rest):
                    apart.add(text)
                    outside += rest
                needed = max(needed, own if text in apart else own + rest)
            if needed > self.slots.length:
                # What some stand on was forgotten to make room, or there is none for it.
                self._memory.reserve(len(texts), max(map(len, texts)) if attempt else needed)
            elif self._memory.room(placed, outside, apart) or attempt >= _TRIES:
                return matches, apart
        raise AssertionError

    def _match(self, text: Tokens, first: int | None) -> Match:
        """What is known of a text, as far as it can go on from there."""
        match = self.pool.match(text, first)
        return match if match.length == len(text) else match.cut(self._resumed(text, match)[0])

    def _reserve(
        self, texts: Sequence[Tokens], weights: Mapping[Tokens, int], shared: Mapping[Tokens, int]
    ) -> None:
        """Memory for what will be computed of some texts, of which prefixes will be shared."""
        bases = [text for text, rows in shared.items() if self._memory.pays(rows, len(text))]
        rows, longest, outside = {**weights, **shared}, 1, 0
        for text in (*bases, *texts):
            base = max([len(b) for b in bases if b != text and text[: len(b)] == b], default=0)
            own, apart = self._memory.rest(text, self.pool.match(text), rows, base)
            longest, outside = max(longest, own), outside + apart
        self._memory.reserve(len(texts), longest, outside)

    def _shared(self, texts: Sequence[Tokens], weights: Mapping[Tokens, int]) -> dict[Tokens, int]:
        """Prefixes that several of the texts share and that are to be computed, or to be made one
        copy, before the texts themselves; and how many rows begin with each."""
        least = _CPU_MIN_SHARED if self.device.type == "cpu" else _GPU_MIN_SHARED
        ordered = sorted((text, self.pool.cut(text)) for text in texts)
        common = [common_prefix(a, b) for (a, _), (b, _) in itertools.pairwise(ordered)]
        shared: dict[Tokens, int] = {}
        for i, size in enumerate(common):
            text, known = ordered[i]
            new = size - known >= least
            if not (new or self._memory.pays(1 << 30, size)) or text[:size] in shared:
                continue
            low, high = i, i + 1
            while low and common[low - 1] >= size:
                low -= 1
            while high < len(common) and common[high] >= size:
                high += 1
            rows = sum(weights.get(t, 1) for t, _ in ordered[low : high + 1])
            prefix = text[:size]
            if new or self._memory.rest(prefix, self.pool.match(prefix), {prefix: rows})[1]:
                shared[prefix] = rows
        return shared

    def _share_prefixes(
        self, shared: Mapping[Tokens, int], texts: Sequence[Tokens], payers: Mapping[Tokens, Payer]
    ) -> None:
        """Computes prefixes that several of the texts share once, before the texts themselves.

        Args:
            shared: these, and how many rows begin with each.
            payers: the account of each text; one of those who share a prefix pays for it.
        """
        accounts: dict[Tokens, Payer] = {}
        for text in sorted(texts):
            for prefix in shared:
                if text[: len(prefix)] == prefix:
                    accounts.setdefault(prefix, payers[text])
        paying = [accounts[prefix] for prefix in shared]
        self._hidden(list(shared), [len(t) - 1 for t in shared], paying, shared)
        for prefix, account in accounts.items():
            if account is not None:  # who paid will find its text known that far
                ledger, _, reused = account
                ledger.add(**{reused: -len(prefix)})

    def _book(
        self, texts: Sequence[Tokens], matches: dict[Tokens, Match], payers: Sequence[Payer]
    ) -> None:
        """The first row of a text pays for its computation, its twins reuse it."""
        paid: set[Tokens] = set()
        for text, account in zip(texts, payers, strict=True):
            if account is None:
                continue
            ledger, computed, reused = account
            known = len(text) if text in paid else matches[text].length
            paid.add(text)
            ledger.add(**{computed: len(text) - known, reused: known})

    def _filled(self, matches: dict[Tokens, Match]) -> dict[Tokens, Slot]:
        """A slot for each text, with all of it: what is missing is computed."""
        states: dict[Tokens, State | None] = {}
        if self.resumes:
            for text, match in matches.items():
                length, states[text] = self._resumed(text, match)
                matches = {**matches, text: match.cut(length)}
        slots = self._memory.place(matches)
        for text, state in states.items():
            slots[text].state = state
        self.runner.fill([(text, slot) for text, slot in slots.items() if slot.length < len(text)])
        for text, slot in slots.items():
            if matches[text].length < len(text):
                self.pool.insert(text, slot)
                self.runner.snapshots.keep(text, slot.state)
        return slots

    def _founded(
        self,
        matches: dict[Tokens, Match],
        apart: Collection[Tokens],
        first: Mapping[Tokens, int] = {},
    ) -> dict[Tokens, Match]:
        """Makes what several rows begin with one copy: they can stand on it.

        Args:
            apart: for these texts.
            first: as in `_found`.
        """
        left = sorted(apart, key=len)
        while left:  # some stand on what is made just now
            stems = self._memory.stems({t: self.pool.match(t, first.get(t)) for t in left})
            for (text, *_), (start, piece) in zip(stems, self.runner.segments(stems), strict=True):
                self.pool.found(text, self.pool.segment(piece, start, trunk=True))
                left.remove(text)
        found = {t: self.pool.match(t, first.get(t)) if apart else m for t, m in matches.items()}
        return {t: m if t in apart else m.cut(matches[t].length) for t, m in found.items()}

    def _resumed(self, text: Tokens, match: Match) -> tuple[int, State | None]:
        """From where a text can go on, of which so much is stored: there, and with what state."""
        if not self.resumes:
            return match.length, None
        return self.runner.snapshots.longest(text, match.length)


def _rearm() -> None:
    """After a fork nobody else runs: a pass that waits for threads of before would never end."""
    if _locks:
        torch.set_num_threads(1)  # as in torch's own workers


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_rearm)
