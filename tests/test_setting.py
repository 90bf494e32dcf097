"""What is set around a pass, and is as it was behind it."""

from __future__ import annotations

import contextlib
import contextvars

import pytest
import torch
from engines import assert_close, make, plain_states, some_texts
from transformers import Gemma3Config

from ppl.lm.engine.setting import Attention, inferring


class _Property:
    """As transformers may keep it one day: we know the property only."""

    sub_configs: dict[str, type] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.set: list[str] = []

    @property
    def _attn_implementation(self) -> str:
        return ["sdpa", *self.set][-1]

    @_attn_implementation.setter
    def _attn_implementation(self, name: str) -> None:
        self.set.append(name)


def test_a_configuration_and_those_inside_of_it_name_the_form_meanwhile():
    outer = Gemma3Config()
    outer._attn_implementation = "eager"
    inner = outer.text_config
    attention = Attention(outer)
    with attention.named("ppl_grouped"):
        assert attention.name == "ppl_grouped"
        assert [c._attn_implementation for c in (outer, inner)] == ["ppl_grouped"] * 2
    assert [c._attn_implementation for c in (outer, inner)] == ["eager"] * 2
    with pytest.raises(ZeroDivisionError), attention.named("ppl_own"):
        raise ZeroDivisionError
    assert [c._attn_implementation for c in (outer, inner)] == ["eager"] * 2
    outer._attn_implementation = "sdpa"  # by somebody else
    assert attention.name == "sdpa"


def test_a_version_that_keeps_it_elsewhere_is_asked_by_its_property():
    config = _Property()
    attention = Attention(config)
    assert attention.name == "sdpa"
    with attention.named("ppl_grouped"):
        assert config._attn_implementation == "ppl_grouped"
    assert config.set == ["ppl_grouped", "sdpa"]


def test_inference_mode_is_entered_once_and_left():
    with inferring():
        assert torch.is_inference_mode_enabled()
        with inferring():
            assert torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()
    with torch.inference_mode(), torch.inference_mode(False), inferring():
        assert torch.is_inference_mode_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.inference_mode])
def test_what_is_set_around_a_pass_changes_nothing(mode):
    """Also where inference mode is on already."""
    lm, text = make(), some_texts()[1]
    with torch.inference_mode():
        states = plain_states(text)
        wanted = lm.model.lm_head(states)
    torch.set_default_device("meta")
    try:
        with mode(), torch.autocast("cpu", torch.bfloat16):
            # Enough rows of enough tokens for passes of every kind.
            texts = [text + (5,) * n for n in range(40)]
            found = lm.engine.hidden(texts, [0] * len(texts))[0]
            logits = lm.logits(found)
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert found.dtype == logits.dtype == torch.float32
    assert_close(found, states)
    assert_close(logits, wanted)


def test_what_was_set_is_set_again_where_a_pass_fails():
    seen = []

    def fail():
        seen.append(torch.is_autocast_enabled("cpu"))
        raise ZeroDivisionError

    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ZeroDivisionError), inferring():
            fail()
        assert seen == [False]
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_inference_mode_enabled()
        with inferring():  # not taken for one inside of another
            assert torch.is_inference_mode_enabled()


def test_inference_mode_whose_leaving_was_interrupted_is_entered_again():
    def later() -> None:
        inferring().__enter__()  # and nobody leaves it: torch does when it is forgotten
        assert not torch.is_inference_mode_enabled()
        for _ in range(2):
            with inferring():
                assert torch.is_inference_mode_enabled()
            assert not torch.is_inference_mode_enabled()
            inferring().__enter__()

    contextvars.copy_context().run(later)
