"""Which models load, which are refused, and what is said; settings are checked where they enter."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from engines import (
    FAMILIES,
    SMALL,
    Letters,
    make,
    plain_log_probs,
    random_model,
    request,
    some_texts,
)

import ppl
from ppl.errors import ModelNotFoundError, UnsupportedModelError
from ppl.lm import loading
from ppl.lm.engine.linear import JoinedPart, PackedLinear, pack_linears
from ppl.lm.sources import TINY
from ppl.verifiers import PRM, OutcomeModel, RewardModel

TINY_LM = TINY / "lm"


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [2.5, float("nan"), True, 0, -1, "3"])
def test_counts_are_whole_numbers(bad):
    lm = ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$")
    with pytest.raises(ValueError, match="max_tokens="):
        lm(lm.prompt("^"), max_tokens=bad)
    with pytest.raises(ValueError, match="top_k="):
        lm(lm.prompt("^"), top_k=bad)
    with pytest.raises(ValueError, match="kv_bytes="):
        ppl.load("tiny", kv_bytes=bad)
    with pytest.raises(ValueError, match="kv_bytes="):
        make(kv_bytes=bad)
    with pytest.raises(ValueError, match="context_length="):
        make(context_length=bad)
    with pytest.raises(ValueError, match="context_length="):
        ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$", context_length=bad)


def test_bytes_are_not_megabytes():
    """A budget below the shortest row is one that was meant in another unit."""
    least = ppl.load("tiny").engine._memory.least
    assert least == 65 * ppl.load("tiny").engine._memory.bytes_per_token
    for load in (ppl.load, PRM.load):
        with pytest.raises(ValueError, match=r"kv_bytes=1000: .* are bytes, such as 2 << 30"):
            load("tiny", kv_bytes=1000)
    with pytest.raises(ValueError, match=f"kv_bytes={least - 1}: .* takes {least:,} bytes"):
        ppl.load("tiny", kv_bytes=least - 1)
    lm = ppl.load("tiny", kv_bytes=least)  # and a single row runs, however long it is
    text = lm.prompt("1 + " * 60).tokens
    (drawn,) = lm.sample_batch([request(lm, text, 1, max_tokens=3)])
    assert drawn.value.tokens


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, "1", True])
def test_warps_are_numbers_in_their_range(bad):
    lm = ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$")
    for name in ("temperature", "top_p", "min_p"):
        with pytest.raises(ValueError, match=f"{name}="):
            lm(lm.prompt("^"), **{name: bad})


def test_numpy_numbers_are_numbers():
    np = pytest.importorskip("numpy")
    lm = ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$")
    law = lm(lm.prompt("^"), max_tokens=np.int64(1), temperature=np.float32(1.0))
    assert float(law.log_prob(lm.continuation("a")).exp()) == pytest.approx(0.5)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 9])
def test_the_shortest_contexts(length):
    lm = make(context_length=length)
    (draw,) = lm.sample_batch([request(lm, (5,), max_tokens=9)])
    assert len(draw.value.tokens) <= length - 1
    exact = plain_log_probs(lm.model, (5,), draw.value.tokens)
    assert draw.log_prob == pytest.approx(exact, abs=1e-4)
    with pytest.raises(ValueError, match=r"context_length=1.*at least 2"):
        make(context_length=1)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"device": "nope"}, ValueError, r"device='nope'.*cpu"),
        ({"device": "cuda:9"}, ValueError, r"device='cuda:9'"),
        ({"device": 1.5}, ValueError, "device=1.5"),
        ({"dtype": "foo"}, ValueError, r"dtype='foo'.*torch\.bfloat16"),
        ({"dtype": torch.int64}, ValueError, "dtype="),
        ({"dtype": "load"}, ValueError, "dtype='load'"),
        ({"device": "meta"}, ValueError, "device='meta'"),
        ({"device_map": {"model": 0, "lm_head": "cpu"}}, ValueError, "among cuda:0, cpu.*whole"),
        ({"device_map": {}}, ValueError, "among no devices.*'auto'"),
        ({"device_map": "disk"}, ValueError, "layers on the disk.*server"),
        ({"device_map": {"": 9}}, ValueError, r"^device_map=\{'': 9\}: torch has no such.*cpu"),
        ({"device_map": "cpu", "device": "cpu"}, TypeError, "same setting; give device= alone"),
        ({"torch_dtype": "foo"}, ValueError, r"^torch_dtype='foo': give torch\.float32"),
        ({"torch_dtype": "foo", "device": "no"}, ValueError, "^device='no': torch"),
        ({"device_map": 1.5}, TypeError, "^device_map=1.5"),
        ({"replicas": 9, "device_map": "cuda:0"}, ValueError, "^device_map='cuda:0': torch has no"),
        ({"replicas": ["cpu"], "device_map": "cpu"}, ValueError, "^device_map= and the devices"),
        ({"torch_dtype": "auto", "dtype": "auto"}, TypeError, "give dtype= alone"),
        ({"max_model_len": 9}, TypeError, "no max_model_len=; use context_length="),
        ({"cache_dir": "x"}, TypeError, "HF_HUB_CACHE"),
        ({"proxies": {}}, TypeError, r"snapshot_download\(\.\.\., proxies=\.\.\.\)"),
        ({"load_in_8bit": True}, TypeError, r"ppl\.HFModel"),
        ({"enable_lora": True}, TypeError, r"with_adapter\(folder\)"),
        ({"nonsense": 1}, TypeError, "no nonsense=; there are dtype, device, revision"),
        ({"devise": "cpu"}, TypeError, "no devise=; did you mean device="),
        ({"api_key": "x"}, TypeError, "api_key= are settings of servers"),
    ],
)
def test_settings_that_are_none(settings, error, said):
    with pytest.raises(error, match=said):
        ppl.load("tiny", **settings)


@pytest.mark.parametrize(
    "placed",
    ["auto", "cpu", "balanced", torch.device("cpu"), {"": "cpu"}, {"a": "cpu", "b": "cpu"}],
)
def test_the_words_of_transformers_are_read_as_ours(placed, monkeypatch, tmp_path):
    model = saved(random_model(llama_with_the_tokenizer()), tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = {"device_map": placed, "torch_dtype": torch.bfloat16, "token": True}
    lm = ppl.load(model, **settings, revision="main", trust_remote_code=True)
    assert lm.model.device.type == "cpu"
    assert lm.model.dtype == torch.bfloat16
    assert lm.origin.settings["dtype"] is torch.bfloat16  # a file names it with our words
    assert "device_map" not in {*lm.origin.settings, *lm.origin.withheld}
    again = ppl.load(model, torch_dtype=None, device_map=None, use_auth_token=None)
    assert again.model.dtype == torch.float32


def test_layers_are_not_spread_over_several_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"device_map='balanced' divides.*2 GPUs.*'cuda:0'"):
        ppl.load("tiny", device_map="balanced")


def test_reward_models_read_them_too_or_say_what_to_do():
    prm = PRM.load("tiny", device_map={"": "cpu"}, torch_dtype="bfloat16")
    assert prm.engine.dtype == torch.bfloat16
    for settings, said in (
        ({"trust_remote_code": True}, "runs no code of a checkpoint.*format="),
        ({"load_in_4bit": True}, r"PRM\.load knows no load_in_4bit=; use ppl\.HFModel"),
        ({"flor": 0.1}, "did you mean floor="),
        ({"torch_dtype": 1}, "^torch_dtype=1: a dtype"),
    ):
        with pytest.raises(TypeError, match=said):
            PRM.load("tiny", **settings)
    for kind in (RewardModel, OutcomeModel):
        with pytest.raises(TypeError, match=f"{kind.__name__}.load knows no max_model_len="):
            kind.load("/nowhere", max_model_len=1)
        with pytest.raises(ModelNotFoundError):
            kind.load("/nowhere/at-all", device_map="cpu", torch_dtype="auto")


def test_servers_are_asked_for_no_setting_that_they_do_not_have():
    for settings, said in (
        ({"max_model_len": 9}, "use context_length="),
        ({"nonsense": 9}, "nonsense=; there are"),
    ):
        with pytest.raises(TypeError, match=said):
            ppl.load("http://127.0.0.1:9/v1", **settings)
    with pytest.raises(ValueError, match=" torch_dtype= are for models in this process"):
        ppl.load("http://127.0.0.1:9/v1", torch_dtype="bfloat16")


_OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_of_the_tests"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_if_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "x"))
    folder = saved(random_model(llama_with_the_tokenizer()), tmp_path / "own")
    (folder / "own.py").write_text(_OWN_CODE)
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own_of_the_tests",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"code of its own.*trust_remote_code=True"):
        ppl.load(folder)
    lm = ppl.load(folder, trust_remote_code=True)
    assert type(lm.model).__name__ == "OwnForCausalLM"
    assert lm.origin.withheld == ("trust_remote_code",)


def test_dtypes_by_name():
    assert ppl.load("tiny", dtype="bfloat16").model.dtype == torch.bfloat16
    files = tf.AutoConfig.from_pretrained(TINY_LM).dtype or torch.float32
    assert ppl.load("tiny", dtype="auto").model.dtype == files


# -- schemes of one's own ------------------------------------------------------------------------


def test_registered_prefixes(monkeypatch):
    monkeypatch.setattr(loading, "_LOADERS", dict(loading._LOADERS))
    asked = []

    def loader(source, **settings):
        asked.append((source, settings))
        return ppl.TableLM({"a": 0.5, "$": 0.5}, symbols="^a$", name=source)

    ppl.register("toy:", loader)
    ppl.register("toy:none:", lambda source: source)
    assert ppl.load("toy:x", kv_bytes=7, colour="red", dtype="bfloat16").name == "toy:x"
    assert asked == [("toy:x", {"kv_bytes": 7, "colour": "red", "dtype": "bfloat16"})]
    ppl.load("toy:y")
    assert asked[-1] == ("toy:y", {})  # what nobody gave is the loader's to decide
    with pytest.raises(TypeError, match=r"'toy:none:' returned a str.*LanguageModel"):
        ppl.load("toy:none:x")
    for prefix in ("toy:", "http://", "", 3):
        with pytest.raises(ValueError, match="prefix="):
            ppl.register(prefix, loader)
    with pytest.raises(TypeError, match="loader="):
        ppl.register("other:", None)


# -- models --------------------------------------------------------------------------------------


def saved(model, folder):
    model.save_pretrained(folder)
    tf.AutoTokenizer.from_pretrained(TINY_LM).save_pretrained(folder)
    return folder


def llama_with_the_tokenizer():
    size = len(tf.AutoTokenizer.from_pretrained(TINY_LM))
    return tf.LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, eos_token_id=2,
    )  # fmt: skip


def test_models_are_no_sources():
    with pytest.raises(TypeError, match=r"ppl\.HFModel\(model, tokenizer"):
        ppl.load(random_model(FAMILIES["Llama"]()))


def test_encoder_decoders_are_refused_by_name(tmp_path):
    size = {"vocab_size": 512, "d_model": 16, "eos_token_id": 2, "decoder_start_token_id": 0}
    t5 = tf.T5Config(**size, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    saved(tf.T5ForConditionalGeneration(t5), tmp_path / "t5")
    with pytest.raises(UnsupportedModelError, match=r"t5 is an encoder-decoder"):
        ppl.load(tmp_path / "t5")
    heads = {"decoder_attention_heads": 2, "encoder_attention_heads": 2}
    width = {"decoder_ffn_dim": 16, "encoder_ffn_dim": 16}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    bart = tf.BartForCausalLM(tf.BartConfig(**size, **heads, **width, **layers))
    with pytest.raises(UnsupportedModelError, match=r"bart: .*half of an encoder-decoder"):
        ppl.HFModel(bart.eval(), Letters(), name="bart")


MIXED = {"num_experts": 2, "num_experts_per_tok": 1}
OTHERS = {
    "jamba": lambda: tf.JambaConfig(
        **SMALL,
        **MIXED,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=4,
        mamba_d_conv=2,
        use_mamba_kernels=False,
    ),
    "minimax": lambda: tf.MiniMaxConfig(**SMALL, head_dim=8, num_local_experts=2),
    "mamba": lambda: tf.MambaConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4, eos_token_id=2
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_models_with_other_state_are_exact_or_refused_by_name_packed_or_not(kind):
    model = random_model(OTHERS[kind]())
    ids, text = torch.arange(4)[None], tuple(range(5, 25))
    if kind == "minimax":
        with pytest.raises(UnsupportedModelError, match=rf"{kind}: .*use a .*decoder"):
            ppl.HFModel(model, Letters(), name=kind)
    else:
        lm = ppl.HFModel(model, Letters(), name=kind)
        draw = lm.sample_batch([request(lm, text, 1)])[0]
        exact = plain_log_probs(model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)
    before = model(input_ids=ids, use_cache=False).logits
    pack_linears(model, lambda: model(input_ids=ids, use_cache=False))
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, before)


EXACT = {
    "falcon": lambda: tf.FalconConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        eos_token_id=2,
    ),
    "falcon-40b": lambda: tf.FalconConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        new_decoder_architecture=True,
        max_position_embeddings=128,
        eos_token_id=2,
    ),
    "afmoe": lambda: tf.AfmoeConfig(
        **SMALL,
        head_dim=8,
        moe_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        num_dense_layers=1,
        layer_types=["full_attention"] * 2,
    ),
}


@pytest.mark.parametrize("kind", EXACT)
def test_decoders_with_attention_of_their_own_are_exact(kind):
    lm = ppl.HFModel(random_model(EXACT[kind]()), Letters(), name=kind)
    texts = some_texts()
    for text, draw in zip(
        texts, lm.sample_batch([request(lm, t, i) for i, t in enumerate(texts)]), strict=True
    ):
        exact = plain_log_probs(lm.model, text, draw.value.tokens)
        assert draw.log_prob == pytest.approx(exact, abs=1e-4)


def test_falcon_with_alibi_is_refused():
    config = EXACT["falcon"]()
    config.alibi = True
    with pytest.raises(UnsupportedModelError, match="falcon: "):
        ppl.HFModel(random_model(config), Letters(), name="falcon")


def test_weights_that_are_not_finite_are_named():
    model = random_model(FAMILIES["Llama"]())
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(UnsupportedModelError, match=r"logits are not finite.*lm_head\.weight"):
        ppl.HFModel(model, Letters(), name="broken")
    model = random_model(FAMILIES["Llama"]())
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(UnsupportedModelError, match=r"states are not finite.*up_proj\.weight"):
        ppl.HFModel(model, Letters(), name="broken")


def test_what_leaves_the_range_of_half_precision_is_told_from_a_broken_file():
    model = random_model(FAMILIES["GPT2"]()).half()
    model.transformer.h[0].mlp.c_proj.weight.data.fill_(6e4)
    model.transformer.h[0].mlp.c_fc.bias.data.fill_(6e4)
    with pytest.raises(UnsupportedModelError, match=r"range of torch\.float16.*dtype=torch\.bf"):
        ppl.HFModel(model, Letters(), name="half")


# -- packing -------------------------------------------------------------------------------------


class Reads(torch.nn.Module):
    """One layer's weight is read by hand, two others are given one input."""

    def __init__(self):
        super().__init__()
        for name in ("gate", "up", "read", "out"):
            setattr(self, name, torch.nn.Linear(64, 64))

    def forward(self, x):
        y = self.gate(x) * self.up(x)
        return self.out(y @ self.read.weight + self.read.bias)


def test_layers_whose_weights_are_read_stay_unpacked():
    torch.manual_seed(0)
    model, x = Reads().requires_grad_(False), torch.randn(3, 64)
    want = model(x)
    plain = {name: layer.weight.clone() for name, layer in model.named_children()}
    biases = {name: layer.bias.clone() for name, layer in model.named_children()}
    pack_linears(model, lambda: model(x))
    kinds = {name: type(layer) for name, layer in model.named_children()}
    assert kinds == {
        "gate": JoinedPart,
        "up": JoinedPart,
        "read": torch.nn.Linear,
        "out": PackedLinear,
    }
    torch.testing.assert_close(model(x), want)
    for name, layer in model.named_children():  # and who reads the others gets what they were
        assert torch.equal(layer.weight, plain[name])
        assert torch.equal(layer.bias, biases[name])


def test_missing_folders_are_still_missing(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no model.*config\.json"):
        ppl.load(tmp_path)
