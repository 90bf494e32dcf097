"""Whatever a server does wrong, a search goes on to the undisturbed result or ends in a ServerError
that names it, and can then be resumed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from types import SimpleNamespace

import pyro
import pytest
from flaky import AGAIN, DRAWS, LATE, REFUSED, SCORES, Flaky, drip, slow, status
from programs import TOY, VERIFIERS
from served import serve
from work import until

import ppl
from ppl.errors import ServerError
from ppl.lm.base import ContinueRequest, ScoreRequest
from ppl.lm.server.model import ServerModel
from ppl.searchers import SMC, BestOfN


@contextlib.contextmanager
def behind(*, timeout=60.0, retries=2, concurrency=4, **knobs):
    """A flaky server and its model; `timeout` counts from when the start-up probe is over."""
    with serve(TOY, Flaky, **knobs) as server:
        lm = ServerModel(
            server.url,
            tokenizer=TOY.codec,
            concurrency=concurrency,
            retries=retries,
            backoff=0.001,
            timeout=60.0,
        )
        lm.endpoint._timeout = timeout
        server.asked.clear()
        try:
            yield server, lm
        finally:
            lm.endpoint.close()


def steps(lm):
    text = lm.prompt("^")
    for t in range(2):
        step = pyro.sample(f"step_{t}", lm(text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", VERIFIERS["prod"](text), obs=True)
        if step.finished:
            break
    return text.text


def scored(lm):
    step = pyro.sample("step", lm(lm.prompt("^"), max_tokens=1))
    text = lm.prompt("^a" + step.text)
    pyro.sample("seen", lm(text, max_tokens=1), obs=lm.continuation("b"))
    return step.text


def outcome(posterior):
    return [(s.value, s.log_weight) for s in posterior.samples], posterior.log_evidence


def going_on(program, lm, said):
    """Runs a search that one fault ends; its result when it is resumed."""
    search = SMC(4).begin(program, lm, seed=3)
    with pytest.raises(ServerError, match=said):
        search.run()
    return search.run()


@pytest.fixture(scope="module")
def undisturbed():
    """A server and its model, and what two programs give there."""
    with behind() as (server, lm):
        want = {program: outcome(SMC(4).run(program, lm, seed=3)) for program in (steps, scored)}
        yield server, lm, want


def test_there_are_many_kinds():
    assert len(AGAIN) + len(LATE) + len(REFUSED) + len(DRAWS) + len(SCORES) >= 75


@pytest.mark.parametrize("fault", AGAIN)
def test_faults_that_pass_change_nothing(fault, undisturbed):
    server, lm, want = undisturbed
    server.only_scores, server.script = False, [AGAIN[fault]] * 2
    assert outcome(SMC(4).run(steps, lm, seed=3)) == want[steps]
    assert not server.script


@pytest.mark.parametrize("fault", LATE)
def test_answers_that_take_too_long_are_asked_for_again(fault, undisturbed):
    _, _, want = undisturbed
    with behind(timeout=1.0) as (server, lm):
        server.script = [LATE[fault]]
        assert outcome(SMC(4).run(steps, lm, seed=3)) == want[steps]
        assert not server.script


@pytest.mark.parametrize("fault", ["status 500", "reset", "drips", "Retry-After in seconds"])
def test_faults_that_stay_end_in_an_error_that_says_how_often(fault):
    with behind(timeout=0.2, retries=1) as (server, lm):
        server.always = (AGAIN | LATE)[fault]
        with pytest.raises(ServerError, match=r"site 'step_0' of particle.*failed 2 times"):
            BestOfN(2).run(steps, lm, seed=0)
        server.always, lm.endpoint._timeout = None, 60.0
        assert len(BestOfN(2).run(steps, lm, seed=0).samples) == 2


@pytest.mark.parametrize("fault", [*REFUSED, *DRAWS])
def test_faults_that_end_a_search_are_named_and_it_goes_on(fault, undisturbed):
    server, lm, want = undisturbed
    act, said = (REFUSED | DRAWS)[fault]
    server.only_scores, server.script = False, [act]
    assert outcome(going_on(steps, lm, said)) == want[steps]
    assert not server.script


@pytest.mark.parametrize("fault", SCORES)
def test_scores_that_are_none_are_named_and_the_search_goes_on(fault, undisturbed):
    server, lm, want = undisturbed
    act, said = SCORES[fault]
    server.only_scores, server.script = True, [act]
    assert outcome(going_on(scored, lm, said)) == want[scored]
    assert not server.script


def test_answers_are_checked_at_start():
    for name in ("a log-probability above zero", "an id below zero", "another prompt"):
        with serve(TOY, Flaky) as server:
            server.always = DRAWS[name][0]
            with pytest.raises(ServerError, match="start-up probe"):
                ServerModel(server.url, tokenizer=TOY.codec, retries=0)


def test_a_server_that_fails_at_start_is_not_taken_for_one_that_cannot_score():
    with serve(TOY, Flaky) as server:
        server.only_scores, server.always = True, status(500)
        with pytest.raises(ServerError, match="failed 1 times"):
            ServerModel(server.url, tokenizer=TOY.codec, retries=0)
        server.always = status(400)
        lm = ServerModel(server.url, tokenizer=TOY.codec, retries=0)
        assert not lm.client.abilities.scores
        lm.endpoint.close()


def test_stale_scores_under_prefix_caching_are_found_at_start():
    with pytest.raises(ServerError, match=r"twice.*no-enable-prefix-caching"), behind(stale=True):
        pass


class AfterAnother(Flaky):
    """Its scores are wrong for a text that ends as the one scored before it, and began otherwise:
    asked for the same texts in the same order it says the same."""

    last: tuple[int, ...] = ()

    def _along(self, prompt):
        tables, half = super()._along(prompt), len(prompt) // 2
        if self.last != prompt and self.last[half:] == prompt[half:]:
            for entry in (e for table in tables for e in table.values()):
                entry["logprob"] -= 1.0
        self.last = prompt
        return tables


def test_scores_that_depend_on_the_text_before_are_found_at_start():
    with (
        serve(TOY, AfterAnother) as server,
        pytest.raises(ServerError, match=r"twice.*no-enable-prefix-caching"),
    ):
        ServerModel(server.url, tokenizer=TOY.codec, backoff=0.001)


def test_retry_after_is_waited_for_and_more_than_backoff():
    with behind() as (server, lm):
        server.script = [status(429, ("Retry-After", "0.4"))]
        started = time.perf_counter()
        lm(lm.prompt("^"), max_tokens=1).sample()
        assert time.perf_counter() - started >= 0.4


def test_pauses_grow_and_differ_by_chance():
    with behind() as (_, lm):
        endpoint = lm.endpoint

    def tried(attempt, after):
        error = SimpleNamespace(after=after)
        outcome = SimpleNamespace(exception=lambda: error)
        return SimpleNamespace(attempt_number=attempt, outcome=outcome)

    endpoint._backoff = 0.5
    for attempt, own, after in (
        (1, 0.5, 0.0),
        (2, 1.0, 0.0),
        (4, 4.0, 0.0),
        (30, 60.0, 0.0),
        (2, 1.0, 7.0),  # what the server asks for is not doubled
    ):
        pauses = {endpoint._pause(tried(attempt, after)) for _ in range(50)}
        assert max(own, after) <= min(pauses)
        assert max(pauses) <= max(own, after) + own / 2
        assert len(pauses) > 10


def test_the_deadline_is_that_of_the_whole_answer():
    with behind(timeout=0.3, retries=0) as (server, lm):
        server.always = drip(300.0)
        started = time.perf_counter()
        with pytest.raises(ServerError, match=r"no whole answer within timeout=0\.3 s"):
            lm(lm.prompt("^"), max_tokens=1).sample()
        assert time.perf_counter() - started < 60


def interrupted(server, work):
    """Seconds from Ctrl-C, pressed while something is asked, to its coming through."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    at, asked = [], len(server.asked)

    def press():
        until(lambda: len(server.asked) > asked)
        time.sleep(0.1)  # it waits by now
        at.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)

    def pressed():
        thread.start()
        work()

    try:
        with pytest.raises(KeyboardInterrupt):
            pressed()
        return time.perf_counter() - at[0]
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_does_not_wait_for_an_answer():
    with behind(timeout=600.0) as (server, lm):
        server.always = slow(300.0)
        spec = lm(lm.prompt("^"), max_tokens=1).spec
        score = [ScoreRequest(lm, spec, lm.continuation("a"))]
        assert interrupted(server, lambda: BestOfN(6).run(steps, lm, seed=0)) < 60
        assert interrupted(server, lambda: lm.score_batch(score)) < 60
        loop = lm.endpoint._background.loop  # what nobody waits for is not asked any more
        assert until(lambda: not asyncio.all_tasks(loop))
        assert interrupted(server, lambda: ServerModel(server.url, tokenizer=TOY.codec)) < 60
        server.always = status(503, ("Retry-After", "300"))  # nor between two tries
        assert interrupted(server, lambda: lm.score_batch(score)) < 60
        server.always = None
        assert len(BestOfN(2).run(steps, lm, seed=0).samples) == 2


