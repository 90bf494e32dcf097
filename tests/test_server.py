"""A model behind a server obeys the laws of the same model in this process."""

from __future__ import annotations

import collections
import contextlib
import math
import re
import threading

import pyro
import pytest
from programs import TOY, VERIFIERS
from served import serve
from transformers import GenerationConfig

import ppl
from ppl.errors import ServerError
from ppl.language.cost import Account
from ppl.language.randomness import key
from ppl.lm.base import ContinueRequest, ScoreRequest
from ppl.lm.server import flight
from ppl.lm.server.model import ServerModel
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import GenRM, Judge, SelfEvaluation


@contextlib.contextmanager
def behind(lm=TOY, *, concurrency=8, api_key=None, **knobs):
    with serve(lm, **knobs) as served:
        model = ServerModel(
            served.url, tokenizer=lm.codec, concurrency=concurrency, backoff=0.001, api_key=api_key
        )
        served.asked.clear()
        yield served, model
        model.endpoint.close()


def draws(lm, distribution, count):
    requests = [ContinueRequest(lm, distribution.spec, key(0, i)) for i in range(count)]
    return [drawn for drawn in lm.sample_batch(requests) if drawn is not None]


def steps(lm):
    text = lm.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", lm(text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", VERIFIERS["last"](text), obs=True)
        if step.finished:
            break
    return text.text


@pytest.mark.parametrize("gives_end", [True, False])
def test_draws_follow_the_law_and_carry_their_log_probability(gives_end):
    with behind(gives_end=gives_end) as (_, lm):
        assert lm.client.abilities.gives_end is gives_end
        drawn = draws(lm, lm(lm.prompt("^"), until="ab", max_tokens=3), 400)
    exact = dict(TOY.support(TOY(TOY.prompt("^"), until="ab", max_tokens=3)))
    counts = collections.Counter(d.value for d in drawn)
    for d in drawn:
        assert d.log_prob == pytest.approx(exact[d.value], abs=1e-9)
    chi2 = sum((counts[v] - 400 * math.exp(p)) ** 2 / (400 * math.exp(p)) for v, p in exact.items())
    assert chi2 < len(exact) - 1 + 4 * math.sqrt(2 * (len(exact) - 1))


@pytest.mark.parametrize(
    "until", ["ab", ["b", "aa"], re.compile("ba|bb"), lambda text: text.count("a") == 2]
)
@pytest.mark.parametrize("stops", [True, False])
def test_a_step_is_cut_at_the_first_token_where_its_rule_holds(until, stops):
    with behind(stops=stops) as (_, lm):
        drawn = draws(lm, lm(lm.prompt("^"), until=until, max_tokens=20), 40)
    rule = ppl.StepRule.of(until)
    assert {d.value.reason for d in drawn} >= {"until", "end"}
    for d in drawn:
        assert not any(rule(TOY.codec.decode(d.value.tokens[:t])) for t in range(len(d.value.text)))
        assert (d.value.reason == "until") == rule(d.value.text)


def test_chunks_draw_with_seeds_of_their_own():
    # Without an end the step goes on for 80 tokens, in three chunks; one seed would repeat them.
    lm = ppl.TableLM({"a": 0.5, "b": 0.5}, symbols="^ab$", end="$", context_length=100)
    with behind(lm) as (served, model):
        (drawn,) = draws(model, model(model.prompt("^"), until=re.compile("c"), max_tokens=80), 1)
        assert [body["max_tokens"] for body in served.asked] == [32, 32, 16]
    assert len(drawn.value.tokens) == 80
    assert drawn.value.text[:32] != drawn.value.text[32:64]
    assert drawn.log_prob == pytest.approx(80 * math.log(0.5))


def test_posterior_is_the_local_one():
    exact = ppl.enumerate_program(steps, TOY)
    with behind() as (_, lm):
        runs = [SMC(24).run(steps, lm, seed=seed) for seed in range(16)]
    evidences = [math.exp(run.log_evidence) for run in runs]
    assert sum(evidences) / 16 == pytest.approx(math.exp(exact.log_evidence), rel=0.06)
    for text, probability in exact.marginal(lambda text: text).items():
        found = [e * run.marginal(str).get(text, 0) for e, run in zip(evidences, runs, strict=True)]
        assert sum(found) / sum(evidences) == pytest.approx(probability, abs=0.05)


def test_scores_are_the_local_ones():
    values = [(1,), (2, 1), (1, 1, 3), (3,), (3, 1), (0,), (1, 1, 1, 1)]
    with behind() as (_, lm):

        def scores(model):
            spec = model(model.prompt("^"), max_tokens=3, until="aab").spec
            given = [model.continuation(v) for v in values]
            return model.score_batch([ScoreRequest(model, spec, v) for v in given])

        assert scores(lm) == pytest.approx(scores(TOY), abs=1e-9)
        assert scores(lm)[-3:] == [-math.inf] * 3


