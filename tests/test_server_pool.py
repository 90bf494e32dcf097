"""Several servers as one model: equal results, caches that are hit, and servers that die."""

from __future__ import annotations

import contextlib
from collections import Counter

import pyro
import pytest
from programs import TOY, VERIFIERS, contents
from served import Served, serve

import ppl
from ppl.errors import ServerError
from ppl.lm.server import ServerModel, ServerPool
from ppl.lm.server.prefixes import Prefixes
from ppl.searchers import SMC, BestOfN

QUICKLY = {"tokenizer": TOY.codec, "backoff": 0.001}


def steps(lm, prompt="^"):
    text = lm.prompt(prompt)
    for t in range(4):
        step = pyro.sample(f"step_{t}", lm(text, max_tokens=2))
        text = text + step
        pyro.sample(f"ok_{t}", VERIFIERS["last"](text), obs=True)
        if step.finished:
            break
    return text.text


@contextlib.contextmanager
def pooled(count=2, kinds=(), **settings):
    with contextlib.ExitStack() as stack:
        each = [
            stack.enter_context(serve(TOY, kind=kind))
            for kind in (*kinds, *[Served] * (count - len(kinds)))
        ]
        pool = ServerPool([s.url for s in each], **{**QUICKLY, **settings})
        stack.callback(pool.endpoint.close)
        for served in each:
            served.asked.clear()
        yield each, pool


def alone(searcher, *arguments, seed=0):
    with serve(TOY) as served:
        lm = ServerModel(served.url, **QUICKLY)
        try:
            return contents(searcher.run(steps, lm, *arguments, seed=seed))
        finally:
            lm.endpoint.close()


def test_a_pool_gives_what_one_server_gives():
    with pooled(3) as (each, pool):
        found = contents(SMC(12).run(steps, pool, seed=4))
    assert found == alone(SMC(12), seed=4)
    assert all(served.asked for served in each)


class Slow(Served):
    """So slow that many requests are in flight at a time."""

    def respond(self, handler, body):
        self.delay = 0.02
        super().respond(handler, body)


def test_texts_go_where_their_beginnings_are():
    prompts = ["^" + "a" * 8, "^" + "b" * 8, "^" + "ab" * 4, "^" + "ba" * 4]
    with pooled(2, block=4) as (each, pool):
        for prompt in prompts:
            BestOfN(3).run(steps, pool, prompt, seed=1)
        homes = []
        for served in each:
            heads = Counter(tuple(body["prompt"][:8]) for body in served.asked)
            homes.append(heads)
        for prompt in prompts:
            head = TOY.encode(prompt)[:8]
            assert sum(head in heads for heads in homes) == 1  # all its texts went to one server
        assert [len(heads) for heads in homes] == [2, 2]  # and the prompts went to both


def test_a_crowded_server_is_passed_over():
    with pooled(2, kinds=(Slow, Slow), block=4) as (each, pool):
        BestOfN(60).run(steps, pool, "^" + "a" * 8, seed=1)
        few, many = sorted(len(served.asked) for served in each)
    assert 0 < few < many


def test_a_server_that_dies_is_drained_and_comes_back():
    with pooled(2, rest=0.2) as (each, pool):
        expected = alone(SMC(8), seed=2)
        each[0].failures = [503] * 10**6
        assert contents(SMC(8).run(steps, pool, seed=2)) == expected
        assert 10**6 - len(each[0].failures) == len(each[0].asked)  # tried, and given up
        tried = len(each[0].asked)
        pool.endpoint._back[0] += 1000.0
        SMC(8).run(steps, pool, seed=3)
        assert len(each[0].asked) == tried  # left alone
        each[0].failures.clear()
        pool.endpoint._back[0] = 0.001  # its time has come
        assert contents(SMC(8).run(steps, pool, seed=2)) == expected
        assert len(each[0].asked) > tried
        assert pool.endpoint._back == [0.0, 0.0]
        assert pool.endpoint._flying == [0, 0]


class Dying(Served):
    """Answers five requests, and then closes every connection."""

    def respond(self, handler, body):
        if len(self.asked) > 5:
            handler.close_connection = True
            handler.connection.close()
            return
        super().respond(handler, body)


