"""A confidence head: how likely is what a language model has written right, read off the state in
which it has written it (Huang et al. 2025, arXiv:2503.00031, who train the model to say so).

    P(right | text) = sigmoid(w . h + b)         h: the last hidden state at the text's end

It is a logistic regression, fitted in a second. Its targets are truth values, or what needs no
truth: `ppl.decide.soft_self_consistency` of several answers to each question. The engine that
writes a text has computed its states already, but for the last token's: a verdict costs about a
token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from ppl.language import checks
from ppl.language.arguments import checked, shown
from ppl.language.text import Text
from ppl.lm.base import LanguageModel
from ppl.runtime.verdict import JudgeRequest, Meaning, Verifier

Floats = NDArray[np.float64]


class ConfidenceHead(Verifier):
    """The confidence of a local model in its own text, as a likelihood of "the answer is right".

    Args:
        lm: the model that writes, run in this process.
        weight: `[hidden]`.
        bias: of the log-odds.
        floor: probabilities are clipped to [floor, 1 - floor].

    Raises:
        ValueError: the model has no states to read, or others than the weight fits.
    """

    meaning: Meaning = "outcome"

    @checked
    def __init__(
        self, lm: LanguageModel, weight: ArrayLike, bias: float = 0.0, *, floor: float = 1e-6
    ) -> None:
        checks.floor(floor=floor)
        checks.number(bias=bias)
        if not math.isfinite(bias):
            raise ValueError(f"bias={bias!r}: a finite number")
        self.lm, self.floor, self.bias = lm, floor, float(bias)
        self.weight: Floats = checks.numbers(weight=weight).astype(np.float64)
        _engine(lm)
        local: Any = lm
        width: int = local.model.config.get_text_config().hidden_size
        if self.weight.shape != (width,) or not np.isfinite(self.weight).all():
            raise ValueError(
                f"weight of shape {self.weight.shape}: [{width}] finite numbers, as {lm.name} has "
                "states"
            )
        self.name = f"confidence of {lm.name}"

    @classmethod
    @checked
    def fit(
        cls,
        lm: LanguageModel,
        texts: Sequence[Text],
        targets: ArrayLike,
        *,
        ridge: float = 100.0,
        floor: float = 1e-6,
    ) -> Self:
        """Fits to texts that the model wrote, on other questions than those one reports on.

        Args:
            lm: the model.
            texts: `[n]` whole texts.
            targets: `[n]` how likely each is right, from 0 to 1: truth values, or soft ones.
            ridge: what a squared weight costs, in nats per half, with states scaled to a standard
                deviation of one. Texts on one question go together: take more where questions are
                few.
            floor: as above.

        Raises:
            ValueError: numbers of texts and targets differ, or all targets are the same.
        """
        checks.positive(ridge=ridge)
        y = checks.numbers(targets=targets)
        if y.shape != (len(texts),) or not ((y >= 0) & (y <= 1)).all():
            raise ValueError(
                f"targets={shown(targets)}: one number from 0 to 1 for each of {len(texts)} texts"
            )
        if len(y) < 2 or y.min() == y.max():
            raise ValueError(f"targets={shown(targets)}: they are all the same")
        states = hidden_states(lm, [JudgeRequest(_NOBODY, text) for text in texts])
        middle, scale = states.mean(0), states.std(0) + 1e-6
        w, b = _ridge_regression((states - middle) / scale, y, ridge)
        return cls(lm, w / scale, float(b - (w / scale) @ middle), floor=floor)

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        """One log-probability for each text as it stands."""
        if not requests:
            return []
        odds = hidden_states(self.lm, requests) @ self.weight + self.bias
        return [[p] for p in log_expit(odds).tolist()]


def hidden_states(lm: LanguageModel, requests: Sequence[JudgeRequest]) -> Floats:
    """`[n, hidden]` last hidden states at the ends of texts, paid for as a verifier's tokens."""
    engine = _engine(lm)
    local: Any = lm  # of several adapters beside one model, each has texts of its own
    texts = [local.marked(request.text.tokens) for request in requests]
    payers = [
        None if r.ledger is None else (r.ledger.of(lm), "verifier_tokens", "verifier_reused_tokens")
        for r in requests
    ]
    with torch.inference_mode():
        found = engine.hidden(texts, [len(t) - 1 for t in texts], payers)
    return np.stack([states[-1].double().cpu().numpy() for states in found])


def _engine(lm: LanguageModel) -> Any:
    engine = getattr(lm, "engine", None)
    if engine is None:
        raise ValueError(
            f"lm={lm!r}: a confidence head reads hidden states, which only a model that runs in "
            "this process has (ppl.load of a name or folder)"
        )
    return engine


def _ridge_regression(features: Floats, targets: Floats, ridge: float) -> tuple[Floats, float]:
    """Weights `[d]` and bias of a logistic regression on targets in [0, 1]."""
    n, d = features.shape

    def loss(w: Floats) -> tuple[float, Floats]:
        z = features @ w[:d] + w[d]
        value = ridge / 2 * float(w[:d] @ w[:d])
        value -= float(np.sum(targets * log_expit(z) + (1 - targets) * log_expit(-z)))
        slope = expit(z) - targets
        gradient = np.append(features.T @ slope + ridge * w[:d], slope.sum())
        return value / n, gradient / n

    found = minimize(loss, np.zeros(d + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(found.x[:d]), float(found.x[d])


class _Nobody(Verifier):
    """Stands in requests that ask for states alone."""

    name, meaning = "nobody", "outcome"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        raise NotImplementedError


_NOBODY = _Nobody()
