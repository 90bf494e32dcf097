"""Accuracy against the bytes of keys and values: counts in closed form, frontiers as planted."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyro
import pytest

import ppl
from ppl.allocate import Drawn, KVRecord, hyper_scale, kv_records
from ppl.errors import ArgumentError
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, Spec
from ppl.lm.engine.kv import KV
from ppl.lm.engine.use import KVUse
from ppl.lm.sampling import Warp
from ppl.searchers import BestOfN

# -- bytes ---------------------------------------------------------------------------------------


def seen(kv: str, length: int, base: int = 0) -> int:
    """How many of the positions from `base` on the last one looks at, one by one."""
    kept, last = KV.read(kv), length - 1
    if kept.window:
        near = {j for j in range(length) if j > last - kept.window or j < kept.sinks}
        return sum(j >= base for j in near)
    if kept.evicts is None:
        return length - base
    group, delay, count = kept.evicts.group, kept.evicts.delay, 0
    for start in range(0, length, group):
        part = range(start, min(start + group, length))
        behind = len(part) == group and part[-1] <= last - delay and start >= base
        count += kept.evicts.most if behind else sum(j >= base for j in part)
    return count


@pytest.mark.parametrize(
    "kv", ["full", "int8", "window(6, 2)", "int8+window(5, 0)", "delayed(4, 6)", "delayed(1, 3)"]
)
@pytest.mark.parametrize("base", [0, 1, 9])
def test_what_is_kept_is_what_the_last_token_looks_at(kv, base):
    counted = [KV.read(kv).kept(length, base) for length in range(base, 40)]
    assert counted == [seen(kv, length, base) for length in range(base, 40)]


@pytest.fixture(scope="module", params=["full", "int8", "window(6, 2)", "delayed(2, 4)"])
def lm(request):
    return ppl.load("tiny", kv=request.param, dtype="float32")


def of_token(lm) -> tuple[int, int]:
    """Bytes of keys and values of a token, and of its last hidden state."""
    config = lm.model.config
    heads = config.num_hidden_layers * config.num_key_value_heads
    size = config.hidden_size // config.num_attention_heads
    number = size + 4 if lm.kv == "int8" else 4 * size  # a scale for each head's
    scores = 4 * heads if "delayed" in lm.kv else 0
    return 2 * heads * number + scores, 4 * config.hidden_size


def test_bytes_are_those_of_the_closed_form(lm):
    """Rows of 1, 5 and 9 new tokens: the last token of each is never computed."""
    each, states = of_token(lm)
    assert each + states == lm.engine._memory.bytes_per_token
    prompt, new = 11, [5, 1, 9]
    used = lm.kv_use(prompt, new)
    looked = sum(seen(lm.kv, prompt + k) for count in new for k in range(1, count))
    assert used.read == looked * each
    at_once = [sum(seen(lm.kv, prompt + k) for n in new if n > k) for k in range(9)]
    assert used.peak == max(at_once) * (each + states)
    if lm.kv in ("full", "int8"):
        assert looked == 4 * prompt + 10 + 8 * prompt + 36
        assert max(at_once) == max(3 * prompt, 2 * (prompt + 4), prompt + 8)
    assert lm.kv_use(prompt, [1]).read == 0


def test_a_prompt_that_rows_share_is_one_copy():
    lm = ppl.load("tiny", dtype="float32")
    each = lm.engine._memory.bytes_per_token
    lm.engine.sharing.price = 0
    assert lm.engine.sharing.able
    assert lm.kv_use(100, [9] * 5).peak == (100 + 5 * 8) * each
    assert lm.kv_use(100, [9]).peak == 108 * each
    assert lm.kv_use(40, [9] * 5).peak == 5 * 48 * each  # shorter than a block


def test_rows_keep_what_is_counted_and_some_tokens_of_slack(lm):
    """The engine's own slots, at every step of a batch."""
    rows, prompt, new = 3, 7, 150
    texts = [tuple(lm.prompt("=" * prompt).tokens)] * rows
    prompt = len(texts[0])
    ends = lm.codec.end_tokens
    allowed = np.array([t not in ends for t in range(lm.token_count)])
    spec = Spec(texts[0], StepRule(), new, Warp(), allowed)
    session, slots = lm.session(), lm.engine.slots
    for seed in range(rows):
        session.submit(ContinueRequest(lm, spec, (seed << 32) + 1))
    kept = KV.read(lm.kv)
    slack = 64  # the shortest slot
    most = 0
    while session.running:
        session.step()
        for slot in slots.busy:
            exact = kept.kept(slot.length, slot.base)
            assert exact <= slot.tail <= exact + slack * kept.gives_up
        most = max(most, sum(slot.tail for slot in slots.busy))
    session.close()
    peak = lm.kv_use(prompt, [new] * rows).peak / lm.engine._memory.bytes_per_token
    assert peak <= most <= peak + rows * slack * kept.gives_up


