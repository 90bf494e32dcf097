"""Many at once, those who leave, those who wait, and the end of the server."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import threading
import time

import httpx
import openai
import pytest
from serving import (
    MORE_A,
    ask,
    client,
    connected,
    endless,
    got,
    health,
    quick,
    served,
    trees,
)
from work import until

from ppl.searchers import SMC
from ppl.serve import Limits, Question, background, serve
from ppl.serve.programs import steps

BUSY = Limits(running=300, waiting=0)
LONG = {"extra_body": {"ppl": {"budget": {"tokens": 90_000}}}}


def idle(server):
    found = health(server)
    return (found["running"], found["waiting"]) == (0, 0)


def expected(seed: int) -> str:
    """What a direct run of the same seed says."""
    question = Question(quick(), MORE_A, messages=({"role": "user", "content": "ab"},))
    found = SMC(4).run(steps, question, seed=seed)
    vote = found.vote(key=lambda text: text.answer)
    return str(found.best if vote is None else vote)


# -- many ------------------------------------------------------------------------------------------


def test_two_hundred_at_once_lose_none_and_those_who_leave_leave_nothing():
    """160 that want an answer and 40 that give up: every answer is that of a direct run."""
    before = trees()
    lm, slow = quick(), endless()

    async def load(url):
        limits = httpx.Limits(max_connections=None)
        async with openai.AsyncOpenAI(
            base_url=url,
            api_key="none",
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(limits=limits, timeout=300),
        ) as api:

            def one(model, seed, **options):
                messages = [{"role": "user", "content": "ab"}]
                return api.chat.completions.create(
                    model=model, messages=messages, seed=seed, **options
                )

            doomed = [asyncio.create_task(one("endless:BestOfN(1)", i, **LONG)) for i in range(40)]
            wanted = [asyncio.create_task(one("quick:SMC(4)", i)) for i in range(160)]
            answers = await asyncio.gather(*wanted)
            assert not any(task.done() for task in doomed)
            for task in doomed:
                task.cancel()
            left = await asyncio.gather(*doomed, return_exceptions=True)
            assert all(isinstance(error, asyncio.CancelledError) for error in left)
            return answers

    with served({"quick": lm, "endless": slow}, limits=BUSY) as (server, _):
        answers = asyncio.run(load(server.url))
        assert until(lambda: idle(server))
        assert until(lambda: not slow.busy)
        at = slow.steps
        time.sleep(0.1)
        assert slow.steps == at  # nothing is drawn for those who have left
        assert until(lambda: trees() <= before)
    told = [answer.choices[0].message.content for answer in answers]
    assert told[::8] == [expected(seed) for seed in range(0, 160, 8)]
    assert [answer.ppl["seed"] for answer in answers] == list(range(160))
    assert lm.most > 2 * 4  # rows of several requests ran side by side


def test_who_does_not_fit_waits_and_who_cannot_wait_comes_later():
    slow = endless(0.05)  # until all are there
    limits = Limits(running=2, waiting=3)
    with served({"endless": slow, "quick": quick()}, limits=limits) as (server, api):
        threads, outcomes = [], []

        def one(model, **options):
            with client(server) as mine:
                outcomes.append(ask(mine, model, **options).choices[0].finish_reason)

        def go(model, **options):
            threads.append(threading.Thread(target=one, args=(model,), kwargs=options))
            threads[-1].start()

        for _ in range(2):
            go("endless:BestOfN(1)", max_tokens=300)
        assert until(lambda: health(server)["running"] == 2)
        for _ in range(3):
            go("quick:SMC(2)", seed=1, max_tokens=30)
        assert until(lambda: health(server)["waiting"] == 3)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(api, "quick:SMC(2)")
        assert caught.value.body["code"] == "rate_limit_exceeded"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        slow.pause = 0.0
        for thread in threads:
            thread.join()
        assert idle(server)
        assert len(outcomes) == 5
        # First come, first served: who waits begins when one of the two has ended.
        assert outcomes[0] == "length"
        assert sorted(outcomes) == ["length", "length", "stop", "stop", "stop"]
        assert ask(api, "quick:SMC(2)").choices


# -- those who leave -------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_searched_for_no_longer(stream):
    slow = endless()
    before = trees()
    with served({"endless": slow}, keep_alive=0.05, limits=BUSY) as (server, _):
        body = (
            b'{"model": "endless:SMC(3)", "messages": [{"role": "user", "content": "a"}], '
            b'"stream": %s}' % (b"true" if stream else b"false")
        )
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        with connected(server) as bare:
            bare.sendall(head % len(body) + body)
            assert until(lambda: health(server)["running"] == 1 and slow.steps > 3)
            said = b""
            while stream and b": searching, " not in said:
                said += bare.recv(10_000)
        assert until(lambda: idle(server))
        assert until(lambda: not slow.busy)
        assert until(lambda: trees() <= before)


def test_who_leaves_the_queue_never_searches():
    slow, second = endless(), endless()
    limits = Limits(running=1, waiting=4)
    with served({"first": slow, "second": second}, limits=limits) as (server, api):
        slow.pause = 0.05  # it takes 20 s, as long as the other has not left
        first = ask_in_a_thread(server, "first:BestOfN(1)", max_tokens=400)
        assert until(lambda: health(server)["running"] == 1)
        with pytest.raises(openai.APITimeoutError):
            ask(api, "second:BestOfN(1)", timeout=0.2, max_tokens=5)
        assert until(lambda: health(server)["waiting"] == 0)
        slow.pause = 0.0
        first.join()
        assert idle(server)
        assert second.steps == 0


def ask_in_a_thread(server, model, told=None, **options):
    def one():
        with client(server) as api:
            try:
                told_.append(ask(api, model, **options))
            except openai.OpenAIError as error:
                told_.append(error)

    told_ = [] if told is None else told
    thread = threading.Thread(target=one)
    thread.start()
    return thread


# -- those who wait --------------------------------------------------------------------------------


def test_comments_come_while_a_slow_search_runs():
    slow = endless(0.01)
    with served({"endless": slow}, keep_alive=0.1) as (server, _):
        body = {
            "model": "endless:BestOfN(2)",
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 60,
            "stream": True,
        }
        with httpx.stream(
            "POST", f"{server.url}/chat/completions", json=body, timeout=300
        ) as reply:
            assert reply.status_code == 200
            lines = [line for line in reply.iter_lines() if line]
        comments = [line for line in lines if line.startswith(":")]
        assert len(comments) >= 3
        assert lines[: len(comments)] == comments  # then the answer, then no more of them
        assert lines[-1] == "data: [DONE]"
        assert '"content": "' + "a" * 60 in lines[len(comments)]
        with client(server) as api:  # the official client reads over them
            events = list(ask(api, "endless:BestOfN(2)", max_tokens=60, stream=True))
            assert "".join(e.choices[0].delta.content or "" for e in events) == "a" * 60


def test_a_search_that_fails_late_ends_its_stream_with_an_error():
    def late(question):
        text = steps(question)
        raise RuntimeError(f"no use for {text}")

    slow = endless(0.01)
    with served({"endless": slow}, keep_alive=0.05, programs={"late": late}) as (server, _):
        options = {"max_tokens": 30, "extra_body": {"ppl": {"program": "late"}}}
        with client(server) as api:
            stream = ask(api, "endless:BestOfN(1)", stream=True, **options)
            with pytest.raises(openai.APIError) as caught:
                list(stream)
        assert caught.value.code == "program"
        assert not isinstance(caught.value, openai.APIStatusError)  # 200 had been said
        assert idle(server)


def test_seconds_are_kept():
    slow = endless()
    with served({"endless": slow}) as (server, api):
        options = {"extra_body": {"ppl": {"budget": {"seconds": 0.3}}}}
        answer = ask(api, "endless:BestOfN(2)", **options)
        assert answer.ppl["stopped"] == "budget"
        assert answer.choices[0].finish_reason == "length"
        assert slow.steps <= 160  # as many as there can be in 0.3 s, and some at its end
        assert idle(server)


# -- the end ---------------------------------------------------------------------------------------


def test_a_server_that_stops_lets_searches_end_and_nobody_in():
    slow, told, late = endless(0.05), [], []
    with background({"endless": slow, "quick": quick()}, grace=60.0) as server:
        first = ask_in_a_thread(server, "endless:BestOfN(1)", told, max_tokens=300)
        assert until(lambda: health(server)["running"] == 1)
        host = server.url.removeprefix("http://").removesuffix("/v1")
        kept = http.client.HTTPConnection(host, timeout=300)
        kept.request("GET", "/health")
        kept.getresponse().read()
        server._server.should_exit = True
        assert until(lambda: server.gate.stopping)
        slow.pause = 0.0
        after = ask_in_a_thread(server, "quick:SMC(2)", late)
        first.join()
        after.join()
        kept.close()
    assert told[0].choices[0].message.content == "a" * 300
    assert isinstance(late[0], openai.APIConnectionError)


def test_a_server_that_stops_abandons_who_is_late_and_says_so(monkeypatch):
    monkeypatch.setattr("ppl.serve.server._FAREWELL", 60.0)  # for its answers; none takes as long
    slow, told = endless(), []
    before = trees()
    started = time.monotonic()
    with background({"endless": slow}, grace=0.3, limits=Limits(running=1)) as server:
        threads = [ask_in_a_thread(server, "endless:BestOfN(1)", told, **LONG) for _ in range(2)]
        assert until(lambda: (health(server)["running"], health(server)["waiting"]) == (1, 1))
    assert time.monotonic() - started < 60  # their 90,000 tokens take three minutes
    for thread in threads:
        thread.join()
    assert [error.status_code for error in told] == [503, 503]
    assert {error.body["code"] for error in told} == {"server_stopping"}
    assert until(lambda: not slow.busy)
    assert until(lambda: trees() <= before)


@pytest.fixture
def terminated():
    """SIGTERM as this process hears it, which must outlive the server."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGTERM, before)


def test_sigterm_stops_serve_gracefully(terminated, caplog):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, told = f"http://127.0.0.1:{port}", []

    def customer():
        assert until(lambda: answers(url))
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=300) as api:
            asking = threading.Thread(
                target=lambda: told.append(ask(api, "endless:BestOfN(1)", max_tokens=300))
            )
            asking.start()
            assert until(lambda: got(f"{url}/health").json()["running"] == 1)
            os.kill(os.getpid(), signal.SIGTERM)
            asking.join()

    thread = threading.Thread(target=customer)
    thread.start()
    serve(
        {"endless": endless(0.02)}, port=port, grace=60.0, log_level="warning"
    )  # until it is told
    thread.join()
    assert told[0].choices[0].message.content == "a" * 300
    assert terminated == [signal.SIGTERM]  # handed on, so that the process may end of it
    assert not caplog.records


def answers(url):
    try:
        return got(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False
