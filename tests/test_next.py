"""`lm.next(text)`: the law of the next token, drawn and read in one pass."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl
from ppl import errors
from ppl.lm.base import LanguageModel
from ppl.searchers import SMC, BestOfN, ParticleGibbs

P = {"a": 0.5, "b": 0.3, "$": 0.2}


def table() -> ppl.TableLM:
    """After b, a is rare; with a counter of its own."""
    return ppl.TableLM(
        lambda prefix: {"a": 0.1, "b": 0.6, "$": 0.3} if prefix.endswith("b") else P,
        symbols="^ab$",
    )


def entropy(p) -> float:
    return -sum(x * math.log(x) for x in p if x)


def test_laws_have_no_attribute_that_is_none_until_a_pass():
    """`.logits` of a Categorical is a tensor; ours are read as `log_probs` and `probs`."""
    lm = table()
    for law in (lm.next(lm.prompt("^")), lm(lm.prompt("^"))):
        assert not hasattr(law, "logits")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("foo", "it takes temperature, top_p, top_k, min_p, allowed"),
        ("until", r"here it is lm\(text, until=...\)"),
        ("max_tokens", r"here it is lm\(text, max_tokens=...\)"),
        ("logit_bias", "here it is allowed="),
    ],
)
def test_what_it_does_not_take_is_answered_with_what_it_does(setting, said):
    lm = table()
    with pytest.raises(
        TypeError, match=rf"lm.next\(text, ...\) has no argument '{setting}'.*{said}"
    ):
        lm.next(lm.prompt("^"), **{setting: 1})


def test_what_is_read_is_the_law():
    lm = table()
    law = lm.next(lm.prompt("^"))
    assert law.log_probs.exp().tolist() == pytest.approx([0, 0.5, 0.3, 0.2])
    assert law.probs.shape == (4,)
    assert law.entropy == pytest.approx(entropy(P.values()))
    assert law.margin == pytest.approx(0.2)
    assert law.log_mass == 0
    assert [c.text for c in law.enumerate_support()] == ["a", "b", ""]
    assert [c.finished for c in law.enumerate_support()] == [False, False, True]
    assert lm.tokens_computed == 1
    assert float(law.log_prob(lm.continuation("b"))) == pytest.approx(math.log(0.3))
    assert float(law.log_prob(lm.continuation("ab"))) == -math.inf
    cut = lm.next(lm.prompt("^"), temperature=0.5, top_k=2)
    assert cut.probs.tolist() == pytest.approx([0, 25 / 34, 9 / 34, 0])
    masked = lm.next(lm.prompt("^"), allowed=[1, 3])
    assert masked.probs.tolist() == pytest.approx([0, 5 / 7, 0, 2 / 7])
    assert masked.log_mass == pytest.approx(math.log(0.7))
    assert lm.next(lm.prompt("^"), allowed=[1], temperature=0).entropy == 0
    for bad, error in (
        ({"temperature": -1}, ValueError),
        ({"allowed": []}, errors.NoAllowedTokenError),
        ({"max_tokens": 2}, TypeError),
    ):
        with pytest.raises(error):
            lm.next(lm.prompt("^"), **bad).log_probs  # noqa: B018
    with pytest.raises(TypeError, match=r"lm\.prompt"):
        lm.next("^")


def test_a_real_models_law():
    lm = ppl.load("tiny")
    text = lm.chat("Calculate 4 - 9 + 6.")
    row = next(iter(lm.logits_along([text.tokens], [(0,)], [None])))[0]
    law = lm.next(text)
    assert torch.allclose(law.log_probs, torch.log_softmax(row.float(), 0), atol=1e-6)
    best = int(row.argmax())
    assert float(law.log_prob(lm.continuation((best,)))) == pytest.approx(
        float(law.log_probs[best]), abs=1e-5
    )


def letters(lm, first, n=4, temperature=1.0):
    """Draws token by token; reads the law before or after each draw, or not at all."""
    text, read = lm.prompt("^"), []
    for t in range(n):
        law = lm.next(text, temperature=temperature)
        if first == "read":
            read.append(law.entropy)
        token = pyro.sample(f"token_{t}", law)
        if first == "draw":
            read.append(law.entropy)
        text = text + token
        if token.finished:
            break
    return text.text, tuple(read)


def plain(lm, n=4, temperature=1.0):
    text = lm.prompt("^")
    for t in range(n):
        token = pyro.sample(f"token_{t}", lm(text, max_tokens=1, temperature=temperature))
        text = text + token
        if token.finished:
            break
    return text.text


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("first", ["read", "draw", "neither"])
def test_reading_changes_no_draw_and_costs_no_pass(first, temperature):
    lm, other = table(), table()
    found = BestOfN(30).run(letters, lm, first, temperature=temperature, seed=3)
    expected = BestOfN(30).run(plain, other, temperature=temperature, seed=3)
    assert [s.value[0] for s in found.samples] == [s.value for s in expected.samples]
    assert lm.tokens_computed == other.tokens_computed == found.cost.lm_tokens
    assert found.cost.lm_tokens == expected.cost.lm_tokens
    assert [s.log_joint for s in found.samples] == pytest.approx(
        [s.log_joint for s in expected.samples]
    )
    if first != "neither":
        sharp = 1 / temperature if temperature else None
        law = [p**sharp for p in P.values()] if sharp else [1.0]
        assert found.samples[0].value[1][0] == pytest.approx(entropy(p / sum(law) for p in law))


def lipogram(lm, n=3):
    """No b, token by token: the model's law given that."""
    text = lm.prompt("^")
    for t in range(n):
        law = lm.next(text, allowed=[1, 3])
        token = pyro.sample(f"token_{t}", law)
        text = text + token
        pyro.factor(f"mass_{t}", torch.tensor(law.log_mass))
        if token.finished:
            break
    return text.text


