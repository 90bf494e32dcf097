"""What a particle needs of a site: a new kind, language models, forced segments."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, toy
from pyro import poutine

import ppl
from ppl import errors
from ppl.language.site import Draw, Site, Visit
from ppl.lm.base import ContinueRequest, ScoreRequest
from ppl.runtime.particle import Particle, Segment
from ppl.searchers import SMC, BestOfN

# -- a new kind of site, of which the runtime knows nothing ---------------------------------------


class Letter(Site, dist.TorchDistribution):
    """The next letter that a language model writes, as a string; "$" for the end."""

    arg_constraints = {}  # noqa: RUF012
    asked = 0

    def __init__(self, text: ppl.Text) -> None:
        self.law = TOY(text, max_tokens=1)
        super().__init__(validate_args=False)

    def draw(self, visit: Visit, msg, key: int, target=None) -> Draw:
        Letter.asked += 1
        spec = self.law.spec
        drawn = visit.ask(ContinueRequest(TOY, spec, key, visit.label, visit.ledger))
        return drawn.value.text or "$", drawn.log_prob, None

    def score(self, visit: Visit, msg, value: str) -> float:
        if not isinstance(value, str):
            raise errors.ObservationError(f"{visit.label}: a letter is a string, not {value!r}")
        Letter.asked += 1
        given = TOY.continuation("" if value == "$" else value, finished=value == "$")
        return visit.ask(ScoreRequest(TOY, self.law.spec, given, visit.label, visit.ledger))

    def support(self):
        return [(value.text or "$", log_prob) for value, log_prob in self.law.support()]

    def log_prob(self, value: str) -> torch.Tensor:
        return torch.tensor(dict(self.support()).get(value, -math.inf))

    @property
    def fingerprint(self):
        return ("letter", *self.law.fingerprint)


def spelling(last: str | None = None) -> str:
    text = TOY.prompt("^")
    for t in range(2):
        letter = pyro.sample(f"letter_{t}", Letter(text))
        if letter == "$":
            break
        text = text + letter
        pyro.factor(f"taste_{t}", torch.tensor(0.5 if letter == "a" else 0.0))
    if last is not None:
        with poutine.scale(scale=0.5):
            pyro.sample("last", Letter(text), obs=last)
    return text.text


def test_a_new_kind_of_site_is_drawn_observed_enumerated_and_searched():
    exact = ppl.enumerate_program(spelling, "b")
    a, b = 0.5 * math.exp(0.5), 0.3
    by_hand = (a + b) * (a + b + 0.2) + 0.2
    assert math.exp(exact.log_evidence) == pytest.approx(by_hand * math.sqrt(0.3))
    posterior = SMC(3000, 1.0).run(spelling, "b", seed=1)
    assert posterior.log_evidence == pytest.approx(exact.log_evidence, abs=0.04)
    for value, p in exact.marginal().items():
        assert posterior.marginal()[value] == pytest.approx(p, abs=0.04)
    densities = dict(zip(exact.values, exact.log_weights, strict=True))
    # The values "" and "a" end in different ways; the others do not.
    assert all(
        s.log_joint == pytest.approx(densities[s.value], abs=1e-5)
        for s in posterior.samples
        if len(s.value) == 2
    )


def test_forks_of_a_new_kind_of_site_ask_nothing_again():
    tree = ppl.Tree(spelling, seed=3)
    node = next(n for n in tree.expand([tree.root], 5) if n.open)
    tree.expand([node])  # uses up the particle that stands there
    before = Letter.asked
    children = tree.expand([node], 4)
    assert Letter.asked == before + 4
    assert all(c.history[0].value == node.history[0].value for c in children)
    forced = tree.force([node] * 4, children)
    assert [c.log_increment for c in forced] == pytest.approx([c.log_increment for c in children])


def test_a_new_kind_of_site_is_guided_and_replay_is_checked():
    def guide():
        pyro.sample("letter_0", dist_of_strings("a"))

    samples = BestOfN(5).run(spelling, guide=guide, seed=0).samples
    assert {s.value[0] for s in samples} == {"a"}
    assert all(s.records[0].log_ratio == pytest.approx(math.log(0.5)) for s in samples)
    calls = [0]

    def changing():
        calls[0] += 1
        pyro.sample("x", Letter(TOY.prompt("^" if calls[0] <= 2 else "^a")))
        ppl.condition(True)
        pyro.sample("y", Letter(TOY.prompt("^")))
        pyro.factor("end", torch.tensor(0.0))

    tree = ppl.Tree(changing, seed=0)
    node = tree.expand([tree.root])[0]
    with pytest.raises(errors.NonDeterministicProgramError, match=r"'x'.*another distribution"):
        tree.expand([node], 3)


class dist_of_strings(Site, dist.TorchDistribution):
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, value: str) -> None:
        self.value = value
        super().__init__(validate_args=False)

    def draw(self, visit, msg, key, target=None):
        return self.value, 0.0, None

    def log_prob(self, value):
        return torch.tensor(0.0 if value == self.value else -math.inf)


def test_what_a_site_cannot_do_is_refused_by_name():
    class Sealed(Site, dist.TorchDistribution):
        arg_constraints = {}  # noqa: RUF012

        def log_prob(self, value):
            return torch.tensor(0.0)

    def program(obs=None):
        pyro.sample("x", Sealed(validate_args=False), obs=obs)

    with pytest.raises(errors.PPLError, match=r"'x'.*Sealed"):
        ppl.enumerate_program(program)
    with pytest.raises(errors.ProgramError, match=r"Sealed cannot be drawn.*site 'x'"):
        BestOfN(1).run(program)
    with pytest.raises(errors.ProgramError, match=r"Sealed cannot score.*site 'x'"):
        BestOfN(1).run(program, 3)
    with pytest.raises(errors.ObservationError, match="site 'last' of particle 1: a letter"):
        BestOfN(1).run(lambda: pyro.sample("last", Letter(TOY.prompt("^")), obs=3))


def test_plain_choices_are_decidable_and_others_only_if_they_say_so():
    tree = ppl.Tree(spelling, seed=0)
    asked = []
    tree.expand([tree.root], decide=lambda name, fn: asked.append(name))
    assert asked == []

    class Open(Letter):
        decidable = True

    node = ppl.Tree(lambda: pyro.sample("x", Open(TOY.prompt("^"))), seed=0)
    child = node.expand([node.root], decide=lambda name, fn: "b")[0]
    assert child.result == "b"
    assert child.log_weight == pytest.approx(math.log(0.3))


def test_segments_are_values():
    segment = Segment(greedy=True)
    with pytest.raises(AttributeError):
        segment.greedy = False
    tree = ppl.Tree(toy, ("prod",), seed=0)
    particle = tree._particle(tree.root, 1, segment)
    assert isinstance(particle, Particle)
    assert particle.greedy
    particle.begin(2)
    assert not particle.greedy


# -- language models ------------------------------------------------------------------------------


def by_prefix(prefix: str) -> dict[str, float]:
    return {"a": 0.2, "b": 0.8} if prefix.endswith("a") else {"a": 0.7, "b": 0.3}


PREFIXED = ppl.TableLM(by_prefix, symbols="^ab$", end="$")


@pytest.mark.parametrize("prompt", ["^", "^a"])
def test_a_guide_of_the_same_model_on_another_prompt(prompt):
    """Its draw comes with no number for the model's text, unless it is the same text."""

    def model() -> str:
        return pyro.sample("s", PREFIXED(PREFIXED.prompt("^"), max_tokens=1)).text

    def guide() -> None:
        pyro.sample("s", PREFIXED(PREFIXED.prompt(prompt), max_tokens=1))

    p, q = by_prefix("^"), by_prefix(prompt)
    for s in BestOfN(20).run(model, guide=guide, seed=0).samples:
        assert s.records[0].prior() == pytest.approx(math.log(p[s.value]))
        assert s.records[0].proposal() == pytest.approx(math.log(q[s.value]))
        assert s.log_weight == pytest.approx(math.log(p[s.value] / q[s.value]))


