"""What may go wrong at the boundaries: always a `PPLError` that says where, and nothing is lost."""

from __future__ import annotations

import inspect
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from accuracy_vs_budget import solve
from programs import TOY, VERIFIERS, toy

import ppl
from ppl import errors
from ppl.searchers import MCTS, SMC, BeamSearch, BestOfN
from ppl.verifiers import PRM, FunctionRanker, FunctionVerifier, verifier

ALL = [BestOfN(3), SMC(3), BeamSearch(2, 2), MCTS(4)]
each = pytest.mark.parametrize("searcher", ALL, ids=lambda s: type(s).__name__)


def boom(*_: object) -> None:
    raise RuntimeError("boom")


def run(program, **options) -> ppl.Posterior:
    return SMC(3).run(program, **options)


def one_step(**options):
    return lambda: pyro.sample("s", TOY(TOY.prompt("^"), **options))


def judged(judge):
    def program():
        text = TOY.prompt("^") + pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))
        pyro.sample("ok", judge(text), obs=True)

    return program


def test_all_errors_are_one_family():
    own = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(own) > 15
    assert all(issubclass(e, ppl.PPLError) for e in own)


# -- the program ---------------------------------------------------------------------------------


def test_an_exception_names_the_last_site_and_keeps_its_type():
    def program():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.tensor(0.0))
        pyro.sample("y", dist.Normal(0.0, 1.0))
        raise LookupError("lost")

    for searcher in ALL:
        with pytest.raises(errors.ProgramError, match=r"LookupError: lost.*particle \d+.*'y'") as e:
            searcher.run(program)
        assert isinstance(e.value.__cause__, LookupError)


@pytest.mark.parametrize("option", [{"until": boom}, {"allowed": boom}], ids=["until", "allowed"])
def test_callables_of_the_program_that_raise(option):
    message = r"site 's' of particle \d+: (until|allowed)= raised.*boom"
    with pytest.raises(errors.ProgramError, match=message) as info:
        run(one_step(max_tokens=2, **option))
    assert isinstance(info.value.__cause__, RuntimeError)


def fails_on_one(n: int) -> int:
    pyro.sample("x", dist.Normal(0.0, 1.0))
    return 0 // (1 - n)


@pytest.mark.filterwarnings("ignore:the program marks no steps")
@pytest.mark.parametrize(
    ("program", "questions"),
    [(lambda u: one_step(max_tokens=2, until=u)(), ["b", boom]), (fails_on_one, [0, 1])],
    ids=["in the model", "in the program"],
)
def test_the_runtime_is_usable_after_a_failed_batch(program, questions):
    expected = SMC(3).run(toy, "prod", seed=1).best
    good, bad = BestOfN(3).run_many(program, questions)
    assert good.best is not None
    assert isinstance(bad, errors.ProgramError)
    assert SMC(3).run(toy, "prod", seed=1).best == expected
    assert BestOfN(3).run(program, questions[0]).best is not None


def test_duplicate_sites_are_named():
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
        late, odd = calls[0] > 4, calls[0] % 2
        if kind in ("probs", "warp", "allowed"):
            if kind == "probs":
                pyro.sample("x", dist.Bernoulli(0.7 if late else 0.5))
            elif kind == "allowed":
                pyro.sample("x", TOY(TOY.prompt("^"), max_tokens=1, allowed={1, 2 + late}))
            else:
                pyro.sample("x", TOY(TOY.prompt("^"), max_tokens=1, temperature=1.0 + late))
            pyro.factor("f", torch.tensor(-2.0 if odd else 0.0))
            pyro.sample("z", dist.Normal(0.0, 1.0))
            return
        name = "y" if late and kind == "site" else "x"
        law = dist.Normal(1.0 if late and kind in ("law", "base") else 0.0, torch.ones(2))
        pyro.sample(name, law.to_event(1) if kind == "base" else law)
        if late and kind == "end":
            return
        pyro.factor("f", torch.tensor(-2.0 if odd else 0.0))
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("g", torch.tensor(0.0))

    return program


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("site", "'y'.*'x'"),
        ("law", "'x'.*another distribution"),
        ("base", "'x'.*another distribution"),
        ("probs", "'x'.*another distribution"),
        ("warp", "'x'.*another distribution"),
        ("allowed", "'x'.*another distribution"),
        ("end", "ended before.*'f'"),
    ],
)
def test_programs_that_change_on_replay(kind, message):
    with pytest.raises(errors.NonDeterministicProgramError, match=message):
        SMC(4, 1.0).run(changing(kind), seed=0)


def observing(fn, value):
    def program():
        pyro.sample("seen", fn(), obs=value)

    return program


