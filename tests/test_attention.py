"""Attention of ragged rows: which keys are read together, and once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from engines import (
    DEVICE,
    FAMILIES,
    make,
)
from hypothesis import given
from hypothesis import strategies as st

from ppl.lm.engine.attention import _attend_shared
from ppl.lm.engine.runs import Slot, common_prefix
from ppl.lm.engine.spans import Common, Span, share, split

TEXTS = st.lists(
    st.tuples(st.sampled_from([(), (1, 2, 3), (1, 2, 3, 4, 5)]), st.lists(st.integers(6, 8))).map(
        lambda parts: (*parts[0], *parts[1], 9)
    ),
    min_size=1,
    max_size=30,
)


@given(reach=st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_spans_cover_every_row_and_all_that_it_needs(reach):
    spans = split(reach)
    if spans is None:
        return
    assert [row for s in spans for row in range(s.start, s.stop)] == list(range(len(reach)))
    assert all(reach[row] <= s.keys for s in spans for row in range(s.start, s.stop))
    assert sum(s.keys * (s.stop - s.start) for s in spans) < max(reach) * len(reach)


@given(texts=TEXTS, idle=st.sets(st.integers(0, 29), max_size=6), price=st.integers(0, 12))
def test_shared_beginnings_are_those_of_all_rows_and_pay(texts, idle, price):
    """`idle` rows compute for nobody."""
    real = [row for row in range(len(texts)) if row not in idle]
    common = [common_prefix(texts[a], texts[b]) for a, b in pairwise(real)]
    reach = [1 if row in idle else len(text) for row, text in enumerate(texts)]
    before = split(reach) or [Span(0, len(texts), max(reach))]
    spans = share(before, real, common, price)
    assert [row for s in spans for row in range(s.start, s.stop)] == list(range(len(texts)))
    for span in spans:
        rows = [row for row in real if span.start <= row < span.stop]
        assert all(reach[row] <= span.keys for row in rows)
        if span.shared:
            assert span.source in rows
            assert len({texts[row][: span.shared] for row in rows}) == 1
            assert (len(rows) - 1) * span.shared > price
    if len(before) == 1 and len(real) == len(texts):  # what all have in common is found
        least = (len(texts) - 1) * common_prefix(min(texts), max(texts))
        assert sum((s.stop - s.start - 1) * s.shared for s in spans) >= least - price


def test_questions_in_one_pass_share_their_own_beginnings():
    rows = [*range(3), *range(4, 10)]  # row 3 computes for nobody
    spans = share([Span(0, 10, 50)], rows, [40, 40, 5, 30, 30, 30, 30, 30], 20)
    assert spans == [Span(0, 4, 50, 40, 0), Span(4, 10, 50, 30, 4)]


@given(
    common=st.lists(st.integers(0, 40), min_size=1, max_size=9),
    length=st.integers(1, 50),
    price=st.integers(0, 200),
)
def test_what_rows_have_in_common_is_looked_at_only_where_it_can_pay(common, length, price):
    """Rows of `length` tokens, neighbours of which begin alike."""
    common = [min(keys, length - 1) for keys in common]
    texts = [(0,) * length]
    for row, keys in enumerate(common, start=1):
        texts.append((*texts[-1][:keys], *[row] * (length - keys)))
    slots = [Slot(row) for row in range(len(texts))]
    for slot in slots:
        slot.length = length
    rows = [*range(len(texts))]
    marked = share([Span(0, len(rows), length)], rows, common, price)
    expected = marked if len(marked) > 1 or marked[0].shared else None
    assert Common().spans(slots, texts, rows, [length - 1] * len(rows), 1, price) == expected


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_common_beginning_is_read_once_with_the_same_result(family, monkeypatch):
    lm = make(family)
    monkeypatch.setattr(lm.engine.runner, "price", 0)
    called = []
    monkeypatch.setattr(
        "ppl.lm.engine.attention._attend_shared",
        lambda *args: called.append(args[6].shape[1]) or _attend_shared(*args),
    )
    start = tuple(3 + i % 90 for i in range(20))
    texts = [(*start, *range(30 + n, 30 + 2 * n)) for n in (1, 4, 9)]
    slots, _ = lm.engine.open(texts)
    longer = [(*text, 5) for text in texts]
    states = lm.engine.step([slots[text] for text in texts], longer)
    shared = lm.model.config._attn_implementation == "sdpa"
    layers = len(lm.engine.slots.layout.layers)
    assert called == [20] * (2 * layers if shared else 0)  # their own ends, and the step
    # Other rows in the same slots: nothing that was known of the first ones is taken as known.
    for text, slot in slots.items():
        lm.engine.close(slot, text)
    others = [(*range(40 + n, 60), 3) for n in (1, 2, 3)]
    slots, _ = lm.engine.open(others)
    longer += [(*text, 5) for text in others]
    states = [*states, *lm.engine.step([slots[text] for text in others], longer[3:])]
    for text, mine in zip(longer, states, strict=True):
        ids = torch.tensor([text], device=DEVICE)
        plain = lm.engine.base(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_short_rows_beside_a_long_one_attend_on_their_own(family, monkeypatch):
    lm = make(family)
    texts = [tuple(3 + (i * j) % 90 for j in range(1, n)) for i, n in enumerate((9, 100, 7, 12), 1)]
    seen = []
    monkeypatch.setattr(
        "ppl.lm.engine.spans.split", lambda reach: seen.append(split(reach)) or split(reach)
    )
    slots, _ = lm.engine.open(texts)
    longer = [(*text, token) for text, token in zip(texts, [4, 5, 6, 7], strict=True)]
    states = lm.engine.step([slots[text] for text in texts], longer)
    assert seen[-1] is not None
    assert max(s.keys for s in seen[-1]) == 100
    for text, mine in zip(longer, states, strict=True):
        ids = torch.tensor([text], device=DEVICE)
        plain = lm.engine.base(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)
