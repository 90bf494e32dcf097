"""The peers' side of against_peers.py: runs where they are installed, prints one line of JSON.

Only the language model, the verifier and the recording around the peers are ours and fake; the
algorithms are the released ones, called as their documentation says. The toy is the one of
tests/programs.py: p(a) = .5, p(b) = .3, p($) = .2, `$` ends the text, three symbols at most.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import random
import sys
from typing import Any

import numpy as np

SYMBOLS, PROBABILITIES = ("a", "b", "$"), (0.5, 0.3, 0.2)


def more_a(text: str) -> float:
    """The verifier of the toy."""
    a, b = text.count("a"), text.count("b")
    return 0.9 if a > b else 0.6 if a == b else 0.3


# -- llamppl: evidence -------------------------------------------------------------------------


def llamppl_evidence(runs: int) -> dict[str, Any]:
    """exp(log-evidence) of every run; the evidence is the mean of the final weights."""
    import llamppl
    from llamppl.inference.smc_steer import find_c

    class Symbol(llamppl.Distribution):  # type: ignore[misc, name-defined]
        async def sample(self) -> tuple[str, float]:
            (symbol,) = random.choices(SYMBOLS, PROBABILITIES)
            return symbol, await self.log_prob(symbol)

        async def log_prob(self, symbol: str) -> float:
            return float(np.log(PROBABILITIES[SYMBOLS.index(symbol)]))

    class Toy(llamppl.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.text = ""

        async def step(self) -> None:
            self.text += await self.sample(Symbol())
            self.score(np.log(more_a(self.text)))
            if self.text.endswith("$") or len(self.text) == 3:
                self.finish()

    async def estimates(sampler: Any, *options: Any, **named: Any) -> list[float]:
        sets = [await sampler(Toy(), *options, **named) for _ in range(runs)]
        return [float(np.mean(np.exp([p.weight for p in particles]))) for particles in sets]

    standard, steer = llamppl.smc_standard, llamppl.smc_steer
    weights = np.array([0.7, 0.1, 0.1, 0.1])
    found = {
        "evidence": {
            "SMC(4)": asyncio.run(estimates(standard, 4, resampling_method="multinomial")),
            "SMC(4, 1.0)": asyncio.run(estimates(standard, 4, 1.0, resampling_method="systematic")),
            "SMCSteering(2, 4)": asyncio.run(estimates(steer, 2, 4)),
            "SMCSteering(3, 2)": asyncio.run(estimates(steer, 3, 2)),
            "SMCSteering(4, 3)": asyncio.run(estimates(steer, 4, 3)),
        },
        "constant": {"weights": weights.tolist(), "keep": 2, "c": float(find_c(weights, 2))},
    }
    sys.modules["llamppl.inference.smc_steer"].find_c = constant  # type: ignore[attr-defined]
    found["evidence"]["SMCSteering(3, 2), c solved"] = asyncio.run(estimates(steer, 3, 2))
    return found


def constant(weights: Any, keep: int) -> float:
    """The c with sum_i min(1, c w_i) = keep."""
    light = np.sort(weights)
    light = light[light > 0]
    if len(light) <= keep:
        return float(1 / light[0])
    heavy = 0
    while light[-1] * (keep - heavy) >= light.sum():
        light, heavy = light[:-1], heavy + 1
    return float((keep - heavy) / light.sum())


# -- its_hub: the particle filter and particle Gibbs -------------------------------------------


def its_hub_filters(runs: int) -> dict[str, Any]:
    """Final texts of many small runs and of a large one; what goes on inside, recorded."""
    from its_hub.api import AbstractLanguageModel, AbstractProcessRewardModel
    from its_hub.core.algorithms.particle_gibbs import ParticleFiltering, ParticleGibbs
    from its_hub.core.lms.step_generation import StepGeneration

    class FakeLM(AbstractLanguageModel):  # type: ignore[misc]
        """Draws symbols; a third symbol carries the stop token `$` with it."""

        def __init__(self, probabilities: tuple[float, ...] = PROBABILITIES, stops: bool = True):
            self.probabilities, self.stops = probabilities, stops

        async def agenerate(
            self, messages: Any, stop: Any = None, **_: Any
        ) -> list[dict[str, str]]:
            return [self.draw(conversation) for conversation in messages]

        def draw(self, conversation: Any) -> dict[str, str]:
            said = [m.content for m in conversation if m.role == "assistant"]
            (symbol,) = random.choices(SYMBOLS, self.probabilities)
            last = self.stops and len("".join(said)) == 2 and symbol != "$"
            return {"role": "assistant", "content": symbol + "$" * last}

    class FakePRM(AbstractProcessRewardModel):  # type: ignore[misc]
        def __init__(self, function: Any = more_a) -> None:
            self.function = function

        def score(self, prompt: Any, steps: list[str]) -> list[float]:
            return [self.function(text.rstrip("$")) for text in steps]

        async def ascore(self, prompt: Any, steps: list[str]) -> list[float]:
            return self.score(prompt, steps)

    def steps(max_steps: int = 9) -> Any:
        return StepGeneration(max_steps=max_steps, tokens_per_step=1, stop_token="$")

    class Recorded(ParticleGibbs):  # type: ignore[misc]
        """Keeps what each resampling saw and returned."""

        def _resampling(self, particles: Any, probabilities: Any, count: int) -> Any:
            drawn = super()._resampling(particles, probabilities, count)
            weighed = [p.partial_log_weights[-1] for p in particles]
            kept = [p.partial_log_weights[-1] for p in drawn]
            self.seen.append((np.log(probabilities).tolist(), max(weighed), max(kept)))
            return drawn

        def infer(self, *options: Any, **named: Any) -> Any:
            self.seen: list[tuple[list[float], float, float]] = []
            return super().infer(*options, return_response_only=False, **named)

    def letters(message: dict[str, str]) -> str:
        return message["content"].rstrip("$")

    out: dict[str, Any] = {"texts": [], "lost": [], "lost, mild": []}
    for verifier, lost in [(more_a, "lost"), (mildly_more_a, "lost, mild")]:
        filtering = Recorded(steps(), FakePRM(verifier), num_ref_particles=0)
        for _ in range(runs):
            result = filtering.infer(FakeLM(), "^", 8)
            _, best, kept = filtering.seen[-1]
            out[lost].append(bool(kept < best - 1e-9))
            if verifier is more_a:
                out["texts"].append(letters(result.responses_lst[0][0]))
    plain = ParticleFiltering(steps(), FakePRM())
    large = plain.infer(FakeLM(), "^", 20_000, return_response_only=False)
    out["large"] = [letters(m) for m in large.responses]

    # Does the option reach the algorithm, and is max_steps the number of steps?
    asked = ParticleFiltering(steps(), FakePRM(), resampling_method="systematic")
    out["resampling asked for systematic"] = asked.resampling_method.value
    endless = ParticleFiltering(steps(3), FakePRM())
    used = endless.infer(FakeLM((1.0, 0.0, 0.0), stops=False), "^", 2, return_response_only=False)
    out["steps with max_steps=3"] = used.steps_used_lst[0]

    # Every particle has the scores .5, .7, .9: all weights are equal at every step.
    scripted = Recorded(steps(), FakePRM(lambda text: (0.5, 0.7, 0.9)[len(text) - 1]), 2)
    scripted.infer(FakeLM((1.0, 0.0, 0.0)), "^", 4)
    out["second sweep"] = [np.exp(logs).tolist() for logs, _, _ in scripted.seen[3:]]

    # Three symbols always, the third without a say: nothing hangs on early finishes or on the last
    # weight, and the target is p(x) times the odds of the first two scores.
    chain = ParticleGibbs(steps(), FakePRM(first_two), num_iterations=8)
    out["chain"] = []
    for _ in range(runs):
        result = chain.infer(FakeLM((0.5, 0.5, 0.0)), "^", 4 * 8, return_response_only=False)
        out["chain"].append(letters(result.responses_lst[-1][result.ref_indices_lst[-1][0]]))
    return out


def mildly_more_a(text: str) -> float:
    """The same order with scores close to each other, as among several good solutions."""
    return 0.5 + 0.05 * (text.count("a") - text.count("b"))


def first_two(text: str) -> float:
    """A verifier that likes a among the first two symbols, and is indifferent to the third."""
    return 0.5 if len(text) == 3 else 0.9 if text.endswith("a") else 0.3


# -- treequest: shapes of trees ----------------------------------------------------------------


def treequest_shapes(runs: int, simulations: int) -> dict[str, Any]:
    """Root children, depth and leaves of every tree; the toy without `$`, so that texts go on."""
    import treequest

    def write(text: str | None) -> tuple[str, float]:
        (symbol,) = random.choices("ab", PROBABILITIES[:2])
        longer = (text or "") + symbol
        return longer, more_a(longer)

    shapes: dict[str, list[list[int]]] = {}
    for prior in ("gaussian", "beta"):
        search = treequest.ABMCTSA(dist_type=prior)
        shapes[prior] = []
        for _ in range(runs):
            state = search.init_tree()
            for _ in range(simulations):
                state = search.step(state, {"write": write}, inplace=True)
            nodes = state.tree.get_nodes()
            depths = [0 if n.state is None else len(n.state) for n in nodes]
            leaves = sum(not n.children for n in nodes)
            shapes[prior].append([len(state.tree.root.children), max(depths), leaves])
    return {"shapes": shapes}


def treequest_mixed(fits: int) -> dict[str, list[list[float]]]:
    """Predictive draws of the mixed model for GROUPS and for a new group, from a few fits.

    A decision of treequest takes one draw of each at random, so these are its law.
    """
    import treequest

    class Whole(type(treequest.ABMCTSM().pymc_interface)):  # type: ignore[misc]
        def get_score(self, values: Any) -> Any:
            return values.values.ravel()

    search = treequest.ABMCTSM(max_process_workers=1)
    state = search.init_tree()
    for scores in GROUPS:
        parent = state.tree.root
        for score in scores:
            trial = state.trial_store.create_trial(parent, "write")
            search.tell(state, trial.trial_id, ((), score))
            parent = parent if parent.parent else parent.children[-1]
    search.pymc_interface.__class__ = Whole
    kind = type(next(iter(state.all_observations.values())))
    seen = kind.collect_all_observations_of_descendant(state.tree.root, state.all_observations)
    found = [search.pymc_interface.calculate_score(seen, action=None) for _ in range(fits)]
    arms = [*range(len(GROUPS)), None]
    return {"draws": [np.concatenate([f[arm] for f in found]).tolist() for arm in arms]}


# Scores below three children of a root: the child's own and those of its children.
GROUPS = ((0.9, 0.6), (0.3,), (0.6, 0.9, 0.3))


# -- genlm-control: evidence of products and powers -----------------------------------------------


def control_evidence(runs: int) -> dict[str, Any]:
    """exp(log_ml) of every run: the toy times its verifier, and the toy to the power two."""
    from genlm.control import SMC, Potential, direct_token_sampler

    class Toy(Potential):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(list(SYMBOLS[:2]))

        async def prefix(self, context: list[str]) -> float:
            logs = [np.log(PROBABILITIES[SYMBOLS.index(s)]) for s in context]
            return float(sum(logs)) if len(context) <= 3 else float("-inf")

        async def complete(self, context: list[str]) -> float:
            end = np.log(PROBABILITIES[2]) if len(context) < 3 else 0.0
            return float(await self.prefix(context) + end)

        async def logw_next(self, context: list[str]) -> Any:
            following = PROBABILITIES if len(context) < 3 else (0.0, 0.0, 1.0)
            with np.errstate(divide="ignore"):
                return self.make_lazy_weights(np.log(following))

    class Scores(Potential):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(list(SYMBOLS[:2]))

        async def prefix(self, context: list[str]) -> float:
            text = "".join(context)
            return float(sum(np.log(more_a(text[: i + 1])) for i in range(len(text))))

        async def complete(self, context: list[str]) -> float:
            end = np.log(more_a("".join(context))) if len(context) < 3 else 0.0
            return float(await self.prefix(context) + end)

    async def estimates(sampler: Any, threshold: float, method: str) -> list[float]:
        found = []
        for _ in range(runs):
            sequences = await sampler(4, threshold, 10, resampling_method=method)
            found.append(float(np.exp(sequences.log_ml)))
        return found

    product = SMC(direct_token_sampler(Toy()), critic=Scores())
    power = SMC(direct_token_sampler(Toy() ** 2.0))
    return {
        "SMC(4)": asyncio.run(estimates(product, 0.5, "multinomial")),
        "SMC(4, 1.0)": asyncio.run(estimates(product, 1.0, "systematic")),
        "PowerSMC(4)": asyncio.run(estimates(power, 0.5, "multinomial")),
    }


# -- PPDL: laws of the results --------------------------------------------------------------------

PPDL_STEP = """
- defs:
    text_{t}:
      lang: python
      code: |
        import random
        (symbol,) = random.choices("ab$", (0.5, 0.3, 0.2))
        result = text_{u} if text_{u}.endswith("$") else text_{u} + symbol
    score_{t}:
      lang: python
      code: |
        import math
        a, b = text_{t}.count("a"), text_{t}.count("b")
        result = math.log(0.9 if a > b else 0.6 if a == b else 0.3)
