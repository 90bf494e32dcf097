"""The embedded model's data: solutions are right, labels are exact, evaluation is disjoint."""

from __future__ import annotations

import sys
from itertools import permutations, product
from pathlib import Path
from random import Random

import pytest
import torch
import transformers

from ppl.tasks import TASKS, TaskName, held_out, problems

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import tiny_countdown  # noqa: E402
import tiny_evaluation  # noqa: E402
import tiny_responses  # noqa: E402
import train_tiny  # noqa: E402
from tiny_arithmetic import (  # noqa: E402
    ExpressionError,
    arithmetic_item,
    arithmetic_solution,
    evaluate,
)
from tiny_countdown import (  # noqa: E402
    countdown_characters,
    countdown_item,
    countdown_solution,
    reachable,
    slipping_countdown,
)
from tiny_data import step_labels, training_item  # noqa: E402
from tiny_item import Item  # noqa: E402

TINY = ROOT / "ppl" / "tiny"


def items(n: int, seed: int = 0) -> list[Item]:
    rng = Random(seed)
    return [training_item(rng) for _ in range(n)]


# --- generator and solution writer ------------------------------------------------------------


def test_generator_never_makes_a_held_out_problem() -> None:
    made = items(3000)
    assert not any(held_out(item.key) for item in made)
    assert {item.task for item in made} == set(TASKS)
    pytest.importorskip("reasoning_gym")
    keys = {item.key for item in made}
    for task in TASKS:
        assert keys.isdisjoint(p.id for p in problems(task, 100))


def test_generator_is_repeatable() -> None:
    assert items(50, seed=5) == items(50, seed=5) != items(50, seed=6)


def test_questions_have_the_templates_of_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")
    for problem in problems("countdown", 30):
        data = problem.meta["metadata"]
        own = [
            tiny_countdown.countdown_question(data["numbers"], data["target"], i) for i in range(3)
        ]
        assert problem.question in own


@pytest.mark.parametrize(
    ("expression", "solution"),
    [
        ("(56+-33)-84", "23-84\n-61"),
        ("-(-3*4)", "12"),
        ("5--(-3*4)", "5-12\n-7"),
        ("5--(3*4)", "5--12\n17"),
        ("((2+3))*-(4-6)", "5*-(4-6)\n5*2\n10"),
        ("-(-(3+4))-1", "7-1\n6"),
        ("1-2*3*4", "1-6*4\n1-24\n-23"),
        ("9-3-2", "6-2\n4"),
    ],
)
def test_arithmetic_solution(expression: str, solution: str) -> None:
    assert arithmetic_solution(expression) == solution


def test_written_arithmetic_equals_python() -> None:
    rng = Random(1)
    for _ in range(500):
        item = arithmetic_item(rng)
        truth = eval(item.truth)  # our own digits and operators only
        assert evaluate(item.truth)[0] == truth
        assert [eval(line) for line in item.solution.split("\n")] == [truth] * (
            item.solution.count("\n") + 1
        )


@pytest.mark.parametrize(
    "text",
    ["", "1+", "--1", "1 + 2", "2**3", "(1", "1)", "01", "4/2", "1.0", "1\n", "+1", "(" * 99],
)
def test_expression_grammar_refuses(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text)


def brute_force(numbers: tuple[int, ...], target: int) -> bool:
    """Every order, every operator, both shapes of three operands, in floating point."""
    for a, b, c in permutations(numbers):
        for first, second in product("+-*/", repeat=2):
            for text in (f"({a}{first}{b}){second}{c}", f"{a}{first}({b}{second}{c})"):
                try:
                    if abs(eval(text) - target) < 1e-9:
                        return True
                except ZeroDivisionError:
                    pass
    return False


def test_solver_agrees_with_brute_force() -> None:
    rng = Random(2)
    for _ in range(250):
        numbers = tuple(sorted(rng.randint(1, 12) for _ in range(3)))
        target = rng.randint(1, 60)
        assert (target in reachable(numbers)) == brute_force(numbers, target), (numbers, target)
        written = countdown_solution(numbers, target, rng)
        if written is not None:
            assert target in reachable(numbers)
            assert eval(written.split("\n")[-1]) == target


# --- labels -----------------------------------------------------------------------------------


def test_every_line_of_a_written_solution_is_good() -> None:
    for item in items(600):
        assert all(step_labels(item.task, item.truth, item.solution.split("\n")))


