"""Systems of one model: a mixture of agents, and iterative decoding, beside plain sampling.

What a model reads of other attempts is worth what it can make of them. The writer here is a script,
so that this can be set and the results are known in closed form: it answers a question of two
choices rightly with probability `--skill`; as a critic it names the better one with probability
`--critic`; told of an attempt's score, it keeps a good one and changes a bad one. A judge is wrong
with probability `--noise`.

* A mixture of agents writes three candidates, a critique of all, and an answer that follows it:
  right with probability `critic` wherever both choices are among the candidates.
* Best-of-N takes the candidate that the judge likes best.
* Iterative decoding tells the writer of its best and worst attempts, with their scores. With a
  judge that is a coin, nothing is left of the gain.
* The mixture is a program as any other: here under MCTS, with each answer judged.

Nothing here says what a real model can do; `--model` takes one, and then the critique is its own.

    python examples/agents_of_models.py
    python examples/agents_of_models.py --noise 0.5
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import ppl
from ppl.programs import mixture_of_agents
from ppl.searchers import MCTS, BestOfN, IterativeAgentDecoding, Searcher, feedback

QUESTION = "Which is heavier, a litre of ice or a litre of water? Say ice or water."
RIGHT, WRONG = "water", "ice"
SYMBOLS = "".join(sorted({*map(chr, range(32, 127)), "\n"}))


def script(skill: float, critic: float) -> ppl.TableLM:
    """A writer over characters: it spells `water`, or `ice`, by what it has been asked."""

    def probability(asked: str) -> float:
        """That the answer is right."""
        if "Critiques of all candidates:" in asked:
            named = asked.rpartition("Critiques of all candidates:\n")[2].split("\n")[0]
            return float(named == RIGHT)
        if "Your critique" in asked:
            heard = re.findall(rf"Candidate \d+:\n({RIGHT}|{WRONG})", asked)
            return critic if len(set(heard)) == 2 else float(RIGHT in heard)
        tried = re.findall(rf"of score (\d\.\d+):\n({RIGHT}|{WRONG})", asked)
        if tried:
            score, word = tried[0]
            return float((word == RIGHT) == (float(score) > 0.5))
        return skill

    def spelled(prefix: str) -> dict[str, float]:
        asked, _, said = prefix.rpartition("\n")
        p = probability(asked)
        weights: dict[str, float] = {}
        for word, share in ((f"{RIGHT}\x00", p), (f"{WRONG}\x00", 1 - p)):
            if share and word.startswith(said):
                weights[word[len(said)]] = weights.get(word[len(said)], 0.0) + share
        total = sum(weights.values())
        return {letter: share / total for letter, share in weights.items()}

    return ppl.TableLM(
        spelled, symbols=SYMBOLS + "\x00", end="\x00", context_length=9000, name="script"
    )


def judged(text: ppl.Text, noise: float) -> str:
    """The word of an answer, weighed by a judge that is sometimes wrong."""
    word = RIGHT if RIGHT in text.text.lower() else WRONG
    wrong = pyro.sample("wrong", dist.Bernoulli(torch.tensor(noise))) == 1
    pyro.factor("judge", torch.tensor(0.9 if (word == RIGHT) != bool(wrong) else 0.1).log())
    return word


def once(lm: ppl.LanguageModel, noise: float) -> str:
    """One answer; the model is told of others, if the searcher has some."""
    text = lm.chat(QUESTION + feedback())
    return judged(text + pyro.sample("answer", lm(text, max_tokens=60)), noise)


def mixed(moa: Callable[[str], ppl.Text], noise: float) -> str:
    """An answer of the mixture."""
    return judged(moa(QUESTION), noise)


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a model that ppl.load takes; a script by default")
    parser.add_argument("--skill", type=float, default=0.5)
    parser.add_argument("--critic", type=float, default=0.9)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lm = ppl.load(args.model) if args.model else script(args.skill, args.critic)
    limits = {"max_tokens": 60, "critique_tokens": 60, "answer_tokens": 60}
    moa = mixture_of_agents(lm, reading_temperature=1.0, **limits)
    s, c, e = args.skill, args.critic, args.noise
    same, apart = s**3, 1 - s**3 - (1 - s) ** 3  # all candidates right; both choices there
    # Ties go to the first: see tests/exact/test_iterative.py.
    mended = s * (1 - e**2) + (1 - s) * (1 - e) ** 2
    rows: list[tuple[str, Searcher[Any], Callable[..., str], tuple[Any, ...], float | None]] = [
        ("one sample", BestOfN(1), once, (lm, e), s),
        ("mixture of agents", BestOfN(1), mixed, (moa, e), same + apart * c),
        ("best of 2", BestOfN(2), once, (lm, e), s * s + 2 * s * (1 - s) * (1 - e)),
        ("iterative, 2 rounds", IterativeAgentDecoding(2), once, (lm, e), mended),
        ("best of 3", BestOfN(3), once, (lm, e), None),
        ("iterative, 3 rounds", IterativeAgentDecoding(3), once, (lm, e), None),
        ("mixture, MCTS(2)", MCTS(2), mixed, (moa, e), None),
    ]
    found = {}
    print(f"{'':<22}{'right':>7}{'exact':>8}{'calls':>7}{'tokens':>8}")
    for name, searcher, program, given, exact in rows:
        seeds = range(args.seed, args.seed + args.runs)
        posteriors = searcher.run_many(program, [given] * args.runs, seed=seeds)
        done = [p for p in posteriors if isinstance(p, ppl.Posterior)]
        found[name] = sum(p.best == RIGHT for p in done) / args.runs
        calls = sum(p.cost.lm_calls for p in done) / args.runs
        tokens = sum(p.cost.lm_tokens for p in done) / args.runs
        known = "" if exact is None or args.model else f"{exact:.3f}"
        print(f"{name:<22}{found[name]:>7.2f}{known:>8}{calls:>7.1f}{tokens:>8.0f}")
    return found


if __name__ == "__main__":
    main()
