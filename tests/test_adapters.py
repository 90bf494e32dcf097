"""LoRA adapters: in the weights they give what low-rank layers beside them would."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers as tf
from engines import FAMILIES, Letters, plain_log_probs, random_model, request
from safetensors.torch import load_file, save_file

import ppl
from ppl.errors import ModelNotFoundError, UnsupportedModelError
from ppl.lm import gguf, sources
from ppl.lm.adapter import Adapter, fitting, put_in

RANK = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small Llama with the tokenizer of the embedded model."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = tf.AutoTokenizer.from_pretrained(ppl.lm.sources.TINY / "lm")
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, eos_token_id=2,
    )  # fmt: skip
    random_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def made(folder, weights, **config):
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def pair(place: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(rows + columns)
    name = f"base_model.model.{place}"
    return {
        f"{name}.lora_A.weight": torch.randn(RANK, columns),
        f"{name}.lora_B.weight": torch.randn(rows, RANK),
    }


LAYERS = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    weights = pair(LAYERS[0], 32, 32) | pair(LAYERS[1], 32, 48)
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    return made(folder, weights, base_model_name_or_path=str(base))


def with_layers_beside(model, lora, scales):
    """The model with low-rank layers beside its own, as peft runs it."""
    weights = load_file(lora / "adapter_model.safetensors")
    for place, scale in scales.items():
        a, b = (weights[f"base_model.model.{place}.lora_{x}.weight"] for x in "AB")

        def beside(module, args, output, a=a, b=b, scale=scale):
            return output + scale * (args[0] @ a.T @ b.T)

        model.get_submodule(place).register_forward_hook(beside)
    return model


def plain(base):
    return tf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("how", ["setting", "source"])
def test_an_adapter_gives_what_layers_beside_would(base, lora, how, pack):
    lm = ppl.load(base, adapter=lora, pack=pack) if how == "setting" else ppl.load(lora, pack=pack)
    text = tuple(range(5, 25))
    draw = lm.sample_batch([request(lm, text, 1)])[0]
    reference = with_layers_beside(plain(base), lora, dict.fromkeys(LAYERS, 2.0))
    assert draw.log_prob == pytest.approx(
        plain_log_probs(reference, text, draw.value.tokens), abs=1e-4
    )
    without = plain_log_probs(plain(base), text, draw.value.tokens)
    assert abs(draw.log_prob - without) > 0.1
    assert (lm.name == f"{base}+{lora}") is (how == "setting")


def test_scales_are_those_of_the_configuration(base, tmp_path):
    weights = pair(LAYERS[0], 32, 32) | pair(LAYERS[1], 32, 48)
    alphas = {"mlp.down_proj": 9, "down_proj": 4, "q_pro": 5}  # the first that fits counts
    lora = made(tmp_path / "x", weights, use_rslora=True, alpha_pattern=alphas)
    model = plain(base)
    put_in(model, lora, {})
    scales = {LAYERS[0]: 6 / RANK**0.5, LAYERS[1]: 9 / RANK**0.5}
    reference, ids = with_layers_beside(plain(base), lora, scales), torch.arange(9)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, atol=1e-4, rtol=1e-4)


def test_layers_that_were_trained_whole_and_layers_that_lie_the_other_way(tmp_path):
    model = random_model(FAMILIES["GPT2"]())
    place = "transformer.h.0.attn.c_attn"  # [in, out], unlike linear layers
    head = torch.randn(97, 32)
    weights = pair(place, 96, 32) | {"base_model.model.transformer.wte.weight": head}
    before = model.get_submodule(place).weight.clone()
    put_in(model, made(tmp_path / "x", weights), {})
    a, b = (weights[f"base_model.model.{place}.lora_{x}.weight"] for x in "AB")
    torch.testing.assert_close(model.get_submodule(place).weight, before + 2 * (b @ a).T)
    assert torch.equal(model.transformer.wte.weight, head)


def test_a_head_that_shares_its_weight_with_the_embeddings_is_changed_alone(tmp_path):
    model = random_model(FAMILIES["GPT2"]())
    assert model.lm_head.weight is model.transformer.wte.weight
    before, weights = model.lm_head.weight.clone(), pair("lm_head", 97, 32)
    put_in(model, made(tmp_path / "x", weights), {})
    a, b = (weights[f"base_model.model.lm_head.lora_{x}.weight"] for x in "AB")
    torch.testing.assert_close(model.lm_head.weight.data, before + 2 * (b @ a))
    assert torch.equal(model.transformer.wte.weight, before)


def test_a_layer_that_was_copied_to_be_trained_whole_leaves_a_tied_one_alone(tmp_path):
    """As in peft: a parameter that only came along is the one that both have."""
    for copied in ([], ["wte"]):
        model, new = random_model(FAMILIES["GPT2"]()), torch.randn(97, 32)
        before = model.lm_head.weight.clone()
        weights = {"base_model.model.transformer.wte.weight": new} | pair("lm_head", 97, 32)
        put_in(model, made(tmp_path / f"x{copied}", weights, modules_to_save=copied), {})
        a, b = (weights[f"base_model.model.lm_head.lora_{x}.weight"] for x in "AB")
        assert torch.equal(model.transformer.wte.weight, new)
        torch.testing.assert_close(model.lm_head.weight, (before if copied else new) + 2 * (b @ a))


def test_peft_saves_the_weight_beside_which_a_head_has_its_adapter(tmp_path):
    model, weights = random_model(FAMILIES["GPT2"]()), pair("lm_head", 97, 32)
    own, key = model.lm_head.weight.detach().clone(), "base_model.model.lm_head.base_layer.weight"
    same, other = (
        made(tmp_path / name, {**weights, key: weight})
        for name, weight in {"same": own, "other": own + 1}.items()
    )
    base = ppl.HFModel(model, Letters(), name="base")
    beside = base.with_adapter(same)
    merged = random_model(FAMILIES["GPT2"]())
    put_in(merged, same, {})
    (draw,) = beside.sample_batch([request(beside, (5, 6, 7))])
    exact = plain_log_probs(merged, (5, 6, 7), draw.value.tokens)
    assert draw.log_prob == pytest.approx(exact, abs=1e-4)
    assert abs(exact - plain_log_probs(model, (5, 6, 7), draw.value.tokens)) > 0.1
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight trained whole"):
        base.with_adapter(other)


@pytest.mark.parametrize("which", ["lora_A", "lora_B"])
@pytest.mark.parametrize("number", [torch.nan, -torch.inf])
def test_what_is_not_finite_is_named_with_its_layer(base, tmp_path, which, number):
    weights = pair(LAYERS[0], 32, 32) | pair(LAYERS[1], 32, 48)
    weights[f"base_model.model.{LAYERS[1]}.{which}.weight"][1, 2] = number
    lora, lm = made(tmp_path / "bad", weights), ppl.load(base)
    said = rf"/bad': {LAYERS[1]}\.{which}\.weight is not finite.*earlier checkpoint"
    for load in (lambda: ppl.load(base, adapter=lora), lambda: lm.with_adapter(lora)):
        with pytest.raises(UnsupportedModelError, match=said):
            load()


def test_numbers_that_are_too_large_for_the_models_type_are_named_with_the_layer(tmp_path):
    weights = {name: 300 * part for name, part in pair(LAYERS[0], 32, 32).items()}
    model, lora = random_model(FAMILIES["Llama"]()), made(tmp_path / "bad", weights)
    put_in(model, lora, {})  # not too large for float32
    said = rf"/bad'.* {LAYERS[0]} leaves the range of torch\.float16; load.*bfloat16"
    with pytest.raises(UnsupportedModelError, match=said):
        put_in(random_model(FAMILIES["Llama"]()).half(), lora, {})
    found = Adapter.read(lora, {})
    fitting(model, found)
    weights[f"base_model.model.{LAYERS[0]}.lora_B.weight"] *= 1000
    found = Adapter.read(made(tmp_path / "more" / "bad", weights), {})
    with pytest.raises(UnsupportedModelError, match=said):
        fitting(model.half(), found)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"alora_invocation_tokens": [5]}, "aLoRA.*no weights do"),
        ({"arrow_config": {"top_k": 2}}, "Arrow.*no weights do"),
        ({"use_qalora": True}, "QA-LoRA.*merge_and_unload"),
        ({"kasa_config": {"r": 1}}, "KaSA.*merge_and_unload"),
        ({"layer_replication": [[1, 2], [0, 1]]}, "order.*merge_and_unload"),
        ({"ensure_weight_tying": True}, "head together.*merge_and_unload"),
        ({"init_lora_weights": "pissa_niter_4"}, "other weights.*pissa_niter_4.*merge_and_unload"),
        ({"init_lora_weights": "olora"}, "other weights.*olora.*merge_and_unload"),
    ],
)
def test_settings_that_are_more_than_low_rank_are_refused_by_name(tmp_path, config, said):
    """All of these have files like any other's, and would silently be something else."""
    weights = pair(LAYERS[0], 32, 32)
    with pytest.raises(UnsupportedModelError, match=said):
        put_in(random_model(FAMILIES["Llama"]()), made(tmp_path / "x", weights, **config), {})
    for same in ({"init_lora_weights": "gaussian"}, {"arrow_config": None, "use_dora": False}):
        put_in(
            random_model(FAMILIES["Llama"]()), made(tmp_path / f"{len(same)}", weights, **same), {}
        )