def test_a_session_that_ends_waits_half_a_second_for_what_is_in_flight():
    with behind(timeout=600.0) as (server, lm):
        server.always = slow(300.0)
        session = lm.session()
        session.submit(ContinueRequest(lm, lm(lm.prompt("^"), max_tokens=1).spec, 1))
        session.step(0.0)
        started = time.perf_counter()
        session.close()
        assert 0.4 < time.perf_counter() - started < 60
        assert not session.running


@pytest.mark.parametrize(
    "bad",
    [
        {"concurrency": 0},
        {"concurrency": 2.5},
        {"retries": -1},
        {"backoff": float("nan")},
        {"timeout": 0},
        {"timeout": float("inf")},
        {"tolerance": -1},
        {"context_length": 1},
        {"context_length": True},
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_sent(bad):
    with pytest.raises(ValueError, match=next(iter(bad)) + "="):
        ServerModel("http://127.0.0.1:9/v1", tokenizer=TOY.codec, **bad)
    with pytest.raises(ValueError, match="url="):
        ServerModel("localhost:8000", tokenizer=TOY.codec)


def test_a_server_that_says_nonsense_about_itself(monkeypatch):
    for longest in ("long", -5, True, 2.5, 2):
        with monkeypatch.context() as patch, serve(TOY) as server:
            patch.setattr(TOY, "context_length", longest)
            with pytest.raises(ServerError, match="max_model_len"):
                ServerModel(server.url, tokenizer=TOY.codec)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_a_fork_asks_on_its_own():
    with behind() as (_, lm):
        child = os.fork()
        if child == 0:
            try:
                drawn = lm(lm.prompt("^"), max_tokens=1).sample()
                os._exit(0 if drawn.tokens else 1)
            except BaseException:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert lm(lm.prompt("^"), max_tokens=1).sample().tokens
        assert isinstance(lm, ppl.LanguageModel)
