"""Nothing made with one tokenizer is read with another."""

from __future__ import annotations

import gc
import pickle
import weakref

import numpy as np
import pyro
import pytest
import tokenizers_made as made
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import ppl
from ppl.errors import PPLError, TokenizerError
from ppl.lm.tokenizer import HFCodec
from ppl.searchers import SMC, BestOfN

# The same strings with other ids.
A = ppl.TableLM({"a": 0.5, "b": 0.4, "$": 0.1}, symbols="^ab$", end="$", name="A")
B = ppl.TableLM({"b": 0.5, "a": 0.4, "$": 0.1}, symbols="^ba$", end="$", name="B")
NAMES = r"'B' \(\w{8}\).*'A' \(\w{8}\).*lm\.prompt\(str\(\.\.\.\)\).*lm\.retokenize"


def test_mixing_is_an_error_that_names_both_and_the_remedy():
    text, other = A.prompt("^a"), B.continuation("ba")
    with pytest.raises(TokenizerError, match=f"the continuation 'ba' was made .*{NAMES}"):
        text + other
    with pytest.raises(TokenizerError, match=f"the continuation 'ba' was made .*{NAMES}"):
        A(text).log_prob(other)
    with pytest.raises(TokenizerError, match=r"B: the text '\^a' .*'A' .*'B'"):
        B(text)
    drawn = B(B.prompt("^"), max_tokens=1).sample()
    with pytest.raises(TokenizerError, match=NAMES):
        text + drawn
    assert issubclass(TokenizerError, PPLError)
    # What a search has drawn knows it still, after it was stored.
    with pytest.raises(TokenizerError, match=NAMES):
        text + pickle.loads(pickle.dumps(other))
    # Ids put together by hand make no claim.
    assert (text + ppl.Continuation((1, 2), "ab")).text == "ab"


@pytest.mark.parametrize("searcher", [BestOfN(2), SMC(2)])
def test_a_search_stops_at_the_site(searcher):
    def appends():
        return (A.prompt("^") + pyro.sample("s", B(B.prompt("^"), max_tokens=1))).text

    def observes():
        pyro.sample("seen", A(A.prompt("^"), max_tokens=1), obs=B.continuation("a"))

    def continues():
        pyro.sample("s", B(A.prompt("^"), max_tokens=1))

    def proposes():
        pyro.sample("s", A(A.prompt("^"), max_tokens=1))

    for program in (appends, observes, continues):
        with pytest.raises(TokenizerError, match=r"'[AB]' .*'[AB]' "):
            searcher.run(program, seed=0)
    with pytest.raises(TokenizerError, match=r"seen.*'B'.*'A'"):
        searcher.run(observes, seed=0)

    def guide():
        pyro.sample("s", B(B.prompt("^"), max_tokens=1))

    with pytest.raises(TokenizerError, match=r"guide's value at .*'s'.*'B'.*'A'"):
        searcher.run(proposes, guide=guide, seed=0)


def test_models_with_one_tokenizer_share_texts():
    small = made.language_model(made.byte_level(), "small")
    large = made.language_model(made.byte_level(), "large", hidden_size=32, intermediate_size=24)
    text = small.prompt("the quick") + small(small.prompt("the quick"), max_tokens=3).sample()
    step = large(text, max_tokens=3).sample()
    assert (text + step).steps[-1] == step.text
    assert small(text, max_tokens=3).log_prob(step).isfinite()
    assert small.codec == large.codec
    assert hash(small.codec) == hash(large.codec)


def variants():
    """Tokenizers that differ from `byte_level` in one thing each, with as many tokens."""
    plan = made.json.loads(made.byte_level().backend_tokenizer.to_str())
    vocabulary = plan["model"]["vocab"]
    swapped = made.json.loads(made.json.dumps(plan))
    swapped["model"]["vocab"] |= {"a": vocabulary["b"], "b": vocabulary["a"]}
    decoded = {**plan, "decoder": {"type": "Fuse"}}
    shown = made.json.loads(made.json.dumps(plan))
    shown["added_tokens"][0]["special"] = False
    for one in (plan, swapped, decoded, shown):
        yield PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(made.json.dumps(one)), eos_token="<|im_end|>"
        )


