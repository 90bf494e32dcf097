"""The endpoint as the official client sees it: answers, streams, choices, usage."""

from __future__ import annotations

import asyncio
import json
import sys

import httpx
import pyro
import pytest
from serving import MORE_A, QUICK, SYMBOLS, ask, endless, quick, served
from starlette.applications import Starlette
from starlette.routing import Mount

import ppl
from ppl.errors import ArgumentError
from ppl.searchers import SMC, BeamSearch, BestOfN
from ppl.serve import Limits, Offer, Question, app, background
from ppl.serve.programs import steps, whole


def asked(lm, content="ab", **settings):
    """The question that the server makes of a chat."""
    messages = ({"role": "user", "content": content},)
    return Question(lm, MORE_A, messages=messages, **settings)


def shout(question):
    """A program of the operator's own, which returns a string."""
    text = question.text + pyro.sample("said", question.more(question.text))
    return f"{text.text.strip().upper()}!"


@pytest.fixture(scope="module")
def both():
    models = {
        "quick": quick(),
        "a:b": Offer(quick(), searcher="BestOfN(3)", rule="best"),
        "endless": endless(0.0),
    }
    with served(models, programs={"shout": shout, "test_serve:shout": shout}) as pair:
        yield pair


@pytest.fixture(scope="module")
def api(both):
    return both[1]


# -- what is answered ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_is_the_vote_of_the_search_that_the_model_name_asks_for(api, seed):
    answer = ask(api, "quick:SMC(8)", seed=seed, max_tokens=12)
    direct = SMC(8).run(steps, asked(quick(), max_tokens=12), seed=seed)
    vote = direct.vote(key=lambda text: text.answer)
    (choice,) = answer.choices
    assert choice.message.content == (direct.best if vote is None else vote).text
    assert answer.ppl["searcher"] == repr(SMC(8))
    assert answer.ppl["log_evidence"] == pytest.approx(direct.log_evidence)
    assert answer.ppl["seed"] == seed
    assert answer.usage.completion_tokens == direct.cost.lm_tokens
    assert answer.usage.ppl["verifier_calls"] == direct.cost.verifier_calls


def test_a_searcher_in_the_body_is_the_same_as_behind_the_colon(api):
    behind = ask(api, "quick:BeamSearch(2, expansions=3)", seed=4)
    inside = ask(api, seed=4, extra_body={"ppl": {"searcher": "BeamSearch(2, expansions=3)"}})
    direct = BeamSearch(2, 3).run(steps, asked(quick()), seed=4)
    assert inside.choices[0].message == behind.choices[0].message
    assert behind.ppl["ess"] == direct.ess
    twice = {"searcher": "BeamSearch(2, expansions=3)"}
    again = ask(api, "quick:BeamSearch(2, expansions=3)", seed=4, extra_body={"ppl": twice})
    assert again.choices[0].message == inside.choices[0].message


def test_one_seed_one_answer_and_none_a_fresh_one_that_is_told(api):
    seeds = {ask(api).ppl["seed"] for _ in range(4)}
    assert len(seeds) == 4
    first = ask(api)
    again = ask(api, extra_body={"ppl": {"seed": first.ppl["seed"]}})
    assert again.choices == first.choices


def test_further_choices_are_other_answers_by_falling_weight(api):
    answer = ask(api, "quick:BestOfN(32)", seed=1, n=6)
    contents = [choice.message.content for choice in answer.choices]
    weights = [choice.ppl["probability"] for choice in answer.choices]
    assert len(set(contents)) == 6
    assert weights == sorted(weights, reverse=True)
    assert [choice.index for choice in answer.choices] == list(range(6))
    direct = BestOfN(32).run(steps, asked(quick()), seed=1)
    marginal = direct.marginal(lambda text: text.answer)
    assert weights[0] == pytest.approx(max(p for a, p in marginal.items() if a is not None))
    one = ask(api, "quick:BestOfN(1)", seed=1, n=3)
    assert len(one.choices) == 1  # a search gives what it has found


