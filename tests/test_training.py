"""The scripts that train the embedded pair, in their smallest sizes."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "training"))

import data  # noqa: E402
import evaluate  # noqa: E402
import networks  # noqa: E402
import simulate  # noqa: E402
import train  # noqa: E402
import vocabulary  # noqa: E402

from ppl.tasks.chain import Chain  # noqa: E402
from ppl.tasks.lines import LINE_TASKS, draw  # noqa: E402

TINY = networks.Shape(32, 2, 2, 64)


def test_tokenizer_is_the_one_that_training_uses(tmp_path: Path) -> None:
    """Same ids for questions under the chat template and for responses, and texts come back."""
    vocabulary.save_tokenizer(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    rng = Random(0)
    for task in LINE_TASKS:
        for _ in range(20):
            problem = draw(task, rng)
            chat = [{"role": "user", "content": problem.question}]
            ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
            assert ids == vocabulary.prompt(problem.question)
            response = "".join(data.careless_response(problem, rng))
            ids = tokenizer.encode(response, add_special_tokens=False)
            assert ids == vocabulary.encode(response)
            assert tokenizer.decode(ids) == networks.text_of(ids) == response
    for text in ("a=(((", "5", "55", "", "grüße\n"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("task", LINE_TASKS)
def test_a_line_is_two_or_three_tokens(task: str) -> None:
    rng = Random(1)
    for _ in range(20):
        for line in data.careless_response(draw(task, rng), rng):
            assert len(data.line_ids(line)) == (3 if task == "chain" else 2)


def test_embeddings_start_as_sums_over_characters() -> None:
    """Numbers that share a digit in its place are alike, others are not."""
    torch.manual_seed(0)
    rows = networks.new_decoder(TINY).model.embed_tokens.weight.detach()
    rows = torch.nn.functional.normalize(rows, dim=-1)
    number = [rows[vocabulary.vocabulary()[str(n)]] for n in range(100)]
    pairs = [(a, b) for a in range(10, 100) for b in range(10, a)]
    alike = [
        float(number[a] @ number[b]) for a, b in pairs if a // 10 == b // 10 or a % 10 == b % 10
    ]
    apart = [
        float(number[a] @ number[b]) for a, b in pairs if a // 10 != b // 10 and a % 10 != b % 10
    ]
    assert np.mean(alike) > 0.3
    assert abs(np.mean(apart)) < 0.1


@pytest.mark.parametrize("task", LINE_TASKS)
def test_a_tree_is_scored_like_its_texts_alone(task: str) -> None:
    """A token of a branch sees the trunk before it and its own branch, at its own position."""
    torch.manual_seed(0)
    reward = networks.new_reward(TINY).eval()
    rng = Random(2)
    trees = [data.tree(draw(task, rng), rng) for _ in range(3)]
    for tree, odds in zip(trees, networks.tree_log_odds(reward, trees), strict=True):
        segments = np.array(tree.segment)
        assert segments.max() >= 3
        for segment in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == segment)
            ids = [*tree.ids[: tree.cut[at[0]]], *(tree.ids[i] for i in at)]
            alone = data.Tree()
            alone.add(ids, [data.UNKNOWN] * len(ids), 0, len(ids))
            (wanted,) = networks.tree_log_odds(reward, [alone])
            np.testing.assert_allclose(odds[at], wanted[-len(at) :], atol=2e-5)


@pytest.mark.parametrize("task", LINE_TASKS)
def test_labels_and_pairs_of_trees_are_the_oracles(task: str) -> None:
    """At line ends the label says whether the lines are right; pairs are right and wrong."""
    rng = Random(3)
    checked = 0
    for _ in range(10):
        problem = draw(task, rng)
        tree = data.tree(problem, rng)
        question = len(vocabulary.prompt(problem.question))
        for end in np.flatnonzero(tree.end):
            own = [i for i in range(end + 1) if tree.segment[i] == tree.segment[end]]
            ids = own if not tree.segment[end] else [*range(tree.cut[end]), *own]
            groups = networks.Response([tree.ids[i] for i in ids][question:], []).groups
            alone = data.labelled_response(problem, groups)
            assert tree.label[end] == alone.label[-1]
            checked += 1
        assert all(
            tree.label[good] == 1 and tree.label[bad] == 0
            for _, good, bad in data.stack([tree])["pairs"]
        )
    assert checked > 100


def test_batches_depend_on_seed_and_index_only() -> None:
    first, again, other = (
        data.tree_batch("queens", Random(seed), 3) for seed in ("0:tree:5", "0:tree:5", "0:tree:6")
    )
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert not np.array_equal(first["ids"], other["ids"])


def fit(out: Path, seed: int, stop: int) -> dict[str, torch.Tensor]:
    """A network of a seed, trained on six batches of which only the first `stop` come."""

    def batches(start: int) -> Iterator[train.Batches]:
        for i in range(start, stop):
            yield {"chain": data.response_batch("chain", Random(i), 2)}
        if stop < 6:
            raise KeyboardInterrupt

    def losses(batch: train.Batches) -> Iterator[dict[str, torch.Tensor]]:
        for arrays in batch.values():
            yield {"lm": train.decoder_loss(run, model, arrays)}

    run = train.Run(out, "cpu", 0, None, None, bfloat16=False, checkpoint_seconds=-1)
    torch.manual_seed(seed)
    model: Any = networks.new_decoder(TINY)
    train.fit(run, "x", model, batches, losses, steps=6, rate=1e-2, share=1.0)
    return dict(model.state_dict())


def test_a_stage_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Weights are equal bit by bit: network, optimizer, rate and stream go on where they were."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    expected = fit(whole, seed=0, stop=6)
    with pytest.raises(KeyboardInterrupt):
        fit(cut, seed=0, stop=3)
    got = fit(cut, seed=1, stop=6)
    assert all(torch.equal(expected[k], got[k]) for k in expected)
    report = json.loads((cut / "x.json").read_text())
    assert report["steps"] == 6
    assert report["tokens"] == json.loads((whole / "x.json").read_text())["tokens"]


def test_one_command_makes_both_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All stages in their smallest size; again, all are done; what is saved can be evaluated."""
    command = ["--out", str(tmp_path), "--smoke", "--float32"]
    train.main(command)
    assert {p.name for p in tmp_path.glob("*.json")} == {
        *(f"{stage}.json" for stage in train.STAGES),
        "recipe.json",
    }
    saved = (tmp_path / "prm" / "model.safetensors").read_bytes()
    capsys.readouterr()
    train.main(command)
    assert capsys.readouterr().out.count("done before") == len(train.STAGES)
    assert (tmp_path / "prm" / "model.safetensors").read_bytes() == saved
    report = evaluate.main(["--model", str(tmp_path), "--problems", "4"])
    assert set(report["gates"]) == set(evaluate.gates(report))
    assert "5 beats 55" in capsys.readouterr().out


