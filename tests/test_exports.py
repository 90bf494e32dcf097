"""A posterior in the words of other programs."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import networkx as nx
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from programs import toy
from test_view import EVIL, made, node

from ppl import PPLError
from ppl.posterior.lineage import Lineage
from ppl.searchers import SMC, BestOfN


@pytest.fixture(scope="module")
def searched():
    return SMC(12, 1.0).run(toy, "prod", seed=0)


def evil_posterior():
    rows = [node(0, None, 0, "")]
    for number, evil in enumerate(EVIL, start=1):
        rows.append(node(number, 0, 1, evil, finished=True, result=evil))
    rows.append(node(len(rows), 0, 1, "x", log_weight=-math.inf, dead_at='si"te'))
    return made(rows, [1, 2])


def test_graphml_is_read_back_as_the_genealogy(searched, tmp_path):
    searched.to_graphml(tmp_path / "g.graphml")
    read = nx.read_graphml(tmp_path / "g.graphml", node_type=int)
    graph = searched.genealogy
    numbers = nx.get_node_attributes(read, "node")
    edges = {(numbers[a], numbers[b]) for a, b in read.edges}
    assert edges == set(graph.edges)
    for i, attributes in read.nodes(data=True):
        row = graph.nodes[numbers[i]]
        assert attributes["step"] == row["step"]
        assert attributes["value"] == pytest.approx(row["value"])
        assert attributes["finished"] is row["finished"]
    total = sum(nx.get_node_attributes(read, "probability").values())
    assert total == pytest.approx(1)


def test_graphml_holds_any_text(tmp_path):
    evil_posterior().to_graphml(tmp_path / "g.graphml")
    read = nx.read_graphml(tmp_path / "g.graphml", node_type=int)
    steps = [read.nodes[i]["step"] for i in range(1, len(EVIL) + 1)]
    assert steps[0] == EVIL[0]
    assert "\\x00\\x01" in steps[5]
    assert "\\ud800" in steps[6]
    assert read.nodes[len(EVIL) + 1]["dead_at"] == 'si"te'
    assert "log_weight" not in read.nodes[len(EVIL) + 1]


def test_mermaid_shows_the_best_path_first(searched):
    lineage = Lineage(searched)
    path = lineage.path(lineage.node_of[lineage.best])
    lines = searched.to_mermaid(len(path)).splitlines()
    assert lines[0] == "flowchart LR"
    assert [int(n) for n in re.findall(r"==> n(\d+)", "\n".join(lines))] == path[1:]
    assert f'more["{len(lineage) - len(path)} more nodes"]' in "\n".join(lines)
    whole = searched.to_mermaid(10_000)
    assert len(re.findall(r"(?:-->|==>)", whole)) == len(searched.genealogy.edges)
    assert "more nodes" not in whole
    with pytest.raises(ValueError, match="most"):
        searched.to_mermaid(0)


def test_nothing_in_a_mermaid_label_is_markup():
    labels = re.findall(r'\["(.*)"\]', evil_posterior().to_mermaid())
    assert len(labels) == len(EVIL) + 2
    for label in labels:
        words = label.replace("<br>", "").replace("&#", "").replace(";", "")
        assert not re.search(r'["<>&`{}\[\]()\n|\\#]', words)


def test_frames(searched):
    samples, nodes, rounds = searched.to_frames()
    assert samples["probability"].tolist() == pytest.approx(searched.probabilities.tolist())
    assert samples["value"].tolist() == [s.value for s in searched.samples]
    graph = searched.genealogy
    assert nodes.index.tolist() == list(graph)
    assert nodes["children"].tolist() == [graph.out_degree(n) for n in graph]
    assert nodes["tokens"].sum() == searched.cost.lm_tokens
    assert rounds["resampled"].tolist() == [note["resampled"] for note in searched.history]
    assert rounds.index.tolist() == list(range(1, len(searched.history) + 1))
    assert set(nodes["fate"]) <= {"kept", "dropped", "finished", "dead"}
    assert BestOfN(2).run(toy, "prod", seed=0).to_frames().rounds.empty


def normal() -> float:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 0.5), obs=pyro.param("nothing", lambda: x * 0 + 1.0).detach())
    return float(x)


def test_arviz_has_the_draws_and_their_weights():
    arviz = pytest.importorskip("arviz")
    pyro.clear_param_store()
    posterior = SMC(40, 0.0).run(normal, seed=0)
    data = posterior.to_arviz()
    values = [s.value for s in posterior.samples]
    assert data["posterior"]["value"].values[0].tolist() == pytest.approx(values)
    assert data["posterior"]["x"].values[0].tolist() == pytest.approx(values, abs=1e-6)
    stats = data["sample_stats"]
    assert stats["probability"].values.sum() == pytest.approx(1)
    assert stats["log_weight"].values[0].tolist() == [s.log_weight for s in posterior.samples]
    assert stats["lp"].values[0].tolist() == [s.log_joint for s in posterior.samples]
    assert data["posterior"].attrs["log_evidence"] == posterior.log_evidence
    # Equal draws: what ArviZ says of them is what the weights say.
    equal = posterior.to_arviz(4000, seed=1)
    mean = float(arviz.summary(equal, var_names=["value"])["mean"].iloc[0])
    assert mean == pytest.approx(posterior.expectation(float), abs=0.05)
    again = posterior.to_arviz(4000, seed=1)
    assert np.array_equal(again["posterior"]["x"].values, equal["posterior"]["x"].values)
    pyro.clear_param_store()


def test_arviz_has_the_ancestors(searched):
    pytest.importorskip("arviz")
    data = searched.to_arviz()
    graph = searched.genealogy
    ancestors = data["sample_stats"]["ancestor"].values[0]
    assert ancestors.shape[0] == len(searched.samples)
    for row, sample in zip(ancestors, searched.samples, strict=True):
        path = [n for n in row.tolist() if n >= 0]
        assert path[-1] == sample.node
        assert all(graph.has_edge(a, b) for a, b in pairwise(path))
        assert row.tolist() == path + [-1] * (len(row) - len(path))
    words = made([node(0, None, 0, ""), node(1, 0, 1, "x", finished=True, result="no")], [1])
    said = words.to_arviz()["posterior"]["answer"]
    assert (said.attrs["answers"], said.values.tolist()) == (["no"], [[0]])


def test_arviz_of_nothing_is_refused():
    dead = made([node(0, None, 0, "", log_weight=-math.inf)], [0])
    with pytest.raises(PPLError, match="positive weight"):
        dead.to_arviz()
    with pytest.raises(ValueError, match="draws"):
        dead.to_arviz(0)


def test_a_missing_package_is_named(searched, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "arviz", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PPLError, match="pip install arviz"):
        searched.to_arviz()
    with pytest.raises(PPLError, match="pip install pandas"):
        searched.to_frames()
