"""One law for all families of tokenizers: a string is encoded and decoded where it stands."""

from __future__ import annotations

import math
import pickle
import re
from functools import cache

import pytest
import tokenizers_made as made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaForTokenClassification

import ppl
from ppl.language.codec import Reader
from ppl.lm.base import ContinueRequest, ScoreRequest
from ppl.lm.row import could_be_drawn
from ppl.lm.stopping import Stop
from ppl.lm.tokenizer import HFCodec, without
from ppl.verifiers import PRM, Grammar, Regex

FAMILY = st.sampled_from(sorted(made.FAMILIES))
EXACT = st.sampled_from(sorted(made.EXACT))
# No tokenizer of sentence pieces can tell U+2581 from a space: it writes spaces with it.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=24)
PARTS = [*"the quick brown 5\n é🙂日.<s>", "<s>", "</s>", " fox", "<think>"]
LIKELY = st.lists(st.sampled_from(PARTS), max_size=16).map("".join)
STRING = TEXT | LIKELY
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@cache
def lm(family: str) -> ppl.HFModel:
    return made.language_model(made.FAMILIES[family](), family)


def codec(family: str) -> HFCodec:
    return lm(family).codec


def ids_of(family: str, draw) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(0, codec(family).size - 1), max_size=20)))


def unspelled(family: str, string: str) -> bool:
    """True if the string spells out no added token."""
    return not any(
        str(t) in string for t in lm(family).codec.tokenizer.added_tokens_decoder.values()
    )


def token(family: str, string: str) -> int:
    """The one token that says `string` in the middle of a text."""
    (found,) = codec(family).encode_after(string)
    return found


# -- decoding ------------------------------------------------------------------------------------


@quick
@given(FAMILY, st.data())
def test_a_text_reads_as_the_tokenizer_reads_it_whole(family, data):
    """The oracle is the tokenizer's own decoder, asked for everything at once."""
    ids, c = ids_of(family, data.draw), codec(family)
    ends = [i for i, t in enumerate(ids) if t in c.end_tokens]
    ids = ids[: ends[0]] if ends else ids
    (front,) = c.encode("a")[-1:]
    whole = c.decode((front, *ids)).removeprefix(c.decode((front,)))
    mine = c.decode_after(ids, (front,))
    if family == "word_ends":  # its words end in a space, if the text goes on
        mine, whole = mine.rstrip(" "), whole.lstrip(" ")
    if "\ufffd" in whole and family not in ("byte_level", "gaps"):
        return  # byte fallback replaces all bytes of a run, also those that are characters
    assert mine.rstrip("\ufffd") == whole.rstrip("\ufffd")


