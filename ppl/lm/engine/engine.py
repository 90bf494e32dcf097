"""Batched, ragged, prefix-sharing forward passes through any Hugging Face decoder.

A row lives in a slot (`ppl.lm.engine.slots`); what a row has computed is known to the prefix tree
(`ppl.lm.engine.prefix`) and never computed again. Passes cover neighbouring slots, each row at its
own position, however long the others are.

Symbols: `B` rows, `Q` query tokens of a pass, `H` key-value heads, `D` head size.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from ppl.errors import UnsupportedModelError
from ppl.language.cost import Ledger
from ppl.lm.engine.attention import Span, grouped, running_spans, share, split
from ppl.lm.engine.compiled import CompiledStep
from ppl.lm.engine.graphs import StepGraphs, keys_bucket, rows_bucket
from ppl.lm.engine.prefix import Match, PrefixPool, Tokens, common_prefix
from ppl.lm.engine.slots import Slot, Slots, Window, bucket

# Shared prefixes shorter than this are not worth a pass of their own: on a CPU a pass costs what it
# computes, on a GPU a short one costs as much as one of hundreds of tokens.
_CPU_MIN_SHARED, _GPU_MIN_SHARED = 1, 8
# Query tokens of one prefill pass over all rows: bounds the memory of activations.
_PREFILL_TOKENS = 4096
# A pass of one token a row may cover a third more slots than rows before slots are exchanged.
_SPREAD = 1 / 3

# Tokens a row up to which rows read a common beginning together.
_MOST_TOGETHER = 16
# Bytes of keys and values that a step must be spared, in every layer, to read what rows have in
# common apart: what is read in the time that the additional operations take.
_CPU_SHARED, _GPU_SHARED = 1 << 20, 1 << 27
# A pass with spans is not captured: what is read must outweigh launching a whole step by hand.
_GRAPHS_SHARED = 1 << 29

Account = tuple[Ledger, str, str] | None
"""A ledger and the names under which computed and reused tokens are booked, or None."""


class Engine:
    """Forward passes of one model for many texts at once.

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
        passes: forward passes made.
        tokens_computed: tokens that passes computed for a row.
        tokens_padded: tokens that passes computed for nobody.
        peak_nbytes: most bytes that these took, slots and tree together.
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
        self.base: nn.Module = model.base_model
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._config = model.config.get_text_config()
        self.context_length = _context_length(self._config, context_length, name)
        self.capacity = capacity
        self.pool = PrefixPool(capacity)
        self._bool_mask = self._config._attn_implementation in ("sdpa", "flex_attention")
        self.passes = self.tokens_computed = self.tokens_padded = 0
        self.graphs = StepGraphs(self._captured_pass, self.device) if graphs else None
        self._running: list[int] = []
        self._common: list[int] = []
        with torch.inference_mode():
            shape = self._probe()
            self.slots = Slots(shape, self.pool, self.dtype, self.device)
            self.pool.view = self.slots.view
            self.peak_nbytes = 0
            layers, heads, dim, hidden = shape
            self._compiled = (
                CompiledStep(self.base, self._config, layers, name) if compile else None
            )
            self.bytes_per_token: int = (2 * layers * heads * dim + hidden) * self.dtype.itemsize
            # In keys of one layer, of all heads: reading them costs what another product does.
            worth = _CPU_SHARED if self.device.type == "cpu" else _GPU_SHARED
            if self.graphs is not None:
                worth = _GRAPHS_SHARED
            self._price = worth // (2 * heads * dim * self.dtype.itemsize)
            self._self_check()
        self.pool.clear()
        self.passes = self.tokens_computed = self.tokens_padded = 0

    def _probe(self) -> tuple[int, int, int, int]:
        """Runs one token to see what the model's own cache is made of.

        Returns:
            Layers, key-value heads, head size and hidden size.
        """
        ids = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        output = self.base(input_ids=ids, use_cache=True)
        layers = getattr(getattr(output, "past_key_values", None), "layers", None)
        if not hasattr(output, "last_hidden_state"):
            raise UnsupportedModelError(
                f"{self.name}: a {type(self.base).__name__} gives no last hidden states; use a "
                "decoder whose base model does"
            )
        if not layers:
            raise UnsupportedModelError(
                f"{self.name}: a {type(self.base).__name__} keeps no keys and values per token, "
                "its state cannot be forked at a token; use a decoder with full attention"
            )
        self._refuse_long_rope()
        for layer in layers:
            window = getattr(layer, "sliding_window", None)
            if window is not None and self.context_length <= window:
                continue  # a window that never moves is full attention
            if type(layer) is not DynamicLayer:
                remedy = (
                    f"pass context_length={window} (within its window it is full attention)"
                    if window
                    else "use a decoder with full attention"
                )
                raise UnsupportedModelError(
                    f"{self.name}: its cache has layers of kind {type(layer).__name__}, which "
                    f"cannot be forked at a token; {remedy}"
                )
        shapes = {(layer.keys.shape[1], layer.keys.shape[3]) for layer in layers}
        shapes |= {(layer.values.shape[1], layer.values.shape[3]) for layer in layers}
        if len(shapes) != 1:
            raise UnsupportedModelError(
                f"{self.name}: its layers keep keys and values of different shapes {shapes}; "
                "use a decoder whose layers are alike"
            )
        heads, dim = shapes.pop()
        return len(layers), heads, dim, output.last_hidden_state.shape[-1]

    def _refuse_long_rope(self) -> None:
        """LongRoPE turns all keys differently as soon as one text of a pass is long."""
        settings = getattr(self._config, "rope_parameters", None) or {}
        for rope in settings, *(v for v in settings.values() if isinstance(v, dict)):
            most = rope.get("original_max_position_embeddings") or self.context_length
            if rope.get("rope_type") == "longrope" and self.context_length > most:
                raise UnsupportedModelError(
                    f"{self.name}: its positions (LongRoPE) change with the length of the text, so "
                    f"that its state cannot be forked; pass context_length={most}, up to which "
                    "they do not"
                )

    def _self_check(self) -> None:
        """Compares the ragged pass with the model's own on a few tokens, so that a model whose
        positions or masks work differently is refused rather than run wrongly."""
        size = int(self.base.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        lengths = (min(9, self.context_length), 5)
        # From all over the vocabulary: after texts of nothing but special tokens, which come first,
        # half precision can be off by as much as the states themselves.
        texts = [
            tuple((1009 * i + 7919 * j) % size for j in range(1, n + 1))
            for i, n in enumerate(lengths)
        ]
        try:
            # One goes on, the other begins: shows masks made from where a pass begins.
            self.hidden([texts[1][:4]], [3])
            ours = self.hidden(texts, [3, 3])
        except torch.OutOfMemoryError:
            raise
        except Exception as refusal:  # models fail in any way where masks are not their own
            said = " ".join(f"{type(refusal).__name__}: {refusal}".split())[:300]
            raise UnsupportedModelError(
                f"{self.name}: a {type(self.base).__name__} takes no mask and positions of ours "
                f"({said}); use a plain decoder"
            ) from refusal
        if self.graphs is not None or self._compiled is not None:
            self.pool.clear()
            starts = [text[:-1] for text in texts]
            slots, _ = self.open(starts)
            try:
                stepped = self.step([slots[start] for start in starts], texts)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as refusal:
                how, flag = "compiled", "compile"
                if self.graphs is not None:
                    how, flag = "captured as CUDA graphs", "graphs"
                said = " ".join(str(refusal).split())[:300]
                raise UnsupportedModelError(
                    f"{self.name}: its steps cannot be {how} ({said}); load it with {flag}=False"
                ) from refusal
            ours = [torch.cat([o[:-1], s[None]]) for o, s in zip(ours, stepped, strict=True)]
            for slot, text in zip(slots.values(), texts, strict=True):
                self.close(slot, text)
        for text, mine in zip(texts, ours, strict=True):
            ids = torch.tensor([text], device=self.device)
            plain = self.base(input_ids=ids, use_cache=False).last_hidden_state[0, 3:]
            scale = float(plain.abs().max())
            error = float((mine - plain).abs().max())
            if not error <= (1e-3 if self.dtype == torch.float32 else 0.1) * max(scale, 1.0):
                raise UnsupportedModelError(
                    f"{self.name}: batched passes differ from the model's own by {error:.2g}; "
                    "its attention or positions are not those of a plain decoder"
                )

    def batch_rows(self, length: int) -> int:
        """Most rows of `length` tokens that fit the byte budget, at least one."""
        return max(1, self.capacity // 2 // self._slot_nbytes(length))

    @torch.inference_mode()
    def hidden(
        self, texts: Sequence[Tokens], first: Sequence[int], accounts: Sequence[Account] = ()
    ) -> list[Tensor]:
        """Last hidden states `[n, hidden]` of each text, from position `first[i]` to its end."""
        busy = self.slots.busy
        longest = max([*map(len, texts), *(slot.length for slot in busy)], default=1)
        rows = max(1, self.batch_rows(longest) - len(busy))
        states: list[Tensor] = []
        for at in range(0, len(texts), rows):
            part = slice(at, at + rows)
            slots, computed = self._run(texts[part], first[part], accounts[part])
            for slot in slots.values():
                self.slots.leave(slot)
            states += computed
        return states

    @torch.inference_mode()
    def open(
        self, texts: Sequence[Tokens], accounts: Sequence[Account] = ()
    ) -> tuple[dict[Tokens, Slot], list[Tensor]]:
        """Computes of every text what is not known, and keeps the slots in which that was done.

        Returns:
            The slots of the texts that were computed, to be handed back with `close` (the others
            can be given one with `seat`), and each text's last hidden state `[hidden]`.
        """
        slots, states = self._run(texts, [len(t) - 1 for t in texts], accounts)
        return slots, [s[-1] for s in states]

    @torch.inference_mode()
    def seat(self, texts: Sequence[Tokens]) -> list[Slot]:
        """A slot for each of the texts, to go on from there."""
        if not texts:
            return []
        self._reserve(len(texts), max(map(len, texts)))
        self._cut(texts)
        slots = self._placed({text: self.pool.match(text) for text in texts})
        twins = iter(self.fork([slots[t] for i, t in enumerate(texts) if t in texts[:i]]))
        return [next(twins) if t in texts[:i] else slots[t] for i, t in enumerate(texts)]

    @torch.inference_mode()
    def known(self, text: Tokens) -> Tensor | None:
        """The last hidden state `[hidden]` of a text, None if it would have to be computed."""
        match = self.pool.match(text)
        if match.length < len(text):
            return None
        return self.pool.states(match, len(text) - 1)[0]

    @torch.inference_mode()
    def close(self, slot: Slot, tokens: Tokens) -> None:
        """Ends a row; `tokens` are all that its slot holds."""
        self.pool.insert(tokens, slot)
        self.slots.leave(slot)

    @torch.inference_mode()
    def fork(self, slots: Sequence[Slot]) -> list[Slot]:
        """A new row for each of the given ones, which stands where that one stands."""
        if not slots:
            return []
        self._reserve(len(slots), max(slot.length for slot in slots))
        copies = self.slots.idle(set())[: len(slots)]
        for copy, slot in zip(copies, slots, strict=True):
            self.slots.take(copy)
            self.slots.view(copy, 0, slot.length).copy_(self.slots.view(slot, 0, slot.length))
            copy.length = slot.length
        return copies

    @torch.inference_mode()
    def step(self, slots: Sequence[Slot], texts: Sequence[Tokens]) -> Tensor:
        """Computes the last token of each row's text: last hidden states `[rows, hidden]`."""
        longest = max(slot.length for slot in slots) + 1
        if longest > self.slots.length:
            self._reserve(0, longest)
        low, high = self.slots.gather(slots, _SPREAD)
        if self.graphs is not None:
            rows = min(rows_bucket(high - low), len(self.slots.all))
            low = min(low, len(self.slots.all) - rows)
            high = low + rows
        where = [slot.index - low for slot in slots]
        # NumPy, because so many small operations cost torch several times as much.
        ids, positions, columns = table = np.zeros((3, high - low), dtype=np.int64)
        columns[:] = self.slots.length
        ids[where] = [text[-1] for text in texts]
        positions[where] = columns[where] = [slot.length for slot in slots]
        spans = self._spans(slots, texts, where, positions.tolist(), 1)
        inputs = torch.from_numpy(table)[:, :, None]
        if self.graphs is None or spans is not None:
            states = self._forward(inputs, low, longest, len(slots), spans)[:, 0]
        else:
            self._count(inputs, len(slots))
            visible = keys_bucket(longest, self.slots.length)
            states = self.graphs.run(self.slots.generation, low, visible, inputs)[:, 0].clone()
        for slot in slots:
            slot.length += 1
        # A slice where it does: an index is a copy to the device, which waits for the pass.
        return states[: len(where)] if where == list(range(len(where))) else states[where]

    def _spans(
        self,
        slots: Sequence[Slot],
        texts: Sequence[Tokens],
        where: Sequence[int],
        positions: Sequence[int],
        width: int,
    ) -> list[Span] | None:
        """How the rows of a pass attend: which apart, and which read a beginning only once.

        Args:
            slots, texts: of the rows that matter; of each text its slot holds the first tokens.
            where: at which rows of the pass they are.
            positions: the last of each row of the pass.
            width: tokens a row.
        """
        spans = split([position + 1 for position in positions])
        if width > _MOST_TOGETHER or (len(slots) - 1) * max(positions) <= self._price:
            return spans
        order = sorted(range(len(slots)), key=where.__getitem__)
        running = [slots[i].used for i in order]  # unique to the row, not to the slot
        if running != self._running:
            # Rows that go on keep what they have in common: known until others run.
            self._running = running
            held = [texts[i][: slots[i].length] for i in order]
            self._common = [common_prefix(a, b) for a, b in itertools.pairwise(held)]
        whole = spans or [Span(0, len(positions), max(positions) + 1)]
        marked = share(whole, [where[i] for i in order], self._common, self._price)
        # One span of rows that share nothing is a pass like any other, and can be captured.
        return marked if len(marked) > 1 or marked[0].shared else None

    def _run(
        self, texts: Sequence[Tokens], first: Sequence[int], accounts: Sequence[Account]
    ) -> tuple[dict[Tokens, Slot], list[Tensor]]:
        """Computes what is missing of every text.

        Returns:
            The slots of the texts that were not known, and the last hidden states asked for.
        """
        unique = list(dict.fromkeys(texts))
        # Memory is made before anything is looked up: what is found stays where it is.
        self._reserve(len(unique), max(map(len, unique)))
        known = [self.pool.cut(text) for text in unique]
        accounts = accounts or [None] * len(texts)
        payers = dict(zip(reversed(texts), reversed(accounts), strict=True))  # who asks first
        if self._share_prefixes(unique, known, payers):
            self._cut(unique)
        matches = {text: self.pool.match(text) for text in unique}
        self._book(texts, matches, accounts)
        slots = self._placed({t: m for t, m in matches.items() if m.length < len(t)})
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
        self, texts: Sequence[Tokens], known: Sequence[int], payers: Mapping[Tokens, Account]
    ) -> bool:
        """Computes prefixes that several of the texts share once, before the texts themselves.

        Args:
            known: how many tokens of each text need not be computed.
            payers: the account of each text; one of those who share a prefix pays for it.

        Returns:
            Whether there were any.
        """
        least = _CPU_MIN_SHARED if self.device.type == "cpu" else _GPU_MIN_SHARED
        shared: dict[Tokens, Account] = {}
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
        self, texts: Sequence[Tokens], matches: dict[Tokens, Match], accounts: Sequence[Account]
    ) -> None:
        """The first row of a text pays for its computation, its twins reuse it."""
        paid: set[Tokens] = set()
        for text, account in zip(texts, accounts, strict=True):
            if account is None:
                continue
            ledger, computed, reused = account
            known = len(text) if text in paid else matches[text].length
            paid.add(text)
            ledger.add(**{computed: len(text) - known, reused: known})

    def _reserve(self, rows: int, length: int) -> None:
        """Makes sure of `rows` free slots of `length` tokens, within the byte budget."""
        slots, pool = self.slots, self.pool
        count = len(slots.busy) + rows
        if length > slots.length or count > len(slots.all):
            count, length = self._shape_for(count, length)
            kept = self.bytes_per_token * sum(slot.length for slot in slots.busy)
            largest = max(slots.nbytes, count * self._slot_nbytes(length)) + kept
            pool.capacity = max(0, self.capacity - largest)
            pool.trim()
            slots.rebuild(count, length)
            self.peak_nbytes = max(self.peak_nbytes, largest + pool.nbytes)
            pool.capacity = max(0, self.capacity - slots.nbytes)
        pool.trim(self._in_idle_slots(rows))
        self.peak_nbytes = max(self.peak_nbytes, slots.nbytes + pool.nbytes)

    def _shape_for(self, count: int, length: int) -> tuple[int, int]:
        """How many slots of which length to have where at least these are needed.

        Grows ahead where memory allows, so that growing stays rare; gives up what it must.
        """
        slots = self.slots
        needed = max([length, *(slot.length for slot in slots.busy)])
        ahead = min(slots.length * 3 // 2, self.context_length) if needed > slots.length else 0
        for wanted in (max(ahead, slots.length), slots.length, needed):
            if wanted >= needed and count <= self.batch_rows(wanted):
                needed = wanted
                break
        more = 2 * len(slots.all) if count > len(slots.all) else len(slots.all)
        return max(count, min(more, self.batch_rows(needed))), needed

    def _slot_nbytes(self, length: int) -> int:
        return self.bytes_per_token * (bucket(length) + 1)

    def _in_idle_slots(self, rows: int) -> int:
        """Bytes that the tree would have to take over if so many idle slots were needed."""
        idle = self.slots.idle(set())[:rows]
        return self.bytes_per_token * sum(len(e.tokens) for slot in idle for e in slot.edges)

    def _placed(self, matches: dict[Tokens, Match]) -> dict[Tokens, Slot]:
        """A slot for each text, filled: taken over, or copied to, and computed where missing."""
        own: dict[Tokens, Slot] = {}
        claimed: set[Slot] = set()
        for text, match in matches.items():
            if match.slot is not None and not match.slot.busy and match.slot not in claimed:
                own[text] = match.slot
                claimed.add(match.slot)
        spare = iter(self.slots.idle(claimed))
        slots = {text: own[text] if text in own else next(spare) for text in matches}
        # All are taken before anything is written: taking a slot saves what others still need.
        for text, slot in slots.items():
            self.slots.take(slot, matches[text].length if text in own else 0)
        for text, slot in slots.items():
            for at, piece in () if text in own else self.pool.pieces(matches[text]):
                self.slots.view(slot, at, at + len(piece.states)).copy_(piece)
            slot.length = matches[text].length
        self._prefill({t: slot for t, slot in slots.items() if slot.length < len(t)})
        return slots

    def _prefill(self, slots: dict[Tokens, Slot]) -> None:
        """Computes the missing end of every text."""
        # Similar amounts of work side by side: little padding.
        todo = sorted(slots, key=lambda text: len(text) - slots[text].length)
        while todo:
            width = len(todo[-1]) - slots[todo[-1]].length
            group = todo[-max(1, _PREFILL_TOKENS // width) :]
            del todo[-len(group) :]
            for at in range(0, width, _PREFILL_TOKENS):
                self._prefill_pass(
                    {text: slots[text] for text in group}, min(_PREFILL_TOKENS, width - at)
                )
        for text, slot in slots.items():
            self.pool.insert(text, slot)

    def _prefill_pass(self, slots: dict[Tokens, Slot], width: int) -> None:
        """One pass over up to `width` of the missing tokens of each text."""
        rows = list(slots.values())
        low, high = self.slots.gather(rows, _SPREAD if width == 1 else 0.0)
        where = [slot.index - low for slot in rows]
        ids, positions, columns = inputs = torch.zeros((3, high - low, width), dtype=torch.long)
        columns.fill_(self.slots.length)
        sizes = [min(len(text) - slot.length, width) for text, slot in slots.items()]
        for row, size, (text, slot) in zip(where, sizes, slots.items(), strict=True):
            after = slot.length + size
            ids[row, :size] = torch.tensor(text[slot.length : after])
            positions[row, :size] = columns[row, :size] = torch.arange(slot.length, after)
        spans = self._spans(rows, list(slots), where, positions.amax(1).tolist(), width)
        for slot, size in zip(rows, sizes, strict=True):
            slot.length += size
        visible = max(slot.length for slot in rows)
        self._forward(inputs, low, visible, sum(sizes), spans)

    def _forward(
        self, inputs: Tensor, low: int, visible: int, real: int, spans: list[Span] | None
    ) -> Tensor:
        """One pass, causal per row: `[B, Q, hidden]`.

        Args:
            inputs: `[3, B, Q]` token ids, their positions, and the columns where their keys go;
                padding goes to the slots' last, which nobody reads.
            low: the first of the `B` slots that the rows are in.
            visible: no query looks at this position or beyond.
            real: how many of the tokens are no padding.
            spans: rows that attend apart.
        """
        self._count(inputs, real)
        with grouped(self._config, spans):
            return self._pass(inputs.to(self.device), low, visible)

    def _count(self, inputs: Tensor, real: int) -> None:
        self.passes += 1
        self.tokens_computed += real
        self.tokens_padded += inputs[0].numel() - real

    def _captured_pass(self, inputs: Tensor, low: int, visible: int) -> Tensor:
        with grouped(self._config, None):
            return self._pass(inputs, low, visible)

    def _pass(self, inputs: Tensor, low: int, visible: int) -> Tensor:
        """Nothing here looks at a value, so that it can be captured."""
        ids, positions, columns = inputs
        states: Tensor
        window = Window(self.slots, low, low + ids.shape[0], columns, visible)
        if self._compiled is not None and ids.shape[1] == 1:
            states = self._compiled(ids, positions, window, running_spans())
            window.keep(states)
            return states
        keys = torch.arange(visible, device=self.device)
        mask = keys <= positions[:, None, :, None]  # [B, 1, Q, visible]
        if not self._bool_mask:
            floor = torch.finfo(self.dtype).min
            mask = torch.where(mask, 0.0, floor).to(self.dtype)
        output = self.base(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=window.cache(),
            use_cache=True,
        )
        states = output.last_hidden_state
        window.keep(states)
        return states


def _context_length(config: Any, wanted: int | None, name: str) -> int:
    for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        most = getattr(config, key, None)
        if isinstance(most, int) and most > 0:
            break
    else:
        most = wanted or 2048
    if wanted is not None and not 1 <= wanted <= most:
        raise ValueError(f"context_length={wanted}: {name} has the positions 1 to {most}")
    return wanted or most