@pytest.mark.parametrize(
    ("task", "truth", "steps", "labels"),
    [
        ("arithmetic", "(5+-3)*4", ["2*4", "8"], [1, 1]),
        ("arithmetic", "(5+-3)*4", ["3*4", "12"], [0, 0]),
        ("arithmetic", "(5+-3)*4", ["2*4", "9"], [1, 0]),
        ("arithmetic", "(5+-3)*4", ["3*4", "8"], [0, 0]),  # a lucky answer after a wrong line
        ("arithmetic", "(5+-3)*4", ["2*4", "2*4", "8"], [1, 0, 0]),  # no progress
        ("arithmetic", "(5+-3)*4", ["2*4"], [0]),  # ended before the answer
        ("arithmetic", "(5+-3)*4", ["2*4", "--8"], [1, 0]),
        ("arithmetic", "(5+-3)*4", ["2*4", "4*2"], [1, 0]),
        ("countdown", "3,5,7=22", ["5*3=15;7,15", "15+7=22;22", "(5*3)+7"], [1, 1, 1]),
        ("countdown", "3,5,7=22", ["5*3=15;15,7", "15+7=22;22", "7+5*3"], [1, 1, 1]),
        ("countdown", "3,5,7=22", ["5*3=16;7,16", "16+7=23;23", "(5*3)+7"], [0, 0, 0]),
        ("countdown", "3,5,7=22", ["5+3=8;7,8", "8+7=15;15", "5+3+7"], [0, 0, 0]),  # dead end
        ("countdown", "3,5,7=22", ["5*3=15;15", "15+7=22;22", "(5*3)+7"], [0, 0, 0]),
        ("countdown", "3,5,7=22", ["5*4=20;7,20"], [0]),
        ("countdown", "3,5,7=22", ["5*3=15;7,15", "15+7=22;22", "15+7"], [1, 1, 0]),
        ("countdown", "3,5,7=22", ["(5*3)+7"], [1]),  # right at once
        ("countdown", "3,3,5=24", ["5+3=8;3,8", "8*3=24;24", "(5+3)*3"], [1, 1, 1]),
        ("countdown", "3,3,5=24", ["5+3=8;8", "8*3=24;24", "(5+3)*3"], [0, 0, 0]),
        ("countdown", "3,5,7=22", ["5*3=15;7,15", "x", "(5*3)+7"], [1, 0, 0]),
    ],
)
def test_labels(task: TaskName, truth: str, steps: list[str], labels: list[int]) -> None:
    assert step_labels(task, truth, steps) == [bool(label) for label in labels]


def test_changed_digits_are_bad() -> None:
    """Any changed digit makes its line wrong, and with it all later lines."""
    rng = Random(3)
    for item in items(400):
        steps = item.solution.split("\n")
        at = rng.randrange(len(steps))
        places = [i for i, c in enumerate(steps[at]) if c.isdigit()]
        place = rng.choice(places)
        new = str((int(steps[at][place]) + rng.randint(1, 8)) % 10)
        line = steps[at][:place] + new + steps[at][place + 1 :]
        if item.task == "arithmetic":
            try:
                if evaluate(line)[0] == evaluate(item.truth)[0]:
                    continue  # for example 0*5 and 0*6
            except ExpressionError:
                pass
        labels = step_labels(item.task, item.truth, [*steps[:at], line, *steps[at + 1 :]])
        assert labels == [True] * at + [False] * (len(steps) - at), (item, line)


def test_character_labels_find_the_wrong_digit() -> None:
    def marks(*steps: str) -> list[str]:
        rows = countdown_characters(
            "3,5,7=22", steps, step_labels("countdown", "3,5,7=22", steps), True
        )
        return ["".join({True: "+", False: "-", None: "?"}[mark] for mark in row) for row in rows]

    assert marks("5*3=15;7,15", "15+7=22;22", "(5*3)+7") == ["+" * 11, "+" * 10, "?" * 7]
    assert marks("5*3=16;7,16", "16+7=22;22", "(5*3)+7") == ["+++++------", "-" * 10, "-" * 7]
    assert marks("5*3=15;8,15") == ["???????????"]  # a final line is judged as a whole
    assert marks("5*3=15;8,15", "0") == ["+++++++----", "-"]
    assert marks("7-5=2;3,2", "2") == ["-" * 9, "-"]  # 22 is out of reach of 2 and 3


def test_character_labels_agree_with_step_labels() -> None:
    for item in items(300):
        if item.task == "countdown":
            steps = item.solution.split("\n")
            labels = step_labels("countdown", item.truth, steps)
            rows = countdown_characters(item.truth, steps, labels, True)
            assert all(all(row) for row in rows[:-1])