def test_a_callable_rule_is_asked_again_at_every_token_that_is_scored():
    def rule(new: tuple[int, ...]) -> set[int]:
        return {1, 2} if not new else {3 - new[-1], 3}  # after a only b or the end

    law = TOY(TOY.prompt("^"), max_tokens=3, allowed=rule)
    for string, expected in (
        ("aba", 0.5 / 0.8 * 0.3 / 0.5 * 0.5 / 0.7),
        ("bab", 0.3 / 0.8 * 0.5 / 0.7 * 0.3 / 0.5),
    ):
        value = ppl.Continuation(TOY.encode(string), string, "length")
        assert math.exp(float(law.log_prob(value))) == pytest.approx(expected)
        observed = BestOfN(1).run(lambda v=value: pyro.sample("s", law, obs=v))
        assert math.exp(observed.log_evidence) == pytest.approx(expected)
        assert math.exp(dict(law.support())[value]) == pytest.approx(expected)
    impossible = ppl.Continuation(TOY.encode("aab"), "aab", "length")
    assert float(law.log_prob(impossible)) == -math.inf


# -- forced segments ------------------------------------------------------------------------------


def forked() -> str:
    """After 0 one choice more, after 1 and 3 two, after 2 one that is not the end."""
    kind = int(pyro.sample("kind", dist.Categorical(torch.ones(4))))
    pyro.factor("f", torch.tensor(-0.1))
    if kind == 2:
        pyro.sample("second", dist.Bernoulli(0.5))
        pyro.factor("g", torch.tensor(-0.2))
        pyro.sample("third", dist.Bernoulli(0.5))
    elif kind < 2:
        pyro.sample("second", dist.Bernoulli(0.5))
        if kind == 1:
            pyro.sample("extra", dist.Bernoulli(0.5))
        pyro.factor("g", torch.tensor(-0.2))
    else:
        pyro.sample("second", dist.Bernoulli(0.5))
        pyro.sample("extra", dist.Bernoulli(0.5))
        pyro.factor("g", torch.tensor(-0.2))
    return "end"


