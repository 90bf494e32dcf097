"""A uvicorn server around the application: punctual clients and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ppl.serve.application import Application

# Seconds that a server which has given its searches up waits for the last answers to be read.
_FAREWELL = 2.0


def punctual(seconds: float) -> type[H11Protocol]:
    """A protocol that closes connections on which no request arrives in time.

    uvicorn waits for the headers of a request for ever, so that a client that sends a byte now and
    then holds a connection as long as it likes. A body that is not read any more, behind an answer
    that refuses it, has the same time.
    """

    class Punctual(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.look()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.look()

        def connection_lost(self, exc: Exception | None) -> None:
            self.rest()
            super().connection_lost(exc)

        def look(self) -> None:
            """Sets the clock while no request is being answered."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.rest()
            elif self.late is None:
                self.late = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

        def rest(self) -> None:
            """Stops the clock."""
            if self.late is not None:
                self.late.cancel()
                self.late = None

        def timeout_keep_alive_handler(self) -> None:
            """Closes the connection, also in the middle of what arrives."""
            if not self.transport.is_closing():
                with contextlib.suppress(h11.LocalProtocolError):
                    self.conn.send(h11.ConnectionClosed())
                self.transport.close()

    return Punctual


class Server(uvicorn.Server):
    """Serves until it is told to stop; then lets searches end, for `grace` seconds at most."""

    def __init__(self, config: uvicorn.Config, application: Application, grace: float) -> None:
        super().__init__(config)
        self._application, self._grace = application, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets nobody in, waits for those who search, abandons who is late."""
        gate = self._application.gate
        gate.stop()
        late = asyncio.get_running_loop().call_later(self._grace, gate.abandon)
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()


def make(application: Application, *, grace: float, body_seconds: float, **options: Any) -> Server:
    """A server of an application; `options` are uvicorn's."""
    config = uvicorn.Config(
        application,
        http=punctual(body_seconds),
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=int(grace + _FAREWELL + 1),
        **options,
    )
    return Server(config, application, grace)