def test_ledger_and_budget():
    with behind() as (served, lm):
        for tokens in (0, 1, 5, 9):
            posterior = BestOfN(6).run(steps, lm, seed=1, budget=ppl.Budget(tokens=tokens))
            assert posterior.cost.lm_tokens <= tokens
        whole = BestOfN(6).run(steps, lm, seed=1)
        assert whole.cost.lm_tokens >= 6
        # All but one token of each prompt are cached, says the server.
        assert whole.cost.prompt_tokens == whole.cost.lm_calls
        # Rows of one step share 7 tokens: no request may ask for more than what is left.
        ledger = Account(ppl.Budget(tokens=7))
        served.asked.clear()
        spec = lm(lm.prompt("^"), max_tokens=4).spec
        lm.sample_batch([ContinueRequest(lm, spec, key(i), ledger=ledger) for i in range(6)])
        assert 0 < ledger.cost.lm_tokens <= 7
        assert sorted(b["max_tokens"] for b in served.asked[:6]) == [1, 1, 1, 1, 1, 2]


def test_retries_and_refusals():
    with behind(api_key="secret-key") as (served, lm):
        served.failures = [503, 429]
        assert len(draws(lm, lm(lm.prompt("^"), max_tokens=1), 1)) == 1
        assert len(served.asked) == 3
        assert set(served.keys) == {"Bearer secret-key"}
        served.failures, served.asked[:] = [400], []
        with pytest.raises(ServerError, match="answered 400") as refused:
            draws(lm, lm(lm.prompt("^"), max_tokens=1), 1)
        assert len(served.asked) == 1  # a refusal is not repeated
        assert "secret" not in f"{refused.value} {lm!r}"
        served.failures = [500] * 5
        with pytest.raises(ServerError, match="failed 5 times"):
            draws(lm, lm(lm.prompt("^"), max_tokens=1), 1)
        served.failures = [400]
        with pytest.raises(ServerError, match="site 'step_0' of particle"):
            BestOfN(1).run(steps, lm, seed=0)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"gives_ids": False}, "return_token_ids"),
        ({"gives_log_probs": False}, "max-logprobs"),
        ({"lie": 0.5}, "cannot be weights"),
    ],
)
def test_start_up_probe(knobs, message):
    with pytest.raises(ServerError, match=message), behind(**knobs):
        pass


def test_nobody_there():
    with pytest.raises(ServerError, match="failed 2 times"):
        ServerModel("http://127.0.0.1:9/v1", tokenizer=TOY.codec, retries=1, backoff=0.001)
    with serve(TOY) as served, pytest.raises(ServerError, match="no model 'other'"):
        ServerModel(served.url, "other", tokenizer=TOY.codec)


def test_what_is_not_exact_is_refused_by_name():
    with behind(scores=False) as (_, lm):
        text = lm.prompt("^")
        with pytest.raises(ServerError, match="prompt_logprobs"):
            lm(text, max_tokens=1).log_prob(lm.continuation("a"))
        with pytest.raises(ServerError, match="processed_logprobs"):
            lm(text, max_tokens=1, temperature=0.5).sample()
        with pytest.raises(ServerError, match="allowed="):
            lm(text, max_tokens=1, allowed=[1]).sample()
        assert isinstance(lm, ppl.LanguageModel)
        assert not isinstance(lm, ppl.LogitsModel)  # it hands out no logits: no decoder to ask for
        greedy = draws(lm, lm(text, max_tokens=2, temperature=0), 1)[0]
        assert (greedy.value.text, greedy.log_prob) == ("aa", 0.0)


def test_warped_draws_of_a_server_that_reports_them():
    with behind(processed=True) as (_, lm):
        drawn = draws(lm, lm(lm.prompt("^"), max_tokens=2, temperature=0.5), 20)
        exact = dict(TOY.support(TOY(TOY.prompt("^"), max_tokens=2, temperature=0.5)))
        for d in drawn:
            assert d.log_prob == pytest.approx(exact[d.value], abs=1e-9)
        warped, plain = lm(lm.prompt("^"), max_tokens=2, top_k=2), lm(lm.prompt("^"), max_tokens=2)
        requests = [
            ContinueRequest(lm, warped.spec, 7, under=plain.spec),
            ContinueRequest(lm, plain.spec, 7, under=lm(lm.prompt("^"), max_tokens=1).spec),
        ]
        first, second = lm.sample_batch(requests)
        assert first.log_prob_under == pytest.approx(float(plain.log_prob(first.value)))
        assert second.log_prob_under == -math.inf or len(second.value.tokens) == 1
        with pytest.raises(ServerError, match="scores under the model itself"):
            warped.log_prob(first.value)
        with pytest.raises(ServerError, match="min_p"):
            lm(lm.prompt("^"), max_tokens=1, min_p=0.1, top_p=0.5).sample()


