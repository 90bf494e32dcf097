"""What a search returns: decision rules, saving, pictures."""

from __future__ import annotations

import copy
import math
import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from accuracy_vs_budget import solve
from programs import TOY, contents, toy

import ppl
from ppl.language.foreign import OF_POSTERIORS
from ppl.posterior.votes import ranked
from ppl.searchers import MCTS, SMC, BestOfN


def test_decision_rules_agree_with_the_exact_posterior():
    posterior = SMC(200, 0.9).run(toy, "prod", seed=0)
    exact = ppl.enumerate_program(toy, "prod").marginal()
    assert posterior.vote() == max(exact, key=exact.get)
    assert (posterior.best, posterior.best_sample.score) == (1, pytest.approx(0.81))  # a, then $
    assert posterior.expectation(float) == pytest.approx(
        sum(k * p for k, p in exact.items()), abs=0.4
    )
    draws = [posterior.sample(seed) for seed in range(200)]
    assert abs(draws.count(1) / 200 - posterior.marginal()[1]) < 0.15
    assert sum(posterior.marginal().values()) == pytest.approx(1)
    joint = {s.value: s.log_joint for s in posterior.samples}
    assert joint[posterior.map] == pytest.approx(max(s.log_joint for s in posterior.samples))
    assert 1 <= posterior.ess <= 200
    assert "log evidence" in str(posterior)
    assert "<table>" in posterior._repr_html_()


@pytest.mark.parametrize(
    ("weights", "expected"), [((0.9, 0.2, 0.2, 0.2), "A"), ((0.5, 0.2, 0.2, 0.2), "B")]
)
def test_weighted_vote(weights, expected):
    samples = [
        ppl.Sample(value, math.log(w), math.log(w), True, i, None, ())
        for i, (value, w) in enumerate(zip("ABBB", weights, strict=True))
    ]
    posterior = ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())
    assert posterior.vote() == expected
    assert posterior.vote(weights="flat") == "B"
    assert posterior.vote(str.lower) == expected
    assert posterior.best == "A"


def test_no_answer_never_wins():
    samples = [ppl.Sample(v, 0.0, 0.0, True, i, None, ()) for i, v in enumerate([None, None, "x"])]
    posterior = ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())
    assert posterior.vote() == "x"
    nothing = ppl.Posterior(samples[:2], log_evidence=None, cost=ppl.Cost())
    assert nothing.vote() is None
    assert posterior.vote(len) == "x"  # nobody is asked for the class of no answer
    words = [ppl.Sample(v, 0.0, 0.0, True, i, None, ()) for i, v in enumerate(["?", "?", "x"])]
    posterior = ppl.Posterior(words, log_evidence=None, cost=ppl.Cost())
    assert posterior.vote(lambda v: None if v == "?" else v) == "x"


@pytest.mark.parametrize("f", [str, lambda v: None, lambda v: [v]])
def test_an_average_of_what_is_no_number_is_refused(f):
    samples = [ppl.Sample(7, 0.0, 0.0, True, 0, None, ())]
    posterior = ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())
    said = r"f: it gives .* for 7, no number.*float\(answer\)"
    with pytest.raises(ppl.errors.ArgumentError, match=said):
        posterior.expectation(f)
    assert "1 answer of 1 particle," in str(posterior)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("particles", r"posterior\.samples"),
        ("weights", r"posterior\.probabilities"),
        ("answers", r"posterior\.marginal\(\)"),
        ("logZ", r"posterior\.log_evidence"),
    ],
)
def test_what_others_have_is_answered_with_ours(theirs, ours):
    posterior = ppl.Posterior(
        [ppl.Sample(7, 0.0, 0.0, True, 0, None, ())], cost=ppl.Cost(), log_evidence=None
    )
    with pytest.raises(
        AttributeError, match=rf"'Posterior' object has no attribute '{theirs}': {ours}"
    ):
        getattr(posterior, theirs)
    assert not hasattr(posterior, "bogus")
    assert copy.copy(posterior).vote() == 7
    for name, said in OF_POSTERIORS.items():  # none of ours is among them, and ours are there
        assert not hasattr(posterior, name)
        for word in re.findall(r"(?:posterior|, )\.(\w+)", said):
            assert hasattr(posterior, word), word