@pytest.mark.parametrize(
    ("fn", "value", "message"),
    [
        (lambda: TOY(TOY.prompt("^")), "a string", "with a Continuation, got str"),
        (lambda: verifier(lambda _: 0.5)(TOY.prompt("^")), 0.7, r"True or False, got 0\.7"),
        (lambda: dist.Normal(0.0, 1.0), "a string", "Normal cannot be observed with 'a string'"),
    ],
)
def test_observations_of_the_wrong_kind(fn, value, message):
    with pytest.raises(errors.ObservationError, match=rf"site 'seen' of particle 1: .*{message}"):
        run(observing(fn, value))


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_weights_that_are_no_numbers(number):
    def program():
        nothing = dist.Unit(torch.tensor(float(number)), validate_args=False)
        pyro.sample("bad", nothing, obs=torch.empty(0))

    with pytest.raises(errors.WeightError, match=rf"site 'bad' of particle 1.*{number}"):
        run(program)


def test_twists_are_finite():
    def program():
        ppl.twist("t", float("-inf"))

    with pytest.raises(errors.ProgramError, match="condition"):
        run(program)


# -- guides --------------------------------------------------------------------------------------


def test_guides_only_propose_at_the_programs_sites():
    def observing_guide(*_):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    def stranger(*_):
        pyro.sample("stepp_0", dist.Normal(0.0, 1.0))

    with pytest.raises(errors.GuideError, match="observes site 'y'"):
        run(toy, guide=observing_guide)
    with pytest.raises(errors.GuideError, match="'stepp_0'"):
        run(toy, guide=stranger)


def test_a_guide_may_have_more_sites_than_a_run_comes_to():
    def model() -> float:
        x = float(pyro.sample("x", dist.Bernoulli(0.5)))
        pyro.sample("of its own", dist.Bernoulli(0.5))
        return x

    def guide() -> None:
        pyro.sample("x", dist.Bernoulli(0.9))
        pyro.sample("later", dist.Bernoulli(0.9))

    for proposing in (guide, lambda: None):
        assert {s.value for s in BestOfN(40).run(model, guide=proposing).samples} == {0.0, 1.0}


def test_guides_that_raise_or_propose_another_kind():
    def model():
        pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1))

    with pytest.raises(errors.ProgramError, match="RuntimeError: boom"):
        run(model, guide=boom)
    with pytest.raises(errors.ObservationError, match=r"guide's value at site 's' of particle 1"):
        run(model, guide=lambda: pyro.sample("s", dist.Normal(0.0, 1.0)))


def test_a_guide_outside_the_model_kills_the_particle():
    def model():
        pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1, allowed={1}))

    def guide():
        pyro.sample("s", TOY(TOY.prompt("^"), max_tokens=1, allowed={2}))

    with pytest.raises(errors.AllParticlesDeadError, match="'s'"):
        run(model, guide=guide)


# -- language models -----------------------------------------------------------------------------


def test_prompts_that_cannot_be_continued(tiny):
    for make in (TOY.prompt, TOY.chat):
        with pytest.raises(errors.PromptError, match="empty"):
            make("")
    with pytest.raises(errors.PromptError, match=r"\{'role': 'user'\}.*'content'"):
        TOY.chat([{"role": "user"}])
    with pytest.raises(errors.PromptError, match=r"70 tokens.*64"):
        TOY.prompt("a" * 70)
    with pytest.raises(errors.PromptError, match="finished"):
        TOY(TOY.prompt("^") + TOY.continuation("b", finished=True))
    with pytest.raises(TypeError, match=r"lm\.prompt"):
        TOY("a string")
    full = TOY.prompt("a" * 60) + TOY.continuation("bbbb")
    with pytest.raises(errors.PromptError, match=r"64 tokens, .* holds 64: shorten the prompt"):
        TOY(full)
    with pytest.raises(TypeError, match="tokenizer"):
        tiny[0](TOY.prompt("^"))
    with pytest.raises(ValueError, match="max_tokens"):
        TOY(TOY.prompt("^"), max_tokens=0)


ENDLESS = ppl.TableLM({"a": 1.0}, symbols="^a$", end="$", context_length=10, name="endless")


def endless(max_tokens):
    return pyro.sample("s", ENDLESS(ENDLESS.prompt("^"), until="b", max_tokens=max_tokens))


@pytest.mark.filterwarnings("ignore:the program marks no steps")
def test_steps_that_never_end():
    with pytest.raises(errors.StepNeverEndedError, match=r"site 's' of particle \d.*max_tokens"):
        run(lambda: endless(None))
    posterior = run(lambda: endless(3))
    assert {s.value.reason for s in posterior.samples} == {"length"}
    assert {len(s.value.tokens) for s in run(lambda: endless(50)).samples} == {9}