def test_a_batch_that_cannot_be_is_refused():
    lm = ppl.load("tiny")
    with pytest.raises(ValueError, match="new: tokens of each row"):
        lm.kv_use(5, [])
    with pytest.raises(ValueError, match="new=0"):
        lm.kv_use(5, [3, 0])
    with pytest.raises(ValueError, match="context_length"):
        lm.kv_use(5, [lm.context_length])


# -- records -------------------------------------------------------------------------------------


class Linear:
    """Takes a byte a token read, and ten a token kept."""

    kv = "made"

    def kv_use(self, prompt, new):
        return KVUse(sum(new), 10 * (prompt + sum(new)))


def test_a_grid_of_records_from_the_samples_of_a_question():
    drawn = [Drawn(4, "a", True), Drawn(9, "b", False), Drawn(2, "b", False), Drawn(6, "a", True)]
    found = kv_records(Linear(), "q", 3, drawn, samples=[1, 2, 4], lengths=[5, 9])
    by = {(r.samples, r.length): r for r in found}
    assert len(found) == len(by) == 6
    assert {(r.problem, r.kv) for r in found} == {("q", "made")}
    # Cut after 5 tokens, the second and the fourth have no answer: one a, one b.
    assert [by[n, 5].right for n in (1, 2, 4)] == pytest.approx([1 / 4, 5 / 12, 1 / 2])
    assert [by[n, 9].right for n in (1, 2, 4)] == pytest.approx([1 / 2, 1 / 2, 1 / 2])
    assert [by[n, 5].bytes_read for n in (1, 2, 4)] == [4, 8, 16]
    assert [by[n, 9].bytes_read for n in (1, 2, 4)] == [5.25, 10.5, 21]
    assert [by[n, 5].peak_bytes for n in (1, 2, 4)] == [70, 110, 190]
    (one,) = kv_records(Linear(), "q", 3, drawn, samples=[2], lengths=[9], rule="any")
    assert one.right == pytest.approx(5 / 6)  # 1 - 1 / C(4, 2)
    with pytest.raises(ArgumentError, match="samples=5: 4 were drawn of q"):
        kv_records(Linear(), "q", 3, drawn, samples=[5], lengths=[9])
    with pytest.raises(ArgumentError, match="one of each"):
        kv_records(Linear(), "q", 3, drawn, samples=[], lengths=[9])
    with pytest.raises(ArgumentError, match="in this process"):
        kv_records(ppl.TableLM({"a": 1.0}, symbols="^a$"), "q", 3, drawn, samples=[1], lengths=[9])


def test_what_a_group_draws_is_estimated_without_bias():
    """Groups of two, drawn and cut for themselves, against records of six."""
    rng = np.random.default_rng(0)

    def draw(count):
        tokens = rng.integers(1, 9, count).tolist()
        return [
            Drawn(t, "ba"[a], a)
            for t, a in zip(tokens, (rng.random(count) < 0.6).tolist(), strict=True)
        ]

    def of(drawn):
        (found,) = kv_records(Linear(), "q", 3, drawn, samples=[2], lengths=[6])
        return found.right, found.bytes_read, found.peak_bytes

    many, pairs = (np.array([of(draw(n)) for _ in range(600)]) for n in (6, 2))
    error = np.hypot(many.std(0), pairs.std(0)) / math.sqrt(600)
    assert (abs(many.mean(0) - pairs.mean(0)) < 3.5 * error).all()
    assert (many.std(0) < pairs.std(0)).all()


def planted(questions=4):
    """Accuracy, bytes read and peak bytes of six configurations, exactly so on each question."""
    table = {
        ("full", 1, 8): (0.25, 10, 5),
        ("full", 4, 8): (0.50, 40, 20),
        ("full", 16, 8): (0.50, 160, 80),  # no better than with four
        ("int8", 1, 8): (0.25, 6, 6),  # fewer read, more kept
        ("int8", 4, 8): (0.75, 40, 15),  # full with four is as dear and worse
        ("int8", 4, 16): (0.60, 50, 10),
    }
    return [
        KVRecord(f"q{q}", *name, right=right, bytes_read=read, peak_bytes=peak)
        for q in range(questions)
        for name, (right, read, peak) in table.items()
    ]


def names(points):
    return [(p.kv, p.samples, p.length) for p in points]


