"""Power targets p(x)^alpha: published numbers, and the slips of released code beside what is right.

The toy without its verifier: fifteen texts, the symbols are steps. `matrix` is the chain of Karan
and Du's Algorithm by hand, with the slips as variants.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import numpy as np
import pyro
import pytest
from programs import TOY, VERIFIERS, toy, unjudged
from scipy import stats

import ppl
from ppl.searchers import SMC, ParticleGibbs, PowerMH, PowerSMC, PowerTempering, Search
from ppl.searchers.likelihood import log_prior
from ppl.searchers.particles.metropolis import redrawn

SYMBOLS = {"a": 0.5, "b": 0.3, "$": 0.2}
LAW_2 = {
    -3: 0.007475, -2: 0.003322, -1: 0.099202, 0: 0.428595, 1: 0.275562, 2: 0.025634, 3: 0.160210,
}  # fmt: skip


def plain() -> str:
    """The toy, nothing observed; a text is its symbols, `$` among them."""
    text = unjudged()
    return text + "$" * (len(text) < 3)


def lead(text: str) -> int:
    return text.count("a") - text.count("b")


def distance(p: dict, q: dict) -> float:
    return 0.5 * sum(abs(p.get(k, 0.0) - q.get(k, 0.0)) for k in {*p, *q})


# -- the target ----------------------------------------------------------------------------------


def test_masses_and_answers_are_those_published():
    two, four = (ppl.enumerate_program(ppl.power(plain, alpha)) for alpha in (2.0, 4.0))
    assert math.exp(two.log_evidence) == pytest.approx(0.097528, abs=1e-9)
    assert math.exp(four.log_evidence) == pytest.approx(0.002072831, abs=1e-9)
    assert two.marginal(lead) == pytest.approx(LAW_2, abs=1e-6)
    judged = ppl.enumerate_program(ppl.power(toy, 2.0), "prod")
    assert math.exp(judged.log_evidence) == pytest.approx(0.054292056, abs=1e-9)
    assert judged.marginal()[0] == pytest.approx(0.449215, abs=1e-6)


@pytest.mark.parametrize(("alpha", "off"), [(2.0, 0.350), (4.0, 0.783)])
def test_a_low_temperature_is_another_law(alpha, off):
    """Tokens sharpened one by one, over whole texts."""

    def tokenwise() -> str:
        text = TOY.prompt("^")
        for t in range(3):
            step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1, temperature=1 / alpha))
            text = text + step
            if step.finished:
                break
        return text.text + "$" * text.finished

    cold = ppl.enumerate_program(tokenwise).marginal()
    exact = ppl.enumerate_program(ppl.power(plain, alpha)).marginal()
    assert distance(cold, exact) == pytest.approx(off, abs=5e-4)


def test_any_searcher_takes_a_program_to_a_power():
    exact = ppl.enumerate_program(ppl.power(plain, 2.0)).marginal()
    estimates = [SMC(50, 1.0).run(ppl.power(plain, 2.0), seed=s).log_evidence for s in range(40)]
    z = np.exp(estimates)
    assert abs(z.mean() - 0.097528) < 4 * z.std(ddof=1) / math.sqrt(len(z))
    chain = ParticleGibbs(5, 200).run(ppl.power(plain, 2.0), seed=0)
    assert distance(chain.marginal(), exact) < 0.08


# -- SMC -----------------------------------------------------------------------------------------


def test_weights_do_not_depend_on_the_token_that_was_drawn():
    """log sum_v p(v)^alpha, before any resampling; a program drawn from p would have three."""
    search = PowerSMC(40, 0.0, alpha=2.0).begin(plain, seed=0)
    search.step()
    first = [node for node in search.tree.nodes if node.depth == 1]
    assert {node.step for node in first} == {"a", "b", ""}
    assert [n.log_weight for n in first] == pytest.approx([math.log(0.25 + 0.09 + 0.04)] * 40)
    shares = Counter(node.step for node in first)
    assert shares["a"] > shares["b"] + shares[""]  # .658: proposed from p^2, normalised


@pytest.mark.parametrize(
    "searcher",
    [
        PowerSMC(4, 1.0),
        PowerSMC(4, 1.0, ramp=2),
        PowerSMC(4, 0.9, "multinomial", ramp=9),  # texts end before the ramp does
        PowerSMC(3, 1.0, "chopthin", ramp=3),
    ],
    ids=repr,
)
def test_the_evidence_is_the_mass_of_the_target(searcher):
    runs = searcher.run_many(plain, [()] * 200, seed=range(200))
    z = np.exp([run.log_evidence for run in runs])
    assert abs(z.mean() - 0.097528) < 4 * z.std(ddof=1) / math.sqrt(200) + 1e-12


@pytest.mark.parametrize("ramp", [0, 2, 9])
def test_many_particles_have_the_published_law(ramp):
    posterior = PowerSMC(800, ramp=ramp).run(plain, seed=1)
    assert distance(posterior.marginal(lead), LAW_2) < 0.06
    liked = PowerSMC(800, ramp=ramp).run(toy, "prod", seed=1)
    assert liked.marginal()[0] == pytest.approx(0.449215, abs=0.06)


def test_a_finished_text_follows_the_ramp():
    """Without what the rising exponent takes from `$`, it would weigh as if alpha were 4/3."""
    search = PowerSMC(200, 0.0, ramp=3).begin(plain, seed=3)
    search.step()
    ended = [n for n in search.tree.nodes if n.finished]
    posterior = search.run()
    weights = {s.node: s.log_weight for s in posterior.samples}
    # Proposed with p^(4/3), normalised, and weighed with p^2 in the end.
    z = sum(p ** (4 / 3) for p in SYMBOLS.values())
    for node in ended:
        assert weights[node.identity] == pytest.approx(math.log(0.2 ** (2 - 4 / 3) * z))


def test_what_top_p_keeps_is_not_cut_further():
    """Of .5, .3, .2 top_p = .9 keeps all three; sharpened first, it would drop the last."""

    def cut() -> str:
        text = TOY.prompt("^")
        step = pyro.sample("s", TOY(text, max_tokens=1, top_p=0.9))
        ppl.twist("here", 0.0)
        return step.text

    law = PowerSMC(800).run(cut, seed=0).marginal()
    assert law[""] == pytest.approx(0.04 / 0.38, abs=0.04)
    tree = ppl.Tree(cut, seed=0)
    drawn = Counter(child.step for child in tree.expand([tree.root], 300, power=2.0))
    assert drawn[""] > 30


def test_other_warps_are_sharpened_as_they_stand():
    for warp in ({"temperature": 1.7}, {"top_k": 2}, {"min_p": 0.5}, {"temperature": 0.0}):

        def program(warp=warp) -> str:
            text = TOY.prompt("^")
            step = pyro.sample("s", TOY(text, max_tokens=1, **warp))
            ppl.twist("here", 0.0)
            return step.text

        exact = ppl.enumerate_program(ppl.power(program, 2.0))
        run = PowerSMC(400).run(program, seed=2)
        assert distance(run.marginal(), exact.marginal()) < 0.08
        # One token: all weights are the same number.
        assert run.log_evidence == pytest.approx(exact.log_evidence)


def test_a_search_that_is_loaded_goes_on_with_the_target(tmp_path):
    whole = PowerSMC(5, ramp=2).run(plain, seed=4)
    search = PowerSMC(5, ramp=2).begin(plain, seed=4)
    search.step()
    search.save(tmp_path / "search")
    for program in (None, plain):
        again = Search.load(tmp_path / "search", program).run()
        assert again.log_evidence == whole.log_evidence


# -- Metropolis ----------------------------------------------------------------------------------


@cache
def texts() -> tuple[str, ...]:
    return tuple(ppl.enumerate_program(plain).marginal())


def matrix(alpha: float, variant: str = "fixed") -> dict[str, Counter[str]]:
    """Where one move leads from each text, by hand.

    `cut` regenerates to the present length only; `unpaid` draws the step from the text's own
    length and leaves len / len' out; `paid` has it.
    """
    sharp = {s: p**alpha for s, p in SYMBOLS.items()}
    q = {s: p / sum(sharp.values()) for s, p in sharp.items()}

    def grown(text: str, most: int) -> dict[str, float]:
        if text.endswith("$") or len(text) == most:
            return {text: 1.0}
        return {y: q[s] * p for s in q for y, p in grown(text + s, most).items()}

    def log_weight(text: str) -> float:  # of p^alpha over q
        return sum(alpha * math.log(SYMBOLS[s]) - math.log(q[s]) for s in text)

    moves = {}
    for x in texts():
        moves[x] = Counter[str]()
        steps = 3 if variant == "fixed" else len(x)
        for r in range(1, steps + 1):
            for y, p in grown(x[: r - 1], len(x) if variant == "cut" else 3).items():
                ratio = log_weight(y) - log_weight(x)
                ratio += math.log(len(x) / len(y)) if variant == "paid" else 0.0
                moves[x][y] += p / steps * min(1.0, math.exp(ratio))
                moves[x][x] += p / steps * (1 - min(1.0, math.exp(ratio)))
    return moves


def moved(law: dict[str, float], moves: dict[str, Counter[str]]) -> Counter[str]:
    after = Counter[str]()
    for x, p in law.items():
        for y, q in moves[x].items():
            after[y] += p * q
    return after


@pytest.mark.parametrize(
    ("variant", "off"), [("fixed", 0.0), ("paid", 0.0), ("cut", 0.485), ("unpaid", 0.047)]
)
def test_slips_of_released_code_move_the_law(variant, off):
    exact = ppl.enumerate_program(ppl.power(plain, 2.0)).marginal()
    found = distance(moved(exact, matrix(2.0, variant)), exact)
    assert found == pytest.approx(off, abs=5e-4)


def test_a_move_is_the_algorithm_s():
    """One move of 3,000 chains from one text each, against the matrix; no slip fits."""
    searcher = PowerMH(1, 3, alpha=2.0)
    tree = ppl.Tree(ppl.power(plain, 2.0), seed=5)
    leaves = {n.result: n for n in leaves_of(tree, 2.0, 400)}
    for number, start in enumerate(("a$", "aab", "b$")):
        after, _ = searcher.move(tree, [leaves[start]] * 1500, number + 1)
        seen = Counter(node.result for node in after)
        p_values = {v: fit(seen, matrix(2.0, v)[start]) for v in ("fixed", "cut", "unpaid")}
        assert p_values["fixed"] > 1e-3
        assert max(p_values["cut"], p_values["unpaid"]) < 1e-6 or start == "aab"


def leaves_of(tree, power, count):
    """Whole texts, proposed as a chain with this proposal does."""
    return redrawn(tree, [tree.root] * count, power=power)


def fit(seen: Counter[str], law: dict[str, float]) -> float:
    if set(seen) - {y for y, p in law.items() if p > 0}:
        return 0.0
    values = [y for y, p in law.items() if p > 1e-12]
    total = seen.total()
    rare = [y for y in values if law[y] * total < 5]
    expected = [law[y] * total for y in values if y not in rare]
    observed = [seen[y] for y in values if y not in rare]
    if rare:
        expected.append(sum(law[y] * total for y in rare))
        observed.append(sum(seen[y] for y in rare))
    return float(stats.chisquare(observed, np.array(expected) * total / sum(expected)).pvalue)


def test_two_tokens_from_the_wrong_corner():
    """A sure second token after one first token, a coin after the other: p^2 is 2 : 1. From the
    coin's side the first token is off by (2/3) (5/8)^N after N moves, exactly."""
    lm = ppl.TableLM(
        lambda prefix: {"^": {"r": 0.5, "w": 0.5}, "^r": {"x": 1.0}}.get(
            prefix, {"x": 0.5, "y": 0.5}
        ),
        symbols="^rwxy$",
        end="$",
    )

    def two() -> str:
        text = lm.prompt("^")
        for t in range(2):
            text = text + pyro.sample(f"s_{t}", lm(text, max_tokens=1))
            ppl.twist(f"t_{t}", 0.0)
        return text.text

    searcher = PowerMH(3, 2, alpha=2.0)
    tree = ppl.Tree(ppl.power(two, 2.0), seed=0)
    leaves = leaves_of(tree, 2.0, 60)
    wrong = [leaf for leaf in leaves if leaf.result[0] == "w"]
    nodes = [wrong[i % len(wrong)] for i in range(2500)]
    for n in range(1, 4):
        nodes, _ = searcher.move(tree, nodes, n)
        off = sum(node.result[0] == "w" for node in nodes) / 2500 - 1 / 3
        exact = 2 / 3 * (5 / 8) ** n
        assert off == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 2500))


