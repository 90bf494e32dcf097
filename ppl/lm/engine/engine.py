"""Batched, ragged, prefix-sharing forward passes through any Hugging Face decoder.

A row lives in a slot (`ppl.lm.engine.slots`); what a row has computed is known to the prefix tree
(`ppl.lm.engine.prefix`) and never computed again. Passes (`ppl.lm.engine.passes`) cover
neighbouring slots, each row at its own position, however long the others are.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ppl.errors import UnsupportedModelError
from ppl.language.cost import Account
from ppl.lm.engine import admission
from ppl.lm.engine.memory import Memory
from ppl.lm.engine.passes import Passes
from ppl.lm.engine.runs import Match, Slot, State, Tokens, common_prefix

# Shared prefixes shorter than this are not worth a pass of their own: on a CPU a pass costs what it
# computes, on a GPU a short one costs as much as one of hundreds of tokens.
_CPU_MIN_SHARED, _GPU_MIN_SHARED = 1, 8

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
        with self.lock, torch.inference_mode():
            before = self.slots.clock
            try:
                return method(self, *args, **kwargs)
            except BaseException:
                for slot in self.slots.busy:
                    if slot.used > before:
                        self.slots.drop(slot)
                raise

    return run


class Engine:
    """Forward passes of one model for many texts at once. Safe to use from several threads.

    Args:
        model: any Hugging Face decoder (with whatever head; only its base model is used).
        capacity: bytes for keys, values and last hidden states. Up to half of it is for slots, the
            rest for what the prefix tree keeps besides.
        context_length: most tokens of a text; None takes it from the model's configuration.
        graphs: on a GPU, capture decode steps as CUDA graphs.
        compile: compile decode steps.

    Raises:
        UnsupportedModelError: the model cannot be forked exactly, or not be captured or compiled.
        ValueError: `graphs` without a GPU, or the model has fewer positions than `context_length`.

    Attributes:
        slots, pool: the memory, see `ppl.lm.engine.memory`.
        runner: what makes the passes.
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
    ) -> None:
        self.name = name
        admission.refuse_adapters(model, name)
        self.base = admission.base_of(model)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        config = model.config.get_text_config()
        self.context_length = admission.context_length(config, context_length, name)
        self.capacity = capacity
        self.lock: Any = _locks.setdefault(self.base, threading.RLock())
        if getattr(model.config, "is_encoder_decoder", False):
            admission.refuse_halves(self.base, name)
        self._vocabulary = admission.vocabulary(self.base, config)
        with self.lock, torch.inference_mode():
            plan = admission.plan_of(self.base, config, name, self.context_length, self.device)
            # Where a text is its state, states take a part of the budget.
            snapshots = capacity // 4 if plan.states else 0
            self._memory = Memory(
                plan.layout,
                self.dtype,
                self.device,
                capacity=capacity - snapshots,
                context_length=self.context_length,
                state_nbytes=plan.states.nbytes,
            )
            self.slots, self.pool = self._memory.slots, self._memory.pool
            self.runner = Passes(
                self.base,
                config,
                plan,
                vocabulary=self._vocabulary,
                name=name,
                slots=self.slots,
                snapshots=snapshots,
                graphs=graphs,
                compile=compile,
            )
            self._resumes = bool(plan.states)
            self._self_check()
        self.pool.clear()
        self.runner.snapshots.clear()
        self.runner.forget()

    @property
    def passes(self) -> int:
        """Forward passes made."""
        return self.runner.made

    @property
    def tokens_computed(self) -> int:
        """Tokens that passes computed for a row."""
        return self.runner.tokens_computed

    @property
    def tokens_padded(self) -> int:
        """Tokens that passes computed for nobody."""
        return self.runner.tokens_padded

    @property
    def peak_nbytes(self) -> int:
        """Most bytes that slots and tree took together."""
        return self._memory.peak_nbytes

    def _self_check(self) -> None:
        """Compares the ragged pass with the model's own on a few tokens, so that a model whose
        positions or masks work differently is refused rather than run wrongly."""
        try:
            self._compare()
        except UnsupportedModelError:
            if not self._resumes:
                raise
            # Some read several tokens as if nothing were before them: then one at a time.
            self.runner.stepwise = True
            for slot in self.slots.busy:
                self.slots.drop(slot)
            self.pool.clear()
            self.runner.snapshots.clear()
            self._compare()

    def _compare(self) -> None:
        texts = admission.samples(self._vocabulary, self.context_length)
        first = [min(3, len(text) - 1) for text in texts]
        try:
            # One goes on, the other begins: shows masks made from where a pass begins.
            self.hidden([texts[1][:4]], [min(3, len(texts[1]) - 1)])
            ours, stepped, extended = self.hidden(texts, first), [], []
            if self._resumes and all(first):
                stepped = self._stepped(texts, first)
                extended = self._extended(texts, first)
        except torch.OutOfMemoryError:
            raise
        except Exception as refusal:
            admission.refuse_batches(self.base, self.name, refusal)
        if self.runner.graphs is not None or self.runner.compiled is not None:
            try:
                stepped = self._stepped(texts, [len(text) - 1 for text in texts])
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as refusal:
                if self.runner.graphs is not None:
                    admission.refuse_steps(self.name, "captured as CUDA graphs", "graphs", refusal)
                admission.refuse_steps(self.name, "compiled", "compile", refusal)
        for states in filter(None, (ours, stepped, extended)):
            admission.compare(self.base, self.name, texts, states, strict=self._resumes)

    def _stepped(self, texts: Sequence[Tokens], first: Sequence[int]) -> list[Tensor]:
        """Last hidden states from `first` on, token by token."""
        starts, slots = self._opened(texts, first)
        states: list[list[Tensor]] = [[] for _ in texts]
        for t in range(max(map(len, texts))):
            rows = [i for i, at in enumerate(first) if at + t < len(texts[i])]
            if rows:
                longer = [texts[i][: first[i] + t + 1] for i in rows]
                for i, state in zip(
                    rows, self.step([slots[starts[i]] for i in rows], longer), strict=True
                ):
                    states[i].append(state)
        for start, text in zip(starts, texts, strict=True):
            self.close(slots[start], text)
        return [torch.stack(row) for row in states]

    def _extended(self, texts: Sequence[Tokens], first: Sequence[int]) -> list[Tensor]:
        """Last hidden states from `first` on, each text's in one pass."""
        starts, slots = self._opened(texts, first)
        states = [self.extend([slots[s]], [t])[0] for s, t in zip(starts, texts, strict=True)]
        for start, text in zip(starts, texts, strict=True):
            self.close(slots[start], text)
        return states

    def _opened(
        self, texts: Sequence[Tokens], first: Sequence[int]
    ) -> tuple[list[Tokens], dict[Tokens, Slot]]:
        self.pool.clear()
        starts = [text[:at] for text, at in zip(texts, first, strict=True)]
        return starts, self.open(starts)[0]

    def batch_rows(self, length: int) -> int:
        """Most rows of `length` tokens that fit the byte budget, at least one."""
        return self._memory.batch_rows(length)

    @alone
    def hidden(
        self, texts: Sequence[Tokens], first: Sequence[int], payers: Sequence[Payer] = ()
    ) -> list[Tensor]:
        """Last hidden states `[n, hidden]` of each text, from position `first[i]` to its end."""
        busy = self.slots.busy
        longest = max([*map(len, texts), *(slot.length for slot in busy)], default=1)
        rows = max(1, self.batch_rows(longest) - len(busy))
        states: list[Tensor] = []
        for at in range(0, len(texts), rows):
            part = slice(at, at + rows)
            slots, computed = self._run(texts[part], first[part], payers[part])
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
        slots, states = self._run(texts, [len(t) - 1 for t in texts], payers)
        return slots, [s[-1] for s in states]

    @alone
    def seat(self, texts: Sequence[Tokens]) -> list[Slot]:
        """A slot for each of the texts, to go on from there."""
        if not texts:
            return []
        self._memory.reserve(len(texts), max(map(len, texts)))
        self._cut(texts)
        slots = self._filled({text: self.pool.match(text) for text in texts})
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
        match = self.pool.match(text)
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
        self._room(max(slot.length for slot in slots) + 1)
        return self.runner.step(slots, texts)

    @alone
    def extend(self, slots: Sequence[Slot], texts: Sequence[Tokens]) -> list[Tensor]:
        """Computes the last tokens of each row's text, those that its slot does not hold yet, in
        one pass: last hidden states `[n, hidden]` of these."""
        self._room(max(map(len, texts)))
        starts = [slot.length for slot in slots]
        self.runner.fill(list(zip(texts, slots, strict=True)))
        return [
            self.slots.view(slot, start, slot.length).states.clone()
            for slot, start in zip(slots, starts, strict=True)
        ]

    def _room(self, length: int) -> None:
        if length > self.slots.length:
            self._memory.reserve(0, length)

    def _run(
        self, texts: Sequence[Tokens], first: Sequence[int], payers: Sequence[Payer]
    ) -> tuple[dict[Tokens, Slot], list[Tensor]]:
        """Computes what is missing of every text.

        Returns:
            The slots of the texts that were not known, and the last hidden states asked for.
        """
        unique = list(dict.fromkeys(texts))
        # Memory is made before anything is looked up: what is found stays where it is.
        self._memory.reserve(len(unique), max(map(len, unique)))
        known = [self.pool.cut(text) for text in unique]
        payers = payers or [None] * len(texts)
        first_payers = dict(zip(reversed(texts), reversed(payers), strict=True))  # who asks first
        if self._share_prefixes(unique, known, first_payers):
            self._cut(unique)
        matches = {text: self.pool.match(text) for text in unique}
        for text, match in matches.items():
            if match.length < len(text):
                matches[text] = match.cut(self._resumed(text, match)[0])
        self._book(texts, matches, payers)
        slots = self._filled({t: m for t, m in matches.items() if m.length < len(t)})
        states = [
            self.slots.view(slots[text], start, len(text)).states.clone()
            if text in slots
            else self.pool.states(self.pool.match(text), start)  # runs were split since
            for text, start in zip(texts, first, strict=True)
        ]
        self.pool.trim()
        return slots, states

    def _cut(self, texts: Sequence[Tokens]) -> None:
        """Lets runs end where the texts leave them, so that matches can be placed."""
        for text in texts:
            self.pool.cut(text)

    def _share_prefixes(
        self, texts: Sequence[Tokens], known: Sequence[int], payers: Mapping[Tokens, Payer]
    ) -> bool:
        """Computes prefixes that several of the texts share once, before the texts themselves.

        Args:
            known: how many tokens of each text need not be computed.
            payers: the account of each text; one of those who share a prefix pays for it.

        Returns:
            Whether there were any.
        """
        least = _CPU_MIN_SHARED if self.device.type == "cpu" else _GPU_MIN_SHARED
        shared: dict[Tokens, Payer] = {}
        for (a, length), (b, _) in itertools.pairwise(sorted(zip(texts, known, strict=True))):
            size = common_prefix(a, b)
            if size - length >= least:
                shared.setdefault(a[:size], payers[a])
        if shared:
            self.hidden(list(shared), [len(t) - 1 for t in shared], list(shared.values()))
            for prefix, account in shared.items():
                if account is not None:  # who paid will find its text known that far
                    ledger, _, reused = account
                    ledger.add(**{reused: -len(prefix)})
        return bool(shared)

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
        if self._resumes:
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

    def _resumed(self, text: Tokens, match: Match) -> tuple[int, State | None]:
        """From where a text can go on, of which so much is stored: there, and with what state."""
        if not self._resumes:
            return match.length, None
        return self.runner.snapshots.longest(text, match.length)


def _rearm() -> None:
    """After a fork nobody else runs: a lock that another thread held would never be released."""
    for lock in _locks.values():
        lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_rearm)
