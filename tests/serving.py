"""Models that are served in tests: a quick one of four symbols, and one that never ends."""

from __future__ import annotations

import contextlib
import gc
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
from programs import more_a

import ppl
from ppl.lm.decode import Session
from ppl.runtime.tree import Tree
from ppl.serve import background
from ppl.serve.thread import Running
from ppl.verifiers import FunctionVerifier

SYMBOLS = "^ab\n$"
QUICK = {"a": 0.4, "b": 0.3, "\n": 0.2, "$": 0.1}
MORE_A = FunctionVerifier(more_a, name="more_a")


class Counting(ppl.TableLM):
    """Counts the rows of its batches; each step of one takes a while.

    Attributes:
        pause: seconds of a step.
        steps: of all batches; most: rows that ran side by side.
    """

    def __init__(self, probabilities: Any, *, pause: float = 0.0, **options: Any) -> None:
        super().__init__(probabilities, symbols=SYMBOLS, end="$", **options)
        self.pause, self.steps, self.most = pause, 0, 0
        self.batches: list[CountingSession] = []

    def session(self) -> Session:
        self.batches.append(CountingSession(self))
        return self.batches[-1]

    @property
    def busy(self) -> bool:
        return any(batch.running for batch in self.batches)


class CountingSession(Session):
    def step(self) -> Any:
        time.sleep(self.model.pause)
        self.model.steps += 1
        answers = super().step()
        self.model.most = max(self.model.most, self.joined)
        return answers


def quick() -> Counting:
    return Counting(QUICK, context_length=48, name="quick")


def endless(pause: float = 0.002) -> Counting:
    """Says a for ever: a search that ends by its limits, or is ended."""
    return Counting({"a": 1.0}, pause=pause, context_length=10**6, name="endless")


@contextlib.contextmanager
def served(models: Any, **options: Any) -> Iterator[tuple[Running, openai.OpenAI]]:
    """A server and the official client of it, which repeats nothing."""
    options.setdefault("verifier", MORE_A)
    with background(models, **options) as server, client(server) as api:
        yield server, api


def client(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=key, max_retries=0, timeout=300)


def ask(api: openai.OpenAI, model: str = "quick", content: str = "ab", **options: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return api.chat.completions.create(model=model, messages=messages, **options)


def health(server: Running) -> dict[str, Any]:
    found: dict[str, Any] = got(f"{server.url.removesuffix('/v1')}/health").json()
    return found


def got(url: str, **options: Any) -> httpx.Response:
    """What a page says. httpx by itself waits for five seconds, as long as machines stand still."""
    return httpx.get(url, timeout=300, **options)


def trees() -> int:
    """Searches that are still in memory."""
    gc.collect()
    return sum(type(thing) is Tree for thing in gc.get_objects())


def connected(server: Running) -> socket.socket:
    """A bare connection, for clients that do not behave."""
    host, _, port = server.url.removeprefix("http://").removesuffix("/v1").partition(":")
    bare = socket.create_connection((host, int(port)), timeout=300)
    bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bare
