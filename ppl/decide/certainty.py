"""How sure a model was of a text, from the laws of its tokens; no verifier is asked.

    self_certainty(log_probs)        Kang et al. 2025, arXiv 2502.18581; votes by rank, see `Borda`
    token_confidence(log_probs)      DeepConf (Fu et al. 2025, arXiv 2508.15260), of each token
    trace_confidence(tokens)         of a text: mean, tail, worst tenth of groups, worst group
    DeepConf(keep)                   a vote among the surest texts

Samples keep the log-probability of what was drawn, and not the whole law of each token: these are
computed where the laws are (`logits_along` of a model, `top_logprobs` of a server), and given to
`Candidates.of(posterior, certainties=[...])`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ppl.decide.columns import Columns, Floats
from ppl.errors import ArgumentError
from ppl.language import checks
from ppl.language.arguments import check_fields, checked

WINDOW = 2048
"""Tokens in a group, and in the tail, as published."""


@checked
def token_confidence(log_probs: ArrayLike, *, top: int = 20) -> Floats:
    """Minus the mean of the `top` largest log-probabilities, of each token: large where it is sure.

    A law on k tokens alike has log k; one that is certain has no bound.

    Args:
        log_probs: `[T, V]`, of the law that each token was drawn from; what a server returns of it
            (`top_logprobs`) will do.
        top: how many; all, if V is less.

    Returns:
        `[T]`.
    """
    checks.count(top=top)
    laws = _laws(log_probs)
    most = min(top, laws.shape[1])
    largest = np.partition(laws, laws.shape[1] - most, axis=1)[:, laws.shape[1] - most :]
    return np.asarray(-largest.mean(axis=1))


@checked
def self_certainty(log_probs: ArrayLike) -> float:
    """-1/(T V) times the sum of log(V p) over tokens and the vocabulary: 0 for uniform laws.

    It is the divergence KL(uniform || law), averaged over the tokens.

    Args:
        log_probs: `[T, V]`, over the whole vocabulary; minus infinity makes it infinite.
    """
    laws = _laws(log_probs)
    return float(-(laws.mean() + np.log(laws.shape[1])))


@checked
def trace_confidence(
    token_confidences: ArrayLike,
    how: Literal["mean", "tail", "bottom", "lowest"] = "tail",
    *,
    window: int = WINDOW,
    share: float = 0.1,
) -> float:
    """The confidence of a text from that of its tokens.

    Groups are all windows of consecutive tokens; a text shorter than a window is one group.

    Args:
        token_confidences: `[T]`, see `token_confidence`.
        how: `"mean"` over all tokens, `"tail"` over the last `window`, `"bottom"` over the worst
            `share` of groups, `"lowest"` is the worst group.
        window: tokens in a group, or in the tail.
        share: of groups that `"bottom"` takes, at least one.
    """
    checks.count(window=window)
    checks.probability(share=share)
    tokens = checks.numbers(token_confidences=token_confidences)
    if tokens.ndim != 1 or not len(tokens):
        raise ArgumentError("token_confidences: one axis, [T], at least one token")
    if how == "mean":
        return float(tokens.mean())
    if how == "tail":
        return float(tokens[-window:].mean())
    if len(tokens) <= window:
        return float(tokens.mean())
    groups = np.lib.stride_tricks.sliding_window_view(tokens, window).mean(axis=1)
    if how == "lowest":
        return float(groups.min())
    worst = max(1, int(len(groups) * share))
    return float(np.partition(groups, worst - 1)[:worst].mean())


@dataclass(frozen=True)
class DeepConf:
    """DeepConf's offline vote (arXiv 2508.15260): the surest texts, each weighed by its confidence.

    A text stays if it is not below the (1 - keep) quantile of all that have an answer; everything
    kept, it is a vote weighed by confidence.

    Args:
        keep: the share of texts; 0.1 and 0.9 as published.
    """

    keep: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        checks.probability(keep=self.keep)
        if self.keep == 0:
            raise ArgumentError("keep=0: a share above zero; nothing would be left to vote")

    def __call__(self, columns: Columns) -> Floats:
        """See `Weighting`."""
        there, sure = columns.there, columns["certainties"]
        if (sure[there] < 0).any():
            raise ArgumentError(
                "certainties: DeepConf votes with them, so that they are zero or more; rank by "
                "others: Borda(power)"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a set without any answer
            bar = np.nanquantile(np.where(there, sure, np.nan), 1 - self.keep, -1, keepdims=True)
        # Interpolation may miss an equal value by its last digit.
        stays = there & (sure >= bar * (1 - 1e-12))
        with np.errstate(divide="ignore"):
            return np.log(np.where(stays, sure, 0.0))


def _laws(log_probs: ArrayLike) -> Floats:
    laws = checks.numbers(log_probs=log_probs)
    if laws.ndim != 2 or not laws.size:
        raise ArgumentError(f"log_probs: of shape {list(laws.shape)}; [T, V], a law for each token")
    if (laws > 1e-6).any():
        raise ArgumentError("log_probs: logarithms of probabilities, none above zero")
    return laws