def test_allowed_must_leave_something():
    with pytest.raises(errors.NoAllowedTokenError, match="allowed="):
        run(lambda: pyro.sample("s", TOY(TOY.prompt("^"), allowed=())))


@pytest.mark.parametrize("token", [-1, 4, 99])
def test_allowed_tokens_the_model_does_not_have(token):
    message = rf"site 's' of particle \d.*token {token}; .*0 to 3"
    with pytest.raises(errors.NoAllowedTokenError, match=message):
        run(one_step(max_tokens=1, allowed={1, token}))


def test_allowed_tokens_of_probability_zero():
    with pytest.raises(
        errors.AllParticlesDeadError, match="all 3 particles are dead, killed at 's'"
    ):
        run(one_step(max_tokens=1, allowed={0}))


def test_tables_that_are_no_distribution():
    lm = ppl.TableLM({"a": 0.5}, symbols="^a$", name="halves")
    with pytest.raises(errors.ProgramError, match=r"halves.*site 's'.*distribution"):
        run(lambda: pyro.sample("s", lm(lm.prompt("^"), max_tokens=1)))


def test_models_with_broken_weights_are_named(tiny, monkeypatch):
    lm, whole = tiny[0], tiny[0]._head
    monkeypatch.setattr(lm, "_head", lambda hidden: whole(hidden) * float("nan"))
    with pytest.raises(errors.WeightError, match=r"site 's' of particle \d.*weights and dtype"):
        run(lambda: pyro.sample("s", lm(lm.chat("Calculate 1 + 1."), max_tokens=2)))


# -- verifiers -----------------------------------------------------------------------------------


class Own(ppl.Verifier):
    name = "own"

    def __init__(self, answer) -> None:
        self.answer = answer

    def judge(self, requests):
        return self.answer(requests)


def test_own_verifiers_that_raise_are_named():
    with pytest.raises(errors.VerifierError, match=r"own raised at site 'ok' of particle 1") as e:
        run(judged(Own(boom)))
    assert e.value.__cause__ is not None


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], r"returned 0 results for 3 texts \(site 'ok' of particle 1, "),
        ([[-0.1, -0.2, -0.3]] * 3, r"at site 'ok' of particle 1 returned 3 scores for 1 new step"),
        ([[float("nan")]] * 3, r"at site 'ok' of particle 1 returned NaN"),
        ([[0.5]] * 3, r"at site 'ok' of particle 1 returned 0\.5 as a log-probability"),
    ],
)
def test_own_verifiers_are_checked(scores, message):
    with pytest.raises(errors.VerifierError, match=f"own {message}"):
        run(judged(Own(lambda _: scores)))


@pytest.mark.parametrize(
    ("function", "cause", "word"),
    [
        (lambda _: 1 / 0, ZeroDivisionError, "ZeroDivisionError"),
        (lambda _: None, TypeError, "None"),  # forgets to return
    ],
    ids=["raises", "None"],
)
def test_functions_that_raise_are_named(function, cause, word):
    message = rf"my_judge at site 'ok' of particle 1 .*{word}"
    with pytest.raises(errors.VerifierError, match=message) as info:
        run(judged(FunctionVerifier(function, name="my_judge")))
    assert isinstance(info.value.__cause__, cause)


@pytest.mark.parametrize(
    ("said", "shown"),
    [(None, "None"), ("yes", "'yes'"), ("0.5", "'0.5'"), ([0.5, 0.5], r"\[0.5, 0.5\]")],
)
def test_functions_that_return_no_number_did_not_raise(said, shown):
    message = rf"my_judge at site 'ok' of particle 1 returned {shown} for .*; return a probability"
    with pytest.raises(errors.VerifierError, match=message):
        run(judged(FunctionVerifier(lambda _: said, name="my_judge")))
    rank = FunctionRanker(lambda _: said, name="rank")
    with pytest.raises(errors.VerifierError, match=rf"returned {shown} for .*; return a number"):
        rank.judge([ppl.JudgeRequest(rank, TOY.prompt("^"))])


@pytest.mark.filterwarnings("error")
def test_an_async_function_is_no_verifier():
    async def later(text):
        return 0.5

    with pytest.raises(errors.VerifierError, match=r"later .* is an async function; take a plain"):
        run(judged(FunctionVerifier(later)))


@pytest.mark.parametrize(("given", "remedy"), [(0.5, "verifier"), (True, "verifier"), ("a", "prm")])
def test_what_is_no_distribution_says_what_it_could_be(given, remedy):
    with pytest.raises(errors.ProgramError, match=rf"got {type(given).__name__}; .*{remedy}"):
        run(lambda: pyro.sample("ok", given, obs=True))


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.1, float("inf")])
def test_functions_out_of_range_are_named(value):
    message = rf"my_judge at site 'ok' of particle 1 returned {value} .*between 0 and 1"
    with pytest.raises(errors.VerifierError, match=message):
        run(judged(FunctionVerifier(lambda _: value, name="my_judge")))


