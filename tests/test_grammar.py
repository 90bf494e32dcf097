"""Grammars: verdicts, masks, and the weight that straightens what masking bends."""

from __future__ import annotations

import json
import math
import re

import pyro
import pytest

import ppl
from ppl.errors import GrammarError, NoAllowedTokenError
from ppl.searchers import SMC, BestOfN
from ppl.verifiers import Grammar, JsonSchema, Regex

pytest.importorskip("llguidance")

# After "a" only "a..." can go on legally and the model hardly ever does; after "b" it always does.
TABLE = {
    "^": {"a": 0.8, "b": 0.2},
    "^a": {"a": 0.1, "b": 0.8, "$": 0.1},
    "^b": {"a": 0.1, "b": 0.85, "$": 0.05},
}
LM = ppl.TableLM(
    lambda prefix: TABLE.get(prefix, {"a": 0.2, "b": 0.3, "$": 0.5}),
    symbols="^ab$",
    end="$",
    context_length=6,
)
PATTERN = "aa|bb|bab?"
DOUBLE = Regex(PATTERN)


def free():
    text = LM.prompt("^")
    for t in range(4):
        step = pyro.sample(f"s_{t}", LM(text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", DOUBLE(text), obs=True)
        if step.finished:
            return text.text
    ppl.condition(False)
    return None


def masked():
    text = LM.prompt("^")
    for t in range(4):
        step = pyro.sample(f"s_{t}", LM(text, max_tokens=1, allowed=DOUBLE.mask(text)))
        text = text + step
        if step.finished:
            break
    return text.text


def truth():
    """p(x | x in L), by hand: all strings of up to four symbols that Python's `re` accepts."""
    p = {}
    for word in ("aa", "bb", "ba", "bab"):
        assert re.fullmatch(PATTERN, word)
        log_prob = LM(LM.prompt("^")).log_prob(LM.continuation(word, finished=True))
        p[word] = math.exp(float(log_prob))
    total = sum(p.values())
    return {word: q / total for word, q in p.items()}, math.log(total)


def kl(p, q):
    return sum(p[x] * math.log(p[x] / q[x]) for x in p)


def test_the_verifier_gives_the_true_conditional():
    want, log_evidence = truth()
    exact = ppl.enumerate_program(free)
    assert exact.marginal() == pytest.approx(want)
    assert exact.log_evidence == pytest.approx(log_evidence)


def test_masking_bends_and_the_weight_straightens():
    want, log_evidence = truth()
    bent = ppl.enumerate_program(masked).marginal()
    assert set(bent) == set(want)
    assert kl(want, bent) > 0.3  # masked: 80% begin with "a"; truly 22% do
    # Weighted by p / q the same draws have the true law: exactly, term by term.
    straight = {}
    for word, q in bent.items():
        log_p = float(LM(LM.prompt("^")).log_prob(LM.continuation(word, finished=True)))
        straight[word] = q * math.exp(log_p - math.log(q))
    total = sum(straight.values())
    assert kl(want, {w: s / total for w, s in straight.items()}) == pytest.approx(0, abs=1e-12)
    assert math.log(total) == pytest.approx(log_evidence)


@pytest.mark.parametrize("searcher", [BestOfN(400), SMC(400)])
def test_a_masked_guide_is_properly_weighted(searcher):
    want, log_evidence = truth()
    posterior = searcher.run(free, guide=masked, seed=1)
    assert posterior.log_evidence == pytest.approx(log_evidence, abs=0.15)
    got = posterior.marginal()
    assert set(got) == set(want)  # every draw obeys
    assert kl(want, got) < 0.02


@pytest.mark.parametrize(
    ("string", "finished", "good"),
    [("", False, True), ("a", False, True), ("a", True, False), ("aa", True, True),
     ("ab", False, False), ("bab", True, True), ("babb", False, False), ("", True, False)],
)  # fmt: skip
def test_prefixes_and_whole_texts(string, finished, good):
    text = LM.prompt("^") + LM.continuation(string, finished=finished)
    assert DOUBLE(text).log_probability == (0.0 if good else -math.inf)


def test_mask_allows_the_end_exactly_where_the_text_may_end():
    mask, ids = DOUBLE.mask(LM.prompt("^")), {c: i for i, c in enumerate("^ab$")}
    named = {
        word: {"^ab$"[i] for i in mask(LM.codec.encode(word)).nonzero()} for word in ("", "a", "ba")
    }
    assert named == {"": {"a", "b"}, "a": {"a"}, "ba": {"b", "$"}}
    assert not mask((ids["a"], ids["b"])).any()
    # A mask goes on from what the text holds already.
    assert DOUBLE.mask(LM.prompt("^") + "b" + "a")(()).equal(mask(LM.codec.encode("ba")))


def test_a_language_left_by_the_text_allows_nothing():
    text = LM.prompt("^") + "a" + "b"
    with pytest.raises(NoAllowedTokenError, match="leaves no token"):
        LM(text, max_tokens=1, allowed=DOUBLE.mask(text)).sample()


def test_states_are_forgotten_without_changing_anything(monkeypatch):
    from ppl.verifiers.exact import grammar

    before = ppl.enumerate_program(masked).marginal()
    monkeypatch.setattr(grammar, "_STATES", 2)
    assert ppl.enumerate_program(masked).marginal() == before


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "b": {"type": "boolean"}},
    "required": ["n", "b"],
    "additionalProperties": False,
}


def test_json_schema_with_a_real_tokenizer(tiny):
    lm, _ = tiny
    schema = JsonSchema({"enum": [12, 345]})
    text = lm.prompt("3 + 4")
    posterior = BestOfN(8).run(lambda: pyro.sample("x", lm(text, allowed=schema.mask(text))).text)
    assert {s.value for s in posterior.samples} <= {"12", "345"}
    assert schema(text + lm.continuation("12", finished=True)).log_probability == 0
    assert schema(text + lm.continuation("13", finished=True)).log_probability == -math.inf


def test_grammar_of_sums(tiny):
    lm, _ = tiny
    sums = Grammar('start: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]+/')
    text = lm.prompt("3")
    for string, good in (("1+2", True), ("1+", False), ("+1", False), ("12+3+4", True)):
        verdict = sums(text + lm.continuation(string, finished=True))
        assert (verdict.log_probability == 0) is good, string


@pytest.mark.parametrize("make", [
    lambda: Grammar("start: ("), lambda: Regex("("), lambda: JsonSchema("{"),
    lambda: JsonSchema({"type": "nothing"}),
])  # fmt: skip
def test_bad_grammars_are_named(make):
    with pytest.raises(GrammarError):
        make()


def test_names_are_readable():
    assert JsonSchema(SCHEMA).name == f"JsonSchema({json.dumps(SCHEMA)})"
    assert Regex("a+", name="as").name == "as"


def test_sites_under_other_grammars_are_other_sites():
    text = LM.prompt("^")
    laws = [LM(text, allowed=Regex(p).mask(text)).fingerprint for p in ("a+", "a+", "b+")]
    assert laws[0] == laws[1] != laws[2]