def test_made_up_countdown_mistakes_are_of_many_kinds_and_some_responses_have_none() -> None:
    rng = Random(4)
    rows = []
    for _ in range(400):
        item = countdown_item(rng, narrow=True)
        numbers, target = item.truth.split("=")
        text = slipping_countdown([int(n) for n in numbers.split(",")], int(target), rng)
        rows.append(tuple(step_labels("countdown", item.truth, text.split("\n"))))
    wrong_from = {row.index(False) if False in row else len(row) for row in rows}
    assert wrong_from == {0, 1, 2, 3, 4}
    assert all(row == tuple(sorted(row, reverse=True)) for row in rows)  # once wrong, always wrong
    assert 0.05 < sum(map(all, rows)) / len(rows) < 0.6


def test_solutions_are_uniform_over_all_solutions() -> None:
    """Not over the good moves of each step: 1 + 1 has two ways on, 1 * 1 and 1 / 1 have one."""
    ways: dict[str, int] = {}
    for i in range(3000):
        text = countdown_solution([1, 1, 1], 2, Random(i))
        assert text is not None
        ways[text.rsplit("\n", 1)[0]] = ways.get(text.rsplit("\n", 1)[0], 0) + 1
    expected = 3000 / len(ways)
    assert len(ways) == 4
    assert all(abs(n - expected) < 5 * expected**0.5 for n in ways.values())


# --- the committed model ----------------------------------------------------------------------


def test_auc() -> None:
    assert tiny_evaluation.auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75
    assert tiny_evaluation.auc([0.5, 0.5], [False, True]) == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a  b\n\n c",
        "Calculate ( 5 + -3 ) * 4.",
        "naïve ½ 漢字 🙂 ٣",
        "\t\r\n , ;",
        "a , b !",
    ],
)
def test_tokenizer_is_lossless(text: str) -> None:
    for part in ("lm", "prm"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(TINY / part)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_solutions_are_one_token_per_character() -> None:
    encoder = tiny_responses.Encoder(TINY / "lm")
    for item in items(200):
        assert len(encoder.ids(item.solution)) == len(item.solution)
        assert encoder.ids(item.solution).count(encoder.newline) == item.solution.count("\n")


def test_chat_template() -> None:
    encoder = tiny_responses.Encoder(TINY / "lm")
    asked = [{"role": "user", "content": "Calculate 1 + 2."}]
    answered = [*asked, {"role": "assistant", "content": "3"}]
    for generation in (False, True):
        text = encoder.tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=generation
        )
        assert text == "<|user|>Calculate 1 + 2.<|assistant|>"
    assert encoder.ids(text) == encoder.prompt("Calculate 1 + 2.")
    assert encoder.tokenizer.apply_chat_template(answered, tokenize=False) == f"{text}3<|end|>"


def test_committed_models_are_small_and_load_plainly() -> None:
    total = sum(f.stat().st_size for f in TINY.rglob("*") if f.is_file())
    assert total <= 20_000_000
    lm = transformers.AutoModelForCausalLM.from_pretrained(TINY / "lm")
    prm = transformers.AutoModelForTokenClassification.from_pretrained(TINY / "prm")
    assert prm.config.id2label == {0: "bad", 1: "good"}
    for model in (lm, prm):
        assert model.num_parameters() <= 8_000_000
        assert model.dtype == torch.float32
        assert all(p.isfinite().all() for p in model.parameters())
    assert lm.generation_config.eos_token_id == tiny_responses.Encoder(TINY / "lm").end


def test_committed_model_solves_some_and_its_verifier_ranks() -> None:
    """On fresh non-held-out problems: a broken weight file, template or tokenizer fails this."""
    torch.manual_seed(0)
    encoder = tiny_responses.Encoder(TINY / "lm")
    lm = transformers.AutoModelForCausalLM.from_pretrained(TINY / "lm")
    prm = transformers.AutoModelForTokenClassification.from_pretrained(TINY / "prm")
    rng = Random(123)
    asked = [arithmetic_item(rng) for _ in range(48)] + [countdown_item(rng) for _ in range(48)]
    samples = tiny_responses.sample(lm, encoder, [(i.task, i.truth, i.question) for i in asked])
    labels = [tiny_responses.labelled(encoder, one)[1] for one in samples]
    solved = [one.ended and all(row) for one, row in zip(samples, labels, strict=True)]
    assert 0.1 < sum(solved) / len(solved) < 0.95
    scores = tiny_evaluation.step_scores(prm, encoder, samples)
    flat = [s for row in scores for s in row]
    assert len(flat) == sum(map(len, labels))
    assert tiny_evaluation.auc(flat, [label for row in labels for label in row]) > 0.85


def test_smoke_run_of_every_stage(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    assert train_tiny.main(["--smoke", "--out", str(tmp_path), "--seed", "1"]) == 0
    for part in ("lm", "prm"):
        names = {f.name for f in (tmp_path / part).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