@pytest.mark.parametrize("make", [PRM.load, lambda s, **_: VERIFIERS["last"]], ids=["prm", "fn"])
def test_verifiers_judge_texts(make):
    with pytest.raises(TypeError, match="judges a Text, got str"):
        make("tiny")("a string")


def test_bad_settings_of_verifiers():
    with pytest.raises(ValueError, match="aggregate="):
        PRM.load("tiny", aggregate="median")
    with pytest.raises(ValueError, match="floor="):
        PRM.load("tiny", floor=0.7)
    with pytest.raises(ValueError, match="aggregate="):
        FunctionVerifier(boom, aggregate="median")
    for meaning in ("value", "outcome"):
        with pytest.warns(UserWarning, match=f"multiplies numbers that mean '{meaning}'"):
            FunctionVerifier(boom, meaning=meaning, aggregate="prod")
    with pytest.raises(ValueError, match="aggregate='last'"):
        FunctionVerifier(boom, meaning="reward", aggregate="mean")


# -- budgets -------------------------------------------------------------------------------------


TIGHT = [{"tokens": 0}, {"tokens": 1}, {"calls": 0}, {"calls": 1}, {"seconds": 0}]


@each
@pytest.mark.parametrize("limits", TIGHT, ids=str)
def test_next_to_no_budget(searcher, limits):
    posterior = searcher.run(toy, "prod", budget=ppl.Budget(**limits))
    assert posterior.stopped == "budget"
    assert (posterior.best, posterior.vote(), posterior.log_evidence) == (None, None, None)
    assert posterior.cost.lm_tokens <= limits.get("tokens", 1)
    assert posterior.cost.calls <= limits.get("calls", 99)
    if "seconds" in limits:
        assert posterior.cost.lm_tokens == 0
    assert "stopped by the budget" in str(posterior)
    assert posterior.genealogy.number_of_nodes() >= 1
    for ask in (lambda: posterior.sample(0), lambda: posterior.expectation(float)):
        with pytest.raises(errors.SearchStateError, match="no finished particle"):
            ask()


@pytest.mark.parametrize(
    ("theirs", "ours"), [("max_tokens", "tokens="), ("timeout", "seconds="), ("tokns", "tokens")]
)
def test_limits_of_other_names_are_answered_with_ours(theirs, ours):
    said = rf"Budget\(...\) has no argument '{theirs}': .*{ours}.*tokens, calls, seconds, settled"
    with pytest.raises(TypeError, match=said if theirs != "tokns" else "it takes tokens, calls"):
        ppl.Budget(**{theirs: 5})
    with pytest.raises(
        errors.ArgumentError, match=r"budget=5: a Budget, as in ppl\.Budget\(tokens"
    ):
        BestOfN(1).run(toy, "prod", budget=5)
    assert list(inspect.signature(ppl.Budget).parameters) == [
        "tokens",
        "calls",
        "seconds",
        "settled",
    ]
    assert pickle.loads(pickle.dumps(ppl.Budget(9, seconds=1.5))) == ppl.Budget(9, None, 1.5)


@each
def test_budgets_hold_on_a_real_model_too(searcher, tiny):
    lm, prm = tiny
    for limit in (1, 25):
        budget = ppl.Budget(tokens=limit)
        posterior = searcher.run(solve, "Calculate 4 - 9 + 6.", lm, prm, budget=budget)
        assert posterior.cost.lm_tokens <= limit


def test_one_question_out_of_budget_leaves_the_others_alone():
    """The budget is each question's own."""
    alone = SMC(3).run(toy, "last", seed=2, budget=ppl.Budget(tokens=9))
    runs = SMC(3).run_many(toy, ["last"] * 3, seed=[1, 2, 3], budget=ppl.Budget(tokens=9))
    assert all(r.cost.lm_tokens <= 9 for r in runs)
    assert [s.value for s in runs[1].samples] == [s.value for s in alone.samples]


@pytest.mark.parametrize("thing", [FunctionVerifier(len, name="long"), 3], ids=["verifier", "int"])
@pytest.mark.parametrize("obs", [True, None])
def test_what_is_sampled_is_a_distribution(thing, obs):
    kind = type(thing).__name__
    with pytest.raises(errors.ProgramError, match=rf"site 'x' of.*distribution, got {kind}.*text"):
        run(lambda: pyro.sample("x", thing, obs=obs))
