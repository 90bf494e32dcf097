"""Batch prompts: answers by their numbers, what they cost, and votes that are none."""

from __future__ import annotations

import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
from scripted import Scripted

import ppl
from ppl import decide
from ppl.errors import ArgumentError
from ppl.language.answers.joint import JointAnswer
from ppl.programs import batch_prompt
from ppl.programs.marked import items
from ppl.searchers import SMC, BestOfN

SUMS = [f"What is {i} + {i}?" for i in range(8)]


def right(prompt: str) -> dict[int, str]:
    """The right answer to every question of a prompt, by its mark."""
    return {int(n): str(2 * int(i)) for n, i in re.findall(r"Q\[(\d+)\]: What is (\d+)", prompt)}


def replies(answers: dict[int, str]) -> str:
    return "\n".join(f"A[{n}]: {said}" for n, said in answers.items())


def answered(reply, questions=SUMS, size=4, **settings):
    program = batch_prompt(questions, size, **settings)
    return BestOfN(1).run(program, Scripted(reply), seed=0).best


def test_every_question_gets_its_own_answer():
    found = answered(lambda prompt: replies(right(prompt)))
    assert found == {i: str(2 * i) for i in range(8)}


def test_a_dropped_answer_is_none_and_moves_nothing():
    def reply(prompt: str) -> str:
        known = right(prompt)
        del known[2]
        return replies(known)

    assert answered(reply) == {i: None if i in (1, 5) else str(2 * i) for i in range(8)}


def test_reordered_answers_stay_with_their_questions():
    found = answered(lambda prompt: replies(dict(reversed(right(prompt).items()))))
    assert found == {i: str(2 * i) for i in range(8)}


@pytest.mark.parametrize(
    "malformed",
    ["A[two]: 2", "A[2 2", "A[]: 2", "Q[2]: what is it?\nwell, 2", "A[22]: 2", "**A[x]** 2"],
)
def test_one_malformed_item_shifts_nothing(malformed):
    def reply(prompt: str) -> str:
        return replies(right(prompt)).replace("A[2]: 2", malformed)

    assert answered(reply, SUMS[:4]) == {0: "0", 1: None, 2: "4", 3: "6"}


def test_items():
    wanted = range(1, 4)
    assert items("A[1]: a\nA[1]: b\nA[2]: c", "A", wanted) == {2: "c"}  # says two things
    assert items("A[1]: a\nA[1]: a", "A", wanted) == {1: "a"}
    assert items("A[1]: a\nA[2]: b", "A", wanted, cut=True) == {1: "a"}
    assert items("A[7]: a\nA[0]: b", "A", wanted) == {}
    assert items("A[1]: a\nA grand day\nA[2]: b", "A", wanted) == {1: "a\nA grand day", 2: "b"}
    assert items("**A[1]:** a\n- A[2] : b\nA 3: c", "A", wanted) == {1: "a", 2: "b", 3: "c"}
    assert items("", "A", wanted) == items("no marks", "A", wanted) == {}
    # A mark within a line ends an item and begins none: what is said there is not the other's.
    assert items("A[1]: a A[2]: b\nA[3]: c", "A", wanted) == {1: "a", 3: "c"}
    assert items("A[1]: a\nand **A[2]**: b", "A", wanted) == {1: "a\nand **"}
    # Other letters are the item's own: code, matrices.
    assert items("A[1]: M is\nM[0] = 3, so 7\nA[2]: b", "A", wanted)[1].endswith("so 7")


def test_a_reply_that_is_cut_off_loses_its_last_item():
    found = answered(lambda prompt: "A[1]: 0\nA[2]: 1234567890", SUMS[:2], size=2, tokens_each=10)
    assert found == {0: "0", 1: None}


def test_run_on_questions_are_left_out():
    found = answered(
        lambda prompt: replies(right(prompt)) + "\nQ[1]: And what is 7 + 7?\nA[1]: 14", SUMS[:3]
    )
    assert found == {0: "0", 1: "2", 2: "4"}


