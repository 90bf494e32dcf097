"""What a cell of a notebook shows of its value."""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import toy

import ppl
from ppl.calibration import Coverage, Ranks
from ppl.posterior.pictures import draw_genealogy
from ppl.programs.archon.search import Found
from ppl.programs.self_steering import SelfSteered
from ppl.searchers import SMC, BestOfN
from ppl.study.forecast import Forecast
from ppl.study.runner import Summary
from ppl.verifiers import FunctionRanker, Reliability, verifier


class Printer:
    """Takes down what IPython's would write."""

    said = ""

    def text(self, said):
        self.said += said


@pytest.mark.parametrize(
    "kind", [Ranks, Coverage, Forecast, Summary, Reliability, SelfSteered, Found]
)
def test_what_is_for_people_is_shown_by_a_cell_too(kind):
    assert "_repr_pretty_" in vars(kind)  # IPython looks there before it looks for a `__repr__`
    assert kind.__str__ is not object.__str__


def test_a_cell_shows_what_print_does():
    done, printer = Summary(Path("run"), 4, 1, 0, 99, 0.5), Printer()
    done._repr_pretty_(printer, False)
    assert printer.said == str(done)
    assert printer.said.startswith("run: 4 cells, 3 of them new in 0.5 s, ")


def one(answer):
    return BestOfN(1).run(lambda: answer, seed=0)


def distinct():
    return int(pyro.sample("n", dist.Categorical(torch.ones(1000))))


def test_formulas_and_markup_of_answers_stay_what_they_are():
    """MathJax of notebooks looks for dollars everywhere but in code."""
    shown = one("costs $5 and $x_1$ <b>more</b>")._repr_html_()
    before, _, rest = shown.partition("$5")
    assert before.endswith("<code style='white-space:pre-wrap'>&#x27;costs ")
    assert "<" not in rest[: rest.index("</code>")]
    assert "&lt;b&gt;" in rest


def test_long_and_many_answers_are_cut_with_a_word():
    long, brief = one("x" * 5000), one("x" * 60)
    for said, most in ((str(long), 80), (long._repr_html_(), 400)):
        assert f"'{'x' * (most - 4)}..." in said.replace("&#x27;", "'")
    for said in (str(brief), brief._repr_html_()):
        assert "..." not in said
    many = BestOfN(40).run(distinct, seed=0)
    number = len(many.marginal())
    assert number > 11
    for said in (str(many), many._repr_html_()):
        assert f"... and {number - 10} more answers" in said


def test_pictures_need_no_file(tmp_path):
    posterior = SMC(8, 1.0).run(toy, "prod", seed=0)
    picture = draw_genealogy(posterior)
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert repr(picture).startswith("<Picture of ")
    assert not list(tmp_path.iterdir())
    again = draw_genealogy(posterior, tmp_path / "g.png")
    assert [p.name for p in tmp_path.iterdir()] == ["g.png"]
    assert again.figure is not picture.figure


def test_searches_and_verifiers_say_what_they_are():
    search = SMC(4).begin(toy, "prod", seed=0)
    assert repr(search) == f"<Search by {SMC(4)}: not over after 0 rounds>"
    search.step()
    assert repr(search).endswith(": not over after 1 round>")
    search.run()
    assert repr(search).endswith(": over after 3 rounds>")

    @verifier
    def short(text):
        return len(text.text) < 3

    assert repr(short) == "FunctionVerifier('short')"
    assert repr(FunctionRanker(len, name="long")) == "FunctionRanker('long')"
    assert repr(ppl.verifiers.PRM.load("tiny")) == "PRM('tiny')"