def test_a_class_is_represented_by_its_first_result():
    samples = [ppl.Sample(v, 0.0, 0.0, True, i, None, ()) for i, v in enumerate(["b", "A", "a"])]
    posterior = ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())
    assert posterior.vote(str.lower) == "A"


def test_what_has_not_finished_is_no_part_of_an_average():
    samples = [
        ppl.Sample(v, 0.0, 0.0, v is not None, i, None, ()) for i, v in enumerate([1, 3, None])
    ]
    posterior = ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())
    assert posterior.expectation(float) == pytest.approx(2)
    assert posterior.expectation(lambda v: torch.tensor(v == 3)) == pytest.approx(0.5)
    assert posterior.marginal() == pytest.approx({1: 0.5, 3: 0.5})
    assert {posterior.sample(seed) for seed in range(30)} == {1, 3}


def test_the_effective_size_in_numbers():
    samples = [ppl.Sample(i, math.log(w), 0.0, True, i, None, ()) for i, w in enumerate([2, 1, 1])]
    posterior = ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())
    assert posterior.ess == pytest.approx(1 / (0.5**2 + 2 * 0.25**2))


def test_the_likeliest_comes_first_and_the_unfinished_last():
    samples = [
        ppl.Sample(value, math.log(w), math.log(score), value is not None, i, None, ())
        for i, (value, w, score) in enumerate(
            [("a", 1, 0.9), (None, 9, 0.9), ("b", 3, 0.2), ("a", 1, 0.4)]
        )
    ]
    posterior = ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())
    assert list(posterior.marginal()) == ["b", "a"]
    rows = [line.split() for line in str(posterior).splitlines()[1:4]]
    assert [row[3] for row in rows] == ["'b'", "'a'", "(unfinished)"]
    assert [row[2] for row in rows] == ["0.2000", "0.9000", "0.9000"]


def test_the_dead_have_no_probability():
    samples = [ppl.Sample(i, -math.inf, -math.inf, True, i, None, ()) for i in range(3)]
    posterior = ppl.Posterior(samples, log_evidence=-math.inf, cost=ppl.Cost())
    assert posterior.probabilities.tolist() == [0, 0, 0]
    assert posterior.ess == 0
    assert posterior.best is None


def test_what_has_finished_is_not_provisional():
    assert not any(s.provisional for s in BestOfN(3).run(toy, "prod", seed=0).samples)


def test_copies_share_a_node_of_the_genealogy():
    search = SMC(12, 1.0).begin(toy, "prod", seed=0)
    posterior = search.run()
    assert len({s.node for s in posterior.samples}) < 12
    shares = [a.get("probability", 0.0) for _, a in posterior.genealogy.nodes(data=True)]
    assert sum(shares) == pytest.approx(1)


def test_draws_follow_the_weights():
    samples = [ppl.Sample(i, math.log(w), 0.0, True, i, None, ()) for i, w in enumerate([1, 9])]
    posterior = ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())
    assert sum(posterior.sample(seed) for seed in range(400)) == pytest.approx(360, abs=25)


def test_a_loaded_posterior_equals_the_saved_one(tmp_path, tiny):
    lm, prm = tiny
    posterior = SMC(4).run(solve, "Calculate 2 + 2 - 3.", lm, prm, seed=0)
    posterior.save(tmp_path / "p")
    again = ppl.Posterior.load(tmp_path / "p")
    assert contents(again) == contents(posterior)
    assert str(again) == str(posterior)
    assert pickle.dumps(again.genealogy.nodes(data=True))
    assert [s.log_joint for s in again.samples] == [s.log_joint for s in posterior.samples]
    assert list(tmp_path.iterdir()) == [tmp_path / "p"]


def plain() -> float:
    """Choices of no language model, whose densities nobody has asked for yet."""
    x = pyro.sample("x", dist.Bernoulli(0.2))
    pyro.factor("f", torch.tensor(-0.5))
    return float(x)