def test_the_price_of_a_question_is_what_is_shared_divided_by_the_batch_and_its_own():
    lm = Scripted(lambda prompt: replies(right(prompt)))
    examples = [("What is 50 + 50?", "100"), ("What is 60 + 60?", "120")]
    tokens = {}
    for size in (1, 2, 4, 8):
        program = batch_prompt(SUMS, size, examples=examples)
        cost = program.cost(lm)
        asked = [len(lm.chat(program.prompt(i)).tokens) for i in range(program.calls)]
        assert (cost.questions, cost.calls) == (8, 8 // size)
        assert cost.per_question == pytest.approx(sum(asked) / 8)
        assert cost.per_question == pytest.approx(cost.shared / size + cost.own)
        tokens[size] = cost
    assert len({cost.own for cost in tokens.values()}) == 1  # q does not depend on b
    assert tokens[1].alone == tokens[1].per_question > 2 * tokens[4].per_question
    # What a model is given is what was computed beforehand.
    model = ppl.load("tiny-lines")
    program = batch_prompt(SUMS, 4)
    spent = BestOfN(1).run(program, model, seed=0).cost
    given = spent.prompt_tokens + spent.reused_tokens
    assert given == pytest.approx(8 * program.cost(model).per_question)


def test_calls_run_side_by_side():
    lm = Scripted(lambda prompt: replies(right(prompt)))
    posterior = BestOfN(2).run(batch_prompt(SUMS, 2), lm, seed=0)
    assert posterior.cost.lm_calls == 8
    assert [r.name for r in posterior.samples[0].records][:2] == ["batch/0/reply", "batch/0/call"]


def test_answers_of_one_call_are_refused_as_independent_votes():
    lm = Scripted(lambda prompt: replies(right(prompt)))
    posterior = BestOfN(3).run(batch_prompt([SUMS[4]] * 4, 2), lm, seed=0)
    one = posterior.samples[0].value
    assert isinstance(one[0], JointAnswer)
    for refused in (
        lambda: decide.vote(list(one.values())),
        lambda: decide.Seen.of(list(one.values())),
        lambda: decide.Candidates([one[0], one[2], one[1]]),
    ):
        with pytest.raises(ArgumentError, match=r"answers \d and \d were read from one reply"):
            refused()
    # One of each call is independent: of two calls, and of several samples.
    assert decide.vote([one[0], one[2]]) == "8"
    assert decide.vote([s.value[1] for s in posterior.samples]) == "8"
    assert posterior.vote(key=lambda answers: answers[1])[1] == "8"
    assert decide.vote([ppl.Answer(answer) for answer in one.values()]) == "8"


def test_marks_follow_the_reply_through_forks_files_and_pickles(tmp_path):
    lm = Scripted(lambda prompt: replies(right(prompt)))

    def program() -> dict[int, str | None]:
        found = batch_prompt(SUMS[:2], 2)(lm)
        ppl.twist("here", 0.5)
        pyro.sample("coin", dist.Bernoulli(0.5))
        return found

    copies = SMC(4, 1.0).run(program, seed=0)
    for sample in copies.samples:
        assert sample.value[0].call == sample.value[1].call == sample.records[1].value
    assert decide.vote(copies) is not None  # a posterior's weights know its copies
    assert decide.vote(decide.Candidates.of(copies, tokens=[1.0] * 4)) is not None
    posterior = BestOfN(2).run(batch_prompt(SUMS[:2], 2), lm, seed=0)
    calls = [s.value[0].call for s in posterior.samples]
    assert len(set(calls)) == 2
    posterior.save(tmp_path / "p.ppl")
    again = ppl.Posterior.load(tmp_path / "p.ppl")
    assert [s.value[0].call for s in again.samples] == calls
    assert again.samples[0].value == posterior.samples[0].value
    copy = pickle.loads(pickle.dumps(posterior.samples[0].value[0]))
    assert (type(copy), copy, copy.call) == (JointAnswer, "0", calls[0])
    assert batch_prompt(SUMS[:2])(lm)[1] == "2"  # outside of a search


def test_what_is_no_batch_is_refused():
    for wrong, name in (
        (lambda: batch_prompt([]), "questions"),
        (lambda: batch_prompt(["a", " "]), "questions"),
        (lambda: batch_prompt("ab"), "questions"),  # type: ignore[arg-type]
        (lambda: batch_prompt(["a"], 0), "size"),
        (lambda: batch_prompt(["a"], tokens_each=0), "tokens_each"),
        (lambda: batch_prompt(["a"], read=3), "read"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=name):
            wrong()
