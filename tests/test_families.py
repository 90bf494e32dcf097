"""Every family of decoders that the installed transformers has: exact, or refused by name.

Windows and chunks are shorter than the texts, latent attention and unlike layers are small. Exact
is what a forward of the whole text without any cache gives, in float32.
"""

from __future__ import annotations

import functools

import families
import pytest
import torch
from compiler import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl.errors import UnsupportedModelError
from ppl.lm.engine.attention import NAME, OWN
from ppl.lm.engine.engine import Engine
from ppl.lm.engine.graphs import StepGraphs
from ppl.lm.engine.reach import Reach, fitted
from ppl.lm.engine.recurrent import Snapshots


def _names(text: str) -> list[str]:
    return text.split()


EXACT = _names(
    """
afmoe apertus arcee aria_text axk1 beam biogpt bitnet codegen cohere cohere2 cohere2_moe ctrl cwm
deepseek_v2 deepseek_v3 diffllama doge ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon flex_olmo
flint fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 gemma4_text glm glm4 glm4_moe
glm4_moe_lite gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa
granitemoe granitemoe_swa granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3
hyperclovax internlm3 jais2 jetmoe llama llama4 llama4_text longcat_flash mimo_v2_flash minicpm3
minimax_m2 ministral ministral3 mistral mixtral modernbert-decoder moshi mpt nanochat nemotron
olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss
smollm3 solar_open stablelm starcoder2 vaultgemma xglm
"""
)
WINDOWS = _names(
    """
afmoe cohere2 exaone4 gemma2 gemma3_text gpt_oss mimo_v2_flash mistral olmo3 phi3 qwen2_moe
smollm3
"""
)
HALVES = _names(
    """
bart blenderbot marian mbart pegasus plbart prophetnet trocr whisper
"""
)
RECURRENT = _names(
    """
bamba falcon_h1 falcon_mamba granitemoehybrid jamba lfm2 lfm2_moe lfm3 mamba mamba2 olmo_hybrid
qwen3_5 qwen3_5_moe qwen3_next zaya
"""
)


def engine_of(name: str, capacity: int = 1 << 24, **options) -> Engine:
    if name not in families.NAMES:
        pytest.skip(f"this transformers has no {name}")
    model = families.random_model(families.config_of(name))
    return Engine(model, name=name, capacity=capacity, **options)


def plain(engine: Engine, text: tuple[int, ...]) -> torch.Tensor:
    return engine.base(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0]


def assert_exact(engine: Engine, text: tuple[int, ...], states: torch.Tensor, first: int) -> None:
    exact = plain(engine, text)
    tolerance = 1e-4 * max(1.0, float(exact.abs().max()))
    torch.testing.assert_close(states, exact[first:], rtol=0, atol=tolerance)


STORY = tuple(3 + (7 * i * i + 3 * i) % 91 for i in range(60))


def read_fork_step_and_evict(engine: Engine) -> None:
    """Ragged texts, forks, steps of rows of unlike lengths, rolled back, evicted, read again."""
    texts = [STORY[:30], (*STORY[:17], 5, 6), STORY[3:8]]
    for text, states in zip(texts, engine.hidden(texts, [0, 3, 1]), strict=True):
        assert_exact(engine, text, states, {30: 0, 19: 3, 5: 1}[len(text)])
    slots, _ = engine.open([(*STORY[:21], 9), STORY[5:9]])
    rows = [[slot, text] for text, slot in slots.items()]
    rows += [[slot, rows[0][1]] for slot in engine.fork([rows[0][0]])]
    for t in range(3):
        for number, row in enumerate(rows):
            row[1] += (3 + (5 * t + 7 * number) % 90,)
        states = engine.step([slot for slot, _ in rows], [text for _, text in rows])
    for (slot, text), state in zip(rows, states, strict=True):
        assert_exact(engine, text, state[None], -1)
        engine.close(slot, text)
    before, engine.pool.capacity = engine.pool.capacity, 0
    engine.pool.trim()
    engine.pool.capacity = before
    back = (*rows[0][1][:-2], 4, 4)  # taken back, and on in other words
    (states,) = engine.hidden([back], [10])
    assert_exact(engine, back, states, 10)


