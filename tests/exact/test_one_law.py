"""One law, whoever states it: enumeration, the runtime, `log_joint`, `map`, `Sample.trace` and
Pyro's own trace agree on generated programs, with scales, masks, twists, guides and all aggregates.

A program is a tree of statements drawn from a seed. It returns its choices, which tell its runs
apart, so that every run has one enumerated density to be compared with.
"""

from __future__ import annotations

import contextlib
import functools
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import ppl
from ppl.language.randomness import generator
from ppl.runtime.verdict import AGGREGATES
from ppl.searchers import SMC, BestOfN, SMCSteering
from ppl.verifiers import FunctionVerifier

# Programs of all kinds, also such as draw verdicts and observe none.
pytestmark = pytest.mark.filterwarnings("ignore:verifier .* was drawn")


def after(prefix: str) -> dict[str, float]:
    """What comes next depends on what was there last."""
    if prefix.endswith("a"):
        return {"a": 0.2, "b": 0.5, "$": 0.3}
    return {"a": 0.6, "b": 0.3, "$": 0.1} if prefix.endswith("b") else {"a": 0.5, "b": 0.5}


LM = ppl.TableLM(after, symbols="^ab$", end="$", name="last symbol")


def likes(text: ppl.Text) -> float:
    """Zero for some texts."""
    return (0.0 if text.text.endswith("bb") else 0.3) + 0.6 * text.text.endswith("a")


JUDGES = {a: FunctionVerifier(likes, name=f"likes_{a}", aggregate=a) for a in AGGREGATES}
KINDS = ("bern", "cat", "lm", "drawn", "seen", "said", "factor", "judge", "twist", "rule", "if")
SHARES = (0.16, 0.1, 0.2, 0.1, 0.07, 0.06, 0.08, 0.11, 0.04, 0.02, 0.06)
SCALES = (0.5, 2.0, torch.tensor(1.5))
MASKS = (False, torch.tensor(False), True, torch.tensor(True))


def statements(rng: np.random.Generator, count: int, prefix: str = "") -> list[dict]:
    made = []
    for i in range(count):
        kind = KINDS[rng.choice(len(KINDS), p=SHARES)]
        if prefix and kind == "if":
            kind = "bern"
        made.append(
            {
                "kind": kind,
                "name": f"{prefix}{kind}_{i}",
                "p": rng.uniform(0.1, 0.9, size=2),
                "scale": SCALES[rng.integers(3)] if rng.random() < 0.25 else None,
                "mask": MASKS[rng.integers(4)] if rng.random() < 0.2 else None,
                "aggregate": AGGREGATES[rng.integers(len(AGGREGATES))],
                "flag": bool(rng.random() < 0.7),
                "tokens": int(rng.integers(1, 3)),
                "then": statements(rng, 2, f"{prefix}{i}t_") if kind == "if" else [],
                "else": statements(rng, 1, f"{prefix}{i}e_") if kind == "if" else [],
            }
        )
    return made


def alternating(new: tuple[int, ...]) -> set[int]:
    """A rule that depends on what was drawn: no symbol twice."""
    return {1, 2, 3} - set(new[-1:])


def run(block: list[dict], *, guiding: bool = False) -> tuple[object, ...]:
    """The program; with `guiding` a guide for it, which proposes by other laws."""
    choices: list[object] = []
    _run(block, LM.prompt("^"), choices, guiding)
    return tuple(choices)


def _run(block, text, choices, guiding):
    for s in block:
        with contextlib.ExitStack() as stack:
            if s["scale"] is not None and not guiding:
                stack.enter_context(poutine.scale(scale=s["scale"]))
            if s["mask"] is not None and not guiding:
                stack.enter_context(poutine.mask(mask=s["mask"]))
            text = _state(s, text, choices, guiding)
        if s["kind"] == "if":
            text = _run(
                s["then"] if sum(map(_odd, choices)) % 2 else s["else"], text, choices, guiding
            )
    return text


