"""Texts, continuations, step rules and answers."""

from __future__ import annotations

import dataclasses
import math
import pickle
import re

import pyro
import pytest
from programs import TOY

import ppl
from ppl.errors import PromptError
from ppl.lm.table import SymbolCodec

A, B = TOY.continuation("a"), TOY.continuation("b")
END = TOY.continuation("", finished=True)


# -- texts ---------------------------------------------------------------------------------------


def test_text_and_continuations_add_up():
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
    assert text == prompt + TOY.continuation("ab") + "a" + TOY.continuation("b", finished=True)
    assert text != prompt
    assert hash(prompt) == hash(TOY.prompt("^"))
    again = pickle.loads(pickle.dumps(text))
    assert again == text
    assert (again.steps, again.finished, again.prompt) == (text.steps, True, "^")
    with pytest.raises(AttributeError, match="immutable"):
        text.tokens = ()
    with pytest.raises(TypeError):
        prompt + 3


def test_appending_makes_a_new_text():
    prompt = TOY.prompt("^")
    before = (prompt.tokens, prompt.step_ends, prompt.finished, hash(prompt))
    children = [prompt + A, prompt + B, prompt + "ab", prompt + END]
    assert (prompt.tokens, prompt.step_ends, prompt.finished, hash(prompt)) == before
    assert [c.text for c in children] == ["a", "b", "ab", ""]
    assert all(c.parent is prompt for c in children)
    assert len(set(children)) == 4


def test_continuations_are_frozen_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        A.tokens = ()
    assert ppl.Continuation(A.tokens, "spelt otherwise") == A  # tokens are the truth
    assert ppl.Continuation(A.tokens, "a", "length") != A
    assert (A.finished, END.finished, END.text, str(B)) == (False, True, "", "b")
    assert len({A, TOY.continuation("a"), B}) == 2
    assert pickle.loads(pickle.dumps(END)) == END


def test_a_continuation_by_hand():
    assert TOY.continuation([1, 2]) == TOY.continuation("ab")
    assert TOY.continuation("ab").reason == "until"
    assert TOY.continuation("ab$") == TOY.continuation("ab", finished=True)
    assert TOY.continuation("ab$", finished=True) == TOY.continuation("ab$")  # ended only once
    assert TOY.continuation("ab", finished=True).tokens[-1] in TOY.codec.end_tokens


def test_steps_divide_the_text():
    text = TOY.prompt("^a") + "b" + A + B + "aa" + END
    assert text.step_ends == (4, 5, 8)
    assert text.steps == ("ba", "b", "aa")  # literals count to the step that follows them
    assert "".join(text.steps) == text.text
    unfinished = TOY.prompt("^a") + A + "b"
    assert (unfinished.steps, unfinished.text) == (("a",), "ab")  # nothing follows this literal yet
    assert TOY.prompt("^").steps == ()


def test_same_tokens_in_other_steps_are_another_text():
    prompt = TOY.prompt("^")
    one, two, none = prompt + TOY.continuation("ab"), prompt + A + B, prompt + "ab"
    assert one.tokens == two.tokens == none.tokens
    assert len({one, two, none}) == 3
    assert prompt != "^"


def test_prompt_without_its_string_is_decoded():
    assert ppl.Text((0, 1), TOY.codec).prompt == "^a"


def test_pickles_leave_the_past_behind():
    text = TOY.prompt("^")
    for _ in range(3000):  # far deeper than a recursion would go
        text = text + A
    again = pickle.loads(pickle.dumps(text))
    assert again == text
    assert again.parent is None
    assert again.verdicts == {}
    assert again.codec == text.codec
    assert (again + B).text == text.text + "b"


