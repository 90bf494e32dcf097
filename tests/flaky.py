"""A server that fails in every way that a script asks for, and what is to be expected then."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from served import Served

Act = Callable[[Any, "Flaky", dict[str, Any]], None]
"""What happens to a request: `(handler, server, body)`."""


class Flaky(Served):
    """Does with the next requests what `script` says, and is right to all others.

    Attributes:
        script: acts for the requests to come; `always` for all of them, once it is empty.
        only_scores: the script is for requests that score.
        stale: scores of cached positions are what the last request left there (vLLM issue 42019).
    """

    script: list[Act]
    always: Act | None = None
    only_scores = stale = False

    def __init__(self, lm: Any, **knobs: Any) -> None:
        super().__init__(lm, **knobs)
        self.script = []
        self._scored: list[tuple[int, ...]] = []
        self._buffer: dict[int, float] = {}

    def respond(self, handler: Any, body: dict[str, Any]) -> None:
        act = None
        if not self.only_scores or "prompt_logprobs" in body:
            with self._lock:
                act = self.script.pop(0) if self.script else self.always
        if act is None:
            super().respond(handler, body)
        else:
            act(handler, self, body)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        return super().complete(body) | {"model": self.lm.name}

    def _along(self, prompt: tuple[int, ...]) -> list[dict[str, Any]]:
        tables = super()._along(prompt)
        if self.stale:
            shared = max((_common(prompt, p) for p in self._scored), default=0) // 16 * 16
            self._scored.append(prompt)
            for at in range(1, len(prompt)):
                entry = tables[at - 1][str(prompt[at])]
                if at < shared:
                    entry["logprob"] = self._buffer.get(at, 0.0)
                self._buffer[at] = entry["logprob"]
        return tables


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


# -- connections and codes -----------------------------------------------------------------------


def status(code: int, *headers: tuple[str, str]) -> Act:
    return lambda handler, server, body: handler.answer(code, {"error": "no"}, *headers)


def raw(content: bytes, *headers: tuple[str, str]) -> Act:
    return lambda handler, server, body: handler.answer(200, content, *headers)


def slow(seconds: float) -> Act:
    def act(handler: Any, server: Flaky, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        handler.answer(200, server.complete(body))

    return act


def drip(seconds: float) -> Act:
    """A byte now and then: no single read takes long."""

    def act(handler: Any, server: Flaky, body: dict[str, Any]) -> None:
        content = json.dumps(server.complete(body)).encode()
        pieces = int(seconds / 0.05)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) + pieces))
        handler.end_headers()
        try:
            for _ in range(pieces):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)
            handler.wfile.write(content)
        except OSError:
            handler.close_connection = True  # nobody listens any more

    return act


def cut(handler: Any, server: Flaky, body: dict[str, Any]) -> None:
    """Half an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"cho')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def reset(handler: Any, server: Flaky, body: dict[str, Any]) -> None:
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()
    handler.close_connection = True


