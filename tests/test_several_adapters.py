"""Several LoRA adapters beside one model's weights: each gives what the merged model gives."""

from __future__ import annotations

import copy
import gc

import families
import pytest
import torch
from adapters_made import layers_of, random_pairs
from compiler import needs_compiler
from engines import FAMILIES, Letters, plain_log_probs, random_model, request, some_texts
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_adapters import made

import ppl
from ppl.errors import ModelNotFoundError, PromptError, UnsupportedModelError
from ppl.language.cost import Account
from ppl.lm.adapter import put_in
from ppl.lm.engine.beside import number_of
from ppl.lm.engine.linear import pack_linears
from ppl.searchers import BestOfN

RANKS = {"one": 3, "two": 5}


def two_adapters(model, folder, *, but: tuple[str, ...] = ()):
    """Folders of two: one changes every layer, the head included, the other every second."""
    sizes = {n: s for n, s in layers_of(model).items() if not any(word in n for word in but)}
    some = dict(list(sizes.items())[::2])
    return {
        "one": made(folder / "one", random_pairs(sizes, RANKS["one"], 1), r=RANKS["one"]),
        "two": made(folder / "two", random_pairs(some, RANKS["two"], 2), r=RANKS["two"]),
    }


class Trio:
    """A model, the same with either adapter, and the merged models that say what is right."""

    def __init__(self, model, folder, *, pack=False, but=(), **options):
        adapters = two_adapters(model, folder, but=but)
        self.right = {"alone": copy.deepcopy(model)}
        for name, adapter in adapters.items():
            self.right[name] = copy.deepcopy(model)
            put_in(self.right[name], adapter, {})
        if pack:
            few = torch.arange(4)[None]
            assert pack_linears(model, lambda: model(input_ids=few, use_cache=False))
        base = ppl.HFModel(model, Letters(), name="base", **options)
        self.models = {"alone": base}
        self.models |= {n: base.with_adapter(a, name=n) for n, a in adapters.items()}
        self.engine = base.engine

    def exact(self, which, text, new) -> float:
        return plain_log_probs(self.right[which], text, new)

    def check(self, asked, max_tokens=5) -> None:
        """Draws all of (which, text) in one batch, and compares."""
        requests = [
            request(self.models[which], text, i, max_tokens)
            for i, (which, text) in enumerate(asked)
        ]
        drawn = self.models["alone"].sample_batch(requests)
        for (which, text), draw in zip(asked, drawn, strict=True):
            exact = self.exact(which, text, draw.value.tokens)
            assert draw.log_prob == pytest.approx(exact, abs=1e-4)
        for which, model in self.models.items():
            mine = [
                (t, d.value.tokens) for (w, t), d in zip(asked, drawn, strict=True) if w == which
            ]
            if mine:
                texts, new = map(list, zip(*mine, strict=True))
                for logits, text, tokens in zip(
                    model.logits_along(texts, new, [None] * len(new)), texts, new, strict=True
                ):
                    rows = torch.log_softmax(logits.double(), -1)
                    total = float(rows.gather(1, torch.tensor(tokens)[:, None]).sum())
                    assert total == pytest.approx(self.exact(which, text, tokens), abs=1e-4)


ALL = ("alone", "one", "two")
EVERYTHING = [(which, text) for text in some_texts() for which in ALL]


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("family", ["Llama", "GPT2", "GPTNeoX", "Granite"])
def test_rows_of_several_adapters_in_one_batch_give_what_merged_models_give(family, pack, tmp_path):
    trio = Trio(random_model(FAMILIES[family]()), tmp_path, pack=pack)
    trio.check(EVERYTHING)
    # Their numbers do differ.
    text, new = some_texts()[1], (5, 6, 7)
    exact = [trio.exact(which, text, new) for which in ALL]
    assert min(abs(a - b) for i, a in enumerate(exact) for b in exact[:i]) > 0.05


@pytest.mark.parametrize(
    ("family", "but"),
    [
        ("gemma3_text", ()),  # windows
        ("olmo3", ()),
        ("qwen3_moe", ("gate",)),  # routers and experts are no layers
        ("falcon_h1", ()),  # states and attention
        ("lfm2", ()),
        ("deepseek_v3", ("gate", "expert")),  # latent attention
        ("opt", ()),
    ],
)
def test_windows_states_and_mixtures_with_adapters(family, but, tmp_path):
    if family not in families.NAMES:
        pytest.skip(f"this transformers has no {family}")
    model = families.random_model(families.config_of(family))
    trio = Trio(model, tmp_path, but=but)
    texts = [tuple(range(3, 40)), tuple(range(3, 20)), (5, 4, 3)]
    trio.check([(which, text) for text in texts for which in ALL], max_tokens=3)


