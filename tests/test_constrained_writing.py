"""Constrained writing: the checker, the automaton of beginnings, the masks, and the report."""

from __future__ import annotations

import json
import math
import random
import string
from pathlib import Path

import constrained_writing as example
import pytest
import writing_report as report
from writing_automaton import Automaton
from writing_methods import METHODS, Task, spend
from writing_requests import KINDS, Request, obeys, requests

import ppl

LETTERS = string.ascii_letters + "        ..,\n\n'-!"


def walk(automaton: Automaton, rng: random.Random) -> str:
    """A text that mostly stays alive, and often says what is wanted."""
    text = ""
    for _ in range(rng.randint(1, 120)):
        options = rng.sample(LETTERS, len(LETTERS))
        living = next((c for c in options if automaton.alive(text + c)), "")
        place = automaton.read(text)
        word = automaton.wanted(place)[0] if place else ""
        if word and text.endswith(" ") and rng.random() < 0.4:
            text += word
        else:
            text += living if living and rng.random() < 0.995 else options[0]
        if automaton.request.stop.search(text):
            break
    return text


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_automaton_and_checker_say_the_same(number):
    rng, met = random.Random(number), 0
    for request in requests(3 * len(KINDS))[number :: len(KINDS)]:
        automaton = Automaton(request)
        for _ in range(100):
            text = walk(automaton, rng)
            right = obeys(request, text)
            met += right
            assert automaton.complete(text) == right, text
            if right:
                assert all(automaton.alive(text[:i]) for i in range(len(text)))
    assert met > 0


@pytest.mark.parametrize(
    ("settings", "good", "bad"),
    [
        ({"lines": ((4, 4),)}, "The sea is blue.", "The sea is very blue."),
        ({"lines": ((4, 4),), "last": "sea"}, "I love the sea.", "The sea is blue."),
        ({"lines": ((3, 3),), "initials": "tsr"}, "The sea rose.", "The river sank."),
        ({"lines": ((2, 4),), "banned_letters": "e"}, "A cold spring.", "The cold sea."),
        ({"lines": ((2, 4),), "banned_words": frozenset({"the"})}, "A sea.", "See the sea."),
        ({"lines": ((4, 6),), "ordered": ("sea", "sun")}, "No sea, no sun.", "No sun, no sea."),
        ({"lines": ((2, 2), (1, 1))}, "The sea,\nblue", "The sea\nis blue"),
        ({"lines": ((1, 3),) * 3, "mirrored": True}, "So\nthe sea\nrose.", "So\nthe\nsea rose."),
        ({"lines": ((2, 4),), "letters": 6}, "The sea.", "The seas."),
        ({"lines": ((3, 3),), "growing": True}, "A sea rises.", "The sea rises."),
    ],
)
def test_checker_by_hand(settings, good, bad):
    request = Request("by hand", "?", **settings)
    assert obeys(request, good)
    assert obeys(request, f'"{good}\n')
    assert not obeys(request, bad)
    assert Automaton(request).complete(good)
    assert not Automaton(request).complete(bad)


def test_requests_are_different_and_the_same_for_any_count():
    many = requests(100)
    assert len({r.question for r in many}) == 100
    assert {r.kind for r in many} == {r.kind for r in requests(10)}
    assert requests(7) == many[:7]
    assert requests(7, seed=1) != many[:7]


@pytest.fixture(scope="module")
def lm() -> ppl.LanguageModel:
    """Letters, spaces and a full stop, so that a text is short and often obeys."""
    weights = {"T": 0.1, "a": 0.3, "t": 0.1, " ": 0.25, ".": 0.15, "$": 0.1}
    return ppl.TableLM(weights, symbols="Tat .\n$", end="$")


