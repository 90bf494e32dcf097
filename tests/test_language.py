"""Texts, step rules, and every error with its name, its particle and its remedy."""

from __future__ import annotations

import math
import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, toy

import ppl
from ppl import errors
from ppl.searchers import SMC, BestOfN, Search
from ppl.verifiers import PRM, FunctionVerifier, verifier

# -- texts ---------------------------------------------------------------------------------------


def test_text_algebra():
    prompt = TOY.prompt("^")
    text = prompt + TOY.continuation("ab") + "a" + TOY.continuation("b", finished=True)
    assert (text.text, text.prompt, text.steps) == ("abab", "^", ("ab", "ab"))
    assert text.prompt_length == 1
    assert text.step_ends == (3, 6)
    assert text.finished
    assert not prompt.finished
    assert prompt.text == ""
    assert str(text) == text.text
    assert len(text) == 6
    assert text == TOY.prompt("^") + TOY.continuation("ab") + "a" + text_end()
    assert text != prompt
    assert hash(prompt) == hash(TOY.prompt("^"))
    again = pickle.loads(pickle.dumps(text))
    assert again == text
    assert (again.steps, again.finished, again.prompt) == (text.steps, True, "^")
    with pytest.raises(TypeError):
        prompt + 3


def text_end() -> ppl.Continuation:
    return TOY.continuation("b", finished=True)


@pytest.mark.parametrize(
    ("string", "answer"),
    [
        (r"so \boxed{1} and \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("work\n#### 42", "42"),
        ("The answer is 7.\nDone", "7"),
        ("Answer: x + 1\n", "x + 1"),
        ("3+4\n7\n\n", "7"),
        (r"\boxed{unclosed" + "\nlast", "last"),
        ("  \n ", None),
    ],
)
def test_extract_answer(string, answer):
    assert ppl.extract_answer(string) == answer


def test_unfinished_texts_have_no_answer():
    text = TOY.prompt("^") + TOY.continuation("ab")
    assert text.answer is None
    assert (text + text_end()).answer == "abb"


@pytest.mark.parametrize(
    ("until", "stops", "goes"),
    [
        ("\n", "a\n", "a"),
        (["\n", "</think>"], "x</think>y", "x</thin"),
        (re.compile(r"\d{3}"), "a123", "a12"),
        (lambda s: len(s) > 3, "abcd", "abc"),
    ],
)
def test_step_rules(until, stops, goes):
    rule = ppl.StepRule.of(until)
    assert rule(stops)
    assert not rule(goes)
    assert not rule.never
    assert ppl.StepRule.of(rule) is rule


def test_step_rule_values():
    assert ppl.StepRule.of("\n") == ppl.StepRule.of(["\n"])
    assert ppl.StepRule.of(None).never
    assert ppl.StepRule.of(["\n", ";"]).single_characters == {"\n", ";"}
    assert ppl.StepRule.of("ab").single_characters is None
    for bad in ("", [], ["a", ""]):
        with pytest.raises(ValueError, match="until"):
            ppl.StepRule.of(bad)
    with pytest.raises(TypeError, match="until"):
        ppl.StepRule.of(3)


@pytest.mark.parametrize("until", ["b", ["ab", "bb"], re.compile("a.*b"), lambda s: "b" in s])
def test_continuations_stop_where_the_rule_says_and_mass_adds_up(until):
    law = TOY(TOY.prompt("^"), until=until, max_tokens=4)
    rule = ppl.StepRule.of(until)
    support = TOY.support(law)
    assert math.fsum(math.exp(p) for _, p in support) == pytest.approx(1)
    for value, log_prob in support:
        assert float(law.log_prob(value)) == pytest.approx(log_prob)
        body = value.text[:-1]
        assert not rule(body) or value.finished
        assert (value.reason == "until") == (rule(value.text) and not value.finished)
    # What the law cannot return has probability zero.
    assert float(law.log_prob(TOY.continuation("a"))) == -math.inf
    assert float(law.log_prob(ppl.Continuation((), ""))) == -math.inf


def test_until_with_the_tiny_model_keeps_whole_tokens():
    lm = ppl.load("tiny")
    pyro.set_rng_seed(1)
    step = lm(lm.chat("Calculate 3 + 4 - 5."), until="\n", max_tokens=30).sample()
    assert step.finished or step.text.endswith("\n")
    assert lm.codec.decode(step.tokens) == step.text
    a, b = (lm(lm.chat("Calculate 3 + 4 - 5."), max_tokens=3, temperature=0).sample()
            for _ in range(2))  # fmt: skip
    assert a == b


# -- errors --------------------------------------------------------------------------------------


def test_all_errors_are_one_family():
    own = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(own) > 15
    assert all(issubclass(e, ppl.PPLError) for e in own)


def test_unknown_models(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("nobody/no-such-model", tmp_path, tmp_path / "no.gguf"):
        with pytest.raises(errors.ModelNotFoundError, match=re.escape(str(source))):
            ppl.load(source)
    with pytest.raises(errors.ModelNotFoundError, match="no-such-prm"):
        PRM.load("nobody/no-such-prm")


def test_prm_labels_must_be_the_declared_ones():
    with pytest.raises(errors.PRMFormatError, match=r"good.*'correct'.*good="):
        PRM.load("tiny", good="correct")


def run(program, **options) -> ppl.Posterior:
    return SMC(4).run(program, **options)


def judged_by(function) -> None:
    judge = FunctionVerifier(function, name="my_judge")

    def program():
        text = TOY.prompt("^") + pyro.sample("step_0", TOY(TOY.prompt("^"), max_tokens=1))
        pyro.sample("ok_0", judge(text), obs=True)

    run(program)


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1, float("inf")])
def test_verifiers_out_of_range_are_named(value):
    with pytest.raises(
        errors.VerifierError, match=r"my_judge at site 'ok_0' of particle \d.*0 and 1|between"
    ):
        judged_by(lambda _: value)