@pytest.fixture(scope="module", params=["sharing", "standing", "tight"])
def llama(request, tmp_path_factory):
    kv_bytes = {"sharing": 1 << 26, "standing": 1 << 26, "tight": 60_000}[request.param]
    folder = tmp_path_factory.mktemp("adapters")
    trio = Trio(random_model(FAMILIES["Llama"]()), folder, pack=True, kv_bytes=kv_bytes)
    trio.engine.runner.price = 0
    if request.param == "standing":  # rows stand on what they have in common, however short
        trio.engine.sharing.block, trio.engine.sharing.price = 2, -1
    return trio


ROUNDS = st.lists(
    st.tuples(
        st.sampled_from(["draw", "draw", "draw", "evict", "clear"]),
        st.lists(
            st.tuples(st.sampled_from(ALL), st.integers(0, 999), st.lists(st.integers(3, 6))),
            min_size=1,
            max_size=6,
        ),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, deadline=None)
@given(rounds=ROUNDS)
def test_nothing_is_mixed_whatever_is_asked_forked_and_evicted(llama, rounds):
    """Texts begin anywhere in known ones, of whichever adapter."""
    pool = llama.engine.pool
    pool.clear()
    texts = [(3,), (3, 4, 5, 3, 4, 5, 6)]
    for kind, rows in rounds:
        if kind == "clear":
            pool.clear()
        if kind == "evict":
            before, pool.capacity = pool.capacity, 0
            pool.trim()
            pool.capacity = before
        asked = []
        for which, number, suffix in rows:
            text = texts[number % len(texts)]
            asked.append((which, (*text[: 1 + number % len(text)], *suffix)[:50]))
        llama.check(asked, max_tokens=3)
        texts = [*texts, *(text for _, text in asked)][-8:]


def test_rows_of_all_share_passes_and_a_known_text_costs_nothing(tmp_path):
    llama = Trio(random_model(FAMILIES["Llama"]()), tmp_path)
    engine, alone = llama.engine, llama.models["alone"]
    text = tuple(range(10, 40))
    engine.pool.clear()
    engine.runner.forget()
    rows = [request(llama.models[w], text, i, max_tokens=5) for i, w in enumerate(ALL * 4)]
    one_model = [request(alone, text[::-1], i, max_tokens=5) for i in range(12)]
    alone.sample_batch(rows)
    together = engine.passes
    engine.runner.forget()
    alone.sample_batch(one_model)
    assert together <= engine.passes + len(ALL)  # each adapter's prompt, and no pass more a token
    for which in ALL:  # known for each by itself
        account = Account()
        llama.models[which].sample_batch(
            [request(llama.models[which], text, 77, max_tokens=1, ledger=account)]
        )
        assert account.cost.prompt_tokens == 0
        assert account.cost.reused_tokens == len(text)


def test_a_search_uses_both_and_bills_each(tmp_path):
    base = ppl.load("tiny", pack=False)
    places = {k: v for k, v in layers_of(base.model).items() if "proj" in k}
    folder = made(tmp_path / "x", random_pairs(places, 2, 1), r=2)
    writer, other = base.with_adapter(folder), base.with_adapter(folder, name="other")
    assert writer.name == f"tiny+{folder}"
    assert writer.engine is base.engine
    assert writer.model is base.model
    thin = sum(t.numel() for t in load_file(folder / "adapter_model.safetensors").values())
    assert writer.parameters == base.parameters + thin
    assert writer.origin.settings["adapter"] == str(folder)

    def program(question):
        import pyro

        first = pyro.sample("first", writer(writer.chat(question), max_tokens=4))
        text = base.chat(question) + first
        if not first.finished:
            text += pyro.sample("second", other(text, max_tokens=3))
        return text.text

    merged, questions = ppl.load("tiny", adapter=folder), "2 + 3 ="

    def with_merged(question):
        import pyro

        first = pyro.sample("first", merged(merged.chat(question), max_tokens=4))
        text = merged.chat(question) + first
        if not first.finished:
            text += pyro.sample("second", merged(text, max_tokens=3))
        return text.text

    ours = BestOfN(6).run(program, questions, seed=1)
    theirs = BestOfN(6).run(with_merged, questions, seed=1)
    assert [s.value for s in ours.samples] == [s.value for s in theirs.samples]
    assert {writer.name, "other"} <= set(ours.cost.models)


@needs_compiler
def test_compiled_steps_ask_packed_layers_and_others_are_refused(tmp_path):
    trio = Trio(random_model(FAMILIES["Llama"]()), tmp_path, pack=True, compile=True)
    trio.check(EVERYTHING, max_tokens=6)
    plain = ppl.HFModel(random_model(FAMILIES["Llama"]()), Letters(), name="plain", compile=True)
    with pytest.raises(UnsupportedModelError, match=r"compiles what is in it.*pack=True.*adapter="):
        plain.with_adapter(tmp_path / "one")
    assert not plain.engine.slots.busy  # nothing of what was refused is kept
    assert not plain.engine.runner.adapters.there
    assert not any(layer._forward_hooks for layer in plain.model.modules())
    (draw,) = plain.sample_batch([request(plain, (5, 6, 7))])  # which goes on without
    exact = plain_log_probs(plain.model, (5, 6, 7), draw.value.tokens)
    assert draw.log_prob == pytest.approx(exact, abs=1e-4)


def test_adapters_go_with_their_models(tmp_path):
    trio = Trio(random_model(FAMILIES["Llama"]()), tmp_path)
    adapters = trio.engine.runner.adapters
    layer = next(iter(adapters._thin.values()))
    assert len(layer._a) == sum(RANKS.values())
    size = layer._a.nbytes
    number = number_of(trio.models["one"].marked((5,)))
    del trio.models["one"]
    gc.collect()
    trio.models["three"] = trio.models["alone"].with_adapter(tmp_path / "one")
    trio.right["three"] = trio.right["one"]
    assert layer._a.nbytes == size
    assert number not in layer.numbers
    trio.check([(which, text) for text in some_texts()[:3] for which in ("two", "three")])
    assert "lora" not in str(trio.models["alone"].model)  # the model is what it was


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"base_model.model.nowhere.lora_A.weight": torch.zeros(2, 2),
          "base_model.model.nowhere.lora_B.weight": torch.zeros(2, 2)}, "nowhere.*no place"),
        (random_pairs({"model.layers.0.mlp.up_proj": (48, 31)}, 2, 0), r"\(48, 31\).*\(48, 32\)"),
        (random_pairs({"model.embed_tokens": (32, 97)}, 2, 0), "Embedding.*cannot stand"),
        (random_pairs({"model.layers.0.input_layernorm": (32, 32)}, 2, 0), "cannot stand"),
        ({"base_model.model.model.norm.weight": torch.zeros(32)}, "norm.weight trained whole"),
        ({"base_model.model.lm_head.weight": torch.ones(97, 32)}, "lm_head.weight trained whole"),
    ],
)  # fmt: skip
def test_what_cannot_stand_beside_is_refused_with_the_remedy(weights, said, tmp_path):
    base = ppl.HFModel(random_model(FAMILIES["Llama"]()), Letters(), name="base")
    with pytest.raises(UnsupportedModelError, match=rf"(?s){said}.*merge_and_unload"):
        base.with_adapter(made(tmp_path / "x", weights))