def test_best_is_what_the_verifier_likes_most(api):
    best = ask(api, "a:b", seed=3, n=3)
    assert best.ppl["searcher"] == repr(BestOfN(3))  # of the offer
    direct = BestOfN(3).run(steps, asked(quick()), seed=3)
    assert best.choices[0].message.content == direct.best.text
    likelihoods = [choice.ppl["log_likelihood"] for choice in best.choices]
    assert likelihoods == sorted(likelihoods, reverse=True)
    named = ask(api, "a:b:SMC(5)", seed=3, extra_body={"ppl": {"rule": "vote"}})
    assert (named.ppl["rule"], named.ppl["searcher"]) == ("vote", repr(SMC(5)))


def test_programs_are_those_that_are_registered(api):
    whole_ = ask(api, "quick:BestOfN(4)", seed=2, extra_body={"ppl": {"program": "whole"}})
    direct = BestOfN(4).run(whole, asked(quick()), seed=2)
    assert whole_.usage.ppl["verifier_calls"] == 4 == direct.cost.verifier_calls
    loud = ask(api, "quick:BestOfN(4)", seed=2, extra_body={"ppl": {"program": "shout"}})
    said = BestOfN(4).run(shout, asked(quick()), seed=2)
    assert loud.choices[0].message.content == said.vote()
    path = {"program": "test_serve:shout"}
    same = ask(api, "quick:BestOfN(4)", seed=2, extra_body={"ppl": path})
    assert same.choices == loud.choices


def test_completions_take_strings_and_token_ids(api):
    string = api.completions.create(model="quick:SMC(4)", prompt="^ab", seed=5)
    ids = api.completions.create(model="quick:SMC(4)", prompt=[0, 1, 2], seed=5)
    question = Question(quick(), MORE_A, prompt="^ab", max_tokens=16)
    direct = SMC(4).run(steps, question, seed=5)
    vote = direct.vote(key=lambda text: text.answer)
    assert string.choices[0].text == ids.choices[0].text == (vote or direct.best).text
    assert string.usage.prompt_tokens == 3
    assert string.object == "text_completion"


def test_stop_strings_end_an_answer_and_are_no_part_of_it(api):
    for seed in range(4):
        answer = ask(api, "quick:SMC(4)", seed=seed, stop=["ab", "b\na"])
        (choice,) = answer.choices
        assert "ab" not in choice.message.content
        assert "b\na" not in choice.message.content  # it spans two steps
    stopped = ask(api, "endless:BestOfN(2)", seed=0, stop="aaaa")
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("", "stop")
    cut = ask(api, "endless:BestOfN(2)", seed=0, max_completion_tokens=7)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("a" * 7, "length")


def test_warps_reach_the_model(api):
    greedy = [ask(api, "quick:SMC(2)", temperature=0, max_tokens=9, seed=s) for s in (1, 2)]
    assert {answer.choices[0].message.content for answer in greedy} == {"a" * 9}
    likeliest = ask(api, max_tokens=9, extra_body={"top_k": 1, "min_p": 0.0})
    assert likeliest.choices[0].message.content == "a" * 9
    assert ask(api, max_tokens=9, top_p=0.01).choices[0].message.content == "a" * 9


def test_a_budget_that_is_met_tells_how_far_the_search_came(api):
    limits = {"ppl": {"budget": {"tokens": 40}}}
    answer = ask(api, "endless:BestOfN(4)", seed=0, extra_body=limits)
    assert answer.ppl["stopped"] == "budget"
    assert answer.usage.completion_tokens == 40
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    # Nothing came to the end of a step, so that there is nothing yet to show.
    assert choice.message.content == ""
    steps_ = {"ppl": {"budget": {"tokens": 12}, "searcher": "SMC(4)"}}
    some = ask(api, seed=1, temperature=0.5, extra_body=steps_)
    assert some.usage.completion_tokens <= 12