def test_verifiers_that_raise_are_named():
    with pytest.raises(
        errors.VerifierError, match=r"my_judge at site 'ok_0'.*ZeroDivision"
    ) as info:
        judged_by(lambda _: 1 / 0)
    assert isinstance(info.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    "scores", [[], [[-0.1, -0.2, -0.3]] * 9, [[float("nan")]] * 4, [[0.5]] * 4]
)
def test_own_verifiers_are_checked(scores):
    class Broken(ppl.Verifier):
        name = "broken"

        def judge(self, requests):
            return scores[: len(requests)]

    def program():
        text = TOY.prompt("^") + pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
        pyro.sample("ok", Broken()(text), obs=True)

    with pytest.raises(errors.VerifierError, match="broken"):
        run(program)


def test_programs_that_raise():
    def program():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        raise KeyError("lost")

    with pytest.raises(errors.ProgramError, match=r"KeyError.*particle 1.*'x'") as info:
        run(program)
    assert isinstance(info.value.__cause__, KeyError)


def test_duplicate_sites():
    def program():
        for _ in range(2):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(errors.DuplicateSiteError, match=r"'x' occurs twice in particle \d"):
        run(program)


def changing(kind: str):
    """A program that keeps a secret between its runs."""
    calls = [0]

    def program():
        calls[0] += 1
        late = calls[0] > 4
        name = "y" if late and kind == "site" else "x"
        pyro.sample(name, dist.Normal(1.0 if late and kind == "law" else 0.0, 1.0))
        if late and kind == "end":
            return
        pyro.factor("f", torch.tensor(-2.0 if calls[0] % 2 else 0.0))
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("g", torch.tensor(0.0))

    return program


@pytest.mark.parametrize(
    ("kind", "message"),
    [("site", "'y'.*'x'"), ("law", "'x'.*another distribution"), ("end", "ended before.*'f'")],
)
def test_programs_that_change_on_replay(kind, message):
    with pytest.raises(errors.NonDeterministicProgramError, match=message):
        SMC(4, 1.0).run(changing(kind), seed=0)


def observing(fn, value):
    def program():
        pyro.sample("seen", fn(), obs=value)

    return program


@pytest.mark.parametrize(
    ("fn", "value"),
    [
        (lambda: TOY(TOY.prompt("^")), "a string"),
        (lambda: verifier(lambda _: 0.5)(TOY.prompt("^")), 0.7),
        (lambda: dist.Normal(0.0, 1.0), "a string"),
    ],
)
def test_observations_of_the_wrong_kind(fn, value):
    with pytest.raises(errors.ObservationError, match=r"site 'seen' of particle 1"):
        run(observing(fn, value))


