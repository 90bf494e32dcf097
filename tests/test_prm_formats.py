"""Published layouts of process reward models, against a plain forward written independently."""

from __future__ import annotations

import dataclasses
import math

import prm_models
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Model

import ppl
from ppl.errors import PRMFormatError, PromptError
from ppl.lm.tokenizer import HFCodec
from ppl.verifiers import FORMATS, PRM, Labels, PRMFormat, Words, check_verifier, tagged
from ppl.verifiers.models.formats import format_of
from ppl.verifiers.models.heads import log_sigmoid

BUILD = {
    "qwen2.5-math-prm": (prm_models.qwen, "Qwen2.5-Math-PRM-7B"),
    "skywork-o1-open-prm": (prm_models.skywork, "Skywork-o1-Open-PRM-Qwen-2.5-1.5B"),
    "math-shepherd": (prm_models.shepherd, "math-shepherd-mistral-7b-prm"),
    "rlhflow-llama3-prm": (prm_models.rlhflow, "Llama3.1-8B-PRM-Deepseek-Data"),
}
QUESTION = "Calculate ( 3 + 5 ) * 2 - 7."
STEPS = ("8*2-7\n", "16-7 + 0\n", "9")

LM = ppl.load("tiny")


def text(*steps: str, question: str = QUESTION) -> ppl.Text:
    made = LM.chat(question)
    for step in steps:
        made = made + LM.continuation(step)
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: build(root / folder) for name, (build, folder) in BUILD.items()}


@pytest.fixture(scope="module")
def prms(folders):
    return {name: PRM.load(folder, kv_bytes=1 << 24) for name, folder in folders.items()}


def scores(prm: PRM, *texts: ppl.Text) -> list[tuple[float, ...]]:
    return prm.judge_checked([ppl.JudgeRequest(prm, t) for t in texts])


@torch.inference_mode()
def plain(name: str, folder, steps: list[str]) -> list[float]:
    """The probabilities as the model's authors compute them, with a forward of the whole text."""
    words = AutoTokenizer.from_pretrained(folder)
    state = prm_models.tensors(folder)
    if name == "qwen2.5-math-prm":
        backbone = Qwen2Model.from_pretrained(folder)
        messages = [
            {
                "role": "system",
                "content": "Please reason step by step, and put your final answer within "
                "\\boxed{}.",
            },
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ]
        ids = words.encode(words.apply_chat_template(messages, tokenize=False))
        hidden = backbone(torch.tensor([ids])).last_hidden_state[0]
        middle = torch.relu(hidden @ state["score.0.weight"].T + state["score.0.bias"])
        logits = middle @ state["score.2.weight"].T + state["score.2.bias"]
        mask = torch.tensor(ids) == words.convert_tokens_to_ids("<extra_0>")
        return logits.softmax(-1)[mask][:, 1].tolist()
    if name == "skywork-o1-open-prm":
        ids = words.encode(words.bos_token + QUESTION + "\n", add_special_tokens=False)
        newline = words.encode("\n", add_special_tokens=False)[-1]
        flags = []
        for step in steps:
            ids += [*words.encode(step, add_special_tokens=False), newline]
            flags.append(len(ids) - 1)
        hidden = Qwen2Model.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state[0]
        z = hidden[flags] @ state["v_head.summary.weight"].T + state["v_head.summary.bias"]
        return z[:, 0].sigmoid().tolist()
    model = AutoModelForCausalLM.from_pretrained(folder)
    marks = [words.encode(mark, add_special_tokens=False)[-1] for mark in ("+", "-")]
    if name == "math-shepherd":
        string = QUESTION + " " + "\n".join(step + " ки" for step in steps)
        ids = [words.bos_token_id, *words.encode(string, add_special_tokens=False)]
        logits = model(torch.tensor([ids])).logits[0][:, marks]
        mask = torch.tensor(ids) == words.convert_tokens_to_ids(" ки")
        return logits.softmax(-1)[mask][:, 0].tolist()
    out, turns = [], []
    for step in steps:
        user = step if turns else QUESTION + " " + step
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": "+"}]
        ids = words.encode(words.apply_chat_template(turns, tokenize=False))
        logits = model(torch.tensor([ids])).logits[0, -3, marks]
        out.append(float(logits.softmax(-1)[0]))
    return out


@pytest.mark.parametrize("name", BUILD)
def test_probabilities_are_those_of_a_plain_forward(name, folders, prms):
    ours = [math.exp(s) for s in scores(prms[name], text(*STEPS))[0]]
    official = plain(name, folders[name], [step.strip() for step in STEPS])
    assert ours == pytest.approx(official, abs=1e-5)
    assert max(ours) - min(ours) > 0.01  # no constant head would pass


