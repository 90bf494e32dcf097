"""What is set around a pass, and is as it was behind it."""

from __future__ import annotations

import contextlib

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