def _odd(choice) -> int:
    return len(choice.tokens) if isinstance(choice, ppl.Continuation) else int(choice)


def _state(s, text, choices, guiding):
    name, kind, p = s["name"], s["kind"], float(s["p"][len(choices) % 2])
    if kind == "bern":
        choices.append(int(pyro.sample(name, dist.Bernoulli(0.5 if guiding else p))))
    elif kind == "cat":
        weights = torch.tensor([1.0, 1.0, 0.0] if guiding else [p, 1.0, 0.0])
        choices.append(int(pyro.sample(name, dist.Categorical(weights))))
    elif kind == "lm":
        if not text.finished:
            asked = text
            if guiding:  # the same model after the same text, or after another one
                asked = text if s["flag"] else text + "a"
            law = LM(
                asked,
                max_tokens=s["tokens"],
                temperature=1.5 if guiding else 1.0,
                allowed=alternating if s["flag"] else None,
            )
            step = pyro.sample(name, law)
            choices.append(step)
            text = text + step
    elif kind == "drawn":
        choices.append(pyro.sample(name, JUDGES[s["aggregate"]](text)))
    elif guiding:
        pass
    elif kind == "seen":
        pyro.sample(name, dist.Bernoulli(p), obs=torch.tensor(float(s["flag"])))
    elif kind == "said":
        given = LM.continuation("ab" if s["flag"] else "b")
        pyro.sample(name, LM(LM.prompt("^a"), until="b", max_tokens=3), obs=given)
    elif kind == "factor":
        pyro.factor(name, torch.tensor(p - 0.5))
    elif kind == "judge":
        pyro.sample(name, JUDGES[s["aggregate"]](text), obs=s["flag"])
    elif kind == "twist":
        ppl.twist(name, p - 0.3)
    elif kind == "rule":
        ppl.condition(sum(map(_odd, choices)) % 3 != 1, name)
    return text


@functools.cache
def program_of(seed: int):
    rng = generator(seed, "one law")
    return partial(run, statements(rng, int(rng.integers(3, 7))))


@functools.cache
def table_of(program) -> dict[tuple[object, ...], float]:
    """The log joint density of every run that can happen."""
    exact = ppl.enumerate_program(program)
    assert len(set(exact.values)) == len(exact.values)
    return dict(zip(exact.values, exact.log_weights, strict=True))


def searched(searcher, program, **options) -> list[ppl.Sample]:
    try:
        return searcher.run(program, **options).samples
    except ppl.errors.AllParticlesDeadError as error:
        return error.posterior.samples


close = partial(pytest.approx, abs=2e-5)
SEEDS = range(75)


def alive(samples):
    return [s for s in samples if s.finished and s.log_weight > -math.inf]


def test_generated_programs_have_everything():
    """Else what follows says little."""
    seen = set()

    def visit(block):
        for s in block:
            seen.add((s["kind"], s["scale"] is not None, s["mask"] is not None))
            visit(s["then"] + s["else"])

    sizes = []
    for seed in SEEDS:
        program = program_of(seed)
        visit(program.args[0])
        sizes.append(len(table_of(program)))
    for kind in set(KINDS) - {"if", "twist", "rule"}:
        assert {(kind, True, False), (kind, False, True), (kind, False, False)} <= seen, kind
    assert sum(size > 1 for size in sizes) > 50
    assert sum(size == 0 for size in sizes) < 10


@pytest.mark.parametrize("seed", SEEDS)
def test_pyros_own_trace_states_the_enumerated_law(seed):
    program, table = program_of(seed), table_of(program_of(seed))
    pyro.set_rng_seed(seed)
    for _ in range(12):
        trace = poutine.trace(program).get_trace()
        value = trace.nodes["_RETURN"]["value"]
        assert float(trace.log_prob_sum()) == close(table.get(value, -math.inf))