@pytest.mark.parametrize(
    ("searcher", "bound"),
    [
        (PowerMH(80, 3, alpha=2.0, chains=15), 0.15),
        (PowerMH(80, 5, alpha=2.0, chains=15, proposal=1.0), 0.15),
        (PowerTempering(300, 3, alphas=(1.0, 1.5, 2.0)), 0.15),
    ],
    ids=repr,
)
def test_chains_have_the_published_law(searcher, bound):
    posterior = searcher.run(plain, seed=2)
    assert distance(posterior.marginal(lead), LAW_2) < bound
    assert posterior.log_evidence is None


def test_moves_of_tempered_chains_leave_each_its_own_target():
    """From exact draws, with the verifier: every rung's law is that of its own exponent."""
    searcher = PowerTempering(1, 3, alphas=(0.7, 2.0), proposal=1.4)
    tree = ppl.Tree(ppl.power(judged, 2.0), seed=4)
    by_text = {node.result: node for node in leaves_of(tree, 1.4, 300)}
    laws = [ppl.enumerate_program(ppl.power(judged, a)).marginal() for a in searcher.alphas]
    rng = np.random.default_rng(1)
    after = []
    for number in range(700):
        pair = [by_text[str(rng.choice(list(law), p=list(law.values())))] for law in laws]
        after.append(searcher.move(tree, pair, number + 1)[0])
    for k, law in enumerate(laws):
        assert fit(Counter(nodes[k].result for nodes in after), law) > 1e-3


