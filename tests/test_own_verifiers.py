"""What a verifier of one's own may answer, and what becomes of one that is only drawn."""

from __future__ import annotations

import warnings

import pyro
import pytest
import torch
from programs import TOY

import ppl
from ppl import errors
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import FunctionVerifier, Verifier


class Own(Verifier):
    name = "own"

    def __init__(self, answer) -> None:
        self.answer = answer

    def judge(self, requests):
        return self.answer(requests)


def judged(judge, **observed):
    """Two symbols, each judged."""

    def program() -> str:
        text = TOY.prompt("^")
        for t in range(2):
            text = text + pyro.sample(f"s_{t}", TOY(text, max_tokens=1))
            pyro.sample(f"ok_{t}", judge(text), **observed)
            if text.finished:
                break
        return text.text

    return program


def run(judge):
    return BestOfN(3).run(judged(judge, obs=True), seed=0)


async def later(requests):
    return [[0.0]] * len(requests)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda r: None, r"None for 3 texts \(site 'ok_0' of particle 1, "),
        (lambda r: ([0.0] for _ in r), r"<generator .* for 3 texts"),
        (lambda r: {i: [0.0] for i in range(len(r))}, r"\{0: \[0.0\], .* for 3 texts"),
        (lambda r: "abc", r"'abc' for 3 texts"),
        (later, r"<coroutine .* for 3 texts"),
        (lambda r: [None] * len(r), r"None for"),
        (lambda r: [-0.1] * len(r), r"-0\.1 for"),
        (lambda r: [["good"]] * len(r), r"\['good'\] for"),
        (lambda r: [["-0.1"]] * len(r), r"\['-0\.1'\] for"),
        (lambda r: torch.zeros(len(r), 1, 2), r"tensor\(\[\[0\., 0\.\]\]\) for"),
    ],
)
def test_what_a_judge_answers_is_told_from_what_it_raises(answer, said, recwarn):
    """It did not raise: it returned something that is no list of sequences of numbers."""
    with pytest.raises(errors.VerifierError, match=rf"own .*returned {said}") as info:
        run(Own(answer))
    assert "raised" not in str(info.value)
    assert "judge() must return a list with one sequence of numbers" in str(info.value)
    assert not [w for w in recwarn if "never awaited" in str(w.message)]


def test_a_verifier_without_a_name_is_told_to_take_one():
    class Nameless(Verifier):
        def judge(self, requests):
            return [[0.0]] * len(requests)

    with pytest.raises(errors.ProgramError, match=r"'Nameless'.*attribute 'name': give it one"):
        run(Nameless())
    assert not hasattr(Nameless(), "anything")


def test_sums_of_float32_may_pass_one_by_a_hair():
    """As a judge's logarithms may: both ways of saying 1 are one."""
    hair = float(torch.tensor(1.0) + torch.finfo(torch.float32).eps)
    for judge in (FunctionVerifier(lambda _: hair), Own(lambda r: [[hair - 1.0]] * len(r))):
        assert all(s.log_weight == 0.0 for s in run(judge).samples)
    with pytest.raises(errors.VerifierError, match=r"returned 1\.00001"):
        run(FunctionVerifier(lambda _: 1.00001))


def test_a_verdict_that_is_only_drawn_is_warned_of():
    """`obs=True` is easily forgotten, and then nothing is weighed."""
    half = FunctionVerifier(lambda _: 0.5, name="half")
    with pytest.warns(UserWarning, match=r"half was drawn.*a draw weighs nothing: write obs=True"):
        BestOfN(3).run(judged(half), seed=0)

    def both() -> None:
        text = TOY.prompt("^") + pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
        pyro.sample("drawn", half(text))
        pyro.sample("ok", half(text), obs=True)

    fixed = pyro.condition(judged(half), {"ok_0": True, "ok_1": True})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for program in (both, judged(half, obs=True), fixed):
            BestOfN(3).run(program, seed=0)


def test_a_flaky_verifier_costs_a_round_and_not_the_search():
    """The round is drawn again, alike: a search that is stepped goes on where it stood."""
    asked = []

    def flaky(text):
        asked.append(text)
        if len(asked) == 5:
            raise ConnectionError("503")
        return 0.9 if text.text.count("a") else 0.4

    program = judged(FunctionVerifier(flaky), obs=True)
    search = SMC(4).begin(program, seed=0)
    with pytest.raises(errors.VerifierError, match="ConnectionError: 503"):
        search.run()
    assert not search.over
    found = search.run()
    asked[:] = [None] * 5
    alone = SMC(4).run(program, seed=0)
    assert [s.value for s in found.samples] == [s.value for s in alone.samples]
    assert found.log_evidence == alone.log_evidence
    assert isinstance(alone, ppl.Posterior)