# Pins rendering, positions and heads of every format; from the models of `prm_models`.
GOLDEN = {
    "qwen2.5-math-prm": (-0.58829, -0.45830, -0.59903),
    "skywork-o1-open-prm": (-1.38366, -0.87122, -1.13678),
    "math-shepherd": (-1.64099, -2.14536, -0.43529),
    "rlhflow-llama3-prm": (-0.06839, -1.18549, -0.06642),
}


@pytest.mark.parametrize("name", BUILD)
def test_golden_scores(name, prms):
    assert scores(prms[name], text(*STEPS))[0] == pytest.approx(GOLDEN[name], abs=1e-4)


@pytest.mark.parametrize("name", BUILD)
def test_formats_are_found_by_name_and_declare_what_they_mean(name, folders, prms):
    assert format_of(folders[name]) is FORMATS[name]
    assert format_of(f"somebody/{folders[name].name}") is FORMATS[name]
    expected = ("step", "prod") if name.startswith("qwen") else ("value", "last")
    assert (prms[name].meaning, prms[name].aggregate) == expected


def test_a_folder_of_any_name_is_known_by_its_architecture(tmp_path):
    assert format_of(prm_models.qwen(tmp_path / "a")) is FORMATS["qwen2.5-math-prm"]
    assert format_of(prm_models.skywork(tmp_path / "b")) is FORMATS["skywork-o1-open-prm"]
    assert format_of(prm_models.shepherd(tmp_path / "c")) is FORMATS["token-classification"]


@pytest.mark.parametrize("name", BUILD)
def test_laws_and_prefix_reuse(name, prms):
    prm = prms[name]
    texts = [text(*STEPS), text("8*2\n", "\n", "9\n"), text("7", question="Calculate 3 + 4.")]
    assert "prefix" in check_verifier(prm, texts)
    prm.engine.pool.clear()
    scores(prm, text(*STEPS[:2]))
    before = prm.engine.tokens_computed
    prm.judge([ppl.JudgeRequest(prm, text(*STEPS), since=2)])
    # Only the last step's piece is computed.
    pieces = prm.format.render(prm.codec.tokenizer, QUESTION, [s.strip() for s in STEPS])
    assert prm.engine.tokens_computed - before <= len(pieces[-1]) + 1


@pytest.mark.parametrize("name", BUILD)
def test_blank_steps_and_trailing_separators_get_no_score(name, prms):
    prm = prms[name]
    clean = scores(prm, text("8*2-7", "9"))[0]
    untidy = scores(prm, text("8*2-7\n\n", "\n", "\n\n", "9\n\n", "\n"))[0]
    assert untidy == pytest.approx(clean, abs=1e-5)
    assert scores(prm, text("\n")) == [()]
    verdict = prm(text("8*2-7\n", "\n"))
    assert verdict.log_probability == pytest.approx(clean[0], abs=1e-5)
    request = ppl.JudgeRequest(prm, text("8*2-7\n", "\n", "9"), since=2)
    assert prm.judge([request])[0] == pytest.approx(clean[1:], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "tag"),
    [("qwen2.5-math-prm", "<extra_0>"), ("math-shepherd", " ки"), ("rlhflow-llama3-prm", "+")],
)
def test_a_tag_that_the_text_writes_itself_makes_no_step(name, tag, prms):
    prm = prms[name]
    texts = [text(f"8*2{tag}-7\n", f"9{tag}{tag}\n"), text("8\n", "9", question=f"{tag} 1 {tag}?")]
    assert [len(s) for s in scores(prm, *texts)] == [2, 2]
    tokens, ends = prm._formatted(texts[0], 0)
    if name != "rlhflow-llama3-prm":
        assert [i + 1 for i, t in enumerate(tokens) if t == tokens[-1]] == list(ends)


def test_a_text_that_is_too_long_is_refused_not_truncated(prms):
    with pytest.raises(PromptError, match=r"512"):
        scores(prms["math-shepherd"], text(*["8*2-7+1+1+1\n"] * 60))


def test_saturated_scores_keep_their_difference(prms):
    prm = prms["math-shepherd"]
    base = prm.log_odds
    try:
        prm.log_odds = lambda hidden: base(hidden) * 0 - 200.0
        assert prm.judge([ppl.JudgeRequest(prm, text("8"))])[0] == pytest.approx([-200.0])
    finally:
        prm.log_odds = base


def test_log_probabilities_are_exact_for_their_log_odds():
    odds = [-30.0, -0.5, 2.0, 110.0]
    exact = [-math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z)) for z in odds]
    assert log_sigmoid(torch.tensor(odds)) == pytest.approx(exact, rel=1e-12)