def test_forced_segments_with_other_sites_or_another_end_are_dead():
    tree = ppl.Tree(forked, seed=0)
    first = {int(n.choices[0]): n for n in tree.expand([tree.root], 40)}
    second = {kind: tree.expand([node])[0] for kind, node in first.items()}
    assert second[0].finished
    assert not second[2].finished
    # The same sites and the same end: alive, as 1 and 3 are to each other.
    for node, example in ((1, 3), (3, 1), (0, 0), (2, 2)):
        assert not tree.force([first[node]], [second[example]])[0].dead
    # A site of the example that never came; a site too many; another end.
    for node, example in ((0, 1), (1, 0), (2, 0), (0, 2)):
        child = tree.force([first[node]], [second[example]])[0]
        assert child.dead
        assert child.dead_at is not None
        assert child.log_likelihood == -math.inf


def rolls() -> list[int]:
    faces = []
    for t in range(3):
        faces.append(int(pyro.sample(f"roll_{t}", dist.Categorical(torch.ones(6)))))
        pyro.factor(f"end_{t}", torch.tensor(-0.5))
    return faces


def test_particles_that_still_run_keep_to_what_is_decided_and_forced():
    """The first fork of a node is its own particle going on, with the new segment's settings."""
    tree = ppl.Tree(rolls, seed=0)
    first = tree.expand([tree.root], 9)
    decided = tree.expand(first[:4], decide=lambda name, fn: torch.tensor(4))
    assert [int(node.choices[0]) for node in decided] == [4] * 4
    example = tree.expand([first[4]])[0]
    forced = tree.force(first[5:], [example] * 4)
    assert [node.choices for node in forced] == [example.choices] * 4
    assert all(node.forced and not node.dead for node in forced)
