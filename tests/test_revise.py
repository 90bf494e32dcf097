"""Sequential revisions: what each answer sees, the exact law, selection over all of them."""

from __future__ import annotations

import math

import pytest

import ppl
from ppl import decide
from ppl.errors import ArgumentError
from ppl.programs import revise, revision_prompt, revisions, rounds_and_rows
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import FunctionVerifier

FIRST, AFTER = 0.5, {"a": 0.8, "b": 0.3}  # chance of "a", by the answer before


def next_symbol(prefix: str) -> dict[str, float]:
    seen = prefix.removeprefix("^").rstrip("|")
    a = AFTER[seen[-1]] if seen else FIRST
    return {"a": a, "b": 1 - a}


LM = ppl.TableLM(next_symbol, symbols="^ab|$", context_length=32)
SCORES = {"a": 0.9, "b": 0.4}


def judge(text: ppl.Text) -> float:
    return SCORES[text.text[-1]]


def asked(question: str, seen) -> ppl.Text:
    return LM.prompt("^" + "".join(f"{answer}|" for answer in seen))


def program(rounds: int, verifier: bool = True, memory: int = 4):
    return revise(
        LM,
        rounds,
        verifier=FunctionVerifier(judge, name="judge") if verifier else None,
        ask=asked,
        read=lambda text: text or None,
        memory=memory,
        max_tokens=1,
    )


def test_the_law_is_that_of_the_row_times_its_best_value():
    """Rows aa .4, ab .1, ba .15, bb .35; all but bb contain the better answer."""
    exact = ppl.enumerate_program(program(2), "q")
    assert math.exp(exact.log_evidence) == pytest.approx(0.9 * 0.65 + 0.4 * 0.35)
    # Near misses: every answer weighed, or the last alone.
    every = 0.4 * 0.81 + 0.25 * 0.36 + 0.35 * 0.16
    last = 0.9 * 0.55 + 0.4 * 0.45
    assert all(abs(0.725 - wrong) > 0.04 for wrong in (every, last))
    assert exact.marginal()["a"] == pytest.approx(0.9 * 0.65 / 0.725)
    found = [math.exp(SMC(8).run(program(2), "q", seed=s).log_evidence) for s in range(120)]
    mean = sum(found) / len(found)
    spread = math.sqrt(sum((x - mean) ** 2 for x in found) / len(found))
    assert abs(mean - 0.725) < 3.5 * spread / math.sqrt(len(found))


def test_one_round_is_plain_sampling():
    plain = BestOfN(40).run(program(1), "q", seed=3)
    assert {s.value for s in plain.samples} == {"a", "b"}
    exact = ppl.enumerate_program(program(1), "q")
    assert math.exp(exact.log_evidence) == pytest.approx(0.5 * 0.9 + 0.5 * 0.4)


@pytest.mark.parametrize("memory", [1, 2, 4])
def test_each_answer_sees_the_last_ones_in_order(memory):
    seen = []

    def ask(question, answers):
        seen.append((question, tuple(answers)))
        return asked(question, answers)

    made = revise(LM, 4, ask=ask, read=str, memory=memory, max_tokens=1)
    posterior = BestOfN(1).run(made, "q", seed=1)
    row = [r.value.text for r in posterior.samples[0].records]
    assert len(row) == 4
    assert seen == [("q", tuple(row[:t][-memory:])) for t in range(4)]
    # Without a verifier a row's answer is its last.
    for sample in BestOfN(12).run(made, "q", seed=1).samples:
        assert sample.value == sample.records[-1].value.text


def test_the_best_of_all_rows_and_a_vote_of_all_answers():
    posterior = BestOfN(5).run(program(3), "q", seed=2)
    candidates = revisions(posterior, read=lambda text: text or None)
    rows = [[r.value.text for r in s.records if r.kind == "choice"] for s in posterior.samples]
    assert candidates.values == [answer for row in rows for answer in row]
    scores = candidates.columns["log_scores"]
    assert scores.tolist() == pytest.approx([math.log(SCORES[v]) for v in candidates.values])
    assert decide.best(candidates) == posterior.best == "a"
    assert candidates.columns["log_weights"].tolist() == [0.0] * 15  # whatever its row weighs
    count = candidates.values.count("a")
    assert decide.vote(candidates) == ("a" if count > 7.5 else "b")
    # A verdict an answer, and one draw each.
    assert posterior.cost.verifier_calls == 15
    assert posterior.cost.lm_tokens == 15
    for sample, row in zip(posterior.samples, rows, strict=True):
        assert sample.log_weight == pytest.approx(max(math.log(SCORES[v]) for v in row))
    without = revisions(BestOfN(2).run(program(2, verifier=False), "q"), read=str)
    assert "log_scores" not in without.columns
    with pytest.raises(ArgumentError, match="revise"):
        revisions(BestOfN(1).run(lambda: 1))


def test_no_answer_is_never_chosen_while_there_is_one():
    """A blank the judge loves best; a row without any answer has none."""
    read = lambda text: None if text == "a" else text  # noqa: E731
    made = revise(
        LM, 3, verifier=FunctionVerifier(judge, name="judge"), ask=asked, read=read, max_tokens=1
    )
    posterior = BestOfN(20).run(made, "q", seed=4)
    for sample in posterior.samples:
        row = [r.value.text for r in sample.records if r.kind == "choice"]
        assert sample.value == ("b" if "b" in row else None)
    assert decide.vote(revisions(posterior, read=read)) == "b"


def test_prompts_hold_the_attempts_oldest_first():
    assert revision_prompt("What?", []) == "What?"
    prompt = revision_prompt("What?", [" one ", "two"])
    assert prompt.index("What?") < prompt.index("Attempt 1:\none\n") < prompt.index("2:\ntwo")


def test_a_budget_is_divided_by_the_ratio():
    assert rounds_and_rows(16, 1.0) == (4, 4)
    assert rounds_and_rows(16, 4.0) == (8, 2)
    assert rounds_and_rows(16, 1e9) == (16, 1)
    assert rounds_and_rows(16, 1e-9) == (1, 16)
    assert rounds_and_rows(8, 1.0) == (4, 2)
    assert rounds_and_rows(7, 1.0) in ((7, 1), (1, 7))
    for total in (1, 6, 12, 30):
        for ratio in (0.1, 1.0, 3.0):
            rounds, rows = rounds_and_rows(total, ratio)
            assert rounds * rows == total
    with pytest.raises(ValueError, match="ratio"):
        rounds_and_rows(4, 0.0)


def test_a_chat_model_revises(tiny):
    lm, _ = tiny
    posterior = BestOfN(2).run(revise(lm, 2, max_tokens=12), "Calculate 4 - 9 + 6.", seed=0)
    assert len(revisions(posterior).values) == 4
    assert posterior.cost.lm_calls == 4
