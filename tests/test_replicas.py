"""Several copies of a model in processes of their own: the same draws, whoever draws them."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import signal
import sys
import time
import types
from dataclasses import replace

import pyro
import pytest
import torch
from compiler import needs_compiler

import ppl
from ppl.errors import (
    ModelNotFoundError,
    NoAllowedTokenError,
    ObservationError,
    ProgramError,
    PromptError,
    StepNeverEndedError,
    UnsupportedModelError,
    WorkerError,
)
from ppl.language.cost import Account
from ppl.language.steps import StepRule
from ppl.lm import copies, loading
from ppl.lm.base import ContinueRequest, ScoreRequest, Spec
from ppl.lm.calling import Calling
from ppl.lm.origin import keeps_origin
from ppl.lm.replica import Ask, Copy, addressed, opened
from ppl.lm.sampling import Warp
from ppl.posterior.models import about, load_again
from ppl.runtime import replicas
from ppl.runtime.link import Link
from ppl.runtime.replicas import Replicas
from ppl.searchers import SMC, BestOfN
from ppl.study.sources import told

QUESTIONS = ("2 + 3 =", "4 - 1 + 2 =", "7 * 2 =", "9 - 4 =")


@pytest.fixture(scope="module")
def one():
    return ppl.load("tiny")


@pytest.fixture(scope="module")
def two(one):
    model = ppl.load("tiny", replicas=2)
    yield model
    model.stop()


def steps(lm, question, **settings):
    text = lm.chat(question)
    for t in range(3):
        step = pyro.sample(f"s{t}", lm(text, **{"until": "\n", "max_tokens": 9, **settings}))
        text = text + step
        pyro.factor(f"f{t}", -0.1 * len(step.tokens))
        if step.finished:
            break
    return text.text


def request(lm, tokens, key=0, *, rule=None, max_tokens=8, ledger=None, **others):
    warp = others.pop("warp", Warp())
    spec = Spec(tokens, rule or StepRule(), max_tokens, warp, others.pop("allowed", None))
    return ContinueRequest(lm, spec, 7919 * key + 1, ledger=ledger, **others)


def test_it_is_the_model_that_it_copies(one, two):
    assert isinstance(two, Replicas)
    assert two.devices == ("cpu", "cpu")
    about = ("name", "context_length", "parameters", "token_count", "kv")
    assert [getattr(two, a) for a in about] == [getattr(one, a) for a in about]
    assert two.codec == one.codec
    assert two.origin.settings == {"replicas": 2}
    with pytest.raises(UnsupportedModelError, match=r"adapter=folder, replicas="):
        two.with_adapter("writer-lora")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"until": re.compile("[0-9]{2}|\n"), "max_tokens": 40},
        {"until": lambda new: len(new) > 3},
        {"temperature": 0.7, "top_p": 0.9, "allowed": tuple(range(3, 200))},
    ],
    ids=["string", "regex", "function", "warps"],
)
def test_searches_give_what_they_give_over_one_model(one, two, settings):
    def program(lm, question):
        return steps(lm, question, **settings)

    found = {}
    for lm in (one, two):
        asked = [(lm, question) for question in QUESTIONS]
        found[lm] = SMC(6).run_many(program, asked, seed=5)
    for ours, theirs in zip(found[one], found[two], strict=True):
        assert [s.value for s in ours.samples] == [s.value for s in theirs.samples]
        assert theirs.log_evidence == pytest.approx(ours.log_evidence, abs=1e-5)
        assert theirs.cost.models["tiny"].draws == ours.cost.models["tiny"].draws
        if not callable(settings.get("until")):  # then a copy may draw some tokens too many
            assert theirs.cost.lm_tokens == ours.cost.lm_tokens


def test_what_is_drawn_with_other_keys_and_values_is_not_scored(one, two):
    (drawn,) = two.sample_batch([request(two, two.chat(QUESTIONS[0]).tokens)])
    other = ppl.load("tiny", kv="int8")
    with pytest.raises(ObservationError, match="drawn with kv='full'"):
        other(other.chat(QUESTIONS[0]), max_tokens=8).log_prob(drawn.value)


def test_scores_laws_and_other_laws_are_those_of_one_model(one, two):
    text = one.chat(QUESTIONS[0])
    value = one.continuation("5\n")
    for lm in (one, two):
        law = lm(text, until="\n")
        assert float(law.log_prob(value)) == pytest.approx(
            float(one(text, until="\n").log_prob(value)), abs=1e-5
        )
    impossible = two.continuation("5\n6")
    spec = two(text, until="\n").spec
    assert two.score_batch([ScoreRequest(two, spec, impossible)]) == [-math.inf]
    torch.testing.assert_close(two.next(text).log_probs, one.next(text).log_probs)
    under = Spec(text.tokens, StepRule(), 8, Warp(temperature=0.5), None)
    drawn = [
        lm.sample_batch([request(lm, text.tokens, 3, under=under, law=True)])[0]
        for lm in (one, two)
    ]
    assert drawn[0].value == drawn[1].value
    assert drawn[1].log_prob == pytest.approx(drawn[0].log_prob, abs=1e-5)
    assert drawn[1].log_prob_under == pytest.approx(drawn[0].log_prob_under, abs=1e-5)
    torch.testing.assert_close(drawn[1].logits, drawn[0].logits, atol=1e-4, rtol=0)


def test_a_question_goes_where_its_beginning_is_and_none_has_too_much(two):
    texts = [tuple(range(100 * q, 100 * q + 40)) for q in range(4) for _ in range(6)]
    places = two.places(texts, [0, 0])
    for q in range(4):
        assert len(set(places[6 * q : 6 * q + 6])) == 1
    assert sorted(places) == [0] * 12 + [1] * 12
    longer = [(*text, *range(20)) for text in texts]
    assert two.places(longer, [0, 0]) == places
    # All descend from one: those that are too many for a copy are moved.
    before = two.moved
    again = two.places([(*texts[0], 7)] * 24, [0, 0])
    assert again.count(places[0]) == 14  # 9/8 of a half, rounded up
    assert two.moved == before + 10
    assert two.places([texts[0]], [9, 9]) == [places[0]]


def test_a_budget_is_kept_and_one_that_is_large_changes_nothing(one, two):
    free = BestOfN(8).run(steps, two, QUESTIONS[1], seed=1)
    large = BestOfN(8).run(steps, two, QUESTIONS[1], seed=1, budget=ppl.Budget(tokens=10_000))
    assert [s.value for s in free.samples] == [s.value for s in large.samples]
    small = BestOfN(8).run(steps, two, QUESTIONS[1], seed=1, budget=ppl.Budget(tokens=25))
    assert 0 < small.cost.lm_tokens <= 25
    late = BestOfN(64).run(steps, two, QUESTIONS[1], seed=1, budget=ppl.Budget(seconds=0.0))
    assert late.cost.lm_tokens == 0


def test_who_needs_more_than_was_set_aside_goes_on_where_it_was(one, two):
    """A tight budget hands out tokens bit by bit: the draw is the same."""
    text = one.chat(QUESTIONS[2]).tokens
    (whole,) = one.sample_batch([request(one, text, 1, max_tokens=30, rule=StepRule(("~",)))])
    session = two.session()
    most = []
    ask = two.ask

    def some(number, kind, asked):
        most.append(len(asked.new))
        return ask(number, kind, replace(asked, most=min(asked.most, 2)))

    two.ask = some
    try:
        account = Account()
        ticket = session.submit(
            request(two, text, 1, max_tokens=30, rule=StepRule(("~",)), ledger=account)
        )
        answers = {}
        while session.running:
            answers |= session.step()
    finally:
        del two.ask
        session.close()
    assert answers[ticket].value == whole.value
    assert answers[ticket].log_prob == pytest.approx(whole.log_prob, abs=1e-5)
    assert most == list(range(0, len(whole.value.tokens), 2))
    assert account.cost.lm_tokens == len(whole.value.tokens)
    assert account.cost.prompt_tokens + account.cost.reused_tokens == len(text)  # booked once


def test_copies_forget_what_they_computed(two):
    text, paid = (*two.chat(QUESTIONS[2]).tokens, 77), []
    for forgets in (True, False, True):
        if forgets:
            two.fresh()
        account = Account()
        two.sample_batch([request(two, text, max_tokens=2, ledger=account)])
        paid.append(account.cost.prompt_tokens)
    assert paid == [len(text), 0, len(text)]


def test_what_nobody_waits_for_is_left_and_booked(two):
    account = Account()
    session = two.session()
    text = two.chat(QUESTIONS[0]).tokens
    endless = [
        request(two, text, i, max_tokens=900, allowed=(40, 41), ledger=account) for i in range(3)
    ]
    tickets = [session.submit(asked) for asked in endless]
    session.step()
    session.cancel(tickets[:2])
    deadline = time.monotonic() + 60
    while len(session.in_flight) > 1 and time.monotonic() < deadline:
        assert not session.step()
    assert len(session.in_flight) == 1
    session.close()
    assert not session.running
    assert 0 < account.cost.lm_tokens < 2700
    assert account.reserved == 0


def test_errors_of_a_request_are_its_own(two):
    session = two.session()
    text = two.chat(QUESTIONS[0]).tokens
    none = torch.zeros(two.token_count, dtype=torch.bool)
    good = session.submit(request(two, text, 1))
    bad = session.submit(request(two, text, 2, allowed=none))
    worse = session.submit(request(two, (10**6,), 3))
    full = (40,) * (two.context_length - 5)
    long = session.submit(request(two, full, 4, max_tokens=None, allowed=(40,)))
    answers = {}
    while session.running:
        answers |= session.step()
    session.close()
    assert isinstance(answers[bad], NoAllowedTokenError)
    assert isinstance(answers[worse], PromptError)
    assert isinstance(answers[long], StepNeverEndedError)
    (alone,) = two.sample_batch([request(two, text, 1)])
    assert answers[good].value == alone.value
    with pytest.raises(ProgramError, match=r"cannot be sent to the processes.*without replicas="):
        two.sample_batch([request(two, text, allowed=lambda new: (5,))])
    with pytest.raises(PromptError, match="token ids"):
        list(two.logits_along([(10**6,)], [(5,)], [None]))


def dying(model, number, asked, times):
    """Answers to a request, whose copy is killed when it has something to do, so many times."""
    session = model.session()
    session.submit(asked)
    answers = {}
    while session.running:
        answers |= session.step(0.0 if times else 0.1)
        if times and session.in_flight and model._links[number].alive:
            times -= 1
            process = model.link(number).process.process
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    session.close()
    return answers


def test_what_a_copy_that_dies_was_asked_is_asked_again_once(two):
    text = two.chat(QUESTIONS[3]).tokens
    number = two.places([text], [0, 0])[0]
    account = Account()
    asked = request(two, text, 2, max_tokens=400, allowed=(40, 41, 42), ledger=account)
    (whole,) = two.sample_batch([replace(asked, ledger=None)])
    said = rf"replica {number + 1} of 2 of tiny died .*kv_bytes=.*asked again"
    with pytest.warns(UserWarning, match=said):
        (drawn,) = dying(two, number, asked, 1).values()
    assert drawn.value == whole.value
    assert drawn.log_prob == pytest.approx(whole.log_prob, abs=1e-5)
    assert (account.cost.lm_tokens, account.reserved) == (400, 0)
    with pytest.warns(UserWarning, match=said):
        (error,) = dying(two, number, asked, 2).values()
    assert isinstance(error, WorkerError)
    assert "kv_bytes=" in str(error)
    assert account.reserved == 0
    (after,) = two.sample_batch([replace(asked, ledger=None)])
    assert after.value == whole.value


def test_a_copy_whose_start_is_interrupted_is_not_waited_for(two, monkeypatch):
    text = two.chat(QUESTIONS[3]).tokens
    number = two.places([text], [0, 0])[0]
    (before,) = two.sample_batch([request(two, text, 1)])
    process = two.link(number).process.process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    def interrupted(link):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(Link, "about", interrupted)
        with pytest.raises(KeyboardInterrupt):
            two.link(number)
    session = two.session()
    session.submit(request(two, text, 1))
    answers = {}
    for _ in range(300):
        if session.running:
            answers |= session.step()
    session.close()
    (after,) = answers.values()
    assert after.value == before.value


def test_what_no_process_can_read_is_refused_by_itself(two, monkeypatch):
    """A function of the script that runs is sent by its name, and is not found there."""
    script = types.ModuleType("of_the_script_alone")
    exec("def five(new):\n    return (5,)", vars(script))
    monkeypatch.setitem(sys.modules, script.__name__, script)
    text = two.chat(QUESTIONS[0]).tokens
    good = request(two, text, 1)
    bad = request(two, text, 2, allowed=vars(script)["five"], label="site 's0'")
    session = two.session()
    tickets = [session.submit(asked) for asked in (good, bad)]
    answers = {}
    while session.running:
        answers |= session.step()
    session.close()
    said = r"site 's0': .*cannot read.*of_the_script_alone.*a module that can be imported"
    assert isinstance(answers[tickets[1]], ProgramError)
    assert re.search(said, str(answers[tickets[1]]))
    assert answers[tickets[0]].value == two.sample_batch([good])[0].value


# -- without processes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "settings", "said"),
    [
        ("tiny", {"replicas": 0}, "replicas=0"),
        ("tiny", {"replicas": []}, "a number, or names of devices"),
        ("tiny", {"replicas": ["nope"]}, "device='nope'"),
        ("tiny", {"replicas": ["cpu"], "device": "cpu"}, "given both"),
        ("http://127.0.0.1:9/v1", {"replicas": 2}, "replicas= are for models in this process"),
    ],
)
def test_replicas_that_there_cannot_be(source, settings, said):
    with pytest.raises(ValueError, match=said):
        ppl.load(source, **settings)


def test_copies_have_gpus_of_their_own(monkeypatch):
    made = []

    def loader(source, devices, **settings):
        made.append(devices)
        return ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$")

    monkeypatch.setattr(loading, "device_here", lambda d: torch.device(d or "cuda"))
    monkeypatch.setattr(copies, "RUN", [loader])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ppl.load("tiny", replicas=2)
    ppl.load("tiny", replicas=["cuda:1", "cpu"])
    ppl.load("tiny", replicas=3, device_map="cpu")
    assert made == [["cuda:0", "cuda:1"], ["cuda:1", "cpu"], ["cpu"] * 3]
    for settings in ({"replicas": 3}, {"replicas": 2, "device": "cuda:0"}):
        with pytest.raises(ValueError, match=r"here are 2 GPUs.*\['cuda:0', 'cuda:1'\]"):
            ppl.load("tiny", **settings)


def test_devices_of_copies_are_kept_in_files_and_loaded_again(monkeypatch):
    made = []

    def loader(source, devices, **settings):
        made.append((devices, settings["dtype"]))
        return ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$")

    monkeypatch.setattr(copies, "RUN", [loader])
    devices = ["cpu", "cpu"]
    lm = ppl.load("tiny", replicas=devices, dtype=torch.float32)
    devices.append("cpu")  # what was loaded stays what it was
    assert lm.origin.withheld == ()
    row = json.loads(json.dumps(about(lm)))
    load_again([row], {})
    assert made == [(["cpu", "cpu"], torch.float32)] * 2
    assert told(lm)["replicas"] == ["cpu", "cpu"]  # as a study's file names them
    strange = keeps_origin(lambda source, **_: lm)("x", some=["cpu", object()])
    assert (strange.origin.settings, strange.origin.withheld) == ({}, ("some",))


def test_processors_are_divided_node_by_node(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(replicas, "_node_of", lambda cpu: cpu % 2)
    assert replicas._divided(["cpu", "cpu"]) == [{0, 2, 4, 6}, {1, 3, 5, 7}]
    assert replicas._divided(["cuda:0", "cpu"]) == [set(), set(range(8))]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert replicas._divided(["cpu", "cpu"]) == [{3}, {3}]
    monkeypatch.undo()
    assert replicas._node_of(0) == 0


def asked(lm, ticket, tokens, key=5, **others):
    spec = Spec(tokens, others.pop("rule", StepRule()), None, Warp(), others.pop("allowed", None))
    return Ask(ticket, spec, "here", key, **{"most": 6, **others})


def run(copy, answers):
    while copy.busy:
        copy.work()
    return answers


def test_a_copy_goes_on_after_what_was_drawn_and_leaves_half_way(one):
    answers = {}
    copy = Copy(one, answers.update, Calling())
    text = one.chat(QUESTIONS[0]).tokens
    copy.told([("draw", asked(one, 1, text, allowed=(40, 41, 42)))])
    whole = run(copy, answers)[1]
    assert len(whole.tokens) == 6
    copy.told([("draw", asked(one, 2, text, allowed=(40, 41, 42), new=whole.tokens[:2], most=4))])
    assert run(copy, answers)[2].tokens == whole.tokens[2:]
    assert answers[2].log_probs == pytest.approx(whole.log_probs[2:], abs=1e-6)
    # A stop string may begin in what was drawn before.
    first, second = (one.continuation(digit).tokens[0] for digit in "12")
    rule = StepRule(("12",))
    copy.told([("draw", asked(one, 8, text, rule=rule, allowed=(second,), new=(first,)))])
    assert run(copy, answers)[8].tokens == (second,)
    copy.told([("draw", asked(one, 3, text, allowed=(40, 41, 42)))])
    copy.work()
    copy.told([("leave", [3, 99])])
    assert answers[3].tokens == whole.tokens[:1]
    assert 99 not in answers
    assert answers[3].costs["lm_tokens"] == 1
    copy.work()
    assert not copy.busy


def test_a_failing_row_is_found_and_the_others_draw_what_they_would_have_drawn(one, monkeypatch):
    answers = {}
    copy = Copy(one, answers.update, Calling())
    text = one.chat(QUESTIONS[0]).tokens
    copy.told([("draw", asked(one, 1, text))])
    alone = run(copy, answers)[1]
    nothing = torch.zeros(one.token_count, dtype=torch.bool)
    copy.told([("draw", asked(one, 2, text)), ("draw", asked(one, 3, text, allowed=nothing))])
    run(copy, answers)
    assert answers[2].tokens == alone.tokens
    assert isinstance(answers[3].error, NoAllowedTokenError)
    with monkeypatch.context() as broken:
        broken.setattr("ppl.lm.replica.Drawing.advance", lambda _: 1 / 0)
        copy.told([("draw", asked(one, 4, text))])
        assert "raised ZeroDivisionError" in str(run(copy, answers)[4].error)
    copy.told([
        ("score", asked(one, 5, text, value=one.continuation("5\n").tokens)),
        ("score", asked(one, 6, (10**6,), value=(5,))),
        ("logits", (7, (10**6,), (5,))),
    ])  # fmt: skip
    assert answers[5].score == pytest.approx(
        float(one(one.chat(QUESTIONS[0]), until="\n").log_prob(one.continuation("5\n"))), abs=1e-5
    )
    assert isinstance(answers[6].error, PromptError)
    assert isinstance(answers[7].error, PromptError)


def test_messages_are_lines():
    line = addressed("draw", 1, "here", {"text": "a\nb", "pattern": re.compile("x\n")})
    assert "\n" not in line
    assert opened(line)[1]["pattern"].pattern == "x\n"


def test_a_tokenizer_that_cannot_be_sent_is_named():
    link = object.__new__(Link)
    link.name, link.process = "replica 1 of 1 of own", types.SimpleNamespace()
    link.process.hear = lambda limit, doing: base64.b64encode(b"cnowhere_at_all\nTokenizer\n.")
    with pytest.raises(UnsupportedModelError, match=r"of own .*nowhere_at_all.*without replicas="):
        link.about()


@needs_compiler
def test_what_loading_warns_of_is_heard_here(monkeypatch):
    monkeypatch.setenv("CXX", "g+++")
    with pytest.warns(UserWarning, match=r"tiny: steps run uncompiled.*C\+\+ compiler"):
        model = ppl.load("tiny", replicas=1, compile="auto")
    model.stop()


def test_what_loading_raises_is_raised_here_and_no_process_is_left():
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        ppl.load("/nowhere/at-all", replicas=1)
