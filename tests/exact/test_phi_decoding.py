"""phi-Decoding: pruning, foresight weights, clusters, and when looking ahead ends."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyro
import pytest
from scipy.special import softmax

import ppl
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.record import Record
from ppl.runtime.tree import Tree
from ppl.searchers import PhiDecoding
from ppl.searchers.beams.phi_decoding import Beam, clusters, log_foresight_weights
from ppl.searchers.likelihood import confidence
from ppl.searchers.resampling import without_replacement


def test_weights_are_the_mean_of_both_softmaxes():
    advantages, alignment = [0.3, -0.2, 0.1], [0.5, 0.25, 0.25]
    expected = (softmax(np.array(advantages) / 0.6) + softmax(np.array(alignment) / 0.6)) / 2
    assert np.exp(log_foresight_weights(advantages, alignment, 0.6)) == pytest.approx(expected)


def test_equal_candidates_have_equal_weights():
    assert np.exp(log_foresight_weights([0.2] * 4, [1.0] * 4, 0.6)) == pytest.approx([0.25] * 4)


def test_one_cluster_leaves_the_decision_to_the_advantage():
    labels = clusters(["one two", "three", "four five"], 1, 0)
    assert len(set(labels)) == 1
    weights = np.exp(log_foresight_weights([1.0, 0.0], [1.0, 1.0], 0.5))
    assert weights == pytest.approx((softmax([2.0, 0.0]) + 0.5) / 2)


def test_clusters_by_words():
    texts = ["3 + 4 = 7", "the cat sat", "3 + 4 = 7", "3 + 4 = 8", "a cat sat", " "]
    labels = clusters(texts, 2, 5)
    assert labels[0] == labels[2] == labels[3] != labels[1] == labels[4]
    assert len(set(clusters(texts, 99, 5))) <= 5  # equal strings are together
    assert clusters(["", " "], 3, 0) == [0, 0]
    assert len(set(clusters(["b a", "a b"], 2, 0))) == 1  # word counts cannot tell them apart


def test_confidence_is_the_mean_per_token():
    tree = Tree(_letters, (3,))
    (node,) = tree.expand([tree.root])
    tokens = node.records[0].value.tokens
    logs = {"a": math.log(0.6), "b": math.log(0.4)}
    expected = sum(logs[letter] for letter in node.step) / len(tokens)
    assert len(tokens) == 3
    assert confidence(node.records) == pytest.approx(expected)
    assert confidence(()) == 0.0


LETTERS = ppl.TableLM({"a": 0.6, "b": 0.4}, symbols="^ab$", end="$")


def _letters(size: int, steps: int = 1) -> str:
    text = LETTERS.prompt("^")
    for t in range(steps):
        text = text + pyro.sample(f"s_{t}", LETTERS(text, max_tokens=size))
        ppl.condition(True, f"step_{t}")
    return text.text


def test_pruning_drops_what_is_below_the_mean_by_sigma_deviations():
    tree = Tree(_letters, (1, 2))
    nodes = tree.expand([tree.root], 60)
    number = Counter(node.step for node in nodes)
    rng = generator(0)
    kept = PhiDecoding(1, 60, sigma=0.0)._confident(nodes, rng)
    assert {node.step for node in kept} == {"a"}  # the mean is between the two
    assert len(kept) == number["a"]
    assert PhiDecoding(1, 60, sigma=9.0)._confident(nodes, rng) == nodes
    same = [node for node in nodes if node.step == "b"]
    assert PhiDecoding(1, 60, sigma=0.0)._confident(same, rng) == same
    filled = PhiDecoding(number["a"] + 3, 60, sigma=0.0)._confident(nodes, rng)
    assert Counter(node.step for node in filled) == {"a": number["a"], "b": 3}
    assert [node for node in nodes if node in filled] == filled


def test_filling_prefers_the_confident():
    scores = [math.log(0.9), math.log(0.1)]
    first = [without_replacement(scores, 1, generator(i))[0] for i in range(400)]
    assert abs(first.count(0) / 400 - 0.9) < 4 * math.sqrt(0.09 / 400)


def test_the_first_advantage_is_the_foresight_itself_and_later_ones_differences():
    search = PhiDecoding(2, 3, min_steps=8).begin(_letters, 1, 4, seed=1)
    search.step()
    beams = search.state.beams
    assert [beam.advantage for beam in beams] == [beam.foresight for beam in beams]
    known = {beam.node.identity: beam.foresight for beam in beams}
    search.step()
    for beam in search.state.beams:
        before = known[beam.node.parent.identity]
        assert beam.advantage == pytest.approx(beam.foresight - before)
    # F is of what comes after the step: two letters of a known price each.
    possible = {(a * math.log(0.6) + (2 - a) * math.log(0.4)) / 2 for a in range(3)}
    assert all(min(abs(b.foresight - p) for p in possible) < 1e-9 for b in search.state.beams)


@pytest.mark.parametrize(("agreement", "min_steps", "rounds"), [(0.01, 2, 2), (1.0, 0, 3)])
def test_looking_ahead_ends_on_agreement_or_after_max_steps(agreement, min_steps, rounds):
    searcher = PhiDecoding(2, 4, agreement=agreement, min_steps=min_steps, max_steps=3)
    posterior = searcher.run(_letters, 1, 6, seed=0)
    assert len(posterior.history) == rounds
    assert len(posterior.samples) == 2
    assert all(len(sample.value) == 6 for sample in posterior.samples)


def test_full_agreement_is_agreement():
    """A model that has one thing to say: at delta = 1, too, looking ahead is over at once."""
    sure = ppl.TableLM({"a": 1.0}, symbols="^a$", end="$")

    def program():
        text = sure.prompt("^")
        for t in range(6):
            text = text + pyro.sample(f"s_{t}", sure(text, max_tokens=1))
            ppl.condition(True, f"step_{t}")
        return text.text

    posterior = PhiDecoding(2, 3, agreement=1.0, min_steps=2).run(program, seed=0)
    assert len(posterior.history) == 2
    assert posterior.best == "aaaaaa"


def test_sure_foresight_decides():
    """The step after which the model is sure of itself is the one that is taken."""

    def law(written):
        return {"a": 0.5, "b": 0.5} if not written or written[0] == "b" else {"a": 0.99, "b": 0.01}

    lm = ppl.TableLM(law, symbols="^ab$", end="$")

    def program():
        text = lm.prompt("^")
        for t in range(4):
            text = text + pyro.sample(f"s_{t}", lm(text, max_tokens=1))
            ppl.condition(True, f"step_{t}")
        return text.text

    searcher = PhiDecoding(1, 8, temperature=0.05, max_steps=1, min_steps=0)
    first = [searcher.run(program, seed=s).best[0] for s in range(40)]
    assert first.count("a") >= 36


def test_the_answer_is_drawn_from_the_larger_cluster_by_its_advantages():
    tree = Tree(_letters, (1,))
    advantages = [0.5, 0.0, -0.5, 5.0]
    texts = ["so 3 + 4 = 7", "so 3 + 4 = 7", "3 + 4 = 7", "the cat sat"]
    beams = []
    for i, (text, advantage) in enumerate(zip(texts, advantages, strict=True), 1):
        record = Record("s", "choice", ppl.Continuation((1,), text, "end"))
        beams.append(Beam(Node(i, tree.root, (record,)), 0.0, advantage))
    first = Counter()
    for tree.seed in range(500):
        ordered = PhiDecoding(4, temperature=0.5)._ordered(tree, beams)
        assert len(ordered) == 4
        first[ordered[0].advantage] += 1
    for advantage, p in zip(advantages, [*softmax(np.array(advantages[:3]) / 0.5), 0], strict=True):
        assert abs(first[advantage] / 500 - p) < 4 * math.sqrt(0.25 / 500)
    assert first[5.0] == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"beam_width": 0},
        {"samples": 0},
        {"num_clusters": 0},
        {"temperature": 0.0},
        {"sigma": -1.0},
        {"agreement": 0.0},
        {"min_steps": 9},
        {"max_steps": 0},
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="="):
        PhiDecoding(**bad)


def test_missing_package_is_explained(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"ppl-search\[cluster\]"):
        clusters(["a", "b"], 2, 0)