def test_other_misuse_is_named(tmp_path):
    base = ppl.HFModel(random_model(FAMILIES["Llama"]()), Letters(), name="base")
    with pytest.raises(ModelNotFoundError, match="no adapter_config"):
        base.with_adapter(tmp_path)
    whole = {"base_model.model.model.norm.weight": torch.full((32,), 2.0)}
    sizes = {"model.layers.0.mlp.up_proj": (48, 32)}
    both = made(tmp_path / "whole", {**random_pairs(sizes, 2, 0), **whole})
    with pytest.raises(UnsupportedModelError, match="trained whole"):
        base.with_adapter(both)
    assert not base.engine.runner.adapters.there  # nothing of what was refused is kept
    one = base.with_adapter(made(tmp_path / "x", random_pairs(sizes, 2, 0)))
    with pytest.raises(ValueError, match=r"call with_adapter of the model without one, base$"):
        one.with_adapter(tmp_path / "x")
    with pytest.raises(PromptError, match="is no token id"):  # no way into another's texts
        list(base.logits_along([((1 << 32) + 5, 6)], [(7,)], [None]))
    for text, new in ((5, (1 << 32) + 6), (7,)), ((5, 6), ((1 << 32) + 7, 8)):
        for lm in (base, one):
            with pytest.raises(PromptError, match=r"\[.*429496730.*\] are not all token ids"):
                list(lm.logits_along([text], [new], [None]))
    with pytest.raises(PromptError, match="not all token ids"):
        list(one.logits_along([(96, 97)], [(7,)], [None]))

    class Routed(torch.nn.Module):
        """A layer that is given some of the tokens only."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            flat = x.flatten(0, 1)
            return torch.cat([self.inner(flat[:1]), self.inner(flat[1:])]).view(*x.shape[:2], -1)

    model = random_model(FAMILIES["Llama"]())
    model.model.layers[0].mlp.up_proj = Routed(model.model.layers[0].mlp.up_proj)
    routed = ppl.HFModel(model, Letters(), name="routed")
    weights = random_pairs({"model.layers.0.mlp.up_proj.inner": (48, 32)}, 2, 0)
    with pytest.raises(UnsupportedModelError, match="each row's adapter is not known"):
        routed.with_adapter(made(tmp_path / "y", weights))


def test_captured_steps_have_none(tmp_path):
    base = ppl.HFModel(random_model(FAMILIES["Llama"]()), Letters(), name="base")
    base.engine.runner.graphs = object()
    sizes = {"model.layers.0.mlp.up_proj": (48, 32)}
    with pytest.raises(UnsupportedModelError, match=r"captured steps.*graphs=False"):
        base.with_adapter(made(tmp_path / "x", random_pairs(sizes, 2, 0)))