# -- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("string", "answer"),
    [
        (r"\boxed{\frac{a}{\sqrt{b^{2}}}}", r"\frac{a}{\sqrt{b^{2}}}"),
        (r"\boxed {3}", "3"),
        (r"\boxed{1} but then \boxed{2", "1"),
        (r"\boxed{4} #### 5", "4"),
        ("#### 1\n#### 2", "2"),
        ("####3", "3"),
        ("the ANSWER is: 9.", "9"),
        ("Final answer: 3.5", "3.5"),
        ("Answer:\n7", "7"),
        ("The answer is 4.\n#### 5", "5"),
        ("one\n  two  \n\n   \n", "two"),
        ("", None),
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
    assert (text + TOY.continuation("b", finished=True)).answer == "abb"


def test_answers_come_from_the_models_words_only():
    lm = ppl.TableLM({"7": 0.5, "$": 0.5}, symbols="Q7#\n$", end="$", name="sevens")
    text = lm.prompt("####7\nQ") + "\n" + lm.continuation("#" * 4 + "77", finished=True)
    assert text.answer == "77"
    for more in ("7", "", lm.continuation("7")):
        with pytest.raises(PromptError, match=r"finished, .* cannot follow"):
            text + more
    assert (lm.prompt("####7") + lm.continuation("", finished=True)).answer is None


# -- step rules ----------------------------------------------------------------------------------


def long(text: str) -> bool:
    return len(text) > 3


@pytest.mark.parametrize(
    ("until", "stops", "goes"),
    [
        ("\n", "a\n", "a"),
        (["\n", "</think>"], "x</think>y", "x</thin"),
        (re.compile(r"\d{3}"), "a123", "a12"),
        (lambda s: len(s) > 3, "abcd", "abc"),
    ],
)
def test_a_step_ends_where_its_rule_says(until, stops, goes):
    rule = ppl.StepRule.of(until)
    assert rule(stops)
    assert not rule(goes)
    assert not rule.never
    assert ppl.StepRule.of(rule) is rule


def test_step_rules_are_values():
    assert ppl.StepRule.of("\n") == ppl.StepRule.of(["\n"])
    rules = [ppl.StepRule.of(u) for u in ("\n", ["a", "bb"], re.compile("x+"), long, None)]
    assert [str(r) for r in rules] == [r"'\n'", "'a' | 'bb'", "/x+/", "long", "end of text"]
    for rule in rules:
        assert pickle.loads(pickle.dumps(rule)) == rule
        assert hash(rule) == hash(pickle.loads(pickle.dumps(rule)))
    assert len(set(rules)) == 5
    assert [r.never for r in rules] == [False] * 4 + [True]
    assert not rules[-1]("anything at all")


def test_step_rules_combine():
    rule = ppl.StepRule(("\n",), re.compile(r"\d$"), long)
    assert [rule(s) for s in ("a", "\n", "a1", "1a", "abcd")] == [False, True, True, False, True]
    assert rule.single_characters is None


@pytest.mark.parametrize(
    ("until", "characters"),
    [
        ("\n", {"\n"}),
        (("\n", ";", "a"), {"\n", ";", "a"}),
        ("ab", None),
        (["\n", "ab"], None),
        ("é", None),  # may be spread over two tokens
        (" ", {" "}),
        (re.compile("a"), None),
        (long, None),
        (None, None),
    ],
)
def test_single_characters(until, characters):
    assert ppl.StepRule.of(until).single_characters == characters


@pytest.mark.parametrize("bad", ["", [], (), ["a", ""], [1], ["a", None]])
def test_stop_strings_must_be_strings(bad):
    with pytest.raises(ValueError, match="until="):
        ppl.StepRule.of(bad)


@pytest.mark.parametrize("bad", [3, 1.5, True])
def test_until_of_another_kind(bad):
    with pytest.raises(TypeError, match="until="):
        ppl.StepRule.of(bad)


def test_generators_of_stop_strings_are_read_once():
    rule = ppl.StepRule.of(s for s in ("x", "y"))
    assert rule.strings == ("x", "y")
    assert rule("y")
    assert rule("y")


# -- where continuations stop --------------------------------------------------------------------


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


class Pieces(SymbolCodec):
    """Drops the space at the start of what it decodes, as tokenizers of sentence pieces do."""

    def decode(self, tokens):
        return super().decode(tokens).removeprefix(" ")


@pytest.mark.parametrize("until", [" ", [" ", "b"], "b", "b "])
def test_stops_do_not_depend_on_how_a_token_reads_alone(until):
    lm = ppl.TableLM({"a": 0.4, "b": 0.2, " ": 0.3, "$": 0.1}, symbols="^ab $", end="$")
    lm.codec = Pieces("^ab $", "$")
    law = lm(lm.prompt("^"), until=until, max_tokens=4)
    support = lm.support(law)
    assert math.fsum(math.exp(p) for _, p in support) == pytest.approx(1)
    for value, log_prob in support:
        assert float(law.log_prob(value)) == pytest.approx(log_prob)
    possible = {v for v, _ in support}
    assert all(law.sample() in possible for _ in range(40))


def test_until_with_the_tiny_model_keeps_whole_tokens(tiny):
    lm, _ = tiny
    pyro.set_rng_seed(1)
    step = lm(lm.chat("Calculate 3 + 4 - 5."), until="\n", max_tokens=30).sample()
    assert step.finished or step.text.endswith("\n")
    assert lm.codec.decode(step.tokens) == step.text
    greedy = lm(lm.chat("Calculate 3 + 4 - 5."), max_tokens=3, temperature=0)
    assert greedy.sample() == greedy.sample()
