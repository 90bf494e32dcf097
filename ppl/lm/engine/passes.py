"""Forward passes over slots, each row at its own position. A program of our own finds the slots of
its rows by their numbers; the layers of a model, and captured steps, cover neighbouring ones.

Symbols: `B` slots that a pass covers, `Q` query tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ppl.errors import PromptError, UnsupportedModelError
from ppl.lm.engine.admission import Plan, rounds
from ppl.lm.engine.attention import NAME, grouped, running_filling, running_spans
from ppl.lm.engine.beside import ID, Adapters, number_of
from ppl.lm.engine.blocks import blocks_of
from ppl.lm.engine.compiled import CompiledStep
from ppl.lm.engine.evicting import Evicting
from ppl.lm.engine.graphs import StepGraphs, keys_bucket, rows_bucket
from ppl.lm.engine.kv import KV
from ppl.lm.engine.prefill import LEAST, Filling, Job, Packed, packed
from ppl.lm.engine.reach import reaching
from ppl.lm.engine.recurrent import SPACING, Snapshots
from ppl.lm.engine.runs import Piece, Slot, Stem, Tokens, Trunk
from ppl.lm.engine.setting import Attention
from ppl.lm.engine.slots import Slots, Window
from ppl.lm.engine.spans import MOST_TOGETHER, Common, Span
from ppl.lm.engine.trunk import Standing, standing_on
from ppl.lm.engine.whole import packer_of, whole_step

# Query tokens of one prefill pass over all rows: bounds the memory of activations, and of masks
# where every head has its own.
_PREFILL_TOKENS, _EVICTING_TOKENS = 4096, 512
# Fewer tokens a row attend more quickly all together than each row apart.
_PACKED = 8
# A pass of one token a row may cover a third more slots than rows before slots are exchanged.
_SPREAD = 1 / 3
# Bytes of keys and values that a step must be spared, in every layer, to read what rows have in
# common apart: what is read in the time that the additional operations take.
_CPU_SHARED, _GPU_SHARED = 1 << 20, 1 << 27
# A pass with spans is not captured: what is read must outweigh launching a whole step by hand.
_GRAPHS_SHARED = 1 << 29


class Placed(NamedTuple):
    """Where the rows of a step are.

    Attributes:
        low: the first slot that it covers, where they are neighbours.
        where: each row's number in the pass.
        inputs: `[3, B, 1]` ids, positions and columns.
        window: the memory of the `B` rows.
        spans, standing: see `Passes`.
    """

    low: int
    where: list[int]
    inputs: Tensor
    window: Window
    spans: list[Span] | None
    standing: Standing | None


class Passes:
    """The forward passes of one model.

    Args:
        base: the decoder without its head.
        config: its configuration.
        plan: how it attends and what it keeps.
        vocabulary: its number of token ids.
        name: shown in messages.
        slots: the memory from which passes read and to which they write.
        snapshots: bytes for states of texts, for models with recurrent layers.
        graphs: on a GPU, capture passes of one token a row as CUDA graphs.
        compile: compile passes of one token a row.

    Attributes:
        made: passes so far.
        tokens_computed: tokens that they computed for a row.
        tokens_padded: tokens that they computed for nobody.
        price: keys that have to be saved, over all rows, for one product more to pay.
        shares: whether rows can stand on trunks: attention is ours, on keys and values as the cache
            has them; recurrent layers and captured steps have each row's beginning with the row.
        snapshots: these states.
        adapters: what texts may have beside the model's weights.
        stepwise: whether recurrent layers go on by one token at a time only.
        plan, how, windows: see `ppl.lm.engine.admission.Plan`.
        graphs, compiled, whole: how passes of one token a row run, None where plainly.
    """

    def __init__(
        self,
        base: nn.Module,
        config: Any,
        plan: Plan,
        *,
        vocabulary: int,
        name: str,
        slots: Slots,
        snapshots: int,
        graphs: bool,
        compile: bool,
    ) -> None:
        self._base, self._config, self._slots = base, config, slots
        self._vocabulary, self._name = vocabulary, name
        self.device, self.dtype = slots.device, slots.dtype
        self._attention = Attention(config)
        self._bool_mask = config._attn_implementation in ("sdpa", "flex_attention")
        self.how, self.windows = plan.how, plan.windows
        self.plan, self._states, self._cache = plan, plan.states, plan.cache
        self._keeps = slots.keeps
        self._at_once = _EVICTING_TOKENS if plan.layout.scored else _PREFILL_TOKENS
        plainly = "its recurrent layers run" if plan.states else "a model whose heads evict runs"
        if (plan.states or plan.layout.scored) and (graphs or compile):
            flag = "graphs" if graphs else "compile"
            raise UnsupportedModelError(f"{name}: {plainly} plainly; load it with {flag}=False")
        self.snapshots = Snapshots(snapshots)
        self.adapters = Adapters()
        self.stepwise = False
        self._rows: list[Slot | None] = []  # of the running pass
        self.graphs = StepGraphs(self.captured_pass, self.device) if graphs else None
        self.compiled = CompiledStep(base, config, plan, self._keeps, name) if compile else None
        plain = not graphs and self._keeps == KV() and not plan.states
        self.whole = whole_step(base, config, plan, self.adapters) if plain else None
        # In keys of one layer, of all heads: reading them costs what another product does.
        worth = _CPU_SHARED if self.device.type == "cpu" else _GPU_SHARED
        worth = _GRAPHS_SHARED if graphs else worth
        self.price = worth // (slots.layout.widest * self.dtype.itemsize)
        whole = self.compiled is None or self.compiled.native
        self.shares = plan.keeps_what_is_read and whole and not graphs
        self._common = Common(self.price if graphs else 0)
        self.forget()

    def forget(self) -> None:
        """Counts from zero."""
        self.made = self.tokens_computed = self.tokens_padded = 0

    def place(self, slots: Sequence[Slot], texts: Sequence[Tokens], count: int = 1) -> Placed:
        """Where steps of these rows go, so many of them, beginning with the last token of each
        text; what is before it its slot holds."""
        # A step that is a program of our own finds its rows wherever they are.
        anywhere = self.graphs is None and self.as_steps(len(slots))
        low, high = (0, len(slots)) if anywhere else self._slots.gather(slots, _SPREAD)
        if self.graphs is not None:
            # What is captured is bound to where its rows lie: few places, few captures.
            low -= low % min(rows_bucket(high - low), 8)
            rows = min(rows_bucket(high - low), len(self._slots.all))
            low = min(low, len(self._slots.all) - rows)
            high = low + rows
        where = [at if anywhere else slot.index - low for at, slot in enumerate(slots)]
        # NumPy, because so many small operations cost torch several times as much.
        table = np.zeros((3, high - low), dtype=np.int64)
        table[2] = self._slots.length
        lengths, tails = [slot.length for slot in slots], [slot.tail for slot in slots]
        table[:, where] = [text[-1] & ID for text in texts], lengths, tails
        reach = [0] * (high - low)
        for row, tail in zip(where, tails, strict=True):
            reach[row] = tail + count - 1
        spans = self._common.spans(slots, texts, where, reach, 1, self.price)
        self._seat(slots, where, high - low)
        self.adapters.seat(texts, where, high - low)
        standing = self._standing(slots, where, high - low)
        inputs = torch.from_numpy(table)[:, :, None]
        columns, visible = inputs[2].to(self.device), max(tails) + count
        if anywhere:
            window = self._slots.addressed(slots, columns, visible)
        else:
            window = self._slots.window(low, columns, visible)
        return Placed(low, where, inputs, window, spans, standing)

    def step(self, slots: Sequence[Slot], texts: Sequence[Tokens]) -> Tensor:
        """Computes the last token of each row's text: last hidden states `[rows, hidden]`."""
        low, where, inputs, window, spans, standing = self.place(slots, texts)
        if self.graphs is None or spans is not None:
            states = self._forward(inputs, window, len(slots), spans, standing)[:, 0]
        else:
            self.count(inputs.shape[1], len(slots))
            visible = keys_bucket(window.visible, self._slots.length)
            states = self.graphs.run(self._slots.generation, low, visible, inputs)[:, 0].clone()
        for slot in slots:
            slot.length += 1
        if self._states:
            self._snap(zip(texts, slots, strict=True))
        # A slice where it does: an index is a copy to the device, which waits for the pass.
        return states[: len(where)] if where == list(range(len(where))) else states[where]

    def fill(self, rows: Sequence[tuple[Tokens, Slot]]) -> None:
        """Computes the missing end of every text in its slot.

        Raises:
            PromptError: a text has an id that the model does not have.
        """
        self._check_rows(rows)
        if self._states:
            self._fill_evenly(rows)
            return
        missing = sum(len(text) - slot.length for text, slot in rows)
        few = missing <= min(MOST_TOGETHER * len(rows), self._at_once)
        if rows and few and self.takes_whole(missing):
            self._as_steps(rows)
            return
        if missing >= _PACKED * len(rows) and (packer := self._packer):
            jobs = []
            for text, slot in rows:
                kv = tuple(group[:, slot.index] for group in self._slots.kv)
                own = kv, self._slots.states[slot.index], slot.trunk, number_of(text)
                jobs.append(Job(text[slot.length :], slot.length, slot.tail, *own))
            self._pack(jobs, packer)
            for text, slot in rows:
                slot.length = len(text)
            return
        # Similar amounts of work side by side: little padding.
        todo = sorted(rows, key=lambda row: len(row[0]) - row[1].length)
        while todo:
            text, slot = todo[-1]
            width = len(text) - slot.length
            group = todo[-max(1, self._at_once // width) :]
            del todo[-len(group) :]
            for at in range(0, width, self._at_once):
                self._fill(group, min(self._at_once, width - at))

    def extend(self, rows: Sequence[tuple[Tokens, Slot]]) -> None:
        """As `fill`, of a few tokens a row: by the program of a step, compiled ones too."""
        missing = sum(len(text) - slot.length for text, slot in rows)
        if self.as_steps(missing) and missing <= MOST_TOGETHER * len(rows):
            self._check_rows(rows)
            self._as_steps(rows)
        else:
            self.fill(rows)

    def _as_steps(self, rows: Sequence[tuple[Tokens, Slot]]) -> None:
        run = blocks_of(self._slots, rows, self.price)
        most = len(run.texts)
        self.adapters.seat(run.texts, range(most), most)
        self._forward(run.inputs, run.window, most, run.spans, standing_on(run.trunks, self.device))
        for text, slot in rows:
            slot.length = len(text)

    def as_steps(self, tokens: int) -> bool:
        """Whether a pass of several tokens a row, so many in all, goes through a step's program."""
        step, keeps = self.compiled, self._keeps
        return self.takes_whole(tokens) if step is None else step.native and not keeps

    def takes_whole(self, rows: int) -> bool:
        """Whether a step of so many rows is one program."""
        return self.whole is not None and self.whole.takes(rows)

    def _fill_evenly(self, rows: Sequence[tuple[Tokens, Slot]]) -> None:
        """As `fill`, all rows of a pass by equally many tokens."""
        todo = [row for row in rows if row[1].length < len(row[0])]
        while todo:
            fresh = [row for row in todo if row[1].length == 0]
            group = (fresh if fresh and self.stepwise else todo)[: self._at_once]
            ends = [min(len(t), (s.length // SPACING + 1) * SPACING) - s.length for t, s in group]
            most = max(1, self._at_once // len(group))
            if self.stepwise:  # all of a text at once, or one token after another
                ends, most = [len(t) for t, _ in group], most if fresh else 1
                group = [row for row in group if not fresh or len(row[0]) == max(ends)]
                ends = [max(ends)]
            self._fill(group, min(most, *ends))
            self._snap(group)
            todo = [row for row in todo if row[1].length < len(row[0])]

    def _snap(self, rows: Iterable[tuple[Tokens, Slot]]) -> None:
        for text, slot in rows:
            if slot.length % SPACING == 0:
                self.snapshots.keep(text[: slot.length], slot.state)

    def _seat(self, slots: Sequence[Slot], where: Sequence[int], rows: int) -> None:
        """Says which row of the pass that comes next is in which slot."""
        if self._states:
            self._rows = [None] * rows
            for slot, row in zip(slots, where, strict=True):
                self._rows[row] = slot

    def _check_rows(self, rows: Sequence[tuple[Tokens, Slot]]) -> None:
        for text, slot in rows:
            self._check(text, slot.length)

    def _check(self, text: Tokens, start: int) -> None:
        ids = np.asarray(text[start:])  # booleans and fractions, if any, decide its type
        ids = ids if start or ids.dtype.kind != "i" else self.adapters.plain(ids)
        if ids.dtype.kind != "i" or ids.min() < 0 or ids.max() >= self._vocabulary:
            raise PromptError(
                f"{self._name}: {ids.tolist()[:8]} are not all token ids of this model, which are "
                f"the integers 0 to {self._vocabulary - 1}; make texts with lm.prompt, lm.chat or "
                "lm.encode"
            )

    def _fill(self, group: Sequence[tuple[Tokens, Slot]], width: int) -> None:
        """One pass over up to `width` of the missing tokens of each text."""
        texts, rows = [text for text, _ in group], [slot for _, slot in group]
        low, high = self._slots.gather(rows, _SPREAD if width == 1 else 0.0)
        where = [slot.index - low for slot in rows]
        ids, positions, columns = table = np.zeros((3, high - low, width), dtype=np.int64)
        columns[:] = self._slots.length
        sizes, ends = [min(len(text) - slot.length, width) for text, slot in group], [0] * len(ids)
        for row, size, (text, slot) in zip(where, sizes, group, strict=True):
            after = slot.length + size
            ids[row, :size] = text[slot.length : after]
            positions[row, :size] = range(slot.length, after)
            columns[row, :size] = range(slot.tail, slot.tail + size)
            ends[row] = slot.tail + size - 1
        ids &= ID
        inputs = torch.from_numpy(table)
        spans = self._common.spans(rows, texts, where, ends, width, self.price)
        self._seat(rows, where, high - low)
        self.adapters.seat(texts, where, high - low)
        standing = self._standing(rows, where, high - low)
        window = self._slots.window(low, inputs[2].to(self.device), max(ends) + 1)
        tails = [slot.tail for slot in rows]
        filling = self._filling(zip(where, tails, sizes, strict=True), width)
        self._forward(inputs, window, sum(sizes), spans, standing, filling)
        for slot, size in zip(rows, sizes, strict=True):
            slot.length += size

    def segments(self, stems: Sequence[Stem]) -> list[tuple[int, Piece]]:
        """Computes what follows trunks, in memory of its own: nothing is copied afterwards.

        Args:
            stems: none of them needs another.

        Returns:
            For each where it begins, and the new part.
        """
        made, jobs = [], []
        for text, trunk, known in stems:
            done = base = trunk[-1].stop if trunk else 0
            piece = self._slots.piece(len(text) - base)
            for at, some in known:
                piece[at - base : at - base + len(some.states)].copy_(some)
                done = at + len(some.states)
            if done < len(text):
                self._check(text, done)
            made.append((base, piece))
            own = piece.kv, piece.states, trunk, number_of(text)
            jobs.append(Job(text[done:], done, done - base, *own))
        if packer := self._packer:
            self._pack(jobs, packer)
        else:
            for (text, *_), job in zip(stems, jobs, strict=True):
                self._segment(text, job)
        return made

    def _segment(self, text: Tokens, job: Job) -> None:
        """The job of a text as passes of its own."""
        kv, states = tuple(group.unsqueeze(1) for group in job.kv), job.states[None]
        base = job.start - job.column
        for at in range(job.start, len(text), self._at_once):
            to = min(at + self._at_once, len(text))
            where = torch.arange(at, to)
            self.adapters.seat([text], [0], 1)
            inputs = torch.stack([torch.tensor(text[at:to]) & ID, where, where - base])[:, None]
            window = Window(self._slots.layout, kv, states, inputs[2].to(self.device), to - base)
            filling = self._filling([(0, at - base, to - at)], to - at)
            standing = standing_on([job.trunk], self.device)
            self._forward(inputs, window, to - at, None, standing, filling)

    @property
    def _packer(self) -> Callable[[Packed], Tensor] | None:
        """What fills texts without padding: the program of a step, which knows these tokens."""
        if self._states or self._keeps.int8:
            return None
        return packer_of(self.whole, self.compiled, self.plan, beside=self.adapters.there)

    def _pack(self, jobs: Sequence[Job], packer: Callable[[Packed], Tensor]) -> None:
        for batch in packed(jobs, self._at_once):
            run = Packed(batch)
            self.made += 1
            self.tokens_computed += sum(len(job.tokens) for job in batch)
            run.keep(packer(run))

    def _filling(self, rows: Iterable[tuple[int, int, int]], width: int) -> Filling | None:
        """How the rows of a pass of so many tokens a row attend, if each apart."""
        plain = self.how == NAME and not self.windows and self.device.type == "cpu"
        return Filling(list(rows)) if plain and width >= LEAST else None

    def _standing(self, slots: Sequence[Slot], where: Sequence[int], rows: int) -> Standing | None:
        """On what the rows of a pass stand; those that compute for nobody stand on nothing."""
        if not any(slot.trunk for slot in slots):
            return None
        trunks: list[Trunk] = [()] * rows
        for row, slot in zip(where, slots, strict=True):
            trunks[row] = slot.trunk
        return standing_on(trunks, self.device)

    def _forward(
        self,
        inputs: Tensor,
        window: Window,
        real: int,
        spans: list[Span] | None,
        standing: Standing | None,
        filling: Filling | None = None,
    ) -> Tensor:
        """One pass, causal per row: `[B, Q, hidden]`.

        Args:
            inputs: `[3, B, Q]` ids, positions, and columns for keys; padding goes to the last.
            window: the memory of the `B` rows.
            real: how many of the tokens are no padding.
            spans: rows that attend apart.
            standing: which rows stand on a trunk.
            filling: of a pass of many tokens a row, which rows get how many.
        """
        self.count(inputs[0].numel(), real)
        ids, positions, _ = inputs.to(self.device).unbind()
        if standing is not None:
            standing.window = window
        beside, evicting = self.adapters.seated(inputs.shape[2]), self._evicting(window, standing)
        with grouped(self._attention, spans, self.how, standing, filling, evicting), beside:
            return self._pass(ids, positions, window, standing)

    def _evicting(self, *memory: Any) -> Evicting | None:
        evicts = self._keeps.evicts if self.plan.layout.scored else None
        return None if evicts is None else Evicting(evicts, self._base, *memory)

    def count(self, tokens: int, real: int, passes: int = 1) -> None:
        """Counts passes over so many tokens in all, of which some are nobody's."""
        self.made += passes
        self.tokens_computed += real
        self.tokens_padded += tokens - real

    def unwanted(self, tokens: int) -> None:
        """So many tokens that were computed for rows are nobody's in the end."""
        self.tokens_computed -= tokens
        self.tokens_padded += tokens

    def captured_pass(self, inputs: Tensor, low: int, visible: int) -> Tensor:
        """One pass as `StepGraphs` captures it: all rows attend together."""
        ids, positions, columns = inputs
        with grouped(self._attention, None, self.how):
            return self._pass(ids, positions, self._slots.window(low, columns, visible), None)

    def _pass(
        self, ids: Tensor, positions: Tensor, window: Window, standing: Standing | None
    ) -> Tensor:
        """Looks at no value, so that it can be captured, where no row stands on a trunk."""
        single = ids.shape[1] == 1
        step = self.whole if single and self.takes_whole(len(ids)) else self.compiled
        if step is not None and single:
            states: Tensor = step(ids, positions, window, running_spans(), standing)
            window.keep(states)
            return states
        cache = window.cache()
        if self._states:
            before = [None if slot is None else slot.state for slot in self._rows]
            self._states.into(cache, window, before)
        asked = {"input_ids": ids, "position_ids": positions, self._cache: cache, "use_cache": True}
        if not self._slots.kv:  # nothing attends
            output = self._base(attention_mask=None, **asked)
        elif self.windows:  # each layer's own mask, made by the model from these positions
            bases = None if standing is None else standing.bases
            with reaching(positions, bases, self._keeps, window.holes):
                output = self._base(attention_mask=None, **asked)
        else:
            tails = positions if standing is None else positions - standing.bases[:, None]
            mask = self._causal(tails, window.visible)
            if (filling := running_filling()) is not None:
                filling.mask = mask
            output = self._base(attention_mask=mask, **asked)
        if self._states:
            for slot, state in zip(self._rows, self._states.out_of(cache), strict=True):
                if slot is not None:
                    slot.state = state
            self._rows = []
        states = output.last_hidden_state
        window.keep(states)
        return states

    def plainly(self, ids: Tensor) -> Tensor:
        """The model's own pass over one text `[1, n]`, from nothing and to no slot, with what is
        kept of keys and values: `[1, n, hidden]`."""
        asked: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        states: Tensor
        if self._keeps.int8 and self._slots.kv and self._cache == "past_key_values":
            asked |= {self._cache: rounds(DynamicCache(config=self._config)), "use_cache": True}
        if not (self.windows and self._keeps.gives_up):
            states = self._base(**asked).last_hidden_state
            return states
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        heads = grouped(self._attention, None, self.how, evicting=self._evicting())
        with heads, reaching(positions, keeps=self._keeps):
            states = self._base(position_ids=positions, **asked).last_hidden_state
        return states

    def _causal(self, positions: Tensor, visible: int) -> Tensor:
        """`[B, 1, Q, visible]` what each query may look at where it may look at all before it."""
        keys = torch.arange(visible, device=self.device)
        mask = keys <= positions[:, None, :, None]
        if self.how == NAME or self._bool_mask:
            return mask
        floor = torch.finfo(self.dtype).min
        return torch.where(mask, 0.0, floor).to(self.dtype)