def test_roles_and_parts_of_messages(api):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "b"},
    ]
    answer = api.chat.completions.create(model="quick", messages=messages, seed=1)
    lm = quick()
    assert answer.usage.prompt_tokens == len(lm.encode("a\nab\nb\n"))


# -- streams -------------------------------------------------------------------------------------


def test_a_stream_says_what_the_whole_answer_says(api):
    whole_ = ask(api, "quick:BestOfN(16)", seed=8, n=2)
    usage = {"include_usage": True}
    events = list(ask(api, "quick:BestOfN(16)", seed=8, n=2, stream=True, stream_options=usage))
    told = ["", ""]
    ends = {}
    for event in events[:-1]:
        (choice,) = event.choices
        told[choice.index] += choice.delta.content or ""
        if choice.finish_reason is not None:
            ends[choice.index] = choice.finish_reason
    assert told == [choice.message.content for choice in whole_.choices]
    assert ends == {i: choice.finish_reason for i, choice in enumerate(whole_.choices)}
    assert events[-1].choices == []
    assert events[-1].usage.completion_tokens == whole_.usage.completion_tokens
    assert events[-1].usage.ppl["verifier_calls"] == whole_.usage.ppl["verifier_calls"]
    assert {event.id for event in events} == {events[0].id}
    assert events[0].choices[0].delta.role == "assistant"


def test_a_stream_of_a_completion(api):
    options = {"model": "quick:SMC(4)", "prompt": "^ab", "seed": 5}
    events = list(api.completions.create(**options, stream=True))
    assert "".join(e.choices[0].text for e in events) == (
        api.completions.create(**options).choices[0].text
    )
    assert events[-1].choices[0].finish_reason in ("stop", "length")
    assert all(event.usage is None for event in events)


def test_the_wire_has_no_more_than_events(both):
    server, _ = both
    body = {"model": "quick", "messages": [{"role": "user", "content": "a"}], "stream": True}
    answer = httpx.post(f"{server.url}/chat/completions", json=body, timeout=300)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-request-id"].startswith("chatcmpl-")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-2])


# -- models --------------------------------------------------------------------------------------


def test_models_are_listed_and_retrieved(api):
    assert [model.id for model in api.models.list()] == ["quick", "a:b", "endless"]
    found = api.models.retrieve("a:b")
    assert found.ppl["verifier"] == "more_a"
    assert found.ppl["rule"] == "best"
    assert found.ppl["programs"] == ["steps", "whole", "shout", "test_serve:shout"]
    assert found.max_model_len == 48


def test_without_a_verifier_answers_are_whole():
    with served({"quick": quick()}, verifier=None, searcher="BestOfN(5)") as (_, api):
        answer = ask(api, seed=6)
        assert (answer.ppl["program"], answer.usage.ppl["verifier_calls"]) == ("whole", 0)
        lm = quick()
        question = Question(lm, messages=({"role": "user", "content": "ab"},))
        direct = BestOfN(5).run(whole, question, seed=6)
        assert answer.choices[0].message.content == direct.vote(key=lambda t: t.answer).text
        chained = ask(api, "quick:SMC(3)", seed=6, extra_body={"ppl": {"program": "steps"}})
        assert chained.ppl["log_evidence"] == 0.0  # nothing was observed


def test_models_and_verifiers_by_name():
    question = "Start with 42: a*2 b-27 c+11 d+31 e-7 f-16 g+15 h-8"
    with served({"tiny-lines": "tiny-lines"}, verifier="tiny-lines") as (_, api):
        answer = ask(api, "tiny-lines:SMC(16)", question, seed=0)
    assert answer.choices[0].message.content.rpartition("=")[2] == "83"  # as README has it
    assert answer.usage.ppl["lm_tokens"] == 379
    assert answer.usage.ppl["verifier_tokens"] > 0