@pytest.mark.parametrize("name", [*EXACT, *RECURRENT])
@torch.inference_mode()
def test_exact(name):
    engine = engine_of(name)
    engine.runner.price = 0  # what rows have in common is read apart
    read_fork_step_and_evict(engine)
    if engine.sharing.able:  # or is one copy, on which they stand
        engine.pool.clear()
        engine.sharing.price, engine.sharing.block = -1, 2
        read_fork_step_and_evict(engine)


# Libraries' own attention and scans, which look at all tokens at once.
SPREADING = _names(
    """
bamba biogpt codegen falcon falcon_h1 gpt_neox_japanese gptj granitemoehybrid jamba mamba2 mpt
olmo_hybrid qwen3_5 qwen3_5_moe qwen3_next stablelm xglm
"""
)


@pytest.mark.parametrize("name", sorted({*EXACT, *RECURRENT} - {*SPREADING}))
@torch.inference_mode()
def test_what_is_not_finite_reaches_no_token_before_it_and_no_other_row(name):
    """Nor a row that has its memory afterwards, beside rows that are longer."""
    engine = engine_of(name)
    engine.runner.price = 0
    weight = engine.base.get_input_embeddings().weight
    bad = min(96, len(weight) - 1)
    assert bad not in STORY
    sound = weight[bad].clone()
    for number in (torch.nan, torch.inf):
        weight.data[bad] = sound
        spoil(engine, bad, number)
        if engine.sharing.able:  # beginnings are one copy, on which rows stand
            price, block = engine.sharing.price, engine.sharing.block
            engine.sharing.price, engine.sharing.block = -1, 2
            weight.data[bad] = sound
            spoil(engine, bad, number)
            engine.sharing.price, engine.sharing.block = price, block


def spoil(engine: Engine, bad: int, number: float) -> None:
    at, texts = 21, [STORY[:40], (*STORY[:17], *STORY[30:50]), (*STORY[:10], 5), STORY[10:13]]
    spoilt = [(*text[:at], bad, *text[at + 1 :]) for text in texts[:2]]
    engine.pool.clear()
    exact = [states.clone() for states in engine.hidden(texts, [0] * 4)]
    assert all(states.isfinite().all() for states in exact)
    engine.base.get_input_embeddings().weight.data[bad] = number
    engine.pool.clear()
    first, *rest = engine.hidden([spoilt[0], *texts[1:]], [0] * 4)
    assert not first[at : at + 2].isfinite().any()
    for one, other in zip([first[:at], *rest], [exact[0][:at], *exact[1:]], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(exact[0].abs().max()))
    slots, _ = engine.open([*spoilt, *texts[2:]])
    for text, slot in slots.items():
        engine.close(slot, text)
    engine.pool.clear()
    short, long = (*texts[3], 5), (*texts[1][:-1], 6)
    slots, _ = engine.open([short[:-1], long[:-1]])
    rows = {text: slots[text[:-1]] for text in (short, long)}
    for text, state in zip(rows, engine.step([*rows.values()], [*rows]), strict=True):
        assert_exact(engine, text, state[None], -1)
        engine.close(rows[text], text)


@pytest.mark.parametrize(
    "name", sorted(set(families.NAMES) - {*EXACT, *RECURRENT} - families.LARGE)
)
@torch.inference_mode()
def test_exact_or_refused_by_name(name):
    """What a later transformers brings is one or the other."""
    try:
        engine, said = engine_of(name), ""
    except UnsupportedModelError as refusal:
        engine, said = None, str(refusal)
    except families.NotMade as error:
        pytest.skip(str(error))
    if engine is None:
        assert said.startswith(name)
    else:
        read_fork_step_and_evict(engine)


@pytest.mark.parametrize("name", HALVES)
def test_halves_of_encoder_decoders_are_refused_by_name(name):
    with pytest.raises(UnsupportedModelError, match=f"{name}: .*half of an encoder-decoder"):
        engine_of(name)