def hang_up(handler: Any, server: Flaky, body: dict[str, Any]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def babble(handler: Any, server: Flaky, body: dict[str, Any]) -> None:
    handler.wfile.write(b"no protocol at all\r\n\r\n")
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


AGAIN: dict[str, Act] = {
    **{f"status {code}": status(code) for code in (408, 425, 429, 500, 502, 503, 504, 529)},
    "Retry-After in seconds": status(429, ("Retry-After", "0.05")),
    "Retry-After as a date that is over": status(
        503, ("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT")
    ),
    "Retry-After that says nothing": status(503, ("Retry-After", "soon")),
    "half an answer": cut,
    "reset": reset,
    "hangs up": hang_up,
    "no HTTP": babble,
    "not compressed as it says": raw(b"{}", ("Content-Encoding", "gzip")),
}
"""Faults that pass: the search goes on to the undisturbed result."""

LATE: dict[str, Act] = {"answers too late": slow(1.4), "drips": drip(2.0)}
"""Faults that pass, too, where the deadline is a second."""

REFUSED: dict[str, tuple[Act, str]] = {
    **{
        f"status {code}": (status(code, ("Location", "http://127.0.0.1:9/x")), f"answered {code}")
        for code in (204, 301, 302, 400, 401, 403, 404, 413, 418, 422)
    },
    "to be left alone for an hour": (status(429, ("Retry-After", "3600")), "3600 s.*try later"),
    "no JSON": (raw(b"{nope"), "no JSON"),
    "an empty body": (raw(b""), "no JSON"),
    "a page": (raw(b"<html>"), "no JSON"),
    "nested too deeply": (raw(b"[" * 100_000), "no JSON"),
    "bytes that are no text": (raw(b'{"choices": [{"text": "\xff\xfe"}]}'), "no JSON"),
    "null": (raw(b"null"), "the answer: None, not an object"),
    "a list": (raw(b"[]"), r"the answer: \[\], not an object"),
    "no choices": (raw(b"{}"), "choices: None"),
    "choices are empty": (raw(b'{"choices": []}'), "choices: 0 of them"),
    "a choice is null": (raw(b'{"choices": [null]}'), r"choices\[0\]: None"),
}
"""Faults that end a search with an error, after which it can go on."""


# -- answers -------------------------------------------------------------------------------------


def edited(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Act:
    """The right answer, changed."""

    def act(handler: Any, server: Flaky, body: dict[str, Any]) -> None:
        answer = server.complete(body)
        change(answer, body)
        handler.answer(200, answer)

    return act


def choice(**fields: Any) -> Act:
    return edited(lambda answer, body: answer["choices"][0].update(fields))


def ids(*values: Any) -> Act:
    return choice(token_ids=list(values))


def said(*values: Any) -> Act:
    return choice(logprobs={"token_logprobs": list(values)})


def usage(**fields: Any) -> Act:
    return edited(lambda answer, body: answer["usage"].update(fields))


NAN, INFINITY = float("nan"), float("inf")
DRAWS: dict[str, tuple[Act, str]] = {
    "two choices": (
        edited(lambda answer, body: answer["choices"].append(answer["choices"][0])),
        "choices: 2 of them",
    ),
    "another reason to finish": (choice(finish_reason="error"), "finish_reason: 'error'"),
    "no reason to finish": (choice(finish_reason=None), "finish_reason: None"),
    "an id beyond the vocabulary": (ids(10**6), "token_ids: 1000000"),
    "an id below zero": (ids(-1), "token_ids: -1"),
    "a fraction": (ids(1.0), "token_ids: 1.0"),
    "a string": (ids("1"), "token_ids: '1'"),
    "true": (ids(True), "token_ids: True"),
    "nothing": (ids(None), "token_ids: None"),
    "ids in an object": (choice(token_ids={"0": 1}), "token_ids: {'0': 1}, not a list"),
    "more ids than were asked for": (
        choice(token_ids=[1, 1], logprobs={"token_logprobs": [-1.0, -1.0]}),
        "token_ids: 2 of them, asked 1",
    ),
    "no ids": (ids(), "0 token_ids"),
    "no ids at all": (choice(token_ids=None), "0 token_ids"),
    "a log-probability above zero": (said(5.0), "token_logprobs: 5.0"),
    "a log-probability that is none": (said(NAN), "token_logprobs: nan"),
    "a log-probability of plus infinity": (said(INFINITY), "token_logprobs: inf"),
    "a draw of probability zero": (said(-INFINITY), "probability zero.*token_logprobs"),
    "vLLM's minus infinity": (said(-9999.0), "probability zero.*token_logprobs"),
    "no log-probability": (said(None), "token_logprobs: None"),
    "a log-probability as a string": (said("-1"), "token_logprobs: '-1'"),
    "a log-probability of false": (said(False), "token_logprobs: False"),
    "log-probabilities for two": (said(-1.0, -1.0), "token_logprobs: 2 of them for 1"),
    "log-probabilities for none": (said(), "0 token_logprobs"),
    "log-probabilities are a number": (choice(logprobs=3), "logprobs: 3, not an object"),
    "another prompt": (choice(prompt_token_ids=[0, 2, 2, 2]), "prompt_token_ids: not the prompt"),
    "a prompt of strings": (choice(prompt_token_ids=["0"]), "prompt_token_ids: '0'"),
    "another stop": (
        choice(finish_reason="stop", stop_reason="never asked for"),
        "stop_reason: 'never asked",
    ),
    "stopped by nothing": (
        choice(finish_reason="stop", stop_reason=None, token_ids=[1]),
        "finish_reason: 'stop', and no end token",
    ),
    "counts as strings": (usage(prompt_tokens="9"), "usage.prompt_tokens: '9'"),
    "counts below zero": (usage(prompt_tokens=-9), "usage.prompt_tokens: -9"),
    "another number of prompt tokens": (usage(prompt_tokens=77), "usage.prompt_tokens: 77, sent"),
    "more cached than sent": (
        usage(prompt_tokens_details={"cached_tokens": 99}),
        "usage.cached_tokens: 99",
    ),
    "usage is a list": (edited(lambda a, b: a.update(usage=[])), "usage: \\[\\], not an object"),
    "another model": (edited(lambda a, b: a.update(model="other")), "answered as 'other'"),
}
"""Answers to draws of one token that are no answers."""


def table(entry: Callable[[int], Any]) -> Act:
    def change(answer: dict[str, Any], body: dict[str, Any]) -> None:
        answer["choices"][0]["prompt_logprobs"] = [None, *(entry(t) for t in body["prompt"][1:])]

    return edited(change)


SCORES: dict[str, tuple[Act, str]] = {
    "a score above zero": (table(lambda t: {str(t): {"logprob": 5.0}}), r"\[1\]: 5.0"),
    "a score that is none": (table(lambda t: {str(t): {"logprob": NAN}}), r"\[1\]: nan"),
    "no score": (table(lambda t: {str(t): {"logprob": None}}), r"\[1\]: None"),
    "a score as a string": (table(lambda t: {str(t): {"logprob": "-1"}}), r"\[1\]: '-1'"),
    "a score of true": (table(lambda t: {str(t): {"logprob": True}}), r"\[1\]: True"),
    "scores of other tokens": (table(lambda t: {"99": {"logprob": -1.0}}), "nothing about token"),
    "a score without a name": (table(lambda t: {str(t): -1.0}), r"\[1\]: -1.0, not an object"),
    "a table is a list": (table(lambda t: [-1.0]), r"\[1\]: \[-1.0\], not an object"),
    "fewer scores": (
        edited(lambda a, b: a["choices"][0]["prompt_logprobs"].pop()),
        "prompt_logprobs: [0-9]+ of them for",
    ),
    "more scores": (
        edited(lambda a, b: a["choices"][0]["prompt_logprobs"].append({})),
        "prompt_logprobs: [0-9]+ of them for",
    ),
    "no scores": (choice(prompt_logprobs=None), "scored 0 of"),
    "scores of another prompt": (
        edited(lambda a, b: a["choices"][0].update(prompt_token_ids=[0, 2, 2, 2, 2])),
        "prompt_token_ids: not the prompt",
    ),
}
"""Answers to requests for scores that are no answers."""