def test_mask_is_the_automaton_asked_token_by_token(lm):
    automaton = Automaton(Request("by hand", "?", lines=((2, 2),), banned_letters="t"))
    assert not automaton.alive("T")
    for begun in ("", "A", "A a", "A "):
        mask = automaton.mask(begun, lm)
        for token in range(lm.codec.size):
            piece = lm.codec.piece(token).decode()
            if token in lm.codec.end_tokens:
                assert bool(mask[token]) == automaton.complete(begun)
            else:
                assert bool(mask[token]) == automaton.alive(begun + piece)


def two_words(lm: ppl.LanguageModel) -> Task:
    """Two words that grow; the question is a symbol that the table has."""
    return Task(lm, Request("two words", "T", lines=((2, 2),), growing=True))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_what_obeys_and_keeps_to_its_tokens(name, lm):
    request = Request("two words", "T", lines=((2, 2),))
    task = Task(lm, request)
    spent = spend(METHODS[name], [task, Task(lm, request)], 600, [3, 4])
    assert all(s.cost.lm_tokens <= 600 * METHODS[name].allowance for s in spent)
    right = [(t, log_p) for s in spent for t, log_p, _ in s.texts if task.obeyed(t)]
    assert right
    for text, log_prob in right[:5]:
        tokens = lm.continuation(text.tokens[text.prompt_length :])
        law = lm(task.prompt, until=task.request.stop, max_tokens=40)
        assert log_prob == pytest.approx(float(law.log_prob(tokens)))


@pytest.mark.parametrize("name", ["AWRS", "SMC, masks", "twisted SMC"])
def test_particle_methods_agree_on_the_evidence(name, lm):
    """All have one target, so one evidence, here worked out by hand.

    A letter has .5, so a word of a letters behind a "T" has .1 * .5^(a-1), its space .25, a longer
    word in all .5^a, the end .15; the sum over a is .1 * .25 * .15 * .5 / .75.
    """
    method = METHODS[name]
    tasks = [(two_words(lm),)] * 10
    found = method.searcher(60).run_many(
        method.program, tasks, guide=method.guide, seed=range(len(tasks))
    )
    mean = sum(math.exp(p.log_evidence) for p in found) / len(found)
    assert mean == pytest.approx(0.1 * 0.25 * 0.15 * 0.5 / 0.75, rel=0.2)


def lines(requests_done: int) -> list[dict[str, object]]:
    """Records made by hand: masks always obey, best-of-N for even requests."""
    return [
        {
            "request": i, "kind": "ab"[i % 2], "method": method, "limit": 100, "tokens": 100,
            "computed": 90, "verifier_tokens": 0, "seconds": 1.0, "rounds": 1,
            "texts": [["No.", False, -9.0, 3, 0.0], ["Yes.", obeyed, -4.0, 4, 0.0]],
        }
        for i in range(requests_done)
        for method, obeyed in (("best-of-N", i % 2 == 0), ("masks", True))
    ]  # fmt: skip


def test_report_counts_what_the_records_say(tmp_path, capsys):
    records = [*lines(10), {**lines(11)[-1]}]  # masks are ahead by a request
    one, best, masks = report.rows_of(records)
    assert (one.method, one.obeyed, one.tokens) == (report.ONE, 0, 30)
    assert (best.obeyed, masks.obeyed, len(masks.returned)) == (5, 10, 10)
    assert best.by_kind() == {"a": (5, 5), "b": (0, 5)}
    assert masks.nats == pytest.approx(1.0)
    assert report.paired(best, masks)[0::3] == (0.0, 5)
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + '{"torn')
    assert len(example.main(["--records", str(path), "--out", str(tmp_path)])) == 3
    printed = capsys.readouterr().out
    assert "10 of 10" in printed
    assert "5 of 10" in printed
    assert (tmp_path / "constrained-writing.png").stat().st_size > 5000


def test_the_page_says_what_the_stored_run_says():
    root = Path(__file__).parents[1]
    stored = root / "examples" / "records" / "constrained-writing.jsonl.gz"
    rows = report.rows_of(example.load(stored))
    assert {len(row.returned) for row in rows} == {100}
    page = (root / "docs" / "real-models.md").read_text()
    for line in report.markdown(rows):
        assert line in page
