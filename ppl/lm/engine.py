"""Batched, ragged, prefix-sharing forward passes through any Hugging Face decoder.

Rows of different lengths share one buffer of keys and values; each row reads and writes at its
own positions: no left padding, no concatenation per token. What a row computes goes to the prefix
pool when the row leaves; what the pool has is never computed again.

Symbols: `B` rows, `Q` query tokens of a pass, `L` buffer length, `H` key-value heads,
`D` head size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from ppl.cost import Ledger
from ppl.errors import UnsupportedModelError
from ppl.lm.prefix import Match, PrefixPool, Tokens, common_prefix

# Shared prefixes shorter than this are not worth a pass of their own.
_MIN_SHARED = 8
# Query tokens of one prefill pass over all rows: bounds the memory of activations.
_PREFILL_TOKENS = 4096


class RaggedLayer(CacheLayerMixin):
    """One layer's view of a `Buffer`, in the form in which transformers asks for it."""

    def __init__(self, buffer: Buffer, index: int) -> None:
        super().__init__()
        self._buffer, self._index = buffer, index
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes `[B, H, Q, D]` at each row's positions; returns `[B, H, visible, D]` views."""
        return self._buffer.write(self._index, key_states, value_states)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffer is allocated before the first pass."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._buffer.visible, 0

    def get_seq_length(self) -> int:
        return self._buffer.visible

    def get_max_length(self) -> int:
        return self._buffer.kv.shape[4]


class Buffer:
    """Keys and values of a batch of rows.

    Attributes:
        kv: `[layers, 2, B, H, L, D]`.
        lengths: tokens of each row that are in place.
        visible: positions that the current pass may look at.
    """

    def __init__(self, kv: Tensor) -> None:
        self.kv = kv
        self.lengths = [0] * kv.shape[2]
        self.visible = 0
        self._rows = torch.arange(kv.shape[2], device=kv.device)[:, None]
        self._positions = self._rows
        self.cache = Cache(layers=[RaggedLayer(self, i) for i in range(kv.shape[0])])

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        # Advanced indices around a slice put the row and position axes first: [B, Q, H, D].
        self.kv[layer, 0][self._rows, :, self._positions] = keys.transpose(1, 2)
        self.kv[layer, 1][self._rows, :, self._positions] = values.transpose(1, 2)
        return self.kv[layer, 0, :, :, : self.visible], self.kv[layer, 1, :, :, : self.visible]

    def place(self, row: int, pieces: Sequence[Tensor], length: int) -> None:
        """Copies stored keys and values to the start of a row, `length` tokens of them."""
        at = 0
        for piece in pieces:
            size = min(piece.shape[3], length - at)
            self.kv[:, :, row, :, at : at + size] = piece[:, :, :, :size]
            at += size
        self.lengths[row] = length

    def aim(self, positions: Tensor) -> None:
        """Sets the positions `[B, Q]` that the next pass writes to."""
        self._positions = positions
        self.visible = int(positions.max()) + 1

    def select(self, rows: Sequence[int], length: int) -> Buffer:
        """A new buffer that holds copies of the given rows, with room for `length` tokens."""
        layers, two, _, heads, size, dim = self.kv.shape
        kv = self.kv.new_empty(layers, two, len(rows), heads, max(length, size), dim)
        kv[:, :, :, :, :size] = self.kv[:, :, torch.as_tensor(rows, device=self.kv.device)]
        # Masked positions get weight zero, and zero times whatever lay in that memory may be NaN.
        kv[:, :, :, :, size:] = 0
        other = Buffer(kv)
        other.lengths = [self.lengths[r] for r in rows]
        return other