@pytest.mark.parametrize("guided", [False, True], ids=["", "guided"])
@pytest.mark.parametrize("seed", SEEDS)
def test_samples_state_the_enumerated_law(seed, guided):
    program, table = program_of(seed), table_of(program_of(seed))
    guide = partial(program, guiding=True) if guided and _guidable(program) else None
    samples = searched(BestOfN(40), program, seed=seed, guide=guide)
    for s in alive(samples):
        assert s.log_joint == close(table[s.value])
        assert float(s.trace.log_prob_sum()) == close(table[s.value])
        # The weight is the density over the chance of being proposed.
        proposed = math.fsum(r.proposal() for r in s.records if r.kind == "choice")
        assert s.log_weight == close(table[s.value] - proposed)
    if guide is None and not table:
        assert not alive(samples)


def _guidable(program) -> bool:
    return any(s["kind"] in ("bern", "cat", "lm", "drawn") for s in program.args[0])


@pytest.mark.parametrize("seed", SEEDS[::3])
def test_the_map_is_the_enumerated_one(seed):
    program, table = program_of(seed), table_of(program_of(seed))
    samples = alive(searched(BestOfN(150), program, seed=seed))
    if not samples:
        return
    posterior = ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost())
    assert table[posterior.map] == close(max(table[s.value] for s in samples))


@pytest.mark.filterwarnings("ignore:the program marks no steps")  # some of the drawn ones
@pytest.mark.parametrize("seed", SEEDS[::2])
def test_forks_state_the_enumerated_law(seed):
    """Replayed, resampled, without replacement: what a particle is told again changes nothing."""
    program, table = program_of(seed), table_of(program_of(seed))
    for searcher in (SMC(12, 1.0), SMCSteering(4, 3, merge_duplicates=True)):
        for s in alive(searched(searcher, program, seed=seed)):
            assert s.log_joint == close(table[s.value])
            assert s.log_likelihood == close(
                math.fsum(r.joint() for r in s.records if r.kind != "choice")
            )


@pytest.mark.parametrize("seed", SEEDS[::3])
def test_decided_and_forced_choices_are_weighed_by_the_enumerated_law(seed):
    program, table = program_of(seed), table_of(program_of(seed))
    tree = ppl.Tree(program, seed=seed)

    def decide(name, fn):
        return fn.enumerate_support()[0] if seed % 2 or "bern" in name else None

    nodes = [tree.root]
    for _ in range(8):
        going = [node for node in nodes if node.open]
        if not going:
            break
        nodes = [n for n in nodes if not n.open] + tree.expand(going, 4, decide)
        nodes = nodes[:40]
    for node in nodes:
        if node.finished and not node.dead:
            proposed = math.fsum(r.proposal() for r in node.history if r.kind == "choice")
            assert node.log_weight == close(table[node.result] - proposed)
    for parent in [tree.root, *nodes[:3]]:
        if parent.open:
            examples = tree.expand([parent], 3)
            again = tree.force([parent] * 3, examples)
            for new, old in zip(again, examples, strict=True):
                assert new.dead == old.dead
                if not old.dead:
                    assert new.log_increment == close(old.log_increment)
                    assert new.log_likelihood == close(old.log_likelihood)


def test_evidence_of_scaled_and_masked_programs_is_right_on_average():
    """The weights above, drawn as often as they say: over programs, errors are standard normal."""
    errors = []
    for seed in SEEDS[::2]:
        program, table = program_of(seed), table_of(program_of(seed))
        samples = searched(BestOfN(400), program, seed=seed)
        weights = np.exp([s.log_weight for s in samples])
        spread = weights.std() / math.sqrt(len(weights))
        if table and spread > 1e-6:
            exact = math.fsum(map(math.exp, table.values()))
            errors.append((weights.mean() - exact) / spread)
    assert len(errors) > 15
    assert max(map(abs, errors)) < 4
    assert abs(np.mean(errors)) < 4 / math.sqrt(len(errors))
