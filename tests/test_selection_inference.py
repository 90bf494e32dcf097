"""Selection-Inference: its law by enumeration; an inference sees what was selected, no more."""

from __future__ import annotations

import itertools
import math
import string

import numpy as np
import pytest
import selection_inference as example
from scipy.special import logsumexp

import ppl
from ppl.programs import UNKNOWN, Inference, derivation, selection_inference, trace_value
from ppl.programs.pointing import Labels, Words
from ppl.programs.selection_inference import _ask_value, ask_answer, ask_selection
from ppl.searchers import SMC, BeamSearch, BestOfN
from ppl.verifiers import LogOdds

# Four prompts of one model, told apart by their first letter.
SELECTIONS = {"1": 0.4, "2": 0.3, "3": 0.1, ",": 0.15, ".": 0.05}
INFERENCES = {"a": {"c": 0.7, "d": 0.3}, "b": {"c": 0.2, "d": 0.8}, "ab": {"c": 0.9, "d": 0.1}}
HALTS = {"c": {"y": 0.6, "n": 0.1, "u": 0.3}, "d": {"y": 0.1, "n": 0.2, "u": 0.7}}
SYMBOLS = "^$\n" + string.ascii_letters + string.digits + " ,.:+-|="


def table(prefix: str) -> dict[str, float]:
    kind, said = prefix[0], prefix[1:]
    if kind == "S":
        return SELECTIONS
    if kind == "I":
        return {"\n": 1.0} if said.endswith(("c", "d")) else inference(said.removesuffix("|"))
    if kind == "H":
        return HALTS[said[-1]]
    right = 0.2 + 0.1 * (said.count("c") % 7)
    return {"+": right / 2, "-": (1 - right) / 2, "u": 0.5}


def inference(selected: str) -> dict[str, float]:
    return INFERENCES.get(selected, {"c": 0.5, "d": 0.5})


LM = ppl.TableLM(table, symbols=SYMBOLS, context_length=200)
VALUE = LogOdds(LM, lambda lm, text: lm.prompt(f"V{text.text}"), verdicts={"+": 1.0, "-": 0.0})
SETTINGS = {
    "select": lambda lm, statements, question: lm.prompt(f"S{''.join(statements)}|"),
    "infer": lambda lm, selected: lm.prompt(f"I{''.join(selected)}|"),
    "halt": lambda lm, question, inferences: lm.prompt(f"H{inferences[-1]}"),
    "value": VALUE,
    "answers": ("y", "n"),
    "undecided": "u",
    "between": ",",
    "end": ".",
    "most": 2,
    "steps": 2,
}


def run(searcher, facts=("a", "b"), seed=0, **changed):
    return searcher.run(selection_inference, LM, facts, "q", seed=seed, **{**SETTINGS, **changed})


def lists(count: int, most: int = 2):
    """Every list of labels with its probability: each character renormalised over what may come."""

    def longer(chosen):
        free = [k for k in range(1, count + 1) if k not in chosen]
        digits = math.fsum(SELECTIONS[str(k)] for k in free)
        for k in free:
            p = SELECTIONS[str(k)] / digits
            more = len(chosen) + 1 < min(most, count)
            stop = SELECTIONS["."] / (SELECTIONS["."] + SELECTIONS[","]) if more else 1.0
            yield (*chosen, k), p * stop
            if more:
                yield from ((rest, p * (1 - stop) * q) for rest, q in longer((*chosen, k)))

    return list(longer(()))


