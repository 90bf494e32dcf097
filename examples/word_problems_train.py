"""Trains the reward head of `word_problems.py` on rollouts of the train half.

    python examples/word_problems_train.py --stories 160 --rollouts 16 --dtype bfloat16

Most accounts of whole stories are wrong somewhere, which says little about each line; so the
beginnings of stories are rolled out, too, asked after one or two lines, where an answer says more.

Rolls out the program without a head, reads the states of all beginnings of accounts, fits the head
on three quarters of the stories while it watches the rest, and writes
`examples/records/story-head.safetensors`. Prints times and losses; how right lines are told from
wrong ones on the test half, `word_problems.py` says.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from smollm2 import find_gguf
from story_head import LineHead, Rollouts, fit, joined, states
from story_problems import shortened, stories
from story_solver import solve

import ppl
from ppl.searchers import BestOfN
from ppl.tasks import Problem, split

HEAD = Path(__file__).parent / "records" / "story-head.safetensors"
TOGETHER = 16  # stories side by side


def roll_out(lm: ppl.HFModel, asked: Sequence[Problem], count: int, seed: int = 0) -> Rollouts:
    """So many rollouts of each story; prints how far it is."""
    places: dict[tuple[int, ...], int] = {}
    found, lines, right, owner = [], [], [], []
    began, tokens = time.perf_counter(), 0
    for at in range(0, len(asked), TOGETHER):
        some = asked[at : at + TOGETHER]
        seeds = [seed * 1_000_000 + at + i for i in range(len(some))]
        new: list[tuple[int, ...]] = []
        posteriors = BestOfN(count).run_many(solve, [(p, lm) for p in some], seed=seeds)
        for i, (problem, posterior) in enumerate(zip(some, posteriors, strict=True)):
            tokens += posterior.cost.lm_tokens
            for sample in posterior.samples:
                assert sample.text is not None
                mine = []
                for end in sample.text.step_ends:
                    start = sample.text.tokens[:end]
                    if start not in places:
                        places[start] = len(places)
                        new.append(start)
                    mine.append(places[start])
                lines.append(mine)
                right.append(sample.value == problem.gold)
                owner.append(at + i)
        found.append(states(lm, new).half())
        spent = time.perf_counter() - began
        print(
            f"{at + len(some)} stories, {len(right)} rollouts, {sum(right) / len(right):.1%} right,"
            f" {len(places)} beginnings, {tokens} tokens, {spent:.0f} s",
            flush=True,
        )
    return Rollouts(torch.cat(found), lines, right, owner)


def _story(owner: int, whole: int) -> int:
    """The place of a story in the train half, whole or short."""
    return owner if owner < whole else owner - whole


def main(argv: Sequence[str] | None = None) -> None:
    """Rolls out, fits, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--stories", type=int, default=160, help="of the train half")
    parser.add_argument("--short", type=int, default=480, help="that stop after one or two lines")
    parser.add_argument("--rollouts", type=int, default=16, help="of each; of short ones half")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HEAD)
    parser.add_argument("--keep", type=Path, help="where rollouts are kept, and taken from")
    parser.add_argument("--source", help="another model: a .gguf file, a folder or a Hub id")
    parser.add_argument("--dtype", default="float32", help="such as bfloat16, which is quicker")
    options = parser.parse_args(argv)
    if options.keep and options.keep.exists():
        rollouts = Rollouts(**torch.load(options.keep, weights_only=True))
    else:
        lm = ppl.load(options.source or find_gguf(), dtype=options.dtype, kv_bytes=4 << 30)
        assert isinstance(lm, ppl.HFModel)
        enough = 3 * max(options.stories, options.short) + 20
        train = list(split(stories(enough), "train"))
        short = [shortened(p, 1 + i % 2) for i, p in enumerate(train[: options.short])]
        rollouts = joined(
            roll_out(lm, train[: options.stories], options.rollouts, options.seed),
            roll_out(lm, short, options.rollouts // 2, options.seed + 1),
        )
        if options.keep:
            torch.save(vars(rollouts), options.keep)
    values, visits = rollouts.values()
    never, always = ((values == share).float().mean() for share in (0, 1))
    print(
        f"{len(values)} beginnings, {visits.mean():.1f} rollouts through each; "
        f"none right of {never:.0%}, all of {always:.0%}"
    )
    began = time.perf_counter()
    # A story and its short form, which is numbered after all whole ones, are watched together.
    watched = [s for s in sorted(set(rollouts.owner)) if _story(s, options.stories) % 4 == 3]
    torch.manual_seed(options.seed)
    head = LineHead(rollouts.states.shape[-1])
    for loss, seen in fit(head, rollouts, watched, options.rounds, seed=options.seed):
        print(f"loss {loss:.3f}, of watched stories {seen:.3f}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    head.save(options.out)
    count = sum(p.numel() for p in head.parameters())
    print(
        f"{count} weights, {options.out.stat().st_size} bytes, {time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    main()
