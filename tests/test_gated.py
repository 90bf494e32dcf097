"""Momentum uncertainty: when a step is drawn again, what is taken, and what it costs."""

from __future__ import annotations

import math

import pyro
import pytest

import ppl
from ppl.searchers import BestOfN, Gated, MomentumUncertainty
from ppl.searchers.parse import parse, spell
from ppl.searchers.sampling.gated import uncertainty
from ppl.verifiers import verifier


def fired(gate: MomentumUncertainty, uncertainties: list[float]) -> list[int]:
    momentum, found = 0.0, []
    for t, u in enumerate(uncertainties):
        if gate.opens(u, momentum, t):
            found.append(t)
        momentum = gate.after(u, momentum)
    return found


def test_constant_uncertainty_fires_fourteen_times_as_published_and_never_corrected():
    constant = [0.5] * 60
    assert fired(MomentumUncertainty(corrected=False), constant) == list(range(1, 15))
    assert fired(MomentumUncertainty(), constant) == []
    assert fired(MomentumUncertainty(gamma=0.8, corrected=False), constant) == list(range(1, 8))


def test_what_is_unusual_fires():
    steps = [0.2, 0.2, 0.9, 0.2, 0.31, 0.35]
    assert fired(MomentumUncertainty(), steps) == [2]
    assert fired(MomentumUncertainty(alpha=0.0), steps) == [2, 4]  # only the last step counts
    assert fired(MomentumUncertainty(gamma=1e-9), [1.0, 9.0, 20.0]) == []  # the smaller, the fewer
    assert fired(MomentumUncertainty(), [1000.0, 2000.0]) == [1]  # exp would overflow


def test_the_momentum_by_hand():
    gate = MomentumUncertainty(alpha=0.5)
    m = gate.after(0.4, gate.after(0.8, 0.0))
    assert m == pytest.approx(0.5 * (0.5 * 0.8) + 0.5 * 0.4)
    usual = m / (1 - 0.5**2)
    for u in (usual - math.log(0.9) - 1e-6, usual - math.log(0.9) + 1e-6):
        assert gate.opens(u, m, 2) == (u > usual - math.log(0.9))


# Certain where it says x, torn between eight where it says y.
def nexts(prefix: str) -> dict[str, float]:
    if len(prefix) % 4 == 0:
        return dict.fromkeys("abcdefgh", 0.125)
    return {"x": 0.9, "y": 0.1}


TORN = ppl.TableLM(nexts, symbols="^abcdefghxy$", end="$", name="sometimes torn")


@verifier(aggregate="last")
def likes_early_letters(text):
    return 1.0 - (ord(text.text[-1]) - ord("a")) / 40 if text.text else 0.5


def torn(judged: bool = True) -> str:
    text = TORN.prompt("^")
    for t in range(8):
        text = text + pyro.sample(f"s_{t}", TORN(text, max_tokens=1))
        if judged:
            pyro.sample(f"ok_{t}", likes_early_letters(text), obs=True)
        else:
            ppl.twist(f"ok_{t}", 0.0)
    return text.text


def test_torn_steps_are_drawn_again_and_the_best_is_taken():
    searcher = Gated(1, 5, MomentumUncertainty(gamma=0.6))
    for seed in range(10):
        search = searcher.begin(torn, seed=seed)
        posterior = search.run()
        again = [t for t, note in enumerate(posterior.history) if note["again"]]
        # The fourth and the eighth letter, and a y where there has been none for long.
        assert {3, 7} <= set(again)
        steps = search.tree.nodes[1:]
        assert len(steps) == 8 + 4 * len(again)
        # Five draws and five judgements for a step that is drawn again, all booked.
        assert posterior.cost.lm_tokens == posterior.cost.verifier_calls == len(steps)
        at = [node for node in steps if node.depth == 4]
        assert posterior.best[3] == min(node.step for node in at)
        assert posterior.log_evidence is None


def test_without_a_verifier_the_surest_is_taken():
    search = Gated(1, 8, MomentumUncertainty(gamma=0.9)).begin(torn, False, seed=3)
    chosen = search.run().best
    assert any(note["again"] for note in search.notes)
    for note in search.notes:
        for parent in note["again"]:
            drawn = [n for n in search.tree.nodes[1:] if n.parent.identity == parent]
            best = min(map(uncertainty, drawn))
            taken = next(n for n in drawn if chosen.startswith(n.text.text))
            assert uncertainty(taken) == best
    assert uncertainty(search.tree.nodes[1]) == pytest.approx(
        -math.log(0.9 if chosen[0] == "x" else 0.1)
    )


def test_a_gate_that_never_opens_is_plain_sampling():
    closed = Gated(4, 3, MomentumUncertainty(gamma=1e-12)).run(torn, seed=2)
    plain = BestOfN(4).run(torn, seed=2)
    assert [s.value for s in closed.samples] == [s.value for s in plain.samples]
    assert closed.cost.lm_tokens == plain.cost.lm_tokens


def test_without_a_gate_every_step_is_drawn_again():
    search = Gated(2, 3, None).begin(torn, seed=1)
    posterior = search.run()
    assert posterior.cost.lm_tokens == 2 * 8 * 3
    assert all(len(note["again"]) == 2 for note in posterior.history)
    for sample in posterior.samples:
        for t in range(8):
            at = [n.text.text for n in search.tree.nodes if n.depth == t + 1]
            mine = [text for text in at if text[:t] == sample.value[:t]]
            assert sample.value[t] <= max(text[-1] for text in mine)


def test_a_step_that_has_died_is_drawn_again():
    def picky() -> str:
        text = TORN.prompt("^x")
        for t in range(3):
            text = text + pyro.sample(f"s_{t}", TORN(text, max_tokens=1))
            ppl.condition("y" not in text.text, f"no y at {t}")
        return text.text

    found = Gated(40, 3, MomentumUncertainty(gamma=1e-12)).run(picky, seed=0)
    dead = sum(not s.finished for s in found.samples)
    assert dead <= 2  # one in a thousand a step; of plain samples it is one in ten
    with pytest.raises(ppl.PPLError, match="never"):
        Gated(2).run(lambda: ppl.condition(False, "never"))


def test_settings():
    searcher = Gated(2, 4, MomentumUncertainty(0.8, 0.7, corrected=False))
    assert parse(spell(searcher)) == parse(repr(searcher)) == searcher
    for make, told in (
        (lambda: Gated(0), "n=0"),
        (lambda: Gated(1, 1), "expansions=1"),
        (lambda: Gated(1, gate=0.9), "gate=0.9"),
        (lambda: MomentumUncertainty(alpha=1.0), "alpha=1.0"),
        (lambda: MomentumUncertainty(gamma=0.0), "gamma=0.0"),
        (lambda: MomentumUncertainty(gamma=1.1), "gamma=1.1"),
        (lambda: MomentumUncertainty(corrected=1), "corrected=1"),
    ):
        with pytest.raises(ValueError, match=told):
            make()