def by_hand(facts: tuple[str, ...], steps: int = 2):
    """Log-weights of all traces by answer: choices times the odds of the whole trace."""
    found: dict[str, list[float]] = {}

    def go(context, trace, log_p, t):
        for labels, p in lists(len(context)):
            selected = [context[k - 1] for k in labels]
            for said, q in inference("".join(selected)).items():
                line = f"{trace}\n{' '.join(selected)} Therefore, {said}"
                for word, r in HALTS[said].items():
                    now = log_p + math.log(p * q * r)
                    whole = line if word == "u" else f"{line}\nAnswer:{word}"
                    if word != "u" or t + 1 == steps:
                        right = 0.2 + 0.1 * (whole.count("c") % 7)
                        answer = UNKNOWN if word == "u" else word
                        odds = math.log(right / (1 - right))
                        found.setdefault(answer, []).append(now + odds)
                    else:
                        joined = context if said in context else [*context, said]
                        go(joined, whole, now, t + 1)

    go([*facts], "", 0.0, 0)
    return {answer: logsumexp(weights) for answer, weights in found.items()}


def program(facts=("a", "b")):
    return selection_inference(LM, facts, "q", **SETTINGS)


@pytest.fixture(scope="module")
def exact():
    return ppl.enumerate_program(program)


def test_the_law_is_that_of_the_traces_times_the_odds_of_the_whole(exact):
    masses = by_hand(("a", "b"))
    total = logsumexp(list(masses.values()))
    assert exact.log_evidence == pytest.approx(total, abs=1e-9)
    assert set(masses) == {"y", "n", UNKNOWN}
    for answer, p in exact.marginal().items():
        assert p == pytest.approx(math.exp(masses[answer] - total), abs=1e-9)
    # A near miss: odds of every step that do not telescope.
    once = [math.exp(w) for w in masses.values()]
    assert sum(once) == pytest.approx(0.4394, abs=1e-4)


def test_what_is_known_already_gets_no_second_label():
    facts = ("a", "c")
    known = ppl.enumerate_program(program, facts)
    assert known.log_evidence == pytest.approx(logsumexp(list(by_hand(facts).values())), abs=1e-9)


def test_smc_agrees_with_the_enumeration(exact):
    runs = [run(SMC(12), seed=seed) for seed in range(40)]
    ratios = [math.exp(r.log_evidence - exact.log_evidence) for r in runs]
    assert abs(np.mean(ratios) - 1) < 4 * np.std(ratios) / math.sqrt(40) < 0.15
    for answer, p in exact.marginal().items():
        share = np.average([r.marginal().get(answer, 0.0) for r in runs], weights=ratios)
        assert share == pytest.approx(p, abs=0.05)


def test_a_beam_keeps_the_traces_of_greatest_value():
    posterior = run(BeamSearch(3, 8))
    assert posterior.log_evidence is None
    scores = [s.log_likelihood for s in posterior.samples]
    # Two steps that both say c, the second from c: no trace says it more than three times.
    assert max(scores) == pytest.approx(0.0)
    best = posterior.best_sample
    assert best is not None
    assert [step.conclusion for step in derivation(best, ["a", "b"])] == ["c", "c"]


def inference_prompts(labels: str, infer, *, third: str):
    """Token ids of the prompts of inferences, by the step's first selection and the third fact."""

    def forced():
        drawn = LM.continuation(labels, finished=False)
        return ppl.do(selection_inference, {"select_0": drawn})(
            LM, ["a", "b", third], "q", **{**SETTINGS, "infer": infer, "steps": 1}
        )

    prompts, real = [], ppl.TableLM.__call__

    def noted(lm, text, **settings):
        if text.tokens[0] == LM.encode("I")[0]:
            prompts.append(text.tokens)
        return real(lm, text, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppl.TableLM, "__call__", noted)
        BestOfN(1).run(forced, seed=0)
    return prompts


def causal(infer) -> bool:
    """Whether no inference depends on a fact that was not selected."""
    return all(
        inference_prompts(labels, infer(third="e"), third="e")
        == inference_prompts(labels, infer(third="f"), third="f")
        for labels in ("1.", "2.", "1,2.", "2,1.")
    )