def test_densities_of_plain_choices_are_saved_too(tmp_path):
    posterior = BestOfN(6).run(plain, seed=0)
    sent = pickle.loads(pickle.dumps([s.records for s in posterior.samples]))
    posterior.save(tmp_path / "p")
    for sample, records in zip(ppl.Posterior.load(tmp_path / "p").samples, sent, strict=True):
        assert math.fsum(r.joint() for r in records) == pytest.approx(sample.log_joint)
        exact = math.log(0.2 if sample.value else 0.8) - 0.5
        assert sample.log_joint == pytest.approx(exact, abs=1e-6)


def test_genealogies_are_drawn(tmp_path):
    from ppl.posterior.pictures import draw_genealogy

    posterior = SMC(8, 1.0).run(toy, "prod", seed=0)
    draw_genealogy(posterior, tmp_path / "g.png")
    assert (tmp_path / "g.png").stat().st_size > 5000
    # In an SVG words are outlines, each behind a comment that has them.
    draw_genealogy(posterior, tmp_path / "g.svg")
    words = (tmp_path / "g.svg").read_text()
    for answer, share in posterior.marginal().items():
        if share >= 0.005 and sum(s.value == answer for s in posterior.samples) == 1:
            assert f"<!-- {share:.0%} -->" in words


@pytest.mark.parametrize("searcher", [SMC(6, 1.0), MCTS(6), BestOfN(3)], ids=repr)
@pytest.mark.parametrize("said", ["{}", "{'answer': '{}', 'notes': []}"])
def test_answers_end_before_their_bars(searcher, said, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from ppl.posterior.pictures import draw_genealogy

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **how: figures.append(self))

    def program() -> str:
        text = TOY.prompt("^")
        for t in range(5):
            text = text + pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed={1, 2}))
            pyro.factor(f"f_{t}", torch.tensor(-0.5 * text.text.count("b")))
        return said.replace("{}", text.text)

    draw_genealogy(searcher.run(program, seed=0), tmp_path / "g.png")
    figures[0].draw_without_rendering()
    axes = figures[0].axes[0]
    bars = {line.get_ydata()[0]: line for line in axes.lines if line.get_solid_capstyle() == "butt"}
    answers = [t for t in axes.texts if t.xyann == (11, 0)]
    assert answers
    for answer in answers:
        bar = axes.transData.transform((bars[answer.xy[1]].get_xdata()[0], 0.0))[0]
        assert answer.get_window_extent().x1 <= bar + 1


def test_printing_shows_merged_answers_with_probabilities_first():
    posterior = BestOfN(40).run(toy, "prod", seed=0)
    lines = str(posterior).splitlines()
    assert lines[0].split() == ["probability", "particles", "score", "answer"]
    marginal = posterior.marginal()
    for line, (value, probability) in zip(lines[1:], marginal.items(), strict=False):
        if not line[:11].strip().startswith("0"):
            break
        shown_probability, number, _, shown = line.split()
        assert float(shown_probability) == pytest.approx(probability, abs=1e-4)
        assert int(number) == sum(s.value == value for s in posterior.samples)
        assert shown == repr(value)
    assert f"BestOfN(n=40): {len(marginal)} answers of 40 particles" in lines[len(marginal) + 1]
    assert "log evidence" in lines[len(marginal) + 1]
    table = posterior._repr_html_()
    assert table.count("<tr>") == len(marginal) + 1
    assert table.startswith("<table>")
    stopped = BestOfN(4).run(toy, "prod", seed=0, budget=ppl.Budget(tokens=2))
    assert "(unfinished)" in str(stopped) or all(s.finished for s in stopped.samples)


def test_equal_weights_that_rounding_parts_stand_as_they_were_seen():
    alike = [0.1 * 3, 0.3, 0.2, 0.3 - 1e-16, 0.1]
    assert ranked(alike) == [0, 1, 3, 2, 4]
    assert ranked([0.3, 0.1 * 3]) == [0, 1]  # the second is the larger by one bit
    assert ranked([0.0, 0.0, 1.0]) == [2, 0, 1]
    assert ranked([]) == []
