"""Attention of many tokens a row on a CPU, each row apart and no pair of tokens for nothing.

A kernel that is given a mask computes what it hides, too: half of all pairs of a text's tokens,
and all of padding. Here the new tokens of a row look at each other in the library's causal kernel,
which leaves that half out, and at what the row has before them in another; the two means are joined
as those of trunks are (`ppl.lm.engine.trunk`).

Symbols: `B` rows, `H` key-value heads, `G` query heads to each, `Q` tokens of each row, `D` head
size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl.lm.engine.runs import Tokens, Trunk
from ppl.lm.engine.slots import Place
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
    """

    tokens: Tokens
    start: int
    column: int
    kv: tuple[Tensor, ...]
    states: Tensor
    trunk: Trunk

    def __getitem__(self, part: slice) -> Job:
        """The same for some of the tokens."""
        first = part.start or 0
        at = self.start + first, self.column + first
        return Job(self.tokens[part], *at, self.kv, self.states, self.trunk)


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
        """
        (first, at), (second, there) = place
        query_heads, heads = query.shape[1], key.shape[1]
        out = query.new_empty(len(query), 1, query_heads, value.shape[3])
        done = 0
        for job in self.jobs:
            new = len(job.tokens)
            rows, fresh = slice(done, done + new), slice(job.column, job.column + new)
            keys, values = job.kv[first][at], job.kv[second][there]
            keys[:, fresh] = key[rows, :, 0].transpose(0, 1)
            values[:, fresh] = value[rows, :, 0].transpose(0, 1)
            asked = query[rows, :, 0].transpose(0, 1)
            mean = _causal(asked, keys[:, fresh], values[:, fresh], scaling, softcap, sinks)
            before = [
                (part.piece.kv[first][at], part.piece.kv[second][there]) for part in job.trunk
            ]
            if job.column:
                before.append((keys[:, : job.column], values[:, : job.column]))
            queries = asked.reshape(1, heads, -1, query.shape[3]) if before else asked
            for some, others in before:
                mean += attended(queries, some[None], others[None], None, scaling, softcap)
            out[rows, 0] = mean.values.view(query_heads, new, -1).transpose(0, 1)
            done += new
        return out

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


def _causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Mean:
    """Attention of `[G * H, n, D]` queries to `[H, n, D]` keys, each to those up to its own: of
    `[1, H, G * n, D]`."""
    query_heads, new, dim = query.shape
    heads = len(key)
    group = query_heads // heads
    if softcap is not None or sinks is not None or key.shape[-1] != value.shape[-1]:
        later = torch.full((new, new), -torch.inf).triu_(1).repeat(group, 1)
        queries = query.reshape(1, heads, group * new, dim)
        return attended(queries, key[None], value[None], later, scaling, softcap, sinks)
    # A copy for each query head, of one row only: reading it is little beside what is saved.
    keys, values = (x.repeat_interleave(group, 0)[None] for x in (key, value))
    found, mass = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[None], keys, values, 0.0, True, attn_mask=None, scale=scaling
    )
    found = found.float().reshape(1, heads, group * new, dim)
    return Mean(found, mass.reshape(1, heads, group * new))