def test_what_is_voted_on_is_the_operators():
    offer = Offer(quick(), verifier=MORE_A, answer=lambda said: said.count("a") % 2)
    with served({"quick": offer}) as (_, api):
        answer = ask(api, "quick:BestOfN(16)", seed=1, n=16)
    assert {choice.ppl["answer"] for choice in answer.choices[:2]} == {"0", "1"}


# -- the operator's mistakes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"models": {}}, "models"),
        ({"models": {"": "tiny"}}, "models"),
        ({"models": {"a\n": "tiny"}}, "models"),
        ({"models": {"m": 3}}, "models"),
        ({"models": "tiny"}, "models"),
        ({"searcher": "Nothing(3)"}, "Nothing"),
        ({"searcher": 3}, "searcher"),
        ({"verifier": 3}, "verifier"),
        ({"programs": {"steps": shout}}, "programs"),
        ({"programs": {"p": "no_such_module:f"}}, "no_such_module"),
        ({"programs": {"p": 3}}, "programs"),
        ({"limits": 3}, "limits"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": []}, "api_key"),
        ({"api_key": 3}, "api_key"),
        ({"keep_alive": 0}, "keep_alive"),
        ({"keep_alive": "often"}, "keep_alive"),
    ],
)
def test_the_operators_mistakes_are_named(options, named):
    with pytest.raises((ppl.PPLError, ValueError, TypeError), match=named):
        app(**{"models": {"quick": quick()}, **options})


@pytest.mark.parametrize(
    "options",
    [{"port": -1}, {"port": "80"}, {"host": 3}, {"grace": -1}, {"grace": None}, {"nonsense": 3}],
)
def test_a_place_that_is_none_is_named(options):
    with pytest.raises((ValueError, TypeError), match=next(iter(options))):
        background({"quick": quick()}, **options)


@pytest.mark.parametrize(
    "field", ["tokens", "particles", "running", "body_bytes", "seconds", "body_seconds", "calls"]
)
def test_limits_are_numbers_above_zero(field):
    for bad in (0, -1, "-3", True):
        with pytest.raises((ValueError, ArgumentError), match=field):
            Limits(**{field: bad})


def test_a_limit_of_bytes_may_be_a_string():
    assert Limits(body_bytes="2MB").body_bytes == 2_000_000


def test_offers_are_checked():
    for options, named in [
        ({"lm": 3}, "lm"),
        ({"rule": "mean"}, "rule"),
        ({"step": ""}, "step"),
        ({"verifier": 3}, "verifier"),
    ]:
        with pytest.raises((ValueError, ArgumentError), match=named):
            Offer(**{"lm": quick(), **options})
    with pytest.raises(ArgumentError, match="program"):
        app({"m": Offer(quick(), program="dance")})
    assert ppl.TableLM(QUICK, symbols=SYMBOLS, end="$").codec.size == 5


# -- other servers --------------------------------------------------------------------------------


def test_the_application_runs_in_any_asgi_server_also_mounted():
    inner = app({"quick": quick()}, verifier=MORE_A, api_key="key")
    outer = Starlette(routes=[Mount("/llm", inner)])

    async def main():
        transport = httpx.ASGITransport(outer)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://here/llm/v1", timeout=300
        ) as api:
            body = {"model": "quick:SMC(4)", "messages": [{"role": "user", "content": "ab"}]}
            closed = await api.post("/chat/completions", json=body)
            key = {"Authorization": "Bearer key"}
            return closed, await api.post("/chat/completions", json=body, headers=key)

    closed, answered = asyncio.run(main())
    assert (closed.status_code, answered.status_code) == (401, 200)
    assert answered.json()["ppl"]["searcher"] == repr(SMC(4))


@pytest.mark.parametrize(
    ("package", "module"),
    [("starlette.applications", "application"), ("uvicorn", "server")],
)
def test_what_is_missing_is_named_with_its_extra(monkeypatch, package, module):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"ppl.serve.{module}", raising=False)
    with pytest.raises(ImportError, match=r"ppl-search\[serve\]"):
        background({"quick": quick()})
