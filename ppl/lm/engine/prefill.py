"""Attention of many tokens a row on a CPU, each row apart and no pair of tokens for nothing.

A kernel that is given a mask computes what it hides, too: half of all pairs of a text's tokens,
and all of padding. Compiled, the tokens of several texts follow each other in one pass, and attend
by a program of our own (`ppl.lm.engine.native.fill`). Else the new tokens of a row look at each
other in the library's causal kernel, which leaves that half out, and at what the row has before
them in another; the two means are joined as those of trunks are (`ppl.lm.engine.trunk`).

Symbols: `B` rows, `H` key-value heads, `G` query heads to each, `Q` tokens of each row, `D` head
size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ppl.lm.engine import native
from ppl.lm.engine.beside import ID
from ppl.lm.engine.runs import Tokens, Trunk
from ppl.lm.engine.slots import Place
from ppl.lm.engine.table import numbers, run_of
from ppl.lm.engine.trunk import Mean, attended

# Fewer tokens a row are quicker all together, as so many queries with a mask.
LEAST = 32


@dataclass
class Job:
    """Neighbouring tokens of a text that are to be computed.

    Attributes:
        tokens: these.
        start: the position of the first.
        column: where in the memory it goes; what is before it there has been computed.
        kv, states: the memory, as of a `Piece`.
        trunk: what is before that memory.
        adapter: the number of its adapter.
    """

    tokens: Tokens
    start: int
    column: int
    kv: tuple[Tensor, ...]
    states: Tensor
    trunk: Trunk
    adapter: int = 0

    def __getitem__(self, part: slice) -> Job:
        """The same for some of the tokens."""
        first = part.start or 0
        at = self.start + first, self.column + first
        return Job(self.tokens[part], *at, self.kv, self.states, self.trunk, self.adapter)


def packed(jobs: Sequence[Job], most: int) -> Iterator[list[Job]]:
    """Jobs of up to `most` tokens together, one after the other; cut where they do not fit."""
    batch: list[Job] = []
    room = most
    for job in jobs:
        while job.tokens:
            batch.append(job[:room])
            room -= len(batch[-1].tokens)
            job = job[len(batch[-1].tokens) :]
            if not room:
                yield batch
                batch, room = [], most
    if batch:
        yield batch


@dataclass
class Packed:
    """A pass over the tokens of several jobs, each of which the model takes for a row of its own:
    so nothing is padded, and the program of a step serves.

    Attributes:
        jobs: whose tokens follow each other.
    """

    jobs: Sequence[Job]
    _tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _fitting: set[tuple[object, ...]] = field(default_factory=set)  # every layer asks

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        place: Place,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Writes keys and values of all tokens, `T`, and attends: `[T, 1, G * H, D]`.

        Args:
            query: `[T, G * H, 1, D]`.
            key, value: `[T, H, 1, D]`.
            place: where the layer's keys and values are.

        Raises:
            RuntimeError: the model attends to other keys and values than its cache holds; or see
                `ppl.lm.engine.native.fill`.
        """
        for new, (group, _) in zip((key, value), place, strict=True):
            self.check(group, (new.shape[1], new.shape[3]), new.dtype)
        tables = self.tables(place[0][0], place[1][0])
        return native.fill(query, key, value, *tables, scaling, softcap or 0.0, sinks, place)

    def check(self, group: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """Raises RuntimeError where the memory has keys or values of other heads and sizes, or of
        another type: behind this nobody looks at bounds."""
        if (group, shape, dtype) in self._fitting:
            return
        for job in self.jobs:
            for kv in (job.kv, *(part.piece.kv for part in job.trunk)):
                kept = kv[group]
                if (kept.shape[1], kept.shape[3], kept.dtype) != (*shape, dtype):
                    raise RuntimeError(
                        f"keys and values are not of one kind with the cache: {dtype} {shape}, "
                        f"{kept.dtype} {tuple(kept.shape)}"
                    )
        self._fitting.add((group, shape, dtype))

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """Ids and positions `[T, 1]` of the tokens."""
        ids = [token & ID for job in self.jobs for token in job.tokens]
        positions = [torch.arange(job.start, job.start + len(job.tokens)) for job in self.jobs]
        return torch.tensor(ids)[:, None], torch.cat(positions)[:, None]

    @property
    def adapters(self) -> list[int]:
        """`[T]` the number of each token's adapter."""
        return [job.adapter for job in self.jobs for _ in job.tokens]

    def tables(self, keys: int, values: int) -> tuple[Tensor, Tensor]:
        """Jobs and runs as `native.fill` takes them, for groups of the layout."""
        if (keys, values) not in self._tables:
            jobs: list[list[int]] = []
            runs: list[list[int]] = []
            done = 0
            for job in self.jobs:
                new, first = len(job.tokens), len(runs)
                for part in job.trunk:
                    count = part.stop - part.start
                    runs.append(run_of(part.piece.kv, keys, values, part.start, count))
                known = job.column + new
                runs.append(run_of(job.kv, keys, values, job.start - job.column, known))
                jobs.append([done, done + new, first, len(runs), job.column])
                done += new
            self._tables[keys, values] = numbers(jobs), numbers(runs)
        return self._tables[keys, values]

    def keep(self, states: Tensor) -> None:
        """Writes last hidden states `[T, 1, hidden]`."""
        done = 0
        for job in self.jobs:
            new = len(job.tokens)
            job.states[job.column : job.column + new] = states[done : done + new, 0]
            done += new


@dataclass
class Filling:
    """The rows of a pass that looks at all before each token.

    Attributes:
        rows: of those that matter the number in the pass, how many own keys they have before it,
            and how many tokens they get.
        mask: what the model is given, and hands to its attention if nothing else is masked.
    """

    rows: Sequence[tuple[int, int, int]]
    mask: Tensor | None = None

    def takes(
        self,
        mask: Tensor,
        key: Tensor,
        value: Tensor,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> bool:
        """Whether `own_means` gives what attention of this kind gives."""
        own = self.mask
        if own is None or softcap is not None or sinks is not None:
            return False
        # The model may have sliced it, but not have made another.
        same = mask.data_ptr() == own.data_ptr() and mask.shape == own.shape
        return same and mask.device.type == "cpu" and key.shape[-1] == value.shape[-1]

    def own_means(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Mean:
        """Attention of each row to its own keys; nothing, of padding.

        Args:
            query: `[B, G * H, Q, D]`.
            key, value: `[B, H, L, D]`, the new ones written.

        Returns:
            Of `[B, H, G * Q, D]` queries.
        """
        batch, query_heads, size, dim = query.shape
        heads = key.shape[1]
        group = query_heads // heads
        means = query.new_zeros(batch, heads, group, size, dim, dtype=torch.float32)
        mass = torch.full(means.shape[:-1], -torch.inf)
        for row, before, new in self.rows:
            asked = query[row, :, :new]
            fresh = slice(before, before + new)
            mean = _causal(asked, key[row, :, fresh], value[row, :, fresh], scaling)
            if before:
                old = key[row, None, :, :before], value[row, None, :, :before]
                queries = asked.reshape(1, heads, group * new, dim)
                mean += attended(queries, *old, None, scaling)
            means[row, :, :, :new] = mean.values.view(heads, group, new, dim)
            mass[row, :, :, :new] = mean.mass.view(heads, group, new)
        return Mean(means.flatten(2, 3), mass.flatten(2, 3))


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Mean:
    """Attention of `[G * H, n, D]` queries to `[H, n, D]` keys, each to those up to its own: of
    `[1, H, G * n, D]`."""
    query_heads, new, dim = query.shape
    heads = len(key)
    group = query_heads // heads
    # A copy for each query head, of one row only: reading it is little beside what is saved.
    keys, values = (x.repeat_interleave(group, 0)[None] for x in (key, value))
    found, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[None], keys, values, 0.0, True, attn_mask=None, scale=scaling
    )
    found = found.float().reshape(1, heads, group * new, dim)
    return Mean(found, mass.reshape(1, heads, group * new))


def kept(place: Place | None) -> Place:
    """Where a layer that attends has kept its keys and values."""
    if place is None:
        raise RuntimeError("a layer attends that kept nothing before")
    return place