def test_weights_that_are_no_numbers():
    def program():
        nothing = dist.Unit(torch.tensor(float("nan")), validate_args=False)
        pyro.sample("bad", nothing, obs=torch.empty(0))

    with pytest.raises(errors.WeightError, match=r"site 'bad' of particle 1.*nan"):
        run(program)


def test_prompts():
    for make in (TOY.prompt, TOY.chat):
        with pytest.raises(errors.PromptError, match="empty"):
            make("")
    with pytest.raises(errors.PromptError, match=r"70 tokens.*64"):
        TOY.prompt("a" * 70)
    with pytest.raises(errors.PromptError, match="finished"):
        TOY(TOY.prompt("^") + text_end())
    with pytest.raises(TypeError, match=r"lm\.prompt"):
        TOY("a string")
    with pytest.raises(TypeError, match="tokenizer"):
        ppl.load("tiny")(TOY.prompt("^"))
    with pytest.raises(ValueError, match="max_tokens"):
        TOY(TOY.prompt("^"), max_tokens=0)


ENDLESS = ppl.TableLM({"a": 1.0}, symbols="^a$", end="$", context_length=10, name="endless")


def endless(max_tokens):
    return pyro.sample("s", ENDLESS(ENDLESS.prompt("^"), until="b", max_tokens=max_tokens))


def test_steps_that_never_end():
    with pytest.raises(errors.StepNeverEndedError, match=r"site 's' of particle \d.*max_tokens"):
        run(lambda: endless(None))
    posterior = run(lambda: endless(3))
    assert {s.value.reason for s in posterior.samples} == {"length"}
    assert {len(s.value.tokens) for s in run(lambda: endless(50)).samples} == {9}


def test_allowed_must_leave_something():
    with pytest.raises(errors.NoAllowedTokenError, match="allowed="):
        run(lambda: pyro.sample("s", TOY(TOY.prompt("^"), allowed=())))


def test_guides_propose_and_share_sites():
    def observing_guide(*_):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    def stranger(*_):
        pyro.sample("stepp_0", dist.Normal(0.0, 1.0))

    with pytest.raises(errors.GuideError, match="observes site 'y'"):
        run(toy, guide=observing_guide)
    with pytest.raises(errors.GuideError, match="'stepp_0'"):
        run(toy, guide=stranger)


def test_guide_outside_the_model_kills_the_particle():
    def model():
        pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1, allowed={1}))

    def guide():
        pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1, allowed={2}))

    with pytest.raises(errors.AllParticlesDeadError, match="'s'"):
        run(model, guide=guide)


def test_twists_are_finite():
    def program():
        ppl.twist("t", float("-inf"))

    with pytest.raises(errors.ProgramError, match="condition"):
        run(program)


def test_searches_that_cannot_be_saved(tmp_path):
    search = SMC(2).begin(lambda: None)
    with pytest.raises(errors.SearchStateError, match="top level"):
        search.save(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_files_that_hold_something_else(tmp_path):
    (tmp_path / "junk").write_bytes(b"junk")
    (tmp_path / "other").write_bytes(pickle.dumps(("other", 1)))
    for name in ("junk", "other"):
        for load in (ppl.Posterior.load, Search.load):
            with pytest.raises(errors.SearchStateError, match=name):
                load(tmp_path / name)


def test_time_is_a_budget():
    posterior = BestOfN(4).run(toy, budget=ppl.Budget(seconds=0))
    assert (posterior.stopped, posterior.best, posterior.cost.lm_tokens) == ("budget", None, 0)
    assert "stopped by the budget" in str(posterior)


def test_one_failing_question_names_itself_and_leaves_the_runtime_sane():
    with pytest.raises(errors.ProgramError):
        SMC(2).run_many(_fails_on, [(0,), (1,)])
    assert SMC(2).run(_fails_on, 0).best == 0


def _fails_on(n: int) -> int:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    return 0 // (1 - n)


def test_a_search_inside_a_program():
    def outer():
        inner = BestOfN(3).run(toy, "prod", seed=1).best
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", -(x**2))
        return inner

    assert {s.value for s in SMC(3).run(outer).samples} == {
        BestOfN(3).run(toy, "prod", seed=1).best
    }
