"""One model behind several servers: texts go where their beginnings are cached.

A prompt goes to the server that has seen most of its leading blocks, unless that one has much more
to do than the least busy (as SGLang's cache-aware router does it). A server that answers no more is
left alone: what it was asked is asked elsewhere, and after a while one request tries it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from ppl.errors import ServerError
from ppl.language import checks
from ppl.lm.server.answer import Answer
from ppl.lm.server.client import Abilities, Client
from ppl.lm.server.endpoint import Endpoint, UnansweredError
from ppl.lm.server.model import ServerModel
from ppl.lm.server.prefixes import Prefixes

T = TypeVar("T")

# A server is passed over for its load once it has so many requests more than twice the least.
_SLACK = 8
# How often one server of a pool is asked again before another one is asked.
_RETRIES = 1


class Pool(Endpoint):
    """Several servers, used as one.

    Args:
        endpoints: of servers of one model.
        name: of the model there.
        block: tokens of a block of a server's prefix cache.
        rest: seconds for which a server that does not answer is left alone.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], name: str, *, block: int, rest: float
    ) -> None:
        self.url = ", ".join(endpoint.url for endpoint in endpoints)
        self._endpoints, self._name, self._rest_for = list(endpoints), name, rest
        self._prefixes = Prefixes(block)
        self._flying = [0] * len(endpoints)
        self._asked = [0] * len(endpoints)
        self._back = [0.0] * len(endpoints)  # when a server that was lost may be tried again
        self._trying = [False] * len(endpoints)
        self.close = self._close  # type: ignore[assignment]

    def _close(self) -> None:
        for endpoint in self._endpoints:
            endpoint.close()

    # All that the pool itself decides happens in the event loop of its first endpoint.

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts requests; their result is to come. Cancelling it ends them."""
        return self._endpoints[0].begin(work)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of requests; ends them when the waiting is interrupted."""
        return self._endpoints[0].wait(work)

    async def ask(self, path: str, body: dict[str, Any] | None, label: str) -> Any:
        """The JSON answer of the first server that gives one."""
        for server in range(len(self._endpoints)):
            try:
                return await self._of(server, self._endpoints[server].ask(path, body, label))
            except UnansweredError as error:
                failed = error
        raise failed

    async def complete(self, body: dict[str, Any], label: str) -> Answer:
        """The answer to one completion request, by whichever server gives it.

        Raises:
            UnansweredError: none does.
            ServerError: one refuses it, or answers something else than was asked.
        """
        tried: dict[int, UnansweredError] = {}
        while len(tried) < len(self._endpoints):
            server = self._chosen(body["prompt"], tried.keys())
            try:
                return await self._asked_of(server, body, label)
            except UnansweredError as error:
                tried[server] = error
                self._lost(server)
        said = "; ".join(str(error) for error in tried.values())
        raise UnansweredError(f"{label}: no server of the pool answers: {said}")

    def _chosen(self, prompt: Sequence[int], tried: Any) -> int:
        now = time.monotonic()
        left = [s for s in range(len(self._endpoints)) if s not in tried]
        alive = [s for s in left if self._back[s] <= now and not self._trying[s]]
        # Where nobody is alive, whoever is left is better than an error.
        standing = alive or left
        seen = self._prefixes.lengths(prompt, len(self._endpoints))
        least = min(standing, key=lambda s: (self._flying[s], self._asked[s]))
        best = max(standing, key=lambda s: (seen[s], -self._flying[s], -self._asked[s]))
        crowded = self._flying[best] > 2 * self._flying[least] + _SLACK
        return least if crowded or not seen[best] else best

    async def _asked_of(self, server: int, body: dict[str, Any], label: str) -> Answer:
        endpoint = self._endpoints[server]
        trial = self._back[server] > 0
        self._trying[server] = self._trying[server] or trial  # the others go elsewhere meanwhile
        self._flying[server] += 1
        self._asked[server] += 1
        try:
            if trial:
                await self._returned(server, label)
            self._prefixes.remember(body["prompt"], server)
            answer = await self._of(server, endpoint.complete(body, label))
        finally:
            self._flying[server] -= 1
            if trial:
                self._trying[server] = False
        self._back[server] = 0.0
        return answer

    async def _of(self, server: int, work: Coroutine[Any, Any, T]) -> T:
        """Runs in the loop of the server's endpoint, where its connections are."""
        return await asyncio.wrap_future(self._endpoints[server].begin(work))

    async def _returned(self, server: int, label: str) -> None:
        """Raises ServerError if what runs there now is another model."""
        endpoint = self._endpoints[server]
        answer = await self._of(server, endpoint.ask("/models", None, label))
        listed = answer.get("data") if isinstance(answer, dict) else None
        names = [about.get("id") for about in listed or () if isinstance(about, dict)]
        if self._name not in names:
            raise UnansweredError(f"{label}: {endpoint.url} has no model {self._name!r} any more")

    def _lost(self, server: int) -> None:
        self._back[server] = time.monotonic() + self._rest_for
        self._prefixes.forget(server)


class ServerPool(ServerModel):
    """A language model that several servers run, each of them the whole of it.

    Draws and scores are those of one server each, so they are as exact as with one. Which server
    draws depends on what else is asked; the seeds that are sent do not.

    Args:
        urls: of the servers, each up to and including `/v1`.
        model: its name there, the same everywhere.
        block: tokens of a block of their prefix caches.
        rest: seconds for which a server that does not answer is left alone.
        concurrency: most requests in flight at a time, for each server.
        **settings: as of `ServerModel`.

    Attributes:
        endpoint: the `Pool`.

    Raises:
        ServerError: a server is not there or cannot do what is needed, or they differ.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str | None = None,
        *,
        block: int = 16,
        rest: float = 10.0,
        concurrency: int = 32,
        **settings: Any,
    ) -> None:
        if isinstance(urls, str) or not urls or len(set(urls)) < len(urls):
            raise ValueError(f"urls={urls!r}: addresses of servers, each once")
        checks.count(block=block)
        checks.nonnegative(rest=rest)
        members: list[ServerModel] = []
        again = settings.pop("retries", _RETRIES)
        try:
            for url in urls:
                members.append(
                    ServerModel(url, model, concurrency=concurrency, retries=again, **settings)
                )
                model, settings["tokenizer"] = members[0].name, members[0].codec
        except BaseException:
            for member in members:
                member.endpoint.close()
            raise
        first = members[0]
        self.name, self.codec = first.name, first.codec
        self.context_length = min(member.context_length for member in members)
        self.concurrency = concurrency * len(members)
        endpoints = [member.endpoint for member in members]
        self.endpoint = Pool(endpoints, first.name, block=block, rest=rest)
        self.client = Client(self.endpoint, self.name, self.codec)
        self.client.abilities = _common([member.client.abilities for member in members])


def _common(each: Sequence[Abilities]) -> Abilities:
    """What all of them can. Raises ServerError if they end texts in different ways."""
    ends = {abilities.gives_end for abilities in each}
    if len(ends) > 1:
        raise ServerError(
            "the servers of the pool report the end of a text in different ways; run one version, "
            "with one set of options, on all of them"
        )
    return Abilities(
        all(abilities.scores for abilities in each),
        all(abilities.processed for abilities in each),
        ends.pop(),
    )
