"""The endpoint as an ASGI application."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ppl.searchers.search import Search
from ppl.serve import reply
from ppl.serve.asked import Asked, Form, asked
from ppl.serve.fields import decoded
from ppl.serve.gate import Gate
from ppl.serve.limits import Limits
from ppl.serve.offer import Menu
from ppl.serve.refusal import RefusedError, is_expected, refusal
from ppl.serve.wire import Answer, GoneError, Receive, Scope, Send, header, read, unless_gone

_LOG = logging.getLogger("ppl.serve")
_OPEN = "/health"  # needs no key


class Application:
    """Answers requests with searches. All of them share the one loop (`ppl.runtime.loop`).

    Args:
        menu: models and programs.
        limits: what is granted.
        api_keys: any of these is wanted as a bearer token; without one, anybody is served.
        keep_alive: seconds between two comments of a stream that has nothing to say yet.

    Attributes:
        gate: who searches and who waits.
    """

    def __init__(
        self, menu: Menu, *, limits: Limits, api_keys: Collection[str], keep_alive: float
    ) -> None:
        self._menu, self._limits, self._keep_alive = menu, limits, keep_alive
        self._keys = [key.encode() for key in api_keys]
        self._created = int(time.time())
        self.gate = Gate(limits)
        self._routes = Starlette(
            routes=[
                Route(_OPEN, self._health),
                Route("/v1/models", self._models),
                Route("/v1/models/{model:path}", self._model),
                Route("/v1/chat/completions", _Completions(self, "chat"), methods=["POST"]),
                Route("/v1/completions", _Completions(self, "completion"), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _http_error, RefusedError: _refused},
            lifespan=self._life,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's request, or the server's start and end."""
        if scope["type"] == "http" and scope["path"] != _OPEN and not self._admits(scope):
            error = RefusedError(
                401, "the API key is missing or wrong: Authorization: Bearer ...",
                code="invalid_api_key",
            )  # fmt: skip
            await Answer(send, _fresh("req")).refuse(error)
            return
        await self._routes(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        kind, _, given = header(scope, b"authorization").partition(b" ")
        bearer = kind.lower() == b"bearer"
        # All are compared: how long it takes says nothing of which begins alike.
        fitting = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        return not self._keys or (bearer and any(fitting))

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self.gate.abandon()

    async def _health(self, _: Request) -> JSONResponse:
        gate = self.gate
        state = "stopping" if gate.stopping else "ok"
        return JSONResponse({"status": state, "running": gate.running, "waiting": gate.waiting})

    async def _models(self, _: Request) -> JSONResponse:
        found = [self._about(name) for name in self._menu.offers]
        return JSONResponse({"object": "list", "data": found})

    async def _model(self, request: Request) -> JSONResponse:
        name, _, _ = self._menu.find(request.path_params["model"])
        return JSONResponse(self._about(name))

    def _about(self, name: str) -> dict[str, Any]:
        offer = self._menu.offers[name]
        ppl = {
            "searcher": repr(offer.searcher),
            "program": offer.program,
            "programs": list(self._menu.programs),
            "rule": offer.rule,
            "verifier": None if offer.verifier is None else offer.verifier.name,
        }
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "ppl",
            "max_model_len": offer.lm.context_length,
            "ppl": ppl,
        }

    # -- searches -------------------------------------------------------------------------------

    def asked(self, body: bytes, form: Form) -> Asked:
        """What a body asks for. Raises RefusedError."""
        return asked(decoded(body), form, self._menu, self._limits)

    async def answer(self, asked: Asked, answer: Answer, name: str, receive: Receive) -> None:
        """Searches, and answers in one piece or as events."""
        if not asked.stream:
            found = await unless_gone(self._search(asked, name), receive)
            await answer.whole(200, reply.whole(asked, found))
            return
        began, tokens = time.monotonic(), 0

        def watch(search: Search) -> None:  # in the loop's thread
            nonlocal tokens
            tokens = search.tree.cost.lm_tokens

        async def alive() -> None:
            await answer.comment(f"searching, {time.monotonic() - began:.0f} s, {tokens} tokens")

        # Nothing is sent before the first comment, so that what fails at once has its own status.
        search = self._search(asked, name, watch)
        found = await unless_gone(search, receive, self._keep_alive, alive)
        for piece in reply.pieces(asked, found):
            await answer.event(piece)
        await answer.end()

    async def _search(self, asked: Asked, name: str, watch: Any = None) -> reply.Found:
        async with self.gate.place():
            posterior = await asked.searcher.arun(
                asked.program,
                asked.question,
                seed=asked.seed,
                budget=asked.budget,
                on_step=watch,
            )
            # Answers may be slow to compare, and others are to be answered meanwhile.
            return await asyncio.to_thread(reply.found, name, asked, posterior)


class _Completions:
    """Answers POSTs of one form."""

    def __init__(self, application: Application, form: Form) -> None:
        self._application, self._form = application, form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = _fresh("chatcmpl" if self._form == "chat" else "cmpl")
        answer = Answer(send, name)
        try:
            body = await read(scope, receive, self._application._limits)
            wanted = self._application.asked(body, self._form)
            await self._application.answer(wanted, answer, name, receive)
        except GoneError:
            _LOG.info("%s: the client left", name)
        except Exception as error:  # whatever a search raises, to the one who asked for it
            if not is_expected(error):
                _LOG.error("%s failed", name, exc_info=error)
            await answer.refuse(refusal(error, name))


def _fresh(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return await _refused(_, RefusedError(error.status_code, error.detail, code=code))


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return JSONResponse(error.body, error.status, headers=dict(error.headers))
