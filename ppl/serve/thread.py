"""A server in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ppl.serve.gate import Gate

# Seconds within which a server in a thread has to be there.
_START = 30.0


class Serving(Protocol):
    """What is asked of a server: uvicorn's does it."""

    started: bool
    should_exit: bool

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until `should_exit` is true."""


@dataclass(frozen=True)
class Running:
    """A server in a thread of this process.

    Attributes:
        url: its address, up to and including `/v1`.
        gate: who searches and who waits.
    """

    url: str
    gate: Gate
    _server: Serving
    _thread: threading.Thread

    def stop(self) -> None:
        """Stops it, gracefully, and waits for its end."""
        self._server.should_exit = True
        self._thread.join()


@contextlib.contextmanager
def running(server: Serving, gate: Gate, host: str, port: int) -> Iterator[Running]:
    """Runs a server in a thread as long as the block runs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=2048)
    port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve([listening])), name="ppl serve", daemon=True
    )
    thread.start()
    began = time.monotonic()
    while not server.started and thread.is_alive() and time.monotonic() - began < _START:
        time.sleep(0.005)
    if not server.started:
        listening.close()
        raise RuntimeError(f"the server at {host}:{port} did not start; its log says why")
    handle = Running(f"http://{shown}:{port}/v1", gate, server, thread)
    try:
        yield handle
    finally:
        handle.stop()
