"""Several writers of one text, whatever their tokenizers."""

from __future__ import annotations

import pyro
import pytest

import ppl
from ppl.errors import PPLError, PromptError
from ppl.searchers import ABMCTSA, SMC, BestOfN
from ppl.verifiers import verifier

# The same letters under other numbers.
ONE = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", end="$", name="one")
TWO = ppl.TableLM({"a": 0.1, "b": 0.8, "$": 0.1}, symbols="$ba^", end="$", name="two")


@verifier(aggregate="last")
def likes_a(text):
    return (1 + text.text.count("a")) / (2 + len(text.text))


def story() -> str:
    write = ppl.writers({"one": ONE, "two": TWO})
    text = write.prompt("^")
    for t in range(4):
        who = write.choose(f"llm_{t}")
        step = pyro.sample(f"step_{t}", write(who, text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", likes_a(text.of("one")), obs=True)
        ppl.answer(text.text)
        if step.finished:
            break
    return text.text


def test_both_have_the_same_words():
    write = ppl.writers({"one": ONE, "two": TWO})
    text = write.prompt("^")
    for model, word in ((ONE, "a"), (TWO, "b"), (ONE, "b")):
        text = text + model.continuation(word)
    assert text.text == text.of("one").text == text.of("two").text == "abb"
    assert text.of("one").tokens == (0, 1, 2, 2)
    assert text.of("two").tokens == (3, 2, 1, 1)
    ended = text + TWO.continuation("", finished=True)
    assert ended.finished
    assert ended.of("one").finished
    assert not text.finished  # it stayed as it was


def test_one_tokenizer_s_step_alone_would_be_read_as_the_other_s():
    with pytest.raises(PPLError, match="tokenizer"):
        ONE.prompt("^") + TWO.continuation("b")


def test_laws_are_those_of_the_writers():
    exact = ppl.enumerate_program(story)
    posterior = SMC(400).run(story, seed=0)
    assert posterior.log_evidence == pytest.approx(exact.log_evidence, abs=0.1)
    found, known = posterior.marginal(len), exact.marginal(len)
    assert max(abs(found.get(k, 0) - p) for k, p in known.items()) < 0.1


@pytest.mark.parametrize("strategy", ["pooled", "stack"])
def test_a_search_chooses_the_writer_who_is_liked(strategy):
    search = ABMCTSA(60, actions="llm", strategy=strategy, batch=3).begin(story, seed=2)
    posterior = search.run()
    made = [int(r.value) for n in search.tree.nodes for r in n.records if r.name.startswith("llm")]
    assert len(made) == 60
    assert made.count(0) > 0.5 * 60
    assert posterior.best_sample.score == max(s.score for s in posterior.samples)


def test_what_is_no_writer_is_named():
    write = ppl.writers({"one": ONE})
    with pytest.raises(PromptError, match=r"name='two': the writers are 'one'"):
        write("two", write.prompt("^"))
    with pytest.raises(TypeError, match="text: writers continue"):
        write("one", ONE.prompt("^"))
    with pytest.raises(ValueError, match="at least one writer"):
        ppl.writers({})
    assert BestOfN(2).run(story, seed=0).best is not None
