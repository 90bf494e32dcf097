"""Searches as training data: pairs, trajectories, labels of steps."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from programs import toy
from test_view import made, node

import ppl
from ppl.errors import SearchStateError
from ppl.posterior.lineage import Lineage
from ppl.posterior.pairs import (
    node_values,
    preference_pairs,
    step_labels,
    trajectories,
    write_rows,
)
from ppl.runtime.result import Result
from ppl.searchers import SMC, BeamSearch

WANTED = 1  # the result that is "right" in the tests: one more a than b


def is_right(value) -> bool:
    return value == WANTED


def written_down():
    rows = [
        node(0, None, 0, ""),
        node(1, 0, 1, "good", value=0.8),
        node(2, 0, 1, "bad", value=0.3),
        node(3, 0, 1, "good", value=0.6),  # said twice
        node(4, 1, 2, "right", value=0.7, finished=True, result="1"),
        node(5, 1, 2, "wrong", value=0.7, finished=True, result="2"),
        node(6, 2, 2, "wrong", value=0.1, finished=True, result="2"),
        node(7, 3, 2, "stuck", value=0.0, log_weight=-math.inf, dead_at="rule"),
    ]
    return made(rows, [4, 5, 6])


def test_pairs_of_steps_by_value():
    (pair,) = [p for p in preference_pairs(written_down()) if p["prefix"] == ""]
    assert (pair["chosen"], pair["rejected"]) == ("good", "bad")
    assert pair["chosen_score"] == pytest.approx(0.7)  # the mean of those who said so
    assert pair["rejected_score"] == pytest.approx(0.3)
    assert not preference_pairs(written_down(), margin=0.5)
    with pytest.raises(ValueError, match="margin"):
        preference_pairs(written_down(), margin=-1.0)
    with pytest.raises(ValueError, match="kind"):
        preference_pairs(written_down(), kind="bogus")


def test_pairs_of_steps_by_what_came_of_them():
    pairs = preference_pairs(written_down(), right=lambda v: v == "1")
    found = {(p["prefix"], p["chosen"], p["rejected"]): p for p in pairs}
    assert found.keys() == {("", "good", "bad"), ("good", "right", "wrong")}
    assert found["", "good", "bad"]["chosen_score"] == 0.25  # the mean of 1/2 and 0


def test_pairs_of_a_search_share_their_beginning():
    posterior = BeamSearch(2, 4).run(toy, "prod", seed=0)
    graph = posterior.genealogy
    pairs = preference_pairs(posterior)
    assert pairs
    for pair in pairs:
        good, bad = pair["nodes"]
        assert list(graph.predecessors(good)) == list(graph.predecessors(bad))
        assert pair["chosen_score"] > pair["rejected_score"]
        assert pair["prompt"] == posterior.samples[0].text.prompt
        assert (pair["chosen"], pair["rejected"]) == (
            graph.nodes[good]["step"],
            graph.nodes[bad]["step"],
        )


def test_refinements_lie_on_one_path():
    posterior = SMC(6, 0.0).run(toy, "last", seed=1)
    graph = posterior.genealogy
    pairs = preference_pairs(posterior, kind="refinements")
    assert pairs
    for pair in pairs:
        good, bad = pair["nodes"]
        assert graph.has_edge(bad, good)
        assert graph.nodes[good]["value"] > graph.nodes[bad]["value"]
        assert bad != 0


def test_trajectories_stand_once_with_all_their_probability():
    posterior = SMC(30, 0.9).run(toy, "prod", seed=0)
    rows = trajectories(posterior)
    texts = [row["completion"] for row in rows]
    assert len(set(texts)) == len(texts)
    assert sum(row["probability"] for row in rows) == pytest.approx(1)
    assert [row["score"] for row in rows] == sorted((r["score"] for r in rows), reverse=True)
    high = trajectories(posterior, least=0.5)
    assert high == [row for row in rows if row["score"] >= 0.5] != rows
    right = trajectories(posterior, right=is_right)
    assert {row["answer"] for row in right} == {str(WANTED)}


def test_labels_equal_enumeration_where_all_children_are_continued():
    """Every prefix of the toy, its children drawn whatever they looked like: V is unbiased."""
    tree = ppl.Tree(toy, ("prod",), seed=3)
    nodes = [tree.root]
    for count in (120, 3, 3):
        grown = tree.expand([n for n in nodes if n.open], count)
        nodes = [n for n in nodes if not n.open] + grown
    posterior = ppl.Posterior.of(tree, Result(nodes, [n.log_weight for n in nodes]))
    lineage = Lineage(posterior)
    values = node_values(posterior, is_right)

    def exact(prefix: str) -> float:
        """P(right | prefix), by going through all of the toy's continuations."""
        if prefix.endswith("$") or len(prefix) == 3:
            return float(is_right(prefix.count("a") - prefix.count("b")))
        return sum(p * exact(prefix + s) for s, p in (("a", 0.5), ("b", 0.3), ("$", 0.2)))

    assert values[0] == pytest.approx(exact(""), abs=3 * math.sqrt(0.25 / 120))
    by_prefix: dict[str, list[float]] = {}
    for i, value in enumerate(values):
        prefix = "".join(lineage.rows[j]["step"] for j in lineage.path(i))
        if not lineage.rows[i]["finished"]:
            by_prefix.setdefault(prefix, []).append(value)
    assert len(by_prefix) >= 5
    for prefix, found in by_prefix.items():
        mean = sum(found) / len(found)
        variance = sum((v - mean) ** 2 for v in found) / max(1, len(found) - 1)
        error = 3 * math.sqrt(max(variance, 1e-4) / len(found))
        assert mean == pytest.approx(exact(prefix), abs=error), prefix


def test_the_share_of_the_weights_is_the_posterior():
    posterior = SMC(400, 0.0).run(toy, "prod", seed=0)
    values = node_values(posterior, is_right, law="posterior")
    exact = ppl.enumerate_program(toy, "prod").marginal()[WANTED]
    assert values[0] == pytest.approx(exact, abs=0.1)
    assert values[0] == pytest.approx(posterior.marginal()[WANTED])


def test_labels_of_steps():
    rows = step_labels(written_down(), lambda v: v == "1")
    labels = {tuple(row["completions"]): row["labels"] for row in rows}
    assert labels == {
        ("good", "right"): [0.5, 1.0],
        ("good", "wrong"): [0.5, 0.0],
        ("bad", "wrong"): [0.0, 0.0],
    }
    hard = step_labels(written_down(), lambda v: v == "1", threshold=0.0)
    assert [row["labels"] for row in hard] == [[True, True], [True, False], [False, False]]
    some = step_labels(written_down(), lambda v: None if v == "2" else True)
    assert [row["completions"] for row in some] == [["good", "right"]]
    with pytest.raises(ValueError, match="right"):
        step_labels(written_down(), 3)


def test_rows_are_written_whole(tmp_path):
    rows = preference_pairs(written_down())
    write_rows(rows, tmp_path / "pairs.jsonl")
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    with pytest.raises(SearchStateError, match="cannot be written"):
        write_rows(rows, tmp_path / "no" / "pairs.jsonl")
    assert len(list(tmp_path.iterdir())) == 1


def test_paths_go_from_parent_to_child():
    lineage = Lineage(written_down())
    for i in range(len(lineage)):
        assert all(lineage.parents[b] == a for a, b in pairwise(lineage.path(i)))
