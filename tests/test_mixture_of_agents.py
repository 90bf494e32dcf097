"""Mixture of agents: five calls, padding, an ordinary program under any searcher."""

from __future__ import annotations

import math

import pyro
import pytest
from programs import SEARCHERS

import ppl
from ppl.errors import ArgumentError, PPLError
from ppl.programs import mixture_of_agents

# Requests are one line each here: `q`, then `c` and three candidates, then `s`, these and the
# critique. Candidates are `a` (right) or `b`; the critique names what most of them say; the answer
# follows the critique with probability .9.
SHORT = {"critique": "c{candidates}", "synthesise": "s{candidates}{critique}"}


def script(prefix: str) -> dict[str, float]:
    request, _, said = prefix.partition("\n\x1f")
    if said:
        return {"$": 1.0}
    letters = [line for line in request.split("\n") if line in ("a", "b")]
    if request.startswith("q"):
        return {"a": 0.6, "b": 0.3, "$": 0.1}
    most = "a" if letters.count("a") * 2 > len(letters) else "b"
    if request.startswith("c"):
        return {most: 1.0}
    heard = request[-1]
    other = "b" if heard == "a" else "a"
    return {heard: 0.9, other: 0.1}


class Chatting(ppl.TableLM):
    """A table whose chat marks where the model's turn begins; notes what it was asked."""

    def __init__(self, probabilities=script, **settings):
        letters = "".join(sorted({*map(chr, range(32, 127)), "\n", "\x1f"} - {"$"}))
        super().__init__(
            probabilities, symbols=letters + "$", context_length=4000, name="script", **settings
        )
        self.asked: list[str] = []

    def chat(self, messages, **arguments):
        content = messages if isinstance(messages, str) else messages[-1]["content"]
        self.asked.append(content)
        return self.prompt(content + "\n\x1f")


@pytest.fixture
def lm():
    return Chatting()


def test_exactly_five_calls(lm):
    posterior = ppl.searchers.BestOfN(1).run(mixture_of_agents(lm), "q", seed=3)
    assert posterior.cost.lm_calls == 5
    drawn = [r.name for r in posterior.samples[0].records if r.kind == "choice"]
    assert drawn == [
        "samples/0/candidate",
        "samples/1/candidate",
        "samples/2/candidate",
        "critique",
        "answer",
    ]
    seven = ppl.searchers.BestOfN(4).run(mixture_of_agents(lm, 5), "q", seed=3)
    assert seven.cost.lm_calls == 4 * 7


def test_candidates_are_asked_as_one_batch(lm):
    calls = lm.calls
    ppl.searchers.BestOfN(8).run(mixture_of_agents(lm, max_tokens=2), "q", seed=0)
    assert lm.calls - calls <= 3 * 2  # three stages of at most two tokens, not 8 * 5


def first_request(lm, start):
    return next(asked for asked in lm.asked if asked.startswith(start))


@pytest.mark.parametrize(("drawn", "read"), [("aXb", "aba"), ("Xba", "bab"), ("X b", "bbb")])
def test_what_is_not_usable_is_padded_with_the_first_usable(drawn, read, lm):
    """`X` is a candidate that was cut off, a space one that says nothing."""

    def candidate(letter):
        if letter == "X":
            return ppl.Continuation(lm.encode("XX"), "XX", "length")
        return ppl.Continuation((*lm.encode(letter), *lm.codec.end_tokens), letter, "end")

    given = {f"samples/{i}/candidate": candidate(letter) for i, letter in enumerate(drawn)}
    posterior = ppl.searchers.BestOfN(1).run(ppl.do(mixture_of_agents(lm, **SHORT), given), "q")
    read_as = "\n\n".join(f"Candidate {i}:\n{letter}" for i, letter in enumerate(read, 1))
    assert lm.asked[-2:] == ["c" + read_as, "s" + read_as + critique_of(read)]
    assert posterior.best.text == critique_of(read)  # nearly always, at temperature .1


def critique_of(read):
    return "a" if read.count("a") >= 2 else "b"


def test_without_a_usable_candidate_there_is_nothing_to_read():
    def endless(prefix):
        return {"X": 1.0}

    lm = Chatting(endless)
    posterior = ppl.searchers.BestOfN(1).run(mixture_of_agents(lm, max_tokens=2), "q")
    assert posterior.cost.lm_calls == 3
    assert posterior.best.text == "XX"
    assert not posterior.best.finished
    assert len(lm.asked) == 3


def test_the_law_is_the_closed_form(lm):
    """P(right) = sum over what is drawn of P(the critique says a) .9 + P(it says b) .1."""
    moa = mixture_of_agents(lm, **SHORT, reading_temperature=1.0)
    exact = ppl.enumerate_program(moa, "q").marginal(lambda text: text.text)
    assert math.fsum(exact.values()) == pytest.approx(1)
    a, b, empty = 0.6, 0.3, 0.1
    named = 0.0  # that the critique says a: most of the three that are read do
    for x in (a, b, empty):
        for y in (a, b, empty):
            for z in (a, b, empty):
                drawn = ["a" if v == a else "b" if v == b else "" for v in (x, y, z)]
                usable = [d for d in drawn if d]
                read = usable + usable[:1] * (3 - len(usable))
                named += x * y * z * (read.count("a") >= 2)
    nothing = empty**3
    assert exact["a"] == pytest.approx(0.9 * named + 0.1 * (1 - nothing - named))
    assert exact[""] == pytest.approx(nothing)
    # Padding with the last usable candidate instead would be another law.
    assert named != pytest.approx(0.6**2 * (3 - 2 * 0.6))


@pytest.mark.parametrize("searcher", SEARCHERS, ids=repr)
def test_it_is_an_ordinary_program_under_any_searcher(searcher, lm):
    moa = mixture_of_agents(lm, **SHORT)

    def judged():
        text = moa("q")
        pyro.sample("ok", ppl.verifiers.FunctionVerifier(right, name="right")(text), obs=True)
        return text.text

    posterior = searcher.run(judged, seed=1)
    assert posterior.best in ("a", "b", "")
    if posterior.log_evidence is not None and searcher.target(judged) is judged:
        assert math.isfinite(posterior.log_evidence)


def right(text):
    return 0.9 if text.text == "a" else 0.2


def test_a_search_over_it_can_be_saved(tmp_path, lm):
    search = ppl.searchers.SMC(3).begin(mixture_of_agents(lm, **SHORT), "q", seed=2)
    search.save(tmp_path / "search")
    again = ppl.searchers.Search.load(tmp_path / "search", models={"script": lm})
    assert again.run().best == search.run().best


def test_what_candidates_say_is_no_placeholder():
    def speaks(prefix):
        request, _, said = prefix.partition("\n\x1f")
        wanted = "{critique}" if request == "q" else "x"
        return {wanted[len(said)]: 1.0} if len(said) < len(wanted) else {"$": 1.0}

    lm = Chatting(speaks)
    ppl.searchers.BestOfN(1).run(mixture_of_agents(lm, 1, **SHORT), "q")
    assert lm.asked[1:] == ["cCandidate 1:\n{critique}", "sCandidate 1:\n{critique}x"]


def test_arguments():
    with pytest.raises(PPLError, match="lm="):
        mixture_of_agents("tiny")
    with pytest.raises(ValueError, match="samples=0"):
        mixture_of_agents(Chatting(), 0)
    with pytest.raises(ArgumentError, match="critique="):
        mixture_of_agents(Chatting(), critique=3)