def test_an_inference_cannot_depend_on_what_was_not_selected():
    assert causal(lambda third: SETTINGS["infer"])
    # The prompts are compared, not their absence; and a selected fact is seen.
    assert len(inference_prompts("1.", SETTINGS["infer"], third="e")) == 1
    seen = [inference_prompts("3,1.", SETTINGS["infer"], third=third) for third in "ef"]
    assert seen[0] != seen[1]
    # A near miss: a prompt that shows the whole context below the selection.
    assert not causal(lambda third: lambda lm, s: lm.prompt(f"I{''.join(s)}|ab{third}"))


def test_labels_outside_the_context_have_probability_zero():
    law = LM(LM.prompt("S|"), allowed=Labels(LM.codec, 2, 2, ",", "."), until=".")
    drawn = {c.text: math.exp(p) for c, p in law.support()}
    assert drawn == pytest.approx({",".join(map(str, k)) + ".": p for k, p in lists(2)})
    for outside in ("3.", "1,3.", "1,1.", "."):
        assert float(law.log_prob(LM.continuation(outside, finished=False))) == -math.inf
    three = LM(LM.prompt("S|"), allowed=Labels(LM.codec, 3, 3, ",", "."), until=".")
    drawn = {c.text: math.exp(p) for c, p in three.support()}
    assert drawn == pytest.approx({",".join(map(str, k)) + ".": p for k, p in lists(3, 3)})
    assert len(drawn) == 3 + 6 + 6
    # Without the mask a third of the labels are not there.
    free = LM(LM.prompt("S|"), max_tokens=1)
    assert float(free.log_prob(LM.continuation("3", finished=False)).exp()) == pytest.approx(0.1)


def test_labels_of_two_digits_are_told_apart():
    tiny = ppl.load("tiny-lines").codec
    for codec in (LM.codec, tiny):
        labels = Labels(codec, 12, 2, "+", "=")
        for chosen in itertools.permutations((1, 2, 11, 12), 2):
            said = codec.encode_after(f"{chosen[0]}+") + codec.encode_after(f"{chosen[1]}=")
            for t in range(len(said)):
                assert said[t] in labels(said[:t])
            assert labels.read(ppl.Continuation(said, codec.decode_after(said), "until")) == chosen
        begun = codec.encode_after("1+")
        assert codec.encode_after("1=")[-1] not in labels((*begun, *codec.encode_after("1=")[:-1]))


@pytest.mark.parametrize(
    ("count", "most", "between", "end", "says"),
    [
        (0, 1, ",", ".", "count=0"),
        (2, 0, ",", ".", "most=0"),
        (2, 2, ",.", ".", "no part"),
        (2, 2, "1", ".", "without digits"),
        (2, 2, "", ".", "two marks"),
        (2, 2, ",", ",.", "told apart"),
    ],
)
def test_marks_that_leave_lists_ambiguous_are_refused(count, most, between, end, says):
    with pytest.raises(ValueError, match=says):
        Labels(LM.codec, count, most, between, end)


def test_words_that_cannot_be_told_apart_are_refused():
    for words in (["y"], ["y", ""], ["y", "yn"], ["y", "y"]):
        with pytest.raises(ValueError, match="words="):
            Words(LM.codec, words)


def test_without_a_halt_the_answer_is_unknown():
    never = ppl.TableLM(
        lambda prefix: {"u": 1.0} if prefix[0] == "H" else table(prefix),
        symbols=SYMBOLS,
        context_length=200,
    )
    models = {"select": LM, "infer": LM, "halt": never, "value": LM}
    posterior = SMC(4).run(selection_inference, models, ["a"], "q", seed=0, **SETTINGS)
    assert {s.value for s in posterior.samples} == {UNKNOWN}
    assert all(len(derivation(s, ["a"])) == 2 for s in posterior.samples)
    assert posterior.cost.lm_calls == 4 * 2 * 3