class Engine:
    """Forward passes of one model for many texts at once.

    Args:
        model: any Hugging Face decoder (with whatever head; only its base model is used).
        capacity: bytes of keys and values to keep in the prefix pool, and at most to allocate for
            one batch; larger sets run in several batches.
        context_length: most tokens of a text; None takes it from the model's configuration.

    Raises:
        UnsupportedModelError: the model's cache cannot be forked at a token.
    """

    def __init__(
        self, model: Any, *, name: str, capacity: int, context_length: int | None = None
    ) -> None:
        self.name = name
        self.base: nn.Module = model.base_model
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        config = model.config.get_text_config()
        self.context_length = context_length or _context_length(config)
        self.capacity = capacity
        self.pool = PrefixPool(capacity)
        self._bool_mask = config._attn_implementation in ("sdpa", "flex_attention")
        self.passes = 0
        self.tokens_computed = 0
        with torch.inference_mode():
            self._kv_shape = self._probe()  # (layers, heads, head_dim)
            self._self_check()
        self.pool.clear()
        self.passes = self.tokens_computed = 0

    @property
    def bytes_per_token(self) -> int:
        layers, heads, dim = self._kv_shape
        return 2 * layers * heads * dim * torch.empty((), dtype=self.dtype).element_size()

    def batch_rows(self, length: int) -> int:
        """Most rows of `length` tokens that fit the byte budget, at least one."""
        return max(1, self.capacity // (self.bytes_per_token * max(length, 1)))

    def _probe(self) -> tuple[int, int, int]:
        """Runs one token to see what the model's own cache is made of."""
        ids = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        output = self.base(input_ids=ids, use_cache=True)
        layers = getattr(getattr(output, "past_key_values", None), "layers", None)
        if not layers:
            raise UnsupportedModelError(
                f"{self.name}: a {type(self.base).__name__} keeps no keys and values per token, "
                "its state cannot be forked at a token; use a decoder with full attention"
            )
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
        return len(layers), heads, dim

    def _self_check(self) -> None:
        """Compares the ragged pass with the model's own on a few tokens, so that a model whose
        positions or masks work differently is refused rather than run wrongly."""
        size = int(self.base.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        lengths = (min(9, self.context_length), 5)
        texts = [tuple((7 * i + j) % size for j in range(n)) for i, n in enumerate(lengths)]
        self.hidden([t[:4] for t in texts], [3, 3])
        ours = self.hidden(texts, [3, 3])
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

    def hidden(
        self,
        texts: Sequence[Tokens],
        first: Sequence[int],
        ledgers: Sequence[tuple[Ledger, str, str] | None] | None = None,
    ) -> list[Tensor]:
        """Last hidden states of each text from position `first[i]` to its end, `[n, hidden]`."""
        return self.open(texts, first, ledgers)[1]

    def open(
        self,
        texts: Sequence[Tokens],
        first: Sequence[int],
        ledgers: Sequence[tuple[Ledger, str, str] | None] | None = None,
        room: int = 0,
    ) -> tuple[Buffer, list[Tensor]]:
        """Brings every text into a buffer, computing only what the pool does not have.

        Args:
            texts: one per row; equal texts are computed once.
            first: position from which on hidden states are wanted, one per row.
            ledgers: per row an account and the names under which computed and reused tokens are
                booked, or None.
            room: tokens to be appended later.

        Returns:
            The buffer (row i holds `texts[i]`) and per row the hidden states `[n, hidden]` of the
            positions `first[i]` to the end.
        """
        unique: dict[Tokens, int] = {}
        for text, position in zip(texts, first, strict=True):
            unique[text] = min(unique.get(text, position), position)
        rows = {text: i for i, text in enumerate(unique)}
        self._share_prefixes(list(unique))
        matches = [self._usable(text, want) for text, want in unique.items()]
        self._book(texts, rows, matches, ledgers)
        longest = max(map(len, unique))
        buffer = self._new_buffer(len(unique), longest)
        for i, match in enumerate(matches):
            buffer.place(i, match.pieces, match.length)
        hidden = self._prefill(buffer, list(unique), matches, list(unique.values()))
        self.pool.trim()
        wanted = [
            hidden[rows[t]][max(p - unique[t], 0) :] for t, p in zip(texts, first, strict=True)
        ]
        if len(texts) > len(unique) or room:
            buffer = buffer.select([rows[t] for t in texts], longest + room)
        return buffer, wanted

    def _usable(self, text: Tokens, want: int) -> Match:
        """What the pool has of `text`, cut so that the wanted hidden states get computed."""
        match = self.pool.match(text)
        if match.length == len(text) and want == len(text) - 1 and match.hidden is not None:
            return match
        return Match(min(match.length, want), match.pieces, None)

    def _share_prefixes(self, texts: list[Tokens]) -> None:
        """Computes prefixes that several of the texts share once, before the texts themselves."""
        ordered = sorted(texts)
        shared: set[Tokens] = set()
        for a, b in itertools.pairwise(ordered):
            size = common_prefix(a, b)
            known = self.pool.match(a[:size]).length
            if size - known >= _MIN_SHARED:
                shared.add(a[:size])
        if shared:
            self.open(list(shared), [len(t) - 1 for t in shared])

    def _book(
        self,
        texts: Sequence[Tokens],
        rows: dict[Tokens, int],
        matches: Sequence[Match],
        ledgers: Sequence[tuple[Ledger, str, str] | None] | None,
    ) -> None:
        """The first row of a text pays for its computation, its twins reuse it."""
        paid: set[Tokens] = set()
        for text, account in zip(texts, ledgers or [None] * len(texts), strict=True):
            if account is None:
                continue
            ledger, computed, reused = account
            known = len(text) if text in paid else matches[rows[text]].length
            paid.add(text)
            ledger.add(**{computed: len(text) - known, reused: known})

    def _new_buffer(self, rows: int, length: int) -> Buffer:
        layers, heads, dim = self._kv_shape
        shape = (layers, 2, rows, heads, length, dim)
        return Buffer(torch.zeros(shape, dtype=self.dtype, device=self.device))

    def _prefill(
        self, buffer: Buffer, texts: list[Tokens], matches: list[Match], first: list[int]
    ) -> list[Tensor]:
        """Computes every row's missing tokens; returns the wanted hidden states."""
        stored = [m.hidden for m in matches]
        results = [None if h is None else h[None] for h in stored]
        missing = [i for i in range(len(texts)) if results[i] is None]
        # Similar amounts of work side by side: little padding.
        missing.sort(key=lambda i: len(texts[i]) - matches[i].length)
        while missing:
            width = len(texts[missing[-1]]) - matches[missing[-1]].length
            group = missing[-max(1, _PREFILL_TOKENS // width) :]
            del missing[-len(group) :]
            starts = [matches[i].length for i in group]
            states = self._prefill_group(buffer, group, [texts[i] for i in group], starts)
            for i, start, state in zip(group, starts, states, strict=True):
                results[i] = state[first[i] - start :]
                kv = buffer.kv[:, :, i, :, start : len(texts[i])]
                self.pool.insert(texts[i], start, kv, state[-1])
        return [r for r in results if r is not None]

    def _prefill_group(
        self, buffer: Buffer, group: list[int], texts: list[Tokens], starts: list[int]
    ) -> list[Tensor]:
        """One pass over some rows of the buffer, in chunks of columns if a row is long."""
        part = buffer if len(group) == len(buffer.lengths) else buffer.select(group, 0)
        order = group if part is buffer else list(range(len(group)))
        by_row = sorted(range(len(group)), key=lambda k: order[k])
        todo = [texts[k][starts[k] :] for k in by_row]
        begin = [starts[k] for k in by_row]
        width = max(map(len, todo))
        chunks: list[Tensor] = []
        for at in range(0, width, _PREFILL_TOKENS):
            size = min(_PREFILL_TOKENS, width - at)
            ids = torch.zeros((len(todo), size), dtype=torch.long)
            for r, tokens in enumerate(todo):
                piece = tokens[at : at + size]
                ids[r, : len(piece)] = torch.tensor(piece, dtype=torch.long)
            positions = torch.tensor(begin)[:, None] + torch.arange(at, at + size)
            # Padding queries write into positions that the row does not use (yet), or, past the
            # end of the buffer, on its last position, before the row's own token gets there.
            chunks.append(self._padded_pass(part, ids, positions))
        states = torch.cat(chunks, dim=1)
        if part is not buffer:
            buffer.kv[:, :, group] = part.kv
        for k, i in enumerate(group):
            buffer.lengths[i] = len(texts[k])
        by_group = {by_row[r]: states[r, : len(todo[r])] for r in range(len(todo))}
        return [by_group[k] for k in range(len(group))]

    def _padded_pass(
        self,
        part: Buffer,
        ids: Tensor,
        positions: Tensor,
    ) -> Tensor:
        length = part.kv.shape[4]
        over = int(positions.max()) + 1 - length
        if over > 0:  # make room for the padding of rows that start late
            layers, two, rows, heads, _, dim = part.kv.shape
            extra = part.kv.new_zeros(layers, two, rows, heads, over, dim)
            wide = Buffer(torch.cat([part.kv, extra], dim=4))
            states = self.forward(wide, ids, positions)
            part.kv.copy_(wide.kv[:, :, :, :, :length])
            return states
        return self.forward(part, ids, positions)

    def forward(self, buffer: Buffer, ids: Tensor, positions: Tensor) -> Tensor:
        """One pass: `[B, Q]` ids at `[B, Q]` positions to `[B, Q, hidden]`, causal per row."""
        positions = positions.to(self.device)
        buffer.aim(positions)
        keys = torch.arange(buffer.visible, device=self.device)
        mask = keys[None, None, None, :] <= positions[:, None, :, None]  # [B, 1, Q, visible]
        if not self._bool_mask:
            floor = torch.finfo(self.dtype).min
            mask = torch.where(mask, 0.0, floor).to(self.dtype)
        self.passes += 1
        self.tokens_computed += ids.numel()
        output = self.base(
            input_ids=ids.to(self.device),
            attention_mask=mask,
            position_ids=positions.clamp(max=self.context_length - 1),
            past_key_values=buffer.cache,
            use_cache=True,
        )
        states: Tensor = output.last_hidden_state
        return states


def _context_length(config: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 2048
