"""What the endpoint refuses: in OpenAI's shape, by the name of the field, and going on serving."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pyro
import pytest
from serving import QUICK, Counting, ask, client, connected, got, quick, served
from work import until

import ppl
from ppl.errors import SearchStateError, ServerError
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN, ParticleGibbs
from ppl.serve import Limits, Offer
from ppl.serve.choice import searcher_of, size
from ppl.serve.refusal import RefusedError, refusal
from ppl.verifiers import FunctionVerifier


def broken(question):
    """Fails with what no client is to read."""
    raise RuntimeError("the password is swordfish")


def speechless(question):
    """Returns no answer."""
    question.text + pyro.sample("said", question.more(question.text))


class Lost(Counting):
    """A model whose server fails."""

    def session(self):
        raise ServerError("http://10.0.0.1:8000/v1 failed 5 times")


LIMITS = Limits(
    tokens=500, calls=300, seconds=20.0, particles=20, body_bytes=5000, body_seconds=60.0
)


@pytest.fixture(scope="module")
def both():
    none = FunctionVerifier(lambda text: 0.0, name="none")
    models = {
        "quick": quick(),
        "hopeless": Offer(quick(), verifier=none),
        "lost": Lost(QUICK, name="lost"),
        "plain": ppl.TableLM(QUICK, symbols="^ab\n$", end="$"),
    }
    programs = {"broken": broken, "speechless": speechless}
    with served(models, limits=LIMITS, programs=programs) as pair:
        yield pair


@pytest.fixture(scope="module")
def server(both):
    return both[0]


@pytest.fixture(scope="module")
def api(both):
    return both[1]


def refused(api, kind=openai.BadRequestError, **options):
    """What the error says, as the client reads it."""
    with pytest.raises(openai.APIStatusError) as caught:
        ask(api, **options)
    assert isinstance(caught.value, kind), caught.value
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    return caught.value.body


def own(**fields):
    return {"extra_body": {"ppl": fields}}


# -- fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"logit_bias": {"3": 5}}, "logit_bias", "unsupported_parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"presence_penalty": -1}, "presence_penalty", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        (
            {"extra_body": {"repetition_penalty": 1.0}},
            "repetition_penalty",
            "unsupported_parameter",
        ),
        (own(searchr="SMC(4)"), "ppl.searchr", "unsupported_parameter"),
        (own(budget={"token": 4}), "ppl.budget.token", "unsupported_parameter"),
        ({"extra_body": {"ppl": "SMC(4)"}}, "ppl", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unsupported_parameter"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"extra_body": {"top_k": 1.5}}, "top_k", "invalid_value"),
        ({"extra_body": {"min_p": 2}}, "min_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 21}, "n", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"seed": 1, **own(seed=2)}, "ppl.seed", "invalid_value"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        (own(rule="mean"), "ppl.rule", "invalid_value"),
        (own(program="os:system"), "ppl.program", "invalid_value"),
        (own(program=3), "ppl.program", "invalid_value"),
        (own(budget={"tokens": 501}), "ppl.budget.tokens", "invalid_value"),
        (own(budget={"calls": 301}), "ppl.budget.calls", "invalid_value"),
        (own(budget={"seconds": 20.5}), "ppl.budget.seconds", "invalid_value"),
        (own(budget={"tokens": 0}), "ppl.budget.tokens", "invalid_value"),
        ({"model": "quick:SMC(4)", **own(searcher="SMC(5)")}, "ppl.searcher", "invalid_value"),
    ],
)
def test_fields_are_refused_by_name(api, options, param, code):
    said = refused(api, **options)
    assert (said["param"], said["code"]) == (param, code)
    assert said["type"] == "invalid_request_error"
    assert param in said["message"]


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "ab",
        [3],
        [{"role": "user"}],
        [{"role": "robot", "content": "a"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": "a", "name": "me"}],
        [{"role": "assistant", "content": "a", "tool_calls": [{}]}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "no such symbols"}],
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": "a" * 100}],
    ],
)
def test_messages_that_are_none(server, messages):
    body = json.dumps({"model": "quick", "messages": messages})
    answer = post(server, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("messages")


@pytest.mark.parametrize("prompt", [None, 3, "", [], ["a", "b"], [99], [-1], ["a", 1], [[1], [2]]])
def test_prompts_that_are_none(server, prompt):
    answer = post(server, json.dumps({"model": "quick", "prompt": prompt}), "/completions")
    assert answer.status_code == 400
    assert "prompt" in answer.json()["error"]["param"]


@pytest.mark.parametrize("field", ["echo", "logprobs", "suffix", "best_of"])
def test_fields_of_completions(server, field):
    value = {"echo": True, "logprobs": 0, "suffix": "a", "best_of": 2}[field]
    body = json.dumps({"model": "quick", "prompt": "^a", field: value})
    error = post(server, body, "/completions").json()["error"]
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


def test_values_that_change_nothing_are_taken(api):
    answer = ask(
        api,
        seed=1,
        logprobs=False,
        logit_bias={},
        frequency_penalty=0,
        presence_penalty=0.0,
        response_format={"type": "text"},
        tools=[],
        user="somebody",
        metadata={"trace": "1"},
        extra_body={"top_k": -1},
    )
    assert answer.choices[0] == ask(api, seed=1).choices[0]


# -- searchers -------------------------------------------------------------------------------------

HOSTILE = [
    "RAIN(embed=os.system)",
    "AStar(4, cost_to_go=builtins.exec)",
    "SMC(4, resampling_temperature=posix.abort)",
    "os.system('touch hacked')",
    "__import__('os').system('touch hacked')",
    "BestOfN(n=(lambda: 3)())",
    "BestOfN([3 for _ in range(9)])",
    "BestOfN(2 ** 9)",
    "SMC(**{'num_particles': 3})",
    "SMC(4, 2.5)",
    "SMC(-4)",
    "SMC('4')",
    "SMC(True)",
    "SMC()",
    "SMC(4, num_particles=4)",
    "SMC",
    "",
    ":",
    "SMC(16",
    "(" * 200,
    "SMC(" * 90,
    "BestOfN(" + "1" * 280 + ")",
    "SMC(4)" + " " * 300,
    "Nobody(4)",
    "EntropicAnnealing(4)",
    "print('x')",
    "\x00",
    "BestOfN(4) # \ud800",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_searchers_that_are_none(server, text):
    before = set(Path.cwd().iterdir())
    for body in (
        {"model": f"quick:{text}"},
        {"model": "quick", "ppl": {"searcher": text}},
    ):
        asked = {**body, "messages": [{"role": "user", "content": "ab"}]}
        answer = post(server, json.dumps(asked))
        assert answer.status_code == 400, text
        error = answer.json()["error"]
        assert error["code"] == "invalid_searcher"
        assert error["param"] == ("ppl.searcher" if "ppl" in body else "model")
    assert set(Path.cwd().iterdir()) == before


@pytest.mark.parametrize(
    ("text", "large"),
    [
        ("BestOfN(20)", False),
        ("BestOfN(21)", True),
        ("SMC(21)", True),
        ("BeamSearch(5, 4)", False),
        ("BeamSearch(6, 4)", True),
        ("BeamSearch(6)", True),  # defaults count
        ("MCTS(20)", False),
        ("IterativeAgentDecoding(5, 4)", False),
        ("IterativeAgentDecoding(6, 4)", True),
        ("MCTS(20, leaves=21)", True),
        ("ParticleGibbs(5, 4)", False),
        ("ParticleGibbs(5, 5)", True),
        ("AliveParticleFilter(4, max_proposals=10_001)", True),
        ("ParticleFilter(4, temperature=EntropicAnnealing(21))", True),
    ],
)
def test_searchers_have_a_size(text, large):
    if large:
        with pytest.raises(RefusedError, match="larger than this server allows: 20"):
            searcher_of(text, 20, "model")
    else:
        assert size(searcher_of(text, 20, "model")) == 20


def test_sizes():
    sizes = {SMC(7): 7, BeamSearch(3, 5): 15, MCTS(9): 9, ParticleGibbs(3, 4): 12, BestOfN(2): 2}
    assert {searcher: size(searcher) for searcher in sizes} == sizes


def test_a_searcher_that_needs_steps_and_has_none():
    with served({"quick": quick()}, verifier=None) as (_, api):
        said = refused(api, model="quick:SMC(4)")
        assert said["param"] == "ppl.searcher"
        assert "BestOfN" in said["message"]


# -- what is no request ----------------------------------------------------------------------------


def post(server, body, path="/chat/completions", **headers):
    kind = {"Content-Type": "application/json", **headers}
    return httpx.post(f"{server.url}{path}", content=body, headers=kind, timeout=300)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'"model"',
        b"\xff\xfe",
        b'{"model": "quick", "temperature": NaN}',
        b'{"seed": Infinity}',
        b'{"model": "quick", "temperature": 1e999}',
        b"[" * 4000,
        b'{"seed": ' + b"9" * 4400 + b"}",
    ],
)
def test_malformed_bodies(server, body):
    answer = post(server, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


def test_other_types_of_content_are_refused(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = post(server, b"{}", **{"Content-Type": kind})
        assert answer.status_code == 415
        assert answer.json()["error"]["code"] == "unsupported_media_type"


def test_large_bodies_are_refused(server):
    answer = post(server, b" " * 5001)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"

    def chunks():  # no length is told
        for _ in range(100):
            yield b" " * 1000

    answer = post(server, chunks())
    assert answer.status_code == 413
    assert post(server, b" " * 5000).json()["error"]["code"] == "invalid_json"


def test_paths_and_methods(server, api):
    root = server.url.removesuffix("/v1")
    assert got(f"{root}/nothing").json()["error"]["code"] == "not_found"
    answer = got(f"{server.url}/chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("nobody")
    assert caught.value.body["code"] == "model_not_found"
    said = refused(api, openai.NotFoundError, model="nobody:SMC(4)")
    assert (said["param"], said["code"]) == ("model", "model_not_found")
    assert "quick" in said["message"]
    said = post(server, b'{"messages": []}').json()["error"]
    assert said["param"] == "model"


@pytest.fixture
def hurried():
    """One that waits so shortly that connections would end between two requests of other tests."""
    limits = replace(LIMITS, body_seconds=1.5)
    with served({"quick": quick()}, limits=limits) as (server, _):
        yield server


def test_slow_clients_are_not_waited_for(hurried):
    begun = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    with connected(hurried) as head, connected(hurried) as body, connected(hurried) as silent:
        head.sendall(begun)
        body.sendall(begun + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")

        def refused():
            try:
                head.sendall(b"X")  # a byte now and then does not help
            except OSError:
                return True
            return time.sleep(0.05)

        assert until(refused)
        answer = b""
        while part := body.recv(10_000):  # it may come in parts; then the connection is closed
            answer += part
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "request_timeout"' in answer
        assert silent.recv(1000) == b""
    again = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(hurried) as second:  # nor does a first request that was whole
        second.sendall(again)
        assert second.recv(10_000).startswith(b"HTTP/1.1 200 ")
        second.sendall(begun)
        assert until(lambda: second.recv(1000) == b"")
    with connected(hurried) as endless:  # nor a body that nobody reads any more
        endless.sendall(
            begun + b"Content-Type: application/json\r\nContent-Length: 9999999\r\n\r\n"
        )
        assert endless.recv(10_000).startswith(b"HTTP/1.1 413 ")
        assert until(lambda: ended(endless))


def ended(bare):
    try:
        bare.sendall(b" ")
        return False
    except OSError:
        return True


def test_keys():
    with served({"quick": quick()}, api_key=["key-1", "key-2"]) as (server, api):
        for wrong in ("none", "key-", "key-11", "\u00e9"):
            answer = got(
                f"{server.url}/models", headers={"Authorization": f"Bearer {wrong}".encode()}
            )
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        basic = got(f"{server.url}/models", headers={"Authorization": "Basic key-1"})
        assert basic.status_code == got(f"{server.url}/models").status_code == 401
        assert refused(api, openai.AuthenticationError)["code"] == "invalid_api_key"
        for key in ("key-1", "key-2"):
            with client(server, key) as admitted:
                assert ask(admitted, "quick:SMC(2)").choices
                assert admitted.models.list().data
        assert got(f"{server.url.removesuffix('/v1')}/health").status_code == 200


# -- searches that fail ----------------------------------------------------------------------------


def test_a_search_without_survivors(api):
    said = refused(api, openai.UnprocessableEntityError, model="hopeless:SMC(3)")
    assert said["code"] == "all_particles_dead"
    assert "ok_0" in said["message"]


def test_a_program_without_an_answer(api):
    said = refused(api, openai.UnprocessableEntityError, **own(program="speechless"))
    assert said["code"] == "no_answer"


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_operators_programs_raise_is_for_the_log(api, caplog, stream):
    with caplog.at_level("ERROR", "ppl.serve"):
        said = refused(api, openai.UnprocessableEntityError, stream=stream, **own(program="broken"))
    assert said["code"] == "program"
    assert "swordfish" not in said["message"]
    assert "swordfish" in caplog.text
    name = said["message"].rpartition(" ")[2]
    assert name in caplog.text


def test_a_models_server_that_fails(api, caplog):
    said = refused(api, openai.InternalServerError, model="lost")
    assert said["code"] == "server"
    assert "10.0.0.1" not in said["message"]
    assert "10.0.0.1" in caplog.text


def test_errors_and_how_they_are_told():
    assert refusal(KeyError("x"), "r").status == 500
    assert "x" not in str(refusal(ValueError("secret x"), "r"))
    assert refusal(SearchStateError("actions='x': no site"), "r").status == 422
    told = RefusedError(429, "later", retry_after=3)
    assert told.headers == [("Retry-After", "3")]
    assert refusal(told, "r") is told


def test_after_all_of_it_the_server_still_serves(api):
    assert ask(api, "plain:SMC(4)", seed=1).choices