def judged() -> str:
    text = TOY.prompt("^")
    for t in range(3):
        step = pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        text = text + step
        pyro.sample(f"ok_{t}", VERIFIERS["prod"](text), obs=True)
        if step.finished:
            break
    return text.text + "$" * text.finished


def test_runs_beyond_the_horizon_do_not_count():
    posterior = PowerMH(60, 2, alpha=2.0, chains=10).run(plain, seed=0)
    alive = [s.value for s in posterior.samples if s.log_weight > -math.inf]
    assert set(alive) == {"$", "a$", "b$"}


def test_a_horizon_that_no_run_meets_is_warned_of():
    ab = ppl.TableLM({"a": 0.5, "b": 0.5}, symbols="^ab$")

    def three() -> str:
        text = ab.prompt("^")
        for t in range(3):
            text = text + pyro.sample(f"s_{t}", ab(text, max_tokens=1))
            ppl.twist(f"here_{t}", 0.0)
        return text.text

    for short in (PowerMH(4, 2), PowerTempering(4, 2)):
        with pytest.warns(UserWarning, match="no run of the program ended within horizon=2"):
            short.run(three, seed=0)
    PowerMH(4, 3).run(three, seed=0)  # warnings are errors here


def test_an_exchange_needs_the_cached_probabilities_only():
    """Both laws stay, and the rate is the enumerated one."""
    searcher = PowerTempering(1, 3, alphas=(1.0, 2.0))
    flat, sharp = (ppl.enumerate_program(ppl.power(plain, a)).marginal() for a in (1.0, 2.0))
    tree = ppl.Tree(ppl.power(plain, 2.0), seed=9)
    leaves = tree.rollout(tree.expand([tree.root], 600))
    by_text = {leaf.result: leaf for leaf in leaves}
    log_p = {x: log_prior(node) for x, node in by_text.items()}
    expected = sum(
        p * q * min(1.0, math.exp(log_p[x] - log_p[y]))
        for x, p in flat.items()
        for y, q in sharp.items()
    )
    rng = np.random.default_rng(0)
    pairs = [
        [by_text[str(rng.choice(list(law), p=list(law.values())))] for law in (flat, sharp)]
        for _ in range(2000)
    ]
    calls = tree.cost.calls
    after = [searcher.exchange(tree, pair, 2 * i + 1) for i, pair in enumerate(pairs)]
    assert tree.cost.calls == calls
    rate = np.mean([bool(note["exchanged"]) for _, note in after])
    assert rate == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 2000))
    for k, law in enumerate((flat, sharp)):
        assert fit(Counter(nodes[k].result for nodes, _ in after), law) > 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PowerSMC(4, alpha=0.0),
        lambda: PowerMH(4, 0),
        lambda: PowerTempering(4, 3, alphas=(2.0, 1.0)),
        lambda: PowerTempering(4, 3, alphas=()),
        lambda: ppl.power(plain, -1.0),
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=r"alpha|horizon"):
        wrong()