def test_generative_verifiers():
    tiny = ppl.load("tiny")
    with behind(tiny) as (_, lm):

        def probability(verifier, model):
            text = model.prompt("1 + 1 =") + model.continuation(" 2")
            return float(verifier(text).log_prob(True))

        def ask(model, text):
            return model.prompt(text.prompt + text.text + " Right?")

        words = {"1": 1.0, "2": 0.0}
        judges = [Judge(m, ask, verdicts=words) for m in (lm, tiny)]
        values = [probability(j, m) for j, m in zip(judges, (lm, tiny), strict=True)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)
        others = [
            GenRM(lm, rationales=2, ask=ask, max_tokens=4, verdicts=words),
            SelfEvaluation(lm, question=" Right?", verdicts=words),
        ]
        assert all(probability(verifier, lm) < 0 for verifier in others)


def test_close_and_cancel_leave_no_thread(monkeypatch):
    monkeypatch.setattr(flight, "_GRACE", 60.0)
    with behind() as (served, lm):
        before = set(threading.enumerate())  # with those of torch's compiler
        served.gate.clear()
        session = lm.session()
        spec = lm(lm.prompt("^"), max_tokens=1).spec
        ledger = Account()
        tickets = [
            session.submit(ContinueRequest(lm, spec, key(i), ledger=ledger)) for i in range(12)
        ]
        session.step()
        session.cancel(tickets[:10])
        served.gate.set()
        results = {}
        while session.running:
            results.update(session.step())
        assert set(results) == set(tickets[10:])
        assert session.joined == 8
        assert ledger.cost.lm_tokens == 10  # eight were on their way, two were never sent
        served.gate.clear()
        session.submit(ContinueRequest(lm, spec, 1, ledger=ledger))
        session.step()
        answered = threading.Timer(0.2, served.gate.set)
        answered.start()
        session.close()
        answered.join()
        assert ledger.cost.lm_tokens == 11  # paid for, though nobody took it
        more = set(threading.enumerate()) - before
        assert not [t for t in more if t.name.startswith("ThreadPoolExecutor")]
        assert len(more) <= 8  # the test server's own, one a connection


def test_a_posterior_is_saved_without_the_server(tmp_path):
    with behind() as (_, lm):
        posterior = BestOfN(3).run(steps, lm, seed=0)
    posterior.save(tmp_path / "p")
    assert ppl.Posterior.load(tmp_path / "p").samples[0].value == posterior.samples[0].value


@pytest.mark.parametrize("kind", ["sample_batch", "score_batch"])
def test_a_spent_time_budget_gives_up_what_the_server_still_works_on(kind):
    with behind() as (served, lm):
        served.gate.clear()
        relief = threading.Timer(20.0, served.gate.set)  # whoever waits for the answer has one
        relief.start()
        ledger = Account(ppl.Budget(seconds=0.2))
        spec = lm(lm.prompt("^"), max_tokens=1).spec
        request = {
            "sample_batch": ContinueRequest(lm, spec, 1, ledger=ledger),
            "score_batch": ScoreRequest(lm, spec, lm.continuation("a"), ledger=ledger),
        }[kind]
        assert getattr(lm, kind)([request]) == [None]
        assert not served.gate.is_set()
        cost = ledger.cost
        assert (cost.lm_tokens, cost.scored_tokens, cost.prompt_tokens, ledger.reserved) == (0,) * 4
        relief.cancel()
        served.gate.set()


def test_a_score_without_time_leaves_those_of_others_alone():
    with behind() as (served, lm):
        spec, late = lm(lm.prompt("^"), max_tokens=1).spec, Account(ppl.Budget(seconds=0.0))
        ledgers = [late, Account(), late, None]
        asked = [ScoreRequest(lm, spec, lm.continuation("a"), "x", each) for each in ledgers]
        exact = float(TOY(TOY.prompt("^"), max_tokens=1).log_prob(TOY.continuation("a")))
        served.asked.clear()
        assert lm.score_batch(asked) == [None, pytest.approx(exact), None, pytest.approx(exact)]
        assert len(served.asked) == 2  # nothing is sent for whoever has no time
        assert lm.score_batch([]) == []


def test_the_environment_does_not_redirect_requests(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with behind() as (_, lm):
        assert lm.client.abilities.scores


def test_load_takes_an_address(tmp_path):
    tiny = ppl.load("tiny")
    tiny.codec.tokenizer.save_pretrained(tmp_path)
    (end,) = tiny.codec.end_tokens
    GenerationConfig(eos_token_id=[end, end + 1]).save_pretrained(tmp_path)
    with serve(tiny) as served:
        lm = ppl.load(served.url, tokenizer=str(tmp_path))
        assert lm.codec.encode("1 + 1 =") == tiny.codec.encode("1 + 1 =")
        assert lm.codec.end_tokens == {end, end + 1}
        assert lm(lm.prompt("1 + 1 ="), max_tokens=3).sample().tokens
    with pytest.raises(ValueError, match="server decides"):
        ppl.load("http://127.0.0.1:9/v1", device="cpu")
    with pytest.raises(TypeError, match="settings of servers"):
        ppl.load("tiny", tokenizer="tiny")
