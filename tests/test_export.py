"""Searches as training data: pairs, trajectories, labels of steps."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import networkx as nx
import pytest
from programs import toy
from test_tree_refinement import LETTERS, latest, writer
from test_view import made, node

import ppl
from ppl.errors import ArgumentError, SearchStateError
from ppl.export import node_values, preference_pairs, step_labels, trajectories, write_rows
from ppl.posterior.lineage import Lineage
from ppl.runtime.result import Result
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN, TreeRefinement

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


# -- refinements ----------------------------------------------------------------------------------


def refining(says: bool = True) -> str:
    """Is harder to content."""
    return writer(content=0.8, says=says)


def unlawful(pairs, tree: ppl.Tree) -> list[str]:
    """What is wrong with pairs of refinements."""
    nodes = {node.identity: node for node in tree.nodes}
    found = []
    for pair in pairs:
        good, bad = (nodes[i] for i in pair["nodes"])
        if bad not in good.path or good is bad:
            found.append("not on one path")
        if bad.depth != 1:
            found.append("no draft")
        below = [n.value for n in tree.nodes if bad in n.path and n is not bad and not n.dead]
        if good.value < max(below, default=0.0) - 1e-12:
            found.append("not the best")
        if (pair["chosen"], pair["rejected"]) != (latest(good.text), latest(bad.text)):
            found.append("not the answers")
        if not pair["chosen_score"] > pair["rejected_score"]:
            found.append("not better")
        if pair["prompt"] != good.text.prompt or pair["prompt"] != bad.text.prompt:
            found.append("another prompt")
    return found


def grown(order, seed, **options):
    search = TreeRefinement(40, order=order, threshold=0.95).begin(refining, seed=seed, **options)
    return search.run(), search.tree


@pytest.mark.parametrize("order", ["bfs", "dfs"])
def test_the_best_refinement_is_chosen_and_its_own_draft_rejected(order):
    found, drafts = 0, 0
    for seed in range(12):
        posterior, tree = grown(order, seed)
        pairs = preference_pairs(posterior, kind="refinements")
        assert not unlawful(pairs, tree)
        assert pairs == preference_pairs(tree, kind="refinements")
        said = {(pair["chosen"], pair["rejected"]) for pair in pairs}
        assert len(said) == len(pairs)  # equal ones are one
        found += len(pairs)
        for draft in (n for n in tree.nodes if n.depth == 1):
            below = [n for n in tree.nodes if draft in n.path]
            better = max(below, key=lambda n: n.value)
            if better.value > draft.value:
                drafts += 1
                assert (latest(better.text), latest(draft.text)) in said
    assert drafts >= found > 12


def test_near_misses_of_refinements_are_unlawful():
    """The best of all against every draft; a child against its parent; the text with the critique;
    a refinement that is not the best."""
    wrong = {"not on one path": 0, "no draft": 0, "not the answers": 0, "not the best": 0}
    for seed in range(12):
        _, tree = grown("bfs", seed)
        drafts = [n for n in tree.nodes if n.depth == 1]
        rest = [n for n in tree.nodes if n.depth > 1]
        best = max(rest, key=lambda n: n.value, default=None)

        def pair(good, bad, chosen=None):
            return {
                "prompt": "^",
                "chosen": latest(good.text) if chosen is None else chosen,
                "rejected": latest(bad.text),
                "chosen_score": good.value,
                "rejected_score": bad.value,
                "nodes": [good.identity, bad.identity],
            }

        for draft in drafts if best else []:
            wrong["not on one path"] += "not on one path" in unlawful([pair(best, draft)], tree)
        for n in rest:
            draft = n.path[1]
            wrong["no draft"] += "no draft" in unlawful([pair(n, n.parent)], tree)
            wrong["not the best"] += "not the best" in unlawful([pair(n, draft)], tree)
            wrong["not the answers"] += "not the answers" in unlawful(
                [pair(n, draft, "?0!" + latest(n.text))], tree
            )
    assert all(wrong.values()), wrong


def test_all_ancestors_of_the_best_refinement_can_be_rejected():
    some = 0
    for seed in range(12):
        posterior, tree = grown("bfs", seed)
        graph = posterior.genealogy
        short = preference_pairs(tree, kind="refinements")
        pairs = preference_pairs(tree, kind="refinements", against="path")
        assert all(pair in pairs for pair in short)
        for pair in pairs:
            good, bad = pair["nodes"]
            assert nx.has_path(graph, bad, good)
            assert bad != 0
            assert pair["chosen_score"] > pair["rejected_score"]
        some += len(pairs) > len(short)
    assert some


def test_refinements_are_kept_by_margin_by_pass_and_by_a_judge():
    posterior, _ = grown("bfs", 2)
    pairs = preference_pairs(posterior, kind="refinements")
    assert pairs
    passed = preference_pairs(posterior, kind="refinements", least=0.85)
    assert passed == [p for p in pairs if p["chosen_score"] >= 0.85]
    wide = preference_pairs(posterior, kind="refinements", margin=0.5)
    assert wide == [p for p in pairs if p["chosen_score"] - p["rejected_score"] >= 0.5]
    judged = preference_pairs(posterior, kind="refinements", right=lambda answer: answer == "aaa")
    assert {p["chosen"] for p in judged} <= {"aaa"}
    assert {(p["chosen_score"], p["rejected_score"]) for p in judged} <= {(1.0, 0.0)}


def test_a_program_says_what_it_refines_or_it_is_read(tmp_path):
    search = TreeRefinement(40, threshold=0.95).begin(refining, False, seed=2)
    silent = search.run()
    with pytest.raises(ArgumentError, match=r"ppl\.answer"):
        preference_pairs(silent, kind="refinements")
    said, _ = grown("bfs", 2)
    pairs = preference_pairs(said, kind="refinements")
    assert pairs == preference_pairs(
        silent, kind="refinements", answer=lambda written: written[-LETTERS:]
    )
    said.save(tmp_path / "search.ppl")
    assert (
        preference_pairs(ppl.Posterior.load(tmp_path / "search.ppl"), kind="refinements") == pairs
    )


def test_nothing_to_export_is_refused():
    empty = ppl.Posterior([], log_evidence=None, cost=ppl.Cost())
    for function in (preference_pairs, step_labels, trajectories, node_values):
        with pytest.raises(ArgumentError, match="no particle"):
            function(empty)
        with pytest.raises(ArgumentError, match="posterior"):
            function([])


# -- texts and labels -----------------------------------------------------------------------------


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


def test_wins_over_visits_are_what_the_search_backs_up():
    """MCTS keeps total and visits of every node; an end counts by what its verifier says of it."""
    for seed in range(4):
        search = MCTS(40, width=3).begin(toy, "last", seed=seed)
        search.run()
        statistics = search.state.statistics
        values = node_values(search.tree, law="visits")
        mine = {node.identity: v for node, v in zip(search.tree.nodes, values, strict=True)}
        drawn = [node for node in search.tree.nodes if not node.simulated]
        assert len(drawn) > 10
        for each in drawn:
            known = statistics[each.identity]
            assert mine[each.identity] == pytest.approx(known.total / known.visits)

        def judged(lead):
            return 0.9 if lead > 0 else 0.6 if lead == 0 else 0.3

        assert values == pytest.approx(node_values(search.tree, judged, law="visits"))
        assert node_values(search.tree) != pytest.approx(values)


def test_ends_that_are_counted_one_by_one_are_not_the_law_where_texts_end_early():
    """The near miss: wins / visits over an expanded tree favours what goes on."""
    tree = ppl.Tree(toy, ("prod",), seed=0)
    nodes = [tree.root]
    for count in (300, 3, 3):
        nodes = tree.expand([n for n in nodes if n.open], count)
    values = [node_values(tree, lambda lead: lead == 0, law=law)[0] for law in ("draws", "visits")]
    exact = 0.2 + 2 * 0.5 * 0.3 * 0.2  # "", "ab", "ba"
    error = 3 * math.sqrt(exact * (1 - exact) / 300)
    assert values[0] == pytest.approx(exact, abs=error)
    assert values[1] < exact - error


def test_prefixes_that_are_drawn_again_and_again_are_one():
    """Independent samples share no node; merged, their labels are those of the prefixes."""
    posterior = BestOfN(1500).run(toy, "prod", seed=1)
    lineage = Lineage(posterior)
    values = node_values(posterior, is_right, merge=True)

    def exact(prefix: str) -> float:
        if len(prefix) == 3:
            return float(is_right(prefix.count("a") - prefix.count("b")))
        ended = 0.2 * is_right(prefix.count("a") - prefix.count("b"))
        return 0.5 * exact(prefix + "a") + 0.3 * exact(prefix + "b") + ended

    drawn: dict[str, list[float]] = {}
    for i, row in enumerate(lineage.rows):
        if not row["finished"]:
            prefix = "".join(lineage.written(j) for j in lineage.path(i))
            drawn.setdefault(prefix, []).append(values[i])
    assert set(drawn) == {"", "a", "b", "aa", "ab", "ba", "bb"}
    for prefix, found in drawn.items():
        p, n = exact(prefix), len(found) if prefix else 1500
        assert len(set(found)) == 1
        assert found[0] == pytest.approx(p, abs=3 * math.sqrt(max(p * (1 - p), 1e-9) / n) + 1e-9)
    rows = step_labels(posterior, is_right, merge=True)
    assert len(rows) == 15  # all texts of the toy
    apart = node_values(posterior, is_right)
    assert {v for v, row in zip(apart, lineage.rows, strict=True) if row["depth"]} == {0.0, 1.0}


def test_without_a_judge_an_end_counts_by_its_verifier():
    posterior = BestOfN(50).run(toy, "last", seed=0)
    values = node_values(posterior)
    mean = sum(s.score for s in posterior.samples) / 50
    assert values[0] == pytest.approx(mean)
    weighed = sum(
        p * s.score for p, s in zip(posterior.probabilities, posterior.samples, strict=True)
    )
    assert node_values(posterior, law="posterior")[0] == pytest.approx(weighed)


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


def test_equal_pairs_of_steps_are_one_and_contradictions_none():
    """Nodes that say the same below nodes that say the same: a trainer sees the texts alone."""
    rows = [node(0, None, 0, ""), node(1, 0, 1, "so"), node(2, 0, 1, "so")]
    said = [("x", 0.8, 0.9), ("y", 0.5, 0.4), ("z", 0.2, 0.6)]  # z beats y the second time
    for parent in (1, 2):
        for word, *values in said:
            rows.append(node(len(rows), parent, 2, word, value=values[parent - 1], finished=True))
    pairs = preference_pairs(made(rows, [3, 4, 5, 6, 7, 8]))
    assert [(p["prefix"], p["chosen"], p["rejected"]) for p in pairs] == [
        ("so", "x", "y"),
        ("so", "x", "z"),
    ]
    posterior = BeamSearch(3, 6).run(toy, "prod", seed=0)
    keys = [(p["prefix"], p["chosen"], p["rejected"]) for p in preference_pairs(posterior)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("odd", [math.inf, math.nan, object()])
def test_rows_that_are_no_json_are_named(tmp_path, odd):
    with pytest.raises(ArgumentError, match="rows: not all of them are JSON"):
        write_rows([{"score": 1.0}, {"score": odd}], tmp_path / "rows.jsonl")
    assert not list(tmp_path.iterdir())
