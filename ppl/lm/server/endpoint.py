"""A completions endpoint over HTTP: requests with retries and deadlines, many at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from ppl.errors import ServerError
from ppl.language import checks
from ppl.language.errand import events
from ppl.lm.server.answer import Answer, AnswerError, checked
from ppl.locks import lock

T = TypeVar("T")

# What a server says when it may answer later: a lost race, too early, too many, and its own faults.
_LATER = {408, 425, 429}
# Seconds of the longest pause between two tries, unless the server asks for more.
_LONGEST_PAUSE = 60.0


class RefusedError(ServerError):
    """The server refuses the request itself (4xx): it knows or allows no such thing."""


class UnansweredError(ServerError):
    """The server gives no answer, however often it is asked."""


class _AgainError(Exception):
    """A try failed; another one may not.

    Attributes:
        after: seconds that the server wants to be left alone, 0 if it does not say.
    """

    def __init__(self, problem: str, after: float = 0.0) -> None:
        super().__init__(problem)
        self.after = after


class _Background:
    """An event loop in a thread of its own, and the client that lives in it."""

    def __init__(self, client: Any, concurrency: int) -> None:
        self.client, self.gate = client, asyncio.Semaphore(concurrency)
        self.process = os.getpid()
        self.loop, self._thread = events("ppl requests")

    def close(self) -> None:
        """Ends what is in flight, the connections and the thread."""
        if self.process != os.getpid() or self.loop.is_closed():  # threads do not survive a fork
            return
        asyncio.run_coroutine_threadsafe(self._end(), self.loop)
        if threading.current_thread() is not self._thread:
            self._thread.join(5.0)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        with contextlib.suppress(Exception):  # a connection that is broken already
            await self.client.aclose()
        self.loop.stop()


class Endpoint:
    """Talks to one server. Safe to use from several threads, and in the child of a fork.

    Proxies and credentials of the environment are not used (httpx's `trust_env=False`): what is
    sent goes to `url` and nowhere else.

    Args:
        url: up to and including `/v1`.
        vocabulary: number of token ids, to check answers; None until it is known.
        api_key: sent as a bearer token, never shown.
        concurrency: most requests in flight at a time.
        retries: how often a request is repeated after a lost connection, a timeout, 408, 425, 429
            or 5xx.
        backoff: seconds before the first repetition; doubled each time, and up to half as much
            again by chance, so that many clients do not come back at once. A server's
            `Retry-After` is waited for.
        timeout: seconds within which the whole answer must be there.

    Attributes:
        close: drops the open connections; also done when nobody uses the endpoint any more.

    Raises:
        ImportError: httpx or tenacity is missing.
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        concurrency: int,
        retries: int,
        backoff: float,
        timeout: float,
        vocabulary: int | None = None,
    ) -> None:
        try:
            import httpx
            import tenacity
        except ImportError as error:
            raise ImportError(
                "models behind a server need httpx and tenacity: pip install 'ppl-search[server]'"
            ) from error
        checks.count(concurrency=concurrency)
        checks.count(least=0, retries=retries)
        checks.nonnegative(backoff=backoff)
        checks.positive(timeout=timeout)
        self.url = url.rstrip("/")
        self.vocabulary = vocabulary
        self._key, self._retries, self._backoff = api_key, retries, backoff
        self._timeout, self._concurrency = timeout, concurrency
        self._httpx: Any = httpx
        self._tenacity: Any = tenacity
        self._jitter = random.Random()  # nobody's draws depend on it
        self._lock = lock()
        self._start()

    def _start(self) -> None:
        key, httpx = self._key, self._httpx
        client = httpx.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=None,  # the deadline is that of the whole answer
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        )
        self._background = _Background(client, self._concurrency)
        # Whoever forgets to close it leaves no connection open.
        self.close = weakref.finalize(self, self._background.close)

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts requests; their result is to come. Cancelling it ends them."""
        with self._lock:
            if self._background.process != os.getpid():
                self._start()
        return asyncio.run_coroutine_threadsafe(work, self._background.loop)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of requests; ends them when the waiting is interrupted."""
        future = self.begin(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def ask(self, path: str, body: dict[str, Any] | None, label: str) -> Any:
        """The JSON answer to a POST of `body`, or to a GET without one.

        Raises:
            ServerError: the server refuses the request, or fails more often than `retries`.
        """
        where, tenacity = f"{label}: {self.url}{path}", self._tenacity
        tries = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_AgainError),
            stop=tenacity.stop_after_attempt(self._retries + 1),
            wait=self._pause,
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            return await tries(self._once, path, body, where)
        except _AgainError as problem:
            raise UnansweredError(
                f"{where} failed {self._retries + 1} times, the last time: {problem}; is it "
                "running, and can it take so many requests (concurrency=, timeout=, retries=)?"
            ) from problem

    async def complete(self, body: dict[str, Any], label: str) -> Answer:
        """The answer to one completion request, checked against it. Raises ServerError."""
        answer = await self.ask("/completions", body, label)
        assert self.vocabulary is not None
        try:
            return checked(answer, body, self.vocabulary)
        except AnswerError as error:
            raise ServerError(
                f"{label}: {self.url} answered something that is no completion of what was sent "
                f"({error})"
            ) from error

    async def _once(self, path: str, body: dict[str, Any] | None, where: str) -> Any:
        method = "GET" if body is None else "POST"
        background = self._background
        try:
            async with background.gate, asyncio.timeout(self._timeout):
                reply = await background.client.request(method, self.url + path, json=body)
        except TimeoutError:
            raise _AgainError(f"no whole answer within timeout={self._timeout} s") from None
        except self._httpx.HTTPError as error:
            raise _AgainError(f"{type(error).__name__}: {error}") from error
        except self._httpx.InvalidURL as error:
            raise ServerError(
                f"{where}: {error}; give an address such as http://host:8000/v1"
            ) from error
        status = reply.status_code
        if status == 200:
            try:
                return json.loads(reply.content)
            except (ValueError, RecursionError) as error:
                said = self._said(reply)
                raise ServerError(f"{where} {said}, which is no JSON") from error
        problem = self._said(reply)
        if status in _LATER or status >= 500:
            after = _seconds(reply.headers.get("Retry-After"))
            if after > self._timeout:
                raise UnansweredError(
                    f"{where} {problem} and wants to be left alone for {after:.0f} s, which is "
                    f"longer than timeout={self._timeout}; try later"
                )
            raise _AgainError(problem, after)
        if 400 <= status < 500:
            raise RefusedError(f"{where} {problem}")
        raise ServerError(f"{where} {problem}")

    def _pause(self, state: Any) -> float:
        """Seconds until the next try."""
        own = min(_LONGEST_PAUSE, self._backoff * 2.0 ** (state.attempt_number - 1))
        asked = state.outcome.exception().after
        return float(max(asked, own) + self._jitter.uniform(0.0, own / 2))

    def _said(self, reply: Any) -> str:
        return f"answered {reply.status_code}: {self._redacted(reply.text)[:500]}"

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _seconds(retry_after: str | None) -> float:
    """What a `Retry-After` header asks for: seconds, or a date; 0 without one that can be read."""
    if retry_after is None:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
