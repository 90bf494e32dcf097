"""The attention of our own against the library's, in double precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from torch.nn.functional import scaled_dot_product_attention

from ppl.lm.engine import building
from ppl.lm.engine.native import attend
from ppl.lm.engine.runs import Held, Part, Piece, Segment
from ppl.lm.engine.spans import Span
from ppl.lm.engine.table import table_of

pytestmark = needs_compiler

CASES = [  # rows, key-value heads, query heads to each, numbers a head
    (1, 1, 1, 8),
    (5, 2, 2, 8),
    (7, 3, 3, 64),
    (3, 2, 7, 80),
    (4, 1, 8, 256),
]


def weighed(query, keys, values, scale, softcap, sinks):
    """Attention with softcap and sinks, spelt out; all heads apart."""
    scores = scale * query @ keys.transpose(-1, -2)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores).view(-1, 1, 1)], -1)
    return torch.softmax(scores, -1)[..., : keys.shape[-2]] @ values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "heads", "group", "dim"), CASES)
@pytest.mark.parametrize("shared", [0, 15, 16, 37])
def test_attention_in_place(rows, heads, group, dim, shared, dtype):
    torch.manual_seed(rows)
    length = 70
    memory = 3 * torch.randn(2, rows + 2, heads, length + 1, dim).to(dtype)  # 2 more slots
    positions = torch.randint(shared, length, (rows,))
    positions[0] = shared  # the shortest
    memory[:, 1:-1, :, :shared] = memory[:, rows, None, :, :shared]
    columns = positions.clone()
    columns[-1] = length  # padding writes to the last, and looks at what is there
    before = memory.clone()
    keys, values = memory[0, 1:-1], memory[1, 1:-1]
    query = torch.randn(rows, heads * group, 1, dim).to(dtype)
    key, value = torch.randn(2, rows, heads, 1, dim).to(dtype)
    out = attend(
        query, key, value, keys, values, columns, torch.zeros_like(columns), positions,
        table_of(rows, [Span(0, rows, length, shared, rows - 1)]), 0.3,
    )  # fmt: skip
    for row in range(rows):
        before[0, row + 1, :, columns[row]] = key[row, :, 0]
        before[1, row + 1, :, columns[row]] = value[row, :, 0]
        seen = before[:, row + 1, :, : positions[row] + 1].double()
        seen = seen.repeat_interleave(group, dim=1)
        exact = scaled_dot_product_attention(query[row].double(), *seen, scale=0.3)
        tolerance = 5e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(
            out[row].double(), exact.transpose(0, 1), rtol=tolerance, atol=tolerance
        )
    assert torch.equal(memory, before)  # written where it should be, and nowhere else


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("window", "softcap", "sinks"), [(9, 0, 0), (40, 2.0, 1), (0, 0, 1)])
@pytest.mark.parametrize("shared", [0, 37])
def test_windows_softcaps_sinks_and_values_of_another_width(window, softcap, sinks, shared, dtype):
    torch.manual_seed(window)
    rows, heads, group, dim, wide, length = 4, 2, 3, 24, 16, 70
    keys = 3 * torch.randn(rows, heads, length + 1, dim).to(dtype)
    values = torch.randn(rows, heads, length + 1, wide).to(dtype)
    keys[:, :, :shared], values[:, :, :shared] = keys[2, :, :shared], values[2, :, :shared]
    positions = torch.tensor([shared, 38, 50, 69])
    firsts = (positions - window + 1).clamp(min=0) if window else torch.zeros_like(positions)
    query = torch.randn(rows, heads * group, 1, dim).to(dtype)
    key, value = torch.randn(rows, heads, 1, dim).to(dtype), values[:, :, :1].clone()
    weights = torch.randn(heads * group).to(dtype) if sinks else None
    out = attend(
        query, key, value, keys, values, positions, firsts, positions,
        table_of(rows, [Span(0, rows, length, shared, 2)]), 0.3, softcap, weights,
    )  # fmt: skip
    for row in range(rows):
        assert torch.equal(keys[row, :, positions[row]], key[row, :, 0])
        seen = slice(firsts[row], positions[row] + 1)
        of_heads = [t[row, :, seen].double().repeat_interleave(group, 0) for t in (keys, values)]
        exact = weighed(query[row].double(), *of_heads, 0.3, softcap, weights)
        tolerance = 5e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(
            out[row].double(), exact.transpose(0, 1), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "heads", "group", "dim", "more"),
    [
        *((*case, 4) for case in CASES),
        *((40, 1, 3, 16, 4), (9, 2, 49, 8, 4), (23, 1, 2, 12, 4)),
        *((40, 2, 3, 64, 0), (90, 1, 2, 32, 16), (3, 1, 9, 128, 80)),  # by whole matrices
    ],
)
@pytest.mark.parametrize(("window", "softcap", "sinks"), [(0, 0, 0), (30, 2.0, 1), (90, 0, 0)])
def test_trunks_are_read_by_pointer(rows, heads, group, dim, more, window, softcap, sinks, dtype):
    """Of several segments, in any order of rows, some of which stand on nothing or on a part, and
    of windows that end before a trunk, in it, or in the slot."""
    torch.manual_seed(rows + window)
    lengths, layers, length, wide = (50, 13, 150), 3, 40, dim + more
    parts, held, at = [], Held(), 0
    for size in lengths:
        kv = tuple(torch.randn(layers, heads, size + 3, n).to(dtype) for n in (dim, wide))
        piece = Piece(kv, torch.zeros(size + 3, 1))
        parts.append(Part(Segment(piece, at - 1, held), at, at + size))
        at += size
    trunks = [[(), parts[:1], parts, parts][(3 * row) % 4] for row in range(rows)]
    trunks = [tuple(trunk) for trunk in trunks]
    bases = torch.tensor([trunk[-1].stop if trunk else 0 for trunk in trunks])
    keys = torch.randn(rows, heads, length + 1, dim).to(dtype)
    values = torch.randn(rows, heads, length + 1, wide).to(dtype)
    columns = torch.randint(0, length, (rows,))
    positions = bases + columns
    firsts = (positions - window + 1).clamp(min=0) if window else torch.zeros_like(positions)
    query = 3 * torch.randn(rows, heads * group, 1, dim).to(dtype)
    key, value = (
        torch.randn(rows, heads, 1, dim).to(dtype),
        torch.randn(rows, heads, 1, wide).to(dtype),
    )
    weights = torch.randn(heads * group).to(dtype) if sinks else None
    layer = 2
    out = attend(
        query, key, value, keys, values, columns, firsts, positions,
        table_of(rows, [], trunks, bases), 0.3, softcap, weights, None, ((0, layer), (1, layer)),
    )  # fmt: skip
    for row, trunk in enumerate(trunks):
        of_all = [
            torch.cat([*(p.piece.kv[i][layer] for p in trunk), own[row, :, : columns[row] + 1]], 1)
            for i, own in enumerate((keys, values))
        ]
        seen = slice(firsts[row], positions[row] + 1)
        of_heads = [t[:, seen].double().repeat_interleave(group, 0) for t in of_all]
        exact = weighed(query[row].double(), *of_heads, 0.3, softcap, weights)
        tolerance = 5e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(
            out[row].double(), exact.transpose(0, 1), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seats", [[3, 0, 4], [1, 4, 1, 1, 4, 0]])
def test_rows_are_in_the_slots_that_are_named(seats, dtype):
    """In any order; those of one slot see each other, the last of them first."""
    torch.manual_seed(len(seats))
    rows, heads, group, dim, length = len(seats), 2, 3, 16, 20
    memory = torch.randn(2, 5, heads, length + 1, dim).to(dtype)
    slots = torch.tensor(seats)
    positions = torch.tensor([9 - seats[:row].count(seat) for row, seat in enumerate(seats)])
    query = torch.randn(rows, heads * group, 1, dim).to(dtype)
    key, value = torch.randn(2, rows, heads, 1, dim).to(dtype)
    before = memory.clone()
    before[0, slots, :, positions] = key[:, :, 0]
    before[1, slots, :, positions] = value[:, :, 0]
    table = table_of(rows, [])
    out = attend(
        query, key, value, *memory, positions, torch.zeros_like(positions), positions, table, 0.3,
        slots=slots,
    )  # fmt: skip
    assert torch.equal(memory, before)
    for row, seat in enumerate(seats):
        seen = before[:, seat, :, : positions[row] + 1].double().repeat_interleave(group, 1)
        exact = scaled_dot_product_attention(query[row].double(), *seen, scale=0.3)
        tolerance = 5e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(
            out[row].double(), exact.transpose(0, 1), rtol=tolerance, atol=tolerance
        )


def test_what_is_included_is_part_of_a_program():
    """Else a program that was built before it changed would be found again."""
    source = Path(building.__file__).with_name("attention.cpp")
    found = building._texts(source)
    for name in ("attention.cpp", "together.h", "vectors.h"):
        assert source.with_name(name).read_bytes() in found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "heads", "group", "dim"), [(1, 1, 1, 8), (23, 2, 2, 8)])
@pytest.mark.parametrize(("window", "reach", "few"), [(6, 0, 3), (6, 12, 70), (30, 0, 40)])
@pytest.mark.parametrize("standing", [False, True])
def test_first_tokens_are_seen_besides_a_window(
    rows, heads, group, dim, window, reach, few, standing, dtype
):
    """Of slots and of trunks, as far as the layer looks; and what a row has given up in between."""
    torch.manual_seed(rows + few)
    length, size = 60, 21 if standing else 0
    kv = tuple(torch.randn(1, heads, size, dim).to(dtype) for _ in range(2))
    part = Part(Segment(Piece(kv, torch.zeros(size, 1)), 0, Held()), 0, size)
    trunks = [(part,) if standing and row % 3 else () for row in range(rows)]
    bases = torch.tensor([size if trunk else 0 for trunk in trunks])
    texts = torch.randn(2, rows, heads, length + size, dim).to(dtype)
    for row, trunk in enumerate(trunks):
        if trunk:
            texts[:, row, :, :size] = torch.cat(kv)
    columns = torch.randint(40, length - 1, (rows,))
    positions = bases + columns
    lows = (positions - reach + 1).clamp(min=0) if reach else torch.zeros_like(positions)
    firsts = torch.maximum(lows, positions - window + 1)
    # Every other row has none of what it does not look at, nor anything there.
    starts = torch.minimum(few - bases, firsts - bases).clamp(min=0)
    lost = (firsts - bases - starts) * (torch.arange(rows) % 2)
    slots = torch.full((2, rows, heads, length + 1, dim), torch.nan).to(dtype)
    for row in range(rows):
        own = texts[:, row, :, int(bases[row]) : int(positions[row]) + 1]
        at = int(starts[row])
        kept = torch.cat([own[:, :, :at], own[:, :, at + int(lost[row]) :]], 2)
        slots[:, row, :, : kept.shape[2]] = kept
    columns = columns - lost
    query = torch.randn(rows, heads * group, 1, dim).to(dtype)
    new = [text[torch.arange(rows), :, positions][:, :, None] for text in texts]
    out = attend(
        query, *new, *slots, columns, firsts, positions, table_of(rows, [], trunks, bases),
        0.3, place=((0, 0), (1, 0)), early=(lows, few), holes=torch.stack([starts, lost], 1),
    )  # fmt: skip
    for row in range(rows):
        at = torch.arange(int(positions[row]) + 1)
        seen = (at >= firsts[row]) | ((at >= lows[row]) & (at < few))
        of_heads = texts[:, row, :, at[seen]].double().repeat_interleave(group, 1)
        exact = weighed(query[row].double(), *of_heads, 0.3, 0, None)
        tolerance = 5e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(
            out[row].double(), exact.transpose(0, 1), rtol=tolerance, atol=tolerance
        )


def test_what_is_not_finite_stays_so():
    """A broken model is seen, not hidden."""
    query, key, value = torch.randn(3, 2, 1, 1, 16)
    keys, values = torch.randn(2, 2, 1, 40, 16)
    keys[0, 0, 3, 5] = torch.nan
    values[1, 0, 2] = torch.inf
    place, none = torch.tensor([30, 30]), torch.zeros(2, dtype=torch.long)
    out = attend(query, key, value, keys, values, place, none, place, table_of(2, []), None)
    assert out[0].isnan().all()
    assert not out[1].isfinite().any()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_in_a_trunk_stays_so(which, bad):
    kv = tuple(torch.rand(1, 1, 200, 64).bfloat16() for _ in range(2))
    kv[which][0, 0, 100, 7] = bad
    trunk = (Part(Segment(Piece(kv, torch.zeros(200, 1)), 0, Held()), 0, 200),)
    query, key, value = torch.rand(3, 5, 1, 1, 64).bfloat16()
    keys, values = torch.rand(2, 5, 1, 8, 64).bfloat16()
    place, none = torch.tensor([3] * 5), torch.zeros(5, dtype=torch.long)
    table = table_of(5, [], [trunk] * 5, none + 200)
    out = attend(
        query, key, value, keys, values, place, none, place + 200, table, None,
        place=((0, 0), (1, 0)),
    )  # fmt: skip
    assert not out[..., 7].isfinite().any()
    assert which or out.isnan().all()


def test_other_keys_than_those_of_the_cache_are_refused():
    """Written where they do not fit, they would destroy what lies behind."""
    query = torch.randn(2, 4, 1, 16)
    keys, values = torch.randn(2, 2, 2, 40, 16)
    place, none = torch.tensor([30, 30]), torch.zeros(2, dtype=torch.long)
    good = torch.randn(2, 2, 1, 16)
    half = query.bfloat16(), good.bfloat16(), good.bfloat16()
    for new in (
        (query, query, query),  # repeated for each query head
        (query, good, torch.randn(2, 2, 1, 32)),  # wider than those of the cache
        (torch.randn(2, 4, 1, 8), torch.randn(2, 2, 1, 8), torch.randn(2, 2, 1, 8)),
        (query, good, half[2]),
        half,
    ):
        with pytest.raises(RuntimeError, match=r"one kind with the cache.*\(2, 2, 40, 16\)"):
            attend(*new, keys, values, place, none, place, table_of(2, []), None)