@pytest.mark.parametrize("name", WINDOWS)
@torch.inference_mode()
def test_windows_move(name):
    """Else these tests would show nothing."""
    engine = engine_of(name)
    assert engine.runner.windows
    full = engine_of_full(engine)
    assert float((full - plain(engine, STORY)).abs().max()) > 1e-2


def engine_of_full(engine: Engine) -> torch.Tensor:
    """What the model would say if all its layers looked back to the beginning."""
    mask = torch.ones(1, 1, len(STORY), len(STORY), dtype=torch.bool).tril()
    if engine.base.config._attn_implementation != "sdpa":
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -3e38)
    ids = torch.tensor([STORY])
    try:
        kinds = dict.fromkeys(engine.base.config.layer_types, mask)
        return engine.base(ids, attention_mask=kinds, use_cache=False).last_hidden_state[0]
    except (AttributeError, TypeError, KeyError):
        return engine.base(ids, attention_mask=mask, use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss", "mimo_v2_flash"])
@torch.inference_mode()
def test_windows_in_captured_steps(name):
    """As on a GPU: shapes are fixed, and what is captured is replayed for other positions."""

    def emulated(step, device):
        output = step().clone()
        return lambda: output.copy_(step())

    engine = engine_of(name)
    engine.runner.graphs = StepGraphs(engine.runner.captured_pass, engine.device, emulated)
    read_fork_step_and_evict(engine)


@torch.inference_mode()
def test_attention_that_is_not_ours_runs_as_it_is(monkeypatch):
    """Where the grouped form gives other numbers, the model's own is called with our masks."""
    import transformers.models.gemma2.modeling_gemma2 as file

    own = file.eager_attention_forward

    def otherwise(*args, **kwargs):
        attended, weights = own(*args, **kwargs)
        return attended + 0.1 * attended.roll(1, -1), weights

    monkeypatch.setattr(file, "eager_attention_forward", otherwise)
    engine = engine_of("gemma2")
    assert engine.runner.how == OWN
    read_fork_step_and_evict(engine)
    monkeypatch.undo()
    assert engine_of("gemma2").runner.how == NAME


@needs_compiler
@torch.inference_mode()
def test_windows_compiled():
    read_fork_step_and_evict(engine_of("gemma2", compile=True))


@needs_compiler
def test_latent_attention_is_not_compiled_and_says_so():
    with pytest.raises(UnsupportedModelError, match="compile=False"):
        engine_of("minicpm3", compile=True)


@given(
    st.integers(1, 40),
    st.integers(0, 45),
    st.sampled_from(["full", "window", "chunk"]),
)
def test_reach_is_that_of_the_mask(most, size, kind):
    """Fitted to the function of a mask, the reach says the same for all positions."""
    wanted = {"full": Reach(), "window": Reach(window=size), "chunk": Reach(chunk=size)}[kind]

    def mask(row, head, query, key):
        return (key <= query) & (key >= wanted.first(query))

    found = fitted(mask, most, size)
    positions = torch.arange(most)
    assert found is not None
    assert torch.equal(found.first(positions), wanted.first(positions))
    assert found.moves(most) == bool((wanted.first(positions) > 0).any())


def test_masks_of_no_known_kind_have_no_reach():
    assert fitted(lambda b, h, q, k: (k <= q) & (k % 2 == q % 2), 30, 0) is None


# -- layers with a state --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lfm2", "granitemoehybrid", "jamba"])
@pytest.mark.parametrize("capacity", [1, 40_000, 1 << 24])
@torch.inference_mode()
def test_states_by_snapshots(name, capacity, monkeypatch):
    """Whatever is kept of them, also in between, and where tokens are read one by one only."""
    monkeypatch.setattr("ppl.lm.engine.passes.SPACING", 8)
    engine = engine_of(name, capacity)
    read_fork_step_and_evict(engine)
    assert engine.runner.snapshots.nbytes <= capacity // 4
    assert engine.runner.stepwise == (name == "jamba")


@torch.inference_mode()
def test_texts_go_on_from_the_nearest_snapshot(monkeypatch):
    monkeypatch.setattr("ppl.lm.engine.passes.SPACING", 8)
    engine = engine_of("lfm2")

    def computed(text):
        before = engine.tokens_computed
        (states,) = engine.hidden([text], [0])
        assert_exact(engine, text, states, 0)
        return engine.tokens_computed - before

    assert computed(STORY[:30]) == 30
    assert computed(STORY[:30]) == 0  # its last hidden states are kept
    assert computed((*STORY[:30], 5)) == 1  # from its end
    assert computed((*STORY[:27], 5)) == 4  # from 24
    assert computed((*STORY[:27], 6)) == 4
    slots, _ = engine.open([STORY[:31]])
    (slot,) = slots.values()
    (twin,) = engine.fork([slot])
    before = engine.tokens_computed
    engine.step([slot, twin], [(*STORY[:31], 7), (*STORY[:31], 8)])
    engine.close(slot, (*STORY[:31], 7))
    engine.close(twin, (*STORY[:31], 8))
    assert engine.tokens_computed - before == 2
    assert computed((*STORY[:31], 8, 9)) == 1  # from where the row ended
    engine.runner.snapshots.clear()
    assert computed((*STORY[:31], 8, 9, 10)) == 34  # all again, if no state is left


def test_snapshots_are_the_longest_and_the_least_recent_go():
    def state(number):
        return (torch.full((4,), float(number)),)

    kept = Snapshots(48)  # three of 16 bytes
    for length in (1, 2, 3):
        kept.keep(STORY[:length], state(length))
    assert kept.longest(STORY, 9)[0] == 3
    assert kept.longest(STORY, 2)[0] == 2
    assert kept.longest((*STORY[:1], 99), 9)[0] == 1
    assert kept.longest((99,), 9) == (0, None)
    kept.keep(STORY[:4], state(4))  # the third has not been asked for since
    assert [kept.longest(STORY, most)[0] for most in (4, 3, 1)] == [4, 2, 1]
    assert kept.nbytes == 48
    kept.keep(STORY[:5], (torch.zeros(99),))  # larger than all that there is
    assert kept.longest(STORY, 9)[0] == 4
    kept.clear()
    assert kept.longest(STORY, 9) == (0, None)


def test_recurrent_layers_run_plainly_and_say_so():
    with pytest.raises(UnsupportedModelError, match=r"lfm2: .*recurrent.*compile=False"):
        engine_of("lfm2", compile=True)


@torch.inference_mode()
def test_nemotron_h_only_where_its_steps_are_its_passes():
    with pytest.raises(UnsupportedModelError, match=r"nemotron_h: .*time_step_min=0\.001.*server"):
        engine_of("nemotron_h")
    model = families.random_model(families.config_of("nemotron_h", time_step_min=1e-12))
    read_fork_step_and_evict(Engine(model, name="nemotron_h", capacity=1 << 24))


PROPERTY = [
    *("mistral", "gemma2", "gpt_oss", "deepseek_v3", "gemma4_text", "llama"),
    *("lfm2", "granitemoehybrid", "qwen3_next", "jamba"),
]


@functools.cache
def _kept(name: str, capacity: int) -> Engine:
    return engine_of(name, capacity)


@pytest.mark.parametrize("capacity", [1, 60_000])
@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(PROPERTY),
    asked=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 40), st.lists(st.integers(3, 5), max_size=3)),
        min_size=1,
        max_size=8,
    ),
)
@torch.inference_mode()
def test_any_company_gives_what_a_plain_forward_does(capacity, name, asked):
    engine = _kept(name, capacity)
    texts = [(*STORY[at : at + size], *end) for at, size, end in asked]
    for text, states in zip(texts, engine.hidden(texts, [0] * len(texts)), strict=True):
        assert_exact(engine, text, states, 0)
    slots, _ = engine.open(texts)
    running = list(slots)
    longer = [(*text, 7) for text in running]
    if running:
        for text, state in zip(longer, engine.step(list(slots.values()), longer), strict=True):
            assert_exact(engine, text, state[None], -1)
    for text, slot in zip(longer, slots.values(), strict=True):
        engine.close(slot, text)