def test_auc_and_calibration_by_hand() -> None:
    good = np.array([True, False, True, False])
    assert evaluate.wins(np.array([2.0, 1.0, 0.0, 0.0]), good) == (2 + 0 + 0.5, 4)
    assert evaluate.ratio_interval([(1, 2), (3, 4)])[0] == 4 / 6
    assert evaluate.calibration_error(
        np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, True, True, False])
    ) == pytest.approx((2 * 0.1 + 2 * 0.4) / 4)
    assert evaluate.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_auc_within_a_problem_averages_over_problems_that_have_both() -> None:
    problems = [Chain("2+3"), Chain("2+4"), Chain("2+5")]
    right = networks.Response([*vocabulary.encode("a=5"), data.END_ID], [-1.0, 0.0, 0.0])
    wrong = networks.Response([*vocabulary.encode("a=7"), data.END_ID], [-2.0, 0.0, 0.0])
    n = evaluate.ANSWERS
    answers = [right] * (n // 2) + [wrong] * (n // 2)  # the first problem
    answers += [wrong] * n  # the second: none right
    answers += [wrong] + [right] * (n - 1)  # the third: a=7 is right
    last = np.array([1.0] * (n // 2) + [0.0] * (n // 2) + [0.0] * n + [1.0] + [2.0] * (n - 1))
    result = evaluate.within(problems, answers, last)
    assert result["reward model"][0] == (1.0 + 0.0) / 2
    assert result["log-probability"][0] == (1.0 + 0.0) / 2


def passing() -> dict[str, Any]:
    one = {
        "accuracy": (0.3, 0.2, 0.4),
        "siblings": {"reward model": (0.95, 0.9, 1.0), "log-probability": (0.9, 0.8, 1.0)},
        "within": {"reward model": (0.85, 0.8, 0.9), "log-probability": (0.9, 0.8, 1.0)},
        "ece": 0.05,
    }
    reads = {"5": 0.1, "55": 0.0, "nothing": -1.0, "(((": -2.0}
    return {"reads": reads, **{task: copy.deepcopy(one) for task in LINE_TASKS}}


@pytest.mark.parametrize(
    ("path", "value", "missed"),
    [
        (("reads", "55"), 0.1, {"5 beats 55, nothing and ((("}),
        (("chain", "accuracy"), (0.24, 0, 1), {"chain: accuracy in 25% to 50%"}),
        (("chain", "accuracy"), (0.51, 0, 1), {"chain: accuracy in 25% to 50%"}),
        (
            ("queens", "siblings", "reward model"),
            (0.91, 0, 1),
            {"queens: AUC among siblings >= .95 (wanted)"},
        ),
        (
            ("queens", "siblings", "reward model"),
            (0.899, 0, 1),
            {
                "queens: AUC among siblings >= .90",
                "queens: AUC among siblings >= .95 (wanted)",
                "queens: above the decoder's log-probability",
            },
        ),
        (
            ("sudoku", "siblings", "log-probability"),
            (0.95, 0, 1),
            {"sudoku: above the decoder's log-probability"},
        ),
        (
            ("sudoku", "within", "reward model"),
            (0.849, 0, 1),
            {"sudoku: AUC within a problem >= .85"},
        ),
        (("sudoku", "ece"), 0.051, {"sudoku: ECE <= .05"}),
    ],
)
def test_each_gate_can_be_missed(path: tuple[str, ...], value: Any, missed: set[str]) -> None:
    report = passing()
    assert all(evaluate.gates(report).values())
    at = report
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert {gate for gate, met in evaluate.gates(report).items() if not met} == missed


def test_platt_recovers_slope_and_intercept() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(size=20_000) * 2
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * odds - 1)))).astype(float)
    slope, intercept = train.platt(odds, labels, np.full(20_000, 1 / 20_000))
    assert slope == pytest.approx(0.5, abs=0.05)
    assert intercept == pytest.approx(-1, abs=0.05)


def test_a_good_judge_makes_search_worth_its_samples() -> None:
    """The imagined judge has the AUC it is made for, and search with it climbs."""
    judge, rng = simulate.Judge.with_auc(0.92, 0.5), Random(0)
    good, bad = (
        np.array([judge.log_odds(right, rng.gauss(0, 1), rng) for _ in range(1500)])
        for right in (True, False)
    )
    assert (good[:, None] > bad[None, :]).mean() == pytest.approx(0.92, abs=0.01)
    shares = simulate.main(["--problems", "40", "--auc", "0.99", "--budgets", "1", "16"])
    for task in LINE_TASKS:
        for searcher in simulate.SEARCHERS:
            assert shares[task, searcher, 16] > shares[task, searcher, 1] + 0.2