def test_a_format_of_ones_own_in_a_few_lines(folders):
    mine = PRMFormat(
        "mine",
        Words("-", "+"),
        tagged(" ки", between="\n", start="{question} "),
        meaning="value",
        tag=" ки",
    )
    own = PRM.load(folders["math-shepherd"], format=mine)
    published = PRM.load(folders["math-shepherd"])
    assert scores(own, text(*STEPS)) == scores(published, text(*STEPS))


@pytest.mark.parametrize(
    ("declared", "asked", "aggregate"),
    [
        ({}, {}, "prod"),  # a format says something about steps, unless declared otherwise
        ({"meaning": "value"}, {}, "last"),
        ({"meaning": "value"}, {"meaning": "step"}, "prod"),
        ({"meaning": "step"}, {"meaning": "outcome"}, "last"),
        ({"aggregate": "min"}, {}, "min"),
        ({"aggregate": "min"}, {"aggregate": "last"}, "last"),
    ],
)
def test_scores_combine_as_their_meaning_asks(folders, declared, asked, aggregate):
    plain = PRMFormat("mine", Words("-", "+"), tagged(" ки", between="\n"), tag=" ки", **declared)
    prm = PRM.load(folders["math-shepherd"], format=plain, **asked)
    assert prm.aggregate == aggregate


def test_plain_classifiers_read_the_texts_own_tokens(tmp_path):
    prm = PRM.load(prm_models.classifier(tmp_path / "m"), good="yes", bad="no", aggregate="min")
    made = text(*STEPS)
    model, _ = Labels().load(tmp_path / "m")
    with torch.inference_mode():
        logits = model(torch.tensor([made.tokens])).logits[0]
    wanted = logits.log_softmax(-1)[[end - 1 for end in made.step_ends], 1]
    assert scores(prm, made)[0] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert prm.aggregate == "min"


def test_a_folder_of_any_other_name_asks_for_its_format(tmp_path):
    folder = prm_models.shepherd(tmp_path / "my-reward-model")
    with pytest.raises(PRMFormatError, match=r"lack the weights.*pass format=.*math-shepherd"):
        PRM.load(folder)
    assert PRM.load(folder, format="math-shepherd").format.name == "math-shepherd"


def test_vocabularies_are_told_apart_while_codecs_come_and_go(tiny):
    lm, prm = tiny
    other = prm_models.tokenizer(["<other>"])
    for i in range(20):  # a new codec gets the address of the one that has gone
        tokenizer = other if i % 2 else lm.codec.tokenizer
        text = ppl.Text((1,), HFCodec(tokenizer, frozenset({0}), f"model {i}"))
        assert prm._shares_vocabulary(text) is (tokenizer is not other)
        del text


def test_wrong_declarations_are_refused_when_loading(folders, tmp_path):
    shepherd, qwen = folders["math-shepherd"], folders["qwen2.5-math-prm"]
    with pytest.raises(PRMFormatError, match="no format 'qwen'"):
        PRM.load(shepherd, format="qwen")
    with pytest.raises(PRMFormatError, match=r"no tensor score\.0\.weight"):
        PRM.load(shepherd, format="qwen2.5-math-prm")
    with pytest.raises(PRMFormatError, match="good= and bad= are for labels"):
        PRM.load(shepherd, good="yes")
    # The tag is no token of this tokenizer.
    other = PRMFormat("other", Words("-", "+"), tagged("<step>"), tag="<step>")
    with pytest.raises(PRMFormatError, match="must be one token"):
        PRM.load(shepherd, format=other)
    with pytest.raises(PRMFormatError, match="no single token for 'good step'"):
        PRM.load(shepherd, format=dataclasses.replace(other, tag="", head=Words("-", "good step")))

    def one_short(tokenizer, question, steps):
        return FORMATS["math-shepherd"].render(tokenizer, question, steps)[:2]

    def looks_ahead(tokenizer, question, steps):
        return FORMATS["math-shepherd"].render(tokenizer, f"{question}{len(steps)}", steps)

    for render, message in [(one_short, "as 2 pieces"), (looks_ahead, "change when a step")]:
        broken = dataclasses.replace(FORMATS["math-shepherd"], render=render)
        with pytest.raises(PRMFormatError, match=message):
            PRM.load(shepherd, format=broken)
    with pytest.warns(UserWarning, match="'value'"):
        PRM.load(shepherd, aggregate="prod")
    assert PRM.load(qwen, aggregate="min", meaning="value").meaning == "value"


@pytest.mark.parametrize("name", BUILD)
def test_a_score_is_the_same_to_the_last_digit_whatever_its_company(prms, name):
    texts = [text(*STEPS[:n]) for n in (1, 2, 3)] + [text("16-7\n"), text("9\n", "9")]
    alone = [scores(prms[name], t)[0] for t in texts]  # all states are known from here on
    assert scores(prms[name], *texts) == alone
    assert scores(prms[name], *texts[::-1]) == alone[::-1]
