"""Texts and labels for tests of calibration."""

from __future__ import annotations

import math

import numpy as np
import programs

import ppl
from ppl.verifiers import Verifier

TOY = programs.TOY
PROD = programs.VERIFIERS["prod"]


def toy_text(*steps: str) -> ppl.Text:
    text = TOY.prompt("^")
    for step in steps:
        text = text + TOY.continuation(step)
    return text


TEXTS = [toy_text("a", "b", "a"), toy_text("b"), toy_text("a", "a"), toy_text("b", "b")]


def labelled(n: int, law):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=n)
    return scores, rng.random(n) < law(scores)


class Words(Verifier):
    """A number for every step that is not blank, as formatted PRMs give."""

    name = "words"

    def judge(self, requests):
        return [
            [math.log(0.1) for step in r.text.steps[r.since :] if step.strip()] for r in requests
        ]