def test_a_planted_frontier_is_found():
    scale = hyper_scale(planted())
    assert scale.questions == 4
    assert len(scale.points) == 6
    assert names(scale.points)[:3] == [("full", 1, 8), ("full", 4, 8), ("full", 16, 8)]
    assert names(scale.frontier()) == [("int8", 1, 8), ("int8", 4, 8)]
    at_most = [("full", 1, 8), ("int8", 4, 16), ("int8", 4, 8)]
    assert names(scale.frontier("peak_bytes")) == at_most
    assert names(scale.frontier(kv="full")) == [("full", 1, 8), ("full", 4, 8)]
    point = scale.frontier("peak_bytes")[1]
    assert (point.accuracy, point.error) == pytest.approx((0.6, 0))
    assert (point.bytes_read, point.peak_bytes) == (50, 10)
    rows = scale.markdown.splitlines()
    assert rows[2] == "| full | 1 | 8 | 25.0 ± 0.0 | 1e-05 | 5e-06 | p |"
    assert rows[6].endswith("| r p |")
    gain = scale.gain(45, "int8")
    assert names([gain.choice, gain.other]) == [("int8", 4, 8), ("full", 4, 8)]
    assert (gain.gain, gain.error) == pytest.approx((0.25, 0))
    # 12 bytes pay for no more than one sample of either.
    assert scale.gain(12, "int8").gain == 0
    assert scale.gain(12, "int8", by="peak_bytes").gain == pytest.approx(0.6 - 0.25)
    assert scale.gain(200, "full", over="int8").other_accuracy == pytest.approx(0.75)
    assert names([scale.gain(200, "full").choice]) == [("full", 4, 8)]  # of equal ones the cheapest


def test_a_gain_is_measured_on_other_questions_than_it_is_chosen_on():
    """Ten configurations that differ by noise: the best looks better where it was chosen."""
    gains, in_sample = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        made = [
            KVRecord(f"q{q}", kv, n, 8, float(rng.random() < 0.5), 1.0, 1.0)
            for q in range(60)
            for kv, many in (("full", 1), ("int8", 10))
            for n in range(1, many + 1)
        ]
        scale = hyper_scale(made, seed=seed)
        gain = scale.gain(1.0, "int8")
        gains.append(gain.gain)
        in_sample.append(gain.choice.accuracy - gain.other.accuracy)
        assert abs(gain.gain) < 4 * gain.error
    error = np.std(gains, ddof=1) / math.sqrt(len(gains))
    assert abs(np.mean(gains)) < 3 * error
    assert np.mean(in_sample) > 5 * error


def test_records_of_one_question_are_averaged_and_gaps_are_named():
    made = planted()
    again = [dataclasses.replace(r, right=1.0, bytes_read=20.0) for r in made if r.samples == 1]
    point = hyper_scale([*made, *again]).points[0]
    assert (point.accuracy, point.bytes_read, point.peak_bytes) == (0.625, 15, 5)
    gone = [r for r in made if (r.problem, r.kv, r.samples) != ("q2", "full", 16)]
    with pytest.raises(ArgumentError, match="kv='full' with 16 samples of 8 tokens was not run on"):
        hyper_scale(gone)
    with pytest.raises(ArgumentError, match="folds=5"):
        hyper_scale(made, folds=5)
    scale = hyper_scale(made)
    with pytest.raises(ArgumentError, match="kv='window': no record is of it; there are full"):
        scale.frontier(kv="window")
    with pytest.raises(ArgumentError, match="the cheapest of 'full' takes 10"):
        scale.gain(9, "int8")


# -- from a model to its frontier ----------------------------------------------------------------


def test_settings_of_the_embedded_model_on_one_task():
    """A model that forgets what it is asked about is on no frontier; eight bits are."""
    problems = ppl.tasks.load("lines/chain").problems[:6]
    score = ppl.tasks.load("lines/chain").score
    made = []
    for kv in ("full", "int8", "window(8, 4)"):
        lm = ppl.load("tiny-lines", kv=kv)

        def answer(question, lm=lm):
            text = lm.chat(question)
            return text + pyro.sample("text", lm(text, max_tokens=40))

        for problem in problems:
            samples = BestOfN(8).run(answer, problem.question, seed=1).samples
            steps = [s.trace.nodes["text"]["value"] for s in samples]
            drawn = [
                Drawn(len(s.tokens), s.text if s.finished else None, bool(score(problem, s.text)))
                for s in steps
            ]
            prompt = len(lm.chat(problem.question).tokens)
            made += kv_records(
                lm, problem.id, prompt, drawn, samples=[1, 8], lengths=[20, 40], rule="any"
            )
    scale = hyper_scale(made)
    assert len(scale.points) == 12
    best = max(scale.points, key=lambda p: p.accuracy)
    assert best.kv != "window(8, 4)"
    by = {(p.kv, p.samples, p.length): p for p in scale.points}
    for n, length in ((1, 40), (8, 40)):
        full, eight = (by[kv, n, length] for kv in ("full", "int8"))
        each = ppl.load("tiny-lines").model.config
        size = each.hidden_size // each.num_attention_heads
        assert eight.peak_bytes < full.peak_bytes
        if math.isclose(eight.accuracy, full.accuracy):  # the same draws
            assert 0.5 * (size + 4) / (4 * size) < eight.bytes_read / full.bytes_read < 1
    assert {p.kv for p in scale.frontier()} <= {"full", "int8", "window(8, 4)"}