def test_identity_is_content():
    same, swapped, decoded, shown = (HFCodec(t, frozenset({4}), "one name") for t in variants())
    padding = made.byte_level()
    padding.pad_token = "<pad>"
    first = HFCodec(padding, frozenset({4}), "another name")
    assert same == first
    assert len({len(c.tokenizer) for c in (first, swapped, decoded, shown)}) == 1
    assert len({c.identity for c in (first, same, swapped, decoded, shown)}) == 4
    assert first != HFCodec(first.tokenizer, frozenset({2}), "other ends")
    # What is asked in between changes nothing.
    first.tokenizer(["a", "b c d"], padding="max_length", truncation=True, max_length=2)
    assert HFCodec(first.tokenizer, frozenset({4}), "padded") == same
    again = pickle.loads(pickle.dumps(first))
    assert again == first
    assert again.encode("the quick") == first.encode("the quick")


def test_a_tokenizer_trained_anew_in_its_folder_is_another(tmp_path, monkeypatch):
    def load():
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        return HFCodec(tokenizer, frozenset({2}), str(tmp_path))

    made.byte_level(290).save_pretrained(tmp_path)
    old = load()
    words = old.encode("the quick brown fox")
    monkeypatch.setattr(made, "CORPUS", ["zebra yacht xylophone window violin umbrella\n"] * 50)
    made.byte_level(290).save_pretrained(tmp_path)
    new = load()
    assert (new.name, new.size) == (old.name, old.size)
    assert new != old
    assert new.decode(new.encode("the quick brown fox")) == "the quick brown fox"
    assert new.decode(words) != "the quick brown fox"


def test_codecs_are_not_kept_alive():
    codec = HFCodec(made.gaps(), frozenset({340}), "gone")
    codec.encode("the")
    gone = weakref.ref(codec)
    del codec
    gc.collect()
    assert gone() is None


def test_retokenizing_keeps_the_strings_and_where_steps_end():
    writer = made.language_model(made.llama2(), "writer")
    reader = made.language_model(made.byte_level(), "reader")
    text = writer.prompt("the quick") + writer.continuation(" brown é") + " <s>fox"
    text = text + writer.continuation("\n🙂", finished=True)
    read = reader.retokenize(text)
    assert (read.prompt, read.steps, read.finished) == (text.prompt, text.steps, True)
    assert not set(read.tokens[:-1]) & set(reader.codec.special_tokens)
    text = writer.prompt("the") + writer.continuation(" fox") + " so"
    begun = reader.retokenize(text, onto=reader.chat("Which animal?"))
    assert (begun.prompt, begun.text, begun.steps) == ("Which animal?", " fox so", (" fox",))
    step = writer(writer.prompt("the"), max_tokens=3).sample()
    again = reader.retokenize(step)
    assert (again.text, again.reason) == (step.text, step.reason)
    assert again.made_with == reader.codec.identity
    assert reader(reader.prompt("the"), max_tokens=9).log_prob(again) is not None


@pytest.mark.parametrize("ids", [[-1], [10**6], [1.5], ["a"], [None], [True, 348]])
def test_ids_by_hand_are_ids_of_the_model(ids):
    lm = made.language_model(made.gaps(), "gaps")
    with pytest.raises(ValueError, match=r"is no token id of gaps: give integers from 0 to 347"):
        lm.continuation(ids)


# -- gaps in the vocabulary ----------------------------------------------------------------------


def test_ids_beyond_the_number_of_tokens():
    lm = made.language_model(made.gaps(), "gaps", vocabulary=352)
    assert len(lm.codec.tokenizer) < 342 < lm.codec.size == 348
    text = lm.prompt("a")
    two = lm.continuation([342])
    assert two.text == "\n\n"
    for until in ("\n", ["\n", "zz"], "\n\n"):
        assert lm(text, until=until, max_tokens=5).log_prob(two).isfinite()
    mask = np.arange(348) == 342
    drawn = lm(text, until="\n", allowed=mask).sample()
    assert drawn == two
    # An id in a hole, and one that only the model has, say nothing.
    assert lm.continuation([341, 351]).text == ""
    assert lm.continuation("a", finished=True).tokens[-1] == 340
    assert (lm.codec.piece(341), lm.codec.piece(347)) == (b"", b"")


def test_every_end_token_ends():
    tokenizer = made.gaps()
    model = made.model(tokenizer)
    model.generation_config.eos_token_id = [340, 347]
    lm = ppl.HFModel(model, tokenizer, name="two ends", kv_bytes=1 << 24)
    assert lm.codec.end_tokens == {340, 347}
    for end in (340, 347):
        drawn = lm(lm.prompt("a"), allowed=[end]).sample()
        assert (drawn.tokens, drawn.text, drawn.finished) == ((end,), "", True)
    model.config.eos_token_id = model.generation_config.eos_token_id = -1  # some say so for none
    assert ppl.HFModel(model, tokenizer, name="none").codec.end_tokens == {340}