def test_the_value_is_a_model_s_log_odds():
    trace = LM.prompt("a") + "\nc"
    (score,) = VALUE.judge([ppl.JudgeRequest(VALUE, trace)])
    assert list(score) == pytest.approx([math.log(0.3 / 0.7)])
    sure = ppl.TableLM({"+": 1.0}, symbols="^$+-", name="sure")
    certain = LogOdds(sure, lambda lm, text: lm.prompt("^"), verdicts={"+": 1, "-": 0}, floor=0.01)
    assert certain.judge([ppl.JudgeRequest(certain, trace)])[0] == pytest.approx([math.log(99)])
    assert trace_value(LM) is trace_value(LM)


def test_every_proof_is_valid_where_the_inference_model_never_errs():
    """However badly statements are selected: half the selections of this writer are useless."""
    lm = example.writer(errors=1.0)
    sound = example.writer(errors=0.0)
    models = {"select": lm, "infer": sound, "halt": sound, "value": sound}
    for i in range(2):
        problem = example.puzzle(i, length=2)
        arguments = (models, problem.facts, problem.question)
        posterior = SMC(6).run(selection_inference, *arguments, seed=i, steps=3)
        for sample in posterior.samples:
            assert all(map(example.follows, derivation(sample, problem.facts)))
            assert sample.value in (problem.answer, UNKNOWN)
    # A near miss: the writer that errs is found out by the same checker.
    posterior = BestOfN(8).run(selection_inference, lm, *arguments[1:], seed=0, steps=3)
    steps = [step for sample in posterior.samples for step in derivation(sample, problem.facts)]
    assert not all(map(example.follows, steps))


def test_the_checker_of_the_example():
    rules = ("If Anne is kind then Anne is tall.", "If Anne is tall then Anne is not old.")
    assert example.consequences((*rules, "Anne is kind.")) == {
        "Anne is kind.",
        "Anne is tall.",
        "Anne is not old.",
    }
    assert example.follows(Inference((rules[0], "Anne is kind."), "Anne is tall."))
    assert not example.follows(Inference((rules[0], "Anne is tall."), "Anne is kind."))
    assert not example.follows(Inference((rules[0],), "Anne is tall."))
    for seed in range(9):
        problem = example.puzzle(seed, length=3)
        name = problem.question.removeprefix("Is Anne ").removesuffix("?")
        known = example.consequences(problem.facts)
        said = {"yes": f"Anne is {name}." in known, "no": f"Anne is not {name}." in known}
        assert [a for a, true in said.items() if true] == [
            a for a in ("yes", "no") if problem.answer == a
        ]


def test_the_example(capsys):
    table = example.main(["--problems", "1", "--width", "6", "--length", "2"])
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in table)
    assert all(answered or not valid for row in table.values() for answered, valid in row)
    assert "Therefore, Anne is" in printed


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="facts="):
        selection_inference(LM, [], "q")
    with pytest.raises(ValueError, match="lm: a model for each"):
        selection_inference({"select": LM}, ["a"], "q")
    with pytest.raises(ValueError, match="steps=0"):
        selection_inference(LM, ["a"], "q", steps=0)
    with pytest.raises(ValueError, match="floor=0"):
        LogOdds(LM, lambda lm, text: text, verdicts={"+": 1, "-": 0}, floor=0.0)


def test_what_is_filled_in_may_look_like_another_place():
    facts = ["Bo likes {question}.", "Al is {steps}."]
    lm = ppl.load("tiny-lines")
    asked = ask_selection(lm, facts, "Is {statements} kind?").prompt
    assert "1. Bo likes {question}.\n2. Al is {steps}.\nQuestion: Is {statements} kind?" in asked
    assert (
        "Known: Bo likes {question}.\nQuestion: Is it?"
        in ask_answer(lm, "Is it?", facts[:1]).prompt
    )
    trace = lm.prompt("\n".join(facts)) + "\nTherefore, {statements}"
    assert "Al is {steps}.\nTherefore, {statements}\n" in _ask_value(lm, trace).prompt