@pytest.mark.parametrize(
    ("weights", "config", "said"),
    [
        ({"prompt_embeddings": torch.zeros(2)}, {"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"base_model.model.nowhere.lora_A.weight": torch.zeros(2, 2)}, {}, "nowhere"),
        ({f"base_model.model.{LAYERS[0]}.lora_A.weight": torch.zeros(2, 2)}, {}, "only half"),
        (pair(LAYERS[0], 32, 31), {}, r"\(32, 31\).*\(32, 32\)"),
        (
            {f"base_model.model.{LAYERS[0]}.lora_magnitude_vector": torch.zeros(32)},
            {"use_dora": True},
            "DoRA",
        ),
        ({}, {}, "empty"),
    ],
)
def test_what_is_more_or_other_is_refused_with_the_remedy(base, tmp_path, weights, config, said):
    lora = made(tmp_path / "x", weights, **config)
    with pytest.raises(UnsupportedModelError, match=rf"(?s){said}.*merge_and_unload"):
        ppl.load(base, adapter=lora)


def test_adapters_that_are_not_there(base, lora, tmp_path, monkeypatch):
    def nowhere(name, file, **hub):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise OSError("offline")

    monkeypatch.setattr("ppl.lm.adapter.cached_file", nowhere)
    heard = []
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handle", heard.append)
    monkeypatch.setattr(logging.getLogger("huggingface_hub.utils._http"), "handle", heard.append)
    for adapter in (tmp_path, "no-such/adapter"):
        with pytest.raises(ModelNotFoundError, match="has no adapter_config"):
            ppl.load(base, adapter=adapter)
    assert not heard
    with pytest.raises(ValueError, match="adapter itself"):
        ppl.load(lora, adapter=lora)
    nameless = made(tmp_path / "x", {})
    with pytest.raises(UnsupportedModelError, match=r"adapter, not a model.*adapter="):
        ppl.load(nameless)
    with pytest.raises(TypeError, match="use adapter="):
        ppl.load(base, lora_path=lora)


class Wrapped(torch.nn.Module):
    """As peft's: `base_model` is another wrapper, the decoder lies inside."""

    merge_and_unload = None

    class Settings:
        is_prompt_learning = False

    def __init__(self, model):
        super().__init__()
        self.base_model, self.config, self.inner = model, model.config, model
        self.peft_config = {"default": self.Settings()}

    def get_base_model(self):
        return self.inner


def test_models_of_peft_run_with_their_active_adapter(base, lora):
    inner = with_layers_beside(plain(base), lora, dict.fromkeys(LAYERS, 2.0))
    lm = ppl.HFModel(Wrapped(inner), Letters(), name="lora")
    text = tuple(range(5, 25))
    draw = lm.sample_batch([request(lm, text, 1)])[0]
    assert draw.log_prob == pytest.approx(plain_log_probs(inner, text, draw.value.tokens), abs=1e-4)
    wrapped = Wrapped(inner)
    wrapped.peft_config["default"].is_prompt_learning = True
    with pytest.raises(UnsupportedModelError, match=r"lora: a Wrapped.*merge_and_unload\(\)"):
        ppl.HFModel(wrapped, Letters(), name="lora")


# -- GGUF files of the Hub ----------------------------------------------------------------------


def test_gguf_files_by_a_short_name(monkeypatch, tmp_path):
    there = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "big/m-Q4_0.gguf"]
    asked = []

    class Hub:
        def list_repo_files(self, repository, **hub):
            if repository != "who/m-GGUF":
                raise OSError("404 Not Found\nmore")
            return there

    monkeypatch.setattr(gguf, "HfApi", Hub)
    monkeypatch.setattr(
        gguf, "hf_hub_download", lambda *args, **hub: asked.append((*args, hub)) or tmp_path / "x"
    )
    assert sources.file_on_hub("who/m") is None
    assert sources.file_on_hub("http://host:80/v1") is None
    for name, file in (("who/m-GGUF:q8_0", "m-Q8_0.gguf"), ("who/m-GGUF/big/m-Q4_0.gguf",) * 2):
        gguf.fetched(*sources.file_on_hub(name), revision="r", token="t")
        assert asked[-1][1] == file.removeprefix("who/m-GGUF/")
        assert asked[-1][2] == {"revision": "r", "token": "t"}
    with pytest.raises(ModelNotFoundError, match=r"has 2 GGUF files with 'Q4'.*m-Q4_K_M\.gguf"):
        ppl.load("who/m-GGUF:Q4")
    with pytest.raises(ModelNotFoundError, match=r"who/other: .*by its path \(404 Not Found\)$"):
        ppl.load("who/other:Q8_0")