def required(lm, n=3):
    """The same by rejection."""
    value = plain(lm, n)
    ppl.condition("b" not in value)
    return value


def test_masked_draws_with_their_mass_are_the_conditioned_law():
    lm = table()
    exact, by_rejection = (ppl.enumerate_program(p, lm) for p in (lipogram, required))
    assert exact.log_evidence == pytest.approx(by_rejection.log_evidence)
    for value, p in by_rejection.marginal().items():
        assert exact.marginal()[value] == pytest.approx(p)
    found = SMC(2000, 1.0).run(lipogram, lm, seed=0)
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=0.03)
    for value, p in exact.marginal().items():
        assert found.marginal()[value] == pytest.approx(p, abs=0.04)


def looking(lm, n=3):
    """Weighs by the entropy, and by the whole law, before it draws."""
    text = lm.prompt("^")
    for t in range(n):
        law = lm.next(text)
        pyro.factor(f"calm_{t}", torch.tensor(-law.entropy))
        pyro.factor(f"taste_{t}", law.log_probs[1] * 0.5)
        token = pyro.sample(f"token_{t}", law)
        text = text + token
        if token.finished:
            break
    return text.text


@pytest.mark.parametrize("program", [lipogram, looking])
def test_forks_ask_no_model_for_what_was_read(program):
    lm = table()
    tree = ppl.Tree(program, (lm,), seed=1)
    nodes = tree.expand([tree.root], 6)
    if program is looking:  # it reads twice before it draws, with a checkpoint between
        nodes = tree.expand(tree.expand(nodes))
    node = next(n for n in nodes if n.open)
    tree.expand([node])
    before = lm.tokens_computed
    children = tree.expand([node], 5)
    # For each child the token that it draws, or the law that it looks at: nothing of its past.
    assert 0 < lm.tokens_computed - before <= 10
    forced = tree.force([node] * 5, children)
    assert [c.log_increment for c in forced] == pytest.approx([c.log_increment for c in children])
    tree.close()


def test_searches_agree_with_enumeration_whatever_is_read():
    lm = table()
    exact = ppl.enumerate_program(looking, lm)
    found = SMC(1000, 1.0).run(looking, lm, seed=2)
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=0.04)
    chain = ParticleGibbs(4, sweeps=150, ancestor_sampling=True).run(looking, lm, seed=0)
    for value, p in exact.marginal().items():
        assert found.marginal().get(value, 0.0) == pytest.approx(p, abs=0.07)
        assert chain.marginal().get(value, 0.0) == pytest.approx(p, abs=0.12)


def test_observed_tokens_are_scored_by_the_law_that_was_read():
    lm = table()

    def given():
        text = lm.prompt("^")
        total = 0.0
        for t, letter in enumerate("abb"):
            law = lm.next(text)
            total += law.entropy
            token = pyro.sample(f"token_{t}", law, obs=lm.continuation(letter))
            text = text + token
        pyro.sample("x", dist.Bernoulli(0.5))
        return total

    posterior = BestOfN(2).run(given, seed=0)
    assert posterior.log_evidence == pytest.approx(math.log(0.5 * 0.3 * 0.6))
    assert lm.tokens_computed == 6


def test_what_was_read_is_stored(tmp_path):
    lm = table()
    search = SMC(4, 1.0).begin(looking, lm, seed=0)
    search.step()
    search.step()
    search.posterior().save(tmp_path / "p.ppl")
    again = ppl.Posterior.load(tmp_path / "p.ppl")
    mine, theirs = (p.samples[0].records for p in (search.posterior(), again))
    assert [r.name for r in mine] == [r.name for r in theirs]
    assert mine[0].value == theirs[0].value
    assert torch.equal(mine[2].value, theirs[2].value)


def test_guides_propose_by_a_law_and_read_it():
    lm = table()

    def model():
        token = pyro.sample("token", lm.next(lm.prompt("^")))
        ppl.condition(token.text != "b")
        return token.text

    def guide():
        law = lm.next(lm.prompt("^"), allowed=[1, 3])
        assert law.log_mass == pytest.approx(math.log(0.7))
        pyro.sample("token", law)

    found = BestOfN(50).run(model, guide=guide, seed=0)
    assert found.log_evidence == pytest.approx(math.log(0.7))


def test_models_without_logits_are_named():
    class Remote(LanguageModel):
        name, context_length = "remote", 8
        codec = table().codec

        def session(self):
            raise NotImplementedError

        def score_batch(self, requests):
            raise NotImplementedError

    with pytest.raises(errors.ProgramError, match=r"remote .*no logits"):
        Remote().next(Remote().prompt("^"))
