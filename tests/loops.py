"""Models and programs that show what a loop does."""

from __future__ import annotations

import time

import pyro
import torch
from pyro.poutine import runtime
from work import until

import ppl
from ppl.lm.decode import Session
from ppl.runtime.loop import SHARED
from ppl.runtime.turns import TURNS
from ppl.searchers import BestOfN
from ppl.verifiers import GenRM

QUESTION = "Calculate ( 3 + 5 ) * 2 - 7."


class Counting(ppl.TableLM):
    """Counts the steps of its batches and the rows in them; may do something before each step."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.steps, self.rows, self.most = 0, 0, 0
        self.sessions: list[CountingSession] = []
        self.before = lambda: None

    def session(self):
        self.sessions.append(CountingSession(self))
        return self.sessions[-1]


class CountingSession(Session):
    closed = False

    def step(self):
        self.model.before()
        answers = super().step()
        self.model.steps += 1
        self.model.most = max(self.model.most, self.joined)
        return answers

    def close(self):
        super().close()
        self.closed = True


PLAIN = {"a": 0.5, "b": 0.3, "$": 0.2}


def counting() -> Counting:
    return Counting(PLAIN, symbols="^ab$", end="$", context_length=10**6, name="counting")


def walk(lm, steps=6, tokens=3):
    text = lm.prompt("^")
    for t in range(steps):
        step = pyro.sample(f"s_{t}", lm(text, max_tokens=tokens, allowed=lm.encode("ab")))
        text = text + step
        pyro.factor(f"f_{t}", torch.tensor(0.3 * step.text.count("a")))
    return text.text


def forever(lm, tokens=60):
    """Goes on for as long as the context allows."""
    text = lm.prompt("^")
    text = text + pyro.sample("s", lm(text, max_tokens=tokens, allowed=lm.encode("a")))
    return text.text


def under_way():
    """A submitted search of two particles that has begun, and takes its time."""
    lm = counting()
    lm.before = lambda: time.sleep(0.001)
    going = SHARED.submit(BestOfN(2).begin(walk, lm, 100, seed=0))
    assert until(lambda: lm.steps)
    return going


def nothing_is_left(*models):
    assert until(lambda: TURNS._holder is None)  # the loop's own thread is about to leave
    assert not runtime._PYRO_STACK
    assert not SHARED._batches.busy
    for lm in models:
        assert all(session.closed or not session.running for session in lm.sessions)


def written():
    """A model that writes a rationale of twelve tokens and then a verdict."""

    def law(prefix):
        return {"Y": 0.7, "N": 0.3} if prefix.endswith("?") else {"a": 0.5, "b": 0.5}

    return Counting(law, symbols="^ab?YN$", end="$", context_length=200, name="writer")


def generative(lm):
    return GenRM(
        lm,
        rationales=2,
        ask=lambda lm, text: ppl.Text(text.tokens, text.codec),
        verdict="?",
        verdicts={"Y": 1.0, "N": 0.0},
        max_tokens=12,
    )


def judged_walk(lm, judge):
    text = lm.prompt("^")
    for t in range(3):
        text = text + pyro.sample(f"s_{t}", lm(text, max_tokens=2, allowed=lm.encode("ab")))
        pyro.sample(f"ok_{t}", judge(text), obs=True)
    return text.text