- if: ${{ not text_{u}.endswith("$") }}
  then:
    factor: ${{ score_{t} }}
"""


def ppdl_laws(particles: int) -> dict[str, Any]:
    """Probabilities of texts by each of the sequential engines, and the seconds they took."""
    import time

    from pdl.pdl_infer import exec_str

    steps = "".join(PPDL_STEP.format(t=t, u=t - 1) for t in (1, 2, 3))
    program = 'defs:\n  text_0: ""\nlastOf:' + steps + "- ${ text_3 }\n"
    out: dict[str, Any] = {}
    for engine in ("is", "smc", "rejection", "maj"):
        started = time.perf_counter()
        config = {"algo": engine, "num_particles": particles}
        found = exec_str(program, ppdl_config=config)
        law: dict[str, float] = {}
        for text, p in zip(found.values, found.probs, strict=True):
            letters = str(text).rstrip("$")
            law[letters] = law.get(letters, 0.0) + float(p)
        out[engine] = {"law": law, "seconds": time.perf_counter() - started}
    return {"laws": out, "particles": particles}


PACKAGES = {  # by the name of a part
    "mixed": "treequest",
    "control": "genlm-control",
    "ppdl": "prompt-declaration-language",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="the peers' side of against_peers.py")
    parts = ["llamppl", "its_hub", "treequest", "mixed", "control", "ppdl"]
    parser.add_argument("peer", choices=parts)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--simulations", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    np.random.seed(options.seed)
    if options.peer == "llamppl":
        found = llamppl_evidence(options.runs)
    elif options.peer == "its_hub":
        found = its_hub_filters(options.runs)
    elif options.peer == "treequest":
        found = treequest_shapes(options.runs, options.simulations)
    elif options.peer == "mixed":
        found = treequest_mixed(options.runs)
    elif options.peer == "control":
        found = control_evidence(options.runs)
    else:
        found = ppdl_laws(options.runs)
    package = PACKAGES.get(options.peer, options.peer)
    print(json.dumps({"version": importlib.metadata.version(package), **found}))


if __name__ == "__main__":
    main()
