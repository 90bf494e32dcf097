"""What goes over the wire of one request: its body in, an answer or events out, and its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from ppl.serve.limits import Limits
from ppl.serve.refusal import RefusedError

T = TypeVar("T")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]


class GoneError(Exception):
    """The client has closed the connection: nobody is there to be answered."""


def header(scope: Scope, name: bytes) -> bytes:
    """The value of a header, empty if it is not there."""
    found: bytes = next((value for key, value in scope["headers"] if key == name), b"")
    return found


async def read(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        RefusedError: it is no JSON by its type (415), too large (413), or does not arrive (408).
        GoneError: the client left.
    """
    kind = header(scope, b"content-type").split(b";")[0].strip().lower()
    if kind != b"application/json":  # what a page of another site may send unasked is not this
        raise RefusedError(
            415, "send JSON, with 'Content-Type: application/json'", code="unsupported_media_type"
        )
    told = header(scope, b"content-length")
    if told.isdigit() and int(told) > int(limits.body_bytes):
        raise _too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise GoneError
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > int(limits.body_bytes):
                    raise _too_large(limits)
    except TimeoutError:
        raise RefusedError(
            408,
            f"the request did not arrive within {limits.body_seconds:g} seconds",
            code="request_timeout",
        ) from None
    return bytes(body)


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(
        413, f"a request has at most {limits.body_bytes} bytes here", code="request_too_large"
    )


async def unless_gone(
    work: Coroutine[Any, Any, T],
    receive: Receive,
    every: float | None = None,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> T:
    """The result of `work`, which is cancelled as soon as the client leaves.

    Args:
        work: what takes its time.
        receive: of the request, whose body has been read.
        every, meanwhile: what is called each so many seconds.

    Raises:
        GoneError: the client left. What `work` held is free then.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        while True:
            done, _ = await asyncio.wait(
                {task, gone}, timeout=every, return_when=asyncio.FIRST_COMPLETED
            )
            if task in done:
                return task.result()
            if done:
                raise GoneError
            if meanwhile is not None:
                await meanwhile()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Answer:
    """The answer to one request, in one piece or as events (SSE).

    Args:
        send: of the request.
        name: of the request, told in a header.
    """

    def __init__(self, send: Send, name: str) -> None:
        self._send, self._name = send, name
        self._started = False

    async def whole(
        self, status: int, content: dict[str, Any], headers: list[tuple[str, str]] | None = None
    ) -> None:
        """Answers in one piece."""
        body = _json(content)
        length = ("Content-Length", str(len(body)))
        await self._start(status, "application/json", [length, *(headers or [])])
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, refused: RefusedError) -> None:
        """Answers with an error; as the last event where events have begun."""
        if self._started:
            await self.event(refused.body)
            await self.end()
        else:
            await self.whole(refused.status, refused.body, refused.headers)

    async def event(self, content: dict[str, Any]) -> None:
        """One event."""
        await self._events(b"data: " + _json(content) + b"\n\n")

    async def comment(self, said: str) -> None:
        """A line that clients skip, so that connections stay open."""
        await self._events(f": {said}\n\n".encode())

    async def end(self) -> None:
        """The last event."""
        await self._events(b"data: [DONE]\n\n", more=False)

    async def _events(self, content: bytes, more: bool = True) -> None:
        if not self._started:
            # Proxies such as nginx would hold events back otherwise.
            unbuffered = [("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no")]
            await self._start(200, "text/event-stream; charset=utf-8", unbuffered)
        await self._send({"type": "http.response.body", "body": content, "more_body": more})

    async def _start(self, status: int, kind: str, headers: list[tuple[str, str]]) -> None:
        self._started = True
        every = [("Content-Type", kind), ("X-Request-Id", self._name), *headers]
        encoded = [(name.lower().encode(), value.encode()) for name, value in every]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})


def _json(content: dict[str, Any]) -> bytes:
    # In ASCII: a request may hold halves of surrogate pairs, which messages repeat.
    return json.dumps(content, allow_nan=False).encode("ascii")