def test_connections_that_break_in_the_middle_of_a_search():
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serve(TOY, kind=Served))
        second = stack.enter_context(serve(TOY, kind=Served))
        pool = ServerPool([first.url, second.url], **QUICKLY, rest=60.0)
        stack.callback(pool.endpoint.close)
        first.asked.clear()
        first.respond = Dying.respond.__get__(Dying(TOY, asked=first.asked))
        found = contents(SMC(12).run(steps, pool, seed=5))
        assert len(first.asked) > 5
    assert found == alone(SMC(12), seed=5)


def test_a_server_that_comes_back_with_another_model_is_not_asked():
    with pooled(2) as (each, pool):
        pool.endpoint._back[0] = 0.001
        with listing("other"):
            SMC(4).run(steps, pool, seed=1)
        assert not each[0].asked
        assert pool.endpoint._back[0] > 1


@contextlib.contextmanager
def listing(name):
    """Servers of the toy list a model of this name."""
    before = TOY.name
    TOY.name = name
    try:
        yield
    finally:
        TOY.name = before


def test_when_all_are_dead_the_error_names_them():
    with pooled(2) as (each, pool):
        for served in each:
            served.failures = [503] * 10**6
        with pytest.raises(ServerError, match="no server of the pool answers") as caught:
            SMC(4).run(steps, pool, seed=1)
        assert all(served.url in str(caught.value) for served in each)
        for served in each:
            served.failures.clear()
        assert SMC(4).run(steps, pool, seed=1).samples  # whoever is left is asked all the same


def test_scores_and_booking():
    with pooled(2) as (_, pool):
        text = pool.prompt("^")
        value = pool.continuation("ab")
        assert float(pool(text, max_tokens=2).log_prob(value)) == pytest.approx(
            float(TOY(TOY.prompt("^"), max_tokens=2).log_prob(TOY.continuation("ab")))
        )
        found = BestOfN(6).run(steps, pool, seed=0, budget=ppl.Budget(tokens=20))
        assert found.cost.lm_tokens <= 20
        assert pool.endpoint.wait(pool.endpoint.ask("/models", None, "test"))["data"]


# -- loading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("commas", [True, False])
def test_load_takes_several_addresses(commas):
    with serve(TOY) as a, serve(TOY) as b:
        source = f"{a.url}, {b.url}" if commas else [a.url, b.url]
        lm = ppl.load(source, **QUICKLY, block=8)
        assert isinstance(lm, ServerPool)
        assert lm.origin.source.replace(" ", "") == f"{a.url},{b.url}"
        assert SMC(3).run(steps, lm, seed=0).samples
        lm.endpoint.close()


@pytest.mark.parametrize("source", [[], ["tiny"], ["http://a/v1", 3], ["http://a/v1", "tiny"]])
def test_lists_of_something_else_are_refused(source):
    with pytest.raises(ValueError, match="source"):
        ppl.load(source)


def test_what_is_no_pool_is_refused():
    for urls in ([], "http://a/v1", ["http://a/v1", "http://a/v1"]):
        with pytest.raises(ValueError, match="urls"):
            ServerPool(urls)
    with pytest.raises(ValueError, match="block"):
        ServerPool(["http://a/v1"], block=0)
    with serve(TOY) as a, pytest.raises(ServerError, match="failed"):
        ServerPool([a.url, "http://127.0.0.1:9/v1"], **QUICKLY)
    other = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", end="$", name="other")
    with serve(TOY) as a, serve(other) as b, pytest.raises(ServerError, match="no model 'toy'"):
        ServerPool([a.url, b.url], **QUICKLY)
    with (
        serve(TOY) as a,
        serve(TOY, gives_end=False) as b,
        pytest.raises(ServerError, match="different ways"),
    ):
        ServerPool([a.url, b.url], **QUICKLY)


def test_prefixes():
    prefixes = Prefixes(2)
    prefixes.remember([1, 2, 3, 4, 5], 0)
    prefixes.remember([1, 2, 9, 9], 1)
    assert prefixes.lengths([1, 2, 3, 4, 5, 6], 3) == [2, 1, 0]
    assert prefixes.lengths([1], 3) == [0, 0, 0]
    assert prefixes.lengths([3, 4], 3) == [0, 0, 0]  # a block stands for all before it
    prefixes.forget(0)
    assert prefixes.lengths([1, 2, 3, 4], 3) == [0, 1, 0]