@quick
@given(FAMILY, st.data())
def test_steps_join_to_the_text(family, data):
    model = lm(family)
    ids = ids_of(family, data.draw)
    ids = tuple(t for t in ids if t not in model.codec.end_tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    prompt = model.prompt("the quick")
    text, said = prompt, ""
    for a, b in zip((0, *cuts), (*cuts, len(ids)), strict=True):
        step = model.codec.decode_after(ids[a:b], text.tokens)
        text = text + ppl.Continuation(ids[a:b], step, "length", model.codec.identity)
        said += step
    assert "".join(text.steps) == text.text == said
    assert text.text == model.codec.decode_after(ids, prompt.tokens)
    assert pickle.loads(pickle.dumps(text)).steps == text.steps
    # Only what can never become a character is shown as none.
    whole = b"".join(map(model.codec.piece, ids))
    assert ("\ufffd" in text.text) == ("\ufffd" in _complete(whole))


def _complete(data: bytes) -> str:
    """`data` without the character that is cut off at its end."""
    for cut in range(4):
        head, tail = data[: len(data) - cut], data[len(data) - cut :]
        if all(0x80 <= byte < 0xC0 for byte in tail[1:]) and (not tail or tail[0] >= 0xC2):
            try:
                tail.decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    return head.decode(errors="replace")
    return data.decode(errors="replace")


@pytest.mark.parametrize("family", made.EXACT)
def test_a_character_is_there_when_it_is_complete(family):
    model = lm(family)
    ids = model.codec.encode_after("é 🙂日")
    reader, shown = Reader(model.codec), ""
    for t in ids:
        shown += reader.read((t,))
        assert "é 🙂日".startswith(shown)
    assert shown == "é 🙂日"
    smile = model.codec.encode_after("🙂")[-4:]
    text = model.prompt("q")
    for t in smile[:-1]:
        text = text + model.continuation([t])
        assert text.text.strip() == ""
    text = text + model.continuation(smile[-1:])
    assert (text.text.strip(), text.steps[-1].strip()) == ("🙂", "🙂")
    # Where the text ends, nothing can complete it any more.
    end = min(model.codec.end_tokens)
    cut = model.prompt("q") + ppl.Continuation((*smile[:1], end), "", "end")
    assert cut.text.strip() == ("🙂" if len(smile) == 1 else "\ufffd")


# -- encoding ------------------------------------------------------------------------------------


@quick
@given(EXACT, STRING, STRING)
def test_what_is_appended_reads_as_it_was_written(family, first, string):
    model = lm(family)
    if not (unspelled(family, "q" + first) and unspelled(family, string)):
        return
    text = model.prompt("q" + first) + string
    assert text.text == string
    assert model.codec.decode(text.tokens) == "q" + first + string
    assert model.continuation(string).text == string
    step = text + model.continuation(string)
    assert step.steps == (string * 2,)  # literals count to the step that follows


@quick
@given(FAMILY, STRING)
def test_plain_strings_hold_no_special_tokens(family, string):
    c = codec(family)
    string = string + "</s>" + string
    try:
        parts = without(list(c.special_tokens.values()), string)
    except ppl.PPLError:
        return
    assert "".join(parts) == string
    assert not set(c.encode_after(string, plain=True)) & (set(c.special_tokens) - {0})
    if family in made.EXACT and unspelled(family, string.replace("</s>", "")):
        assert c.decode_after(c.encode_after(string, plain=True)) == string


JOINTS = [
    ("the quick", " brown fox"),
    ("2 + 3 =", " 5"),
    ("the quick", "\n"),
    ("one", "\n\n"),
    ("one\n", "two"),
    ("so", " the answer is 5"),
]


@pytest.mark.parametrize("family", ["llama2", "gemma", "byte_level"])
def test_joints_get_the_tokens_of_the_whole(family):
    model = lm(family)
    for first, second in JOINTS:
        whole = model.prompt(first + second).tokens
        joined = (model.prompt(first) + second).tokens
        if second == "two":  # "two" behind a newline: no space
            assert model.codec.decode(joined) == first + second
        else:
            assert joined == whole
    assert len(model.continuation(" 5").tokens) == len(model.continuation("5").tokens) == 1
    assert len((model.prompt("q") + "\n").tokens) == len(model.prompt("q").tokens) + 1
    # A step made by hand is the step that the model would draw.
    five = token(family, " 5")
    text = model.prompt("2 + 3 =")
    drawn = model(text, max_tokens=1).log_prob(ppl.Continuation((five,), " 5", "length"))
    assert float(model(text, max_tokens=1).log_prob(model.continuation(" 5"))) == float(drawn)
    assert math.isfinite(float(drawn))


@pytest.mark.parametrize("family", sorted(made.FAMILIES))
def test_prompts_begin_as_the_tokenizer_begins_them(family):
    model = lm(family)
    usual = tuple(model.codec.tokenizer("the quick brown").input_ids)
    ending = 1 if family == "word_piece" else 0
    assert model.prompt("the quick brown").tokens == usual[: len(usual) - ending]
    bare = model.prompt("the quick brown", begin=False).tokens
    assert bare == tuple(model.codec.tokenizer.encode("the quick brown", add_special_tokens=False))
    assert (bare == model.prompt("the quick brown").tokens) == (not model.codec.begin_tokens)
    # One that spells it out has it once.
    first = "".join(map(str, [model.codec.special_tokens[t] for t in model.codec.begin_tokens]))
    assert model.prompt(first + "the quick brown").tokens[:2] == usual[:2]
    with pytest.raises(ppl.PPLError, match="empty"):
        model.prompt("")


# -- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["byte_level", "llama2", "gemma", "metaspace", "word_piece"])
def test_a_stop_string_fires_at_the_token_that_says_it(family):
    model = lm(family)
    text = model.prompt("the quick")
    brown = model.continuation([token(family, " brown")])
    for until in (" brown", "brown", " b", " ", [" brown", "zz"], re.compile(r" \w+"),
                  re.compile(r"^ brown$"), lambda s: s == " brown"):  # fmt: skip
        assert math.isfinite(float(model(text, until=until, max_tokens=6).log_prob(brown))), until
    for until in ("x", "brown ", ["  brown"], re.compile("^brown")):
        assert float(model(text, until=until, max_tokens=6).log_prob(brown)) == -math.inf, until


@quick
@given(FAMILY, st.data(), st.sampled_from(["b", " ", "\n", "ro", " b", "wn f", "é", "🙂", ".."]))
def test_a_rule_fires_exactly_where_the_text_first_obeys_it(family, data, stop):
    c, ids = codec(family), ids_of(family, data.draw)
    before = ids_of(family, data.draw)
    likely = c.encode_after("the quick brown fox é 🙂..\n")
    ids = tuple(data.draw(st.permutations((*ids, *likely))))[:25]
    rules = [stop, [stop, "never never"], re.compile(re.escape(stop)), lambda s: stop in s]
    for rule in map(ppl.StepRule.of, rules):
        stops = Stop(c, rule, before, "a test")
        for n, t in enumerate(ids, 1):
            said = c.decode_after(ids[:n], before)
            end = t in c.end_tokens
            wanted = "end" if end else "until" if stop in said else None
            assert stops.after(t) == wanted
            if wanted:
                break


@pytest.mark.parametrize("family", made.EXACT)
@pytest.mark.parametrize("stops", [["wn f"], ["wn f", "!"], ["never", "k brow"], [" over the l"]])
def test_a_stop_string_may_lie_across_tokens(family, stops):
    c = codec(family)
    words = "the quick brown fox jumps over the lazy dog"
    stop, said = Stop(c, ppl.StepRule.of(stops), (), "a test"), ""
    for t in c.encode_after(words):
        said += c.piece(t).decode()
        if stop.after(t):
            break
    assert any(s in said for s in stops)
    assert not any(s in said[: -len(c.piece(t).decode())] for s in stops)


@pytest.mark.parametrize("family", made.EXACT)
def test_no_rule_sees_half_a_character(family):
    model = lm(family)
    smile = model.codec.encode_after("🙂")
    law = model(model.prompt("q"), until=re.compile(r"[^\x00-\x7f]"), max_tokens=9)
    ends = [
        k
        for k in range(1, len(smile) + 1)
        if math.isfinite(float(law.log_prob(model.continuation(smile[:k]))))
    ]
    assert ends == [len(smile)]
    # A character that the prompt has begun is completed, and seen, in the step.
    if len(smile) > 1:
        text = ppl.Text((*model.prompt("q").tokens, *smile[:-1]), model.codec)
        law = model(text, until="🙂", max_tokens=3)
        assert math.isfinite(float(law.log_prob(model.continuation(smile[-1:]))))
        assert (text + model.continuation(smile[-1:])).text == "🙂"


@settings(quick, max_examples=24)
@given(FAMILY, st.integers(0, 2**32), st.sampled_from([None, " ", "th", re.compile("[a-z]{3}")]))
def test_draws_are_scored_as_they_were_drawn(family, key, until):
    model = lm(family)
    text = model.prompt("the quick")
    spec = model(text, until=until, max_tokens=8).spec
    drawn = model.sample_batch([ContinueRequest(model, spec, key)])[0]
    value = drawn.value
    assert value.made_with == model.codec.identity
    assert (text + value).text == value.text == model.codec.decode_after(value.tokens, text.tokens)
    asked = ScoreRequest(model, spec, value)
    assert could_be_drawn(model, asked)
    assert model.score_batch([asked])[0] == pytest.approx(drawn.log_prob, abs=1e-4)
    holds = not ppl.StepRule.of(until).never and ppl.StepRule.of(until)(value.text)
    assert (value.reason == "until") == (holds and not value.finished)


def test_a_long_step_costs_no_more_per_token():
    """The tokens of a step are read once each, whatever its stop strings: no decoding anew."""
    model = lm("byte_level")
    reads = 0

    class Counting(HFCodec):
        def piece(self, token):
            nonlocal reads
            reads += 1
            return super().piece(token)

    counting = Counting(model.codec.tokenizer, model.codec.end_tokens, "counting")
    stop = Stop(counting, ppl.StepRule.of(["never never", "\n\n\n"]), (5, 6), "a test")
    reads = 0
    for i in range(2000):
        assert stop.after(70 + i % 100) is None
    assert reads == 2000


# -- grammars ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", made.EXACT)
@pytest.mark.parametrize(
    ("pattern", "begun"), [(r"[a-z é]*", ""), (r"[a-z é]*", "ro"), (r" ?[0-9]+", ""), ("the", "")]
)
def test_masks_admit_exactly_the_tokens_that_read_right(family, pattern, begun):
    pytest.importorskip("llguidance")
    model = lm(family)
    grammar = Regex(pattern)
    text = model.prompt("2 + 3 =") + begun
    mask = grammar.mask(text)(())
    assert len(mask) == model.codec.size
    # What one character more may make of a beginning.
    more = ["", *"abcdefghijklmnopqrstuvwxyz é0123456789", "he", "e"]
    tails = [tail.encode()[cut:] for tail in more for cut in (0, 1)] + [b""]
    for t in range(model.codec.size):
        said = begun.encode() + model.codec.piece(t)
        reads = any(re.fullmatch(pattern, (said + tail).decode(errors="replace")) for tail in tails)
        if t in model.codec.end_tokens:
            assert bool(mask[t]) == bool(re.fullmatch(pattern, begun))
        elif t in model.codec.special_tokens or not model.codec.piece(t):
            assert not mask[t], t
        else:
            assert bool(mask[t]) == reads, (t, said)
            step = model.continuation([t])
            assert (grammar(text + step).log_probability == 0) == reads


@pytest.mark.parametrize("family", made.EXACT)
def test_a_number_after_a_word_is_one_with_its_space(family):
    """`▁5` reads " 5" here, as `Ġ5` does: one rule for all."""
    pytest.importorskip("llguidance")
    model = lm(family)
    text = model.prompt("2 + 3 =")
    five = model.continuation([token(family, " 5")])
    assert (text + five).text == " 5"
    assert Regex(" [0-9]+")(text + five).log_probability == 0
    assert Regex("[0-9]+")(text + five).log_probability == -math.inf
    assert Regex("[0-9]+")(text + model.continuation("5")).log_probability == 0
    drawn = model(text, allowed=Regex(" [0-9]").mask(text), max_tokens=3).sample()
    assert re.fullmatch(" [0-9]?", drawn.text)


def test_grammars_may_name_special_tokens():
    pytest.importorskip("llguidance")
    model = lm("byte_level")
    start = model.codec.tokenizer.convert_tokens_to_ids("<|im_start|>")
    mask = Grammar('start: "the" <|im_start|> "a"').mask(model.prompt("q"))
    the = model.codec.encode_after("the")
    assert mask(the).nonzero().flatten().tolist() == [start]
    assert not mask((*the, *model.codec.encode_after("<")))[start]


# -- reward models -------------------------------------------------------------------------------


@cache
def reward_model(family: str) -> PRM:
    tokenizer = made.FAMILIES[family]()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    config = made.model(tokenizer).config
    config.id2label, config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    classifier = LlamaForTokenClassification(config).eval()
    return PRM(classifier, tokenizer, name=f"reader {family}", kv_bytes=1 << 24)


@quick
@given(EXACT, EXACT, STRING, st.data())
def test_a_reward_model_reads_the_characters_that_were_written(writer, reader, string, data):
    model, prm = lm(writer), reward_model(reader)
    ids = model.codec.encode_after(string + "é 🙂 日本", plain=True)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=3)))
    text = model.prompt("q")
    for a, b in zip((0, *cuts), (*cuts, len(ids)), strict=True):
        text = text + model.continuation(ids[a:b])
    tokens, ends = prm._encode(text)
    assert prm.codec.decode(tokens) == "q\n" + text.text
    assert len(ends) == len(text.steps)
    if unspelled(writer, string):
        assert text.text == string + "é 🙂 日本"
    # Each score is read behind the words of its step, and no special token was smuggled in.
    read = [prm.codec.decode(tokens[:end]) for end in ends]
    assert read == ["q\n" + "".join(text.steps[: t + 1]) for t in range(len(text.steps))]
    assert not set(tokens) & set(prm.codec.special_tokens)


def test_a_reward_model_of_the_same_tokenizer_reads_the_tokens():
    model, prm = lm("llama2"), reward_model("llama2")
    text = model.prompt("the quick") + model.continuation(" brown") + model.continuation("\n")
    tokens, ends = prm._render(ppl.JudgeRequest(prm, text))
    assert tokens == text.tokens
    assert ends == [end - 1 for end in text.step_ends]
