"""A server of completions over any model with logits, on 127.0.0.1: the part of vLLM that ppl uses.

For tests and for pages of the documentation. Draws are keyed by the request's seed.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

import ppl
from ppl.language.randomness import uniforms
from ppl.lm.sampling import Warp, draw, warped_log_probs


class Served:
    """What the server knows; tests turn the knobs.

    Attributes:
        lm: the model behind it.
        gives_end, gives_ids, gives_log_probs, scores, processed, stops: what it can do.
        lie: added to every log-probability of a draw.
        failures: status codes that the next requests are answered with.
        gate: until it is set, nothing is answered; asked for longer than a minute, `late` is True.
        asked: bodies of all requests; keys: their authorisations.
    """

    def __init__(self, lm: ppl.LogitsModel, **knobs: Any) -> None:
        self.lm = lm
        self.gives_end = self.gives_ids = self.gives_log_probs = self.scores = self.stops = True
        self.processed = False
        self.lie = 0.0
        self.gate, self.late = threading.Event(), False
        self.gate.set()
        self.failures: list[int] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""
        self._lock = threading.Lock()
        vars(self).update(knobs)

    def logits(self, tokens: tuple[int, ...], bias: dict[str, float]) -> torch.Tensor:
        """`[1, V]` after `tokens`."""
        with self._lock:
            row = next(iter(self.lm.logits_along([tokens], [(0,)], [None]))).clone()
        for token, amount in bias.items():
            row[0, int(token)] = amount if row[0, int(token)] == -torch.inf else 1e9
        return row

    def respond(self, handler: Any, body: dict[str, Any]) -> None:
        """Answers one request."""
        if self.failures:
            handler.answer(
                self.failures.pop(0), {"error": f"no: {handler.headers['Authorization']}"}
            )
            return
        self.late |= not self.gate.wait(300)
        handler.answer(200, self.complete(body))

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        prompt, codec = tuple(body["prompt"]), self.lm.codec
        warp = Warp(body["temperature"], body["top_p"], body["top_k"] or None, body["min_p"])
        new: list[int] = []
        log_probs: list[float] = []
        finish, stop = "length", None
        while len(new) < body["max_tokens"]:
            raw = self.logits((*prompt, *new), {})
            logits = self.logits((*prompt, *new), body.get("logit_bias", {}))
            key = torch.tensor([body["seed"]]).numpy().astype("uint64")
            (token,), (log_prob,) = draw(logits, [warp], [None], uniforms(key, len(new)))
            if not self.processed:
                log_prob = float(warped_log_probs(raw, [Warp()], [None])[0, token])
            if token in codec.end_tokens:
                finish = "stop"
                if self.gives_end:
                    new.append(token)
                    log_probs.append(log_prob)
                break
            new.append(token)
            log_probs.append(log_prob)
            found = [s for s in body.get("stop", ()) if s in codec.decode(new)]
            if found and self.stops:
                finish, stop = "stop", found[0]
                break
        choice: dict[str, Any] = {"finish_reason": finish, "stop_reason": stop}
        choice["prompt_token_ids"] = list(prompt)
        if self.gives_ids:
            choice["token_ids"] = new
        if self.gives_log_probs:
            said = [max(p, -9999.0) + self.lie for p in log_probs]
            choice["logprobs"] = {"token_logprobs": said}
        if "prompt_logprobs" in body and self.scores:
            choice["prompt_logprobs"] = [None, *self._along(prompt)]
        details = {"cached_tokens": len(prompt) - 1}
        usage = {"prompt_tokens": len(prompt), "prompt_tokens_details": details}
        return {"choices": [choice], "usage": usage}

    def _along(self, prompt: tuple[int, ...]) -> list[dict[str, Any]]:
        tables = []
        for t in range(1, len(prompt)):
            row = torch.log_softmax(self.logits(prompt[:t], {}), -1)[0].tolist()
            tables.append({str(prompt[t]): {"logprob": max(row[prompt[t]], -9999.0)}})
        return tables


@contextlib.contextmanager
def serve(lm: ppl.LogitsModel, kind: type[Served] = Served, **knobs: Any) -> Iterator[Any]:
    """Runs a server as long as the block runs; its address is `.url`."""
    served = kind(lm, **knobs)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            name, longest = lm.name, lm.context_length
            self.answer(200, {"data": [{"id": name, "max_model_len": longest}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.asked.append(body)
            served.keys.append(self.headers["Authorization"])
            served.respond(self, body)

        def answer(self, status: int, answer: Any, *headers: tuple[str, str]) -> None:
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for header in headers:
                self.send_header(*header)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
