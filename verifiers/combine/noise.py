"""Noise models: verifiers that err in a known way, to model real ones and to test searchers.

All noise is keyed by the tokens judged, so a noisy verifier is still a function of the text, and a
step keeps its number when others are appended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import log_expit

from ppl.language import checks
from ppl.language.arguments import checked
from ppl.language.randomness import generator
from ppl.language.text import Text
from ppl.runtime.verdict import JudgeRequest, Verifier
from ppl.verifiers.combine.calibration import check_probabilities, log_odds


class _Wrapped(Verifier):
    """A verifier around another one: same meaning, aggregate and pseudo-marginality."""

    def __init__(self, verifier: Verifier, word: str) -> None:
        check_probabilities(f"the noise model {word}", [verifier])
        self.verifier, self.name = verifier, f"{word} {verifier.name}"
        self.meaning, self.aggregate = verifier.meaning, verifier.aggregate
        self.pseudo_marginal, self.floor = verifier.pseudo_marginal, verifier.floor
        self.asks_models = verifier.asks_models

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Sequence[float]]:
        inner = self.verifier.judge_checked([replace(r, verifier=self.verifier) for r in requests])
        return [self._changed(r, s) for r, s in zip(requests, inner, strict=True)]

    def _changed(self, request: JudgeRequest, log_probs: tuple[float, ...]) -> list[float]:
        raise NotImplementedError


class Channel(_Wrapped):
    """The likelihood of "pass" from a checker with known error rates.

    p becomes tpr * p + fpr * (1 - p). A raw 0/1 verdict as a potential claims fpr = 0; this one
    claims what was measured, so that a wrong text which passes weighs fpr / tpr of a right one.

    Args:
        verifier: says how probable it is that the text is right (0 or 1 for an exact check).
        tpr: probability that the checker passes a right text.
        fpr: probability that it passes a wrong one.
    """

    @checked
    def __init__(self, verifier: Verifier, *, tpr: float, fpr: float) -> None:
        _check_rates(tpr, fpr)
        super().__init__(verifier, f"channel({tpr:g}, {fpr:g})")
        self.tpr, self.fpr = tpr, fpr

    def _changed(self, request: JudgeRequest, log_probs: tuple[float, ...]) -> list[float]:
        passed = [self.fpr + (self.tpr - self.fpr) * math.exp(s) for s in log_probs]
        return [math.log(p) if p > 0 else -math.inf for p in passed]


class Flipped(_Wrapped):
    """A simulated checker: says 1 with probability tpr where the verifier says right, else fpr.

    Its verdicts are 0 or 1 (clipped to the floor of the verifier), keyed by seed and text.
    """

    @checked
    def __init__(self, verifier: Verifier, *, tpr: float, fpr: float, seed: int = 0) -> None:
        _check_rates(tpr, fpr)
        super().__init__(verifier, f"flipped({tpr:g}, {fpr:g})")
        self.tpr, self.fpr, self.seed = tpr, fpr, seed

    def _changed(self, request: JudgeRequest, log_probs: tuple[float, ...]) -> list[float]:
        out = []
        for s, end in zip(log_probs, _ends(request, len(log_probs)), strict=True):
            rate = self.tpr if s > math.log(0.5) else self.fpr
            passes = generator(self.seed, "flip", *request.text.tokens[:end]).random() < rate
            out.append(0.0 if passes else -math.inf)
        return out


class LogitNoise(_Wrapped):
    """Gaussian noise on the log-odds of every step.

    Args:
        verifier: what to disturb.
        sd: standard deviation, in units of log-odds.
        persistence: correlation of a step's noise with that of the step before: a misjudged step
            goes on being misjudged, whatever follows it. 0: every step errs on its own.
        seed: keys the noise, with the tokens up to the step's end.

    Raises:
        ValueError: `sd` is negative or not finite, or `persistence` no probability.
    """

    @checked
    def __init__(
        self, verifier: Verifier, *, sd: float, persistence: float = 0.0, seed: int = 0
    ) -> None:
        _check_sd(sd)
        checks.probability(persistence=persistence)
        lasting = f", {persistence:g}" if persistence else ""
        super().__init__(verifier, f"noisy({sd:g}{lasting})")
        self.sd, self.persistence, self.seed = sd, persistence, seed

    def _changed(self, request: JudgeRequest, log_probs: tuple[float, ...]) -> list[float]:
        ends = _ends(request, len(log_probs))
        noise = [self._noise(request.text, end) for end in ends]
        return _log_probs(log_odds(log_probs) + self.sd * np.array(noise))

    def _noise(self, text: Text, end: int) -> float:
        """Standard normal; with persistence a stationary autoregression along the steps."""
        before = [e for e in _step_ends(text) if text.prompt_length < e < end]
        rest, noise = math.sqrt(1 - self.persistence**2), math.nan
        for at in (*(dict.fromkeys(before) if self.persistence else ()), end):
            own = float(generator(self.seed, "logit", *text.tokens[:at]).standard_normal())
            noise = own if math.isnan(noise) else self.persistence * noise + rest * own
        return noise


class QuestionBias(_Wrapped):
    """One Gaussian shift of the log-odds per question: errors that all its samples share.

    The realistic and nastier case: more samples of the same question do not average it away.

    Args:
        verifier: what to disturb.
        sd: standard deviation, in units of log-odds.
        seed: keys the shift, with the tokens of the prompt.

    Raises:
        ValueError: `sd` is negative or not finite.
    """

    @checked
    def __init__(self, verifier: Verifier, *, sd: float, seed: int = 0) -> None:
        _check_sd(sd)
        super().__init__(verifier, f"biased({sd:g})")
        self.sd, self.seed = sd, seed

    def _changed(self, request: JudgeRequest, log_probs: tuple[float, ...]) -> list[float]:
        text = request.text
        shift = generator(self.seed, "question", *text.tokens[: text.prompt_length])
        return _log_probs(log_odds(log_probs) + self.sd * shift.standard_normal())


def _log_probs(odds: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    out: list[float] = log_expit(odds).tolist()
    return out


def _check_rates(tpr: float, fpr: float) -> None:
    if not 0 <= fpr <= tpr <= 1:
        raise ValueError(f"tpr={tpr}, fpr={fpr}: need 0 <= fpr <= tpr <= 1")


def _check_sd(sd: float) -> None:
    if not 0 <= sd < math.inf:  # also catches NaN
        raise ValueError(f"sd={sd}: a standard deviation is finite and not negative")


def _ends(request: JudgeRequest, count: int) -> Sequence[int]:
    """Where what each of `count` new scores speaks about ended.

    That is at the last step that is not blank. So the noise is the same whether a verifier passes
    over blank steps, numbers them, or reads the text as a whole.
    """
    text, since = request.text, request.since
    blank = [not step.strip() for step in text.steps]
    new = _step_ends(text)[since:]
    if count == len(new):
        return new
    if count == 1:
        return _step_ends(text)[-1:] or [len(text.tokens)]
    return [end for end, nothing in zip(new, blank[since:], strict=True) if not nothing]


def _step_ends(text: Text) -> list[int]:
    """Where each step ends; a blank one ends with the step before."""
    ends: list[int] = []
    for end, step in zip(text.step_ends, text.steps, strict=True):
        ends.append(end if step.strip() else (ends[-1] if ends else text.prompt_length))
    return ends
