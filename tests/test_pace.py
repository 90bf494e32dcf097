"""Guesses are computed as far as they are measured to pay, and little is lost in finding out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppl.lm.pace import Costs, Switch

# Seconds of passes, as a small model has them on a processor.
TOKENS = [1, 2, 4, 8, 16, 32, 64, 300]
SECONDS = [0.012, 0.0135, 0.0155, 0.0195, 0.029, 0.05, 0.088, 0.4]


def packs(tokens: int) -> bool:
    return True


def padded(tokens: int) -> bool:
    return False


def switch_with(costs: dict[int, float]) -> Switch:
    switch = Switch(4, always=False)
    for tokens, seconds in costs.items():
        for _ in range(3):
            switch.costs.timed(tokens, seconds)
    return switch


def test_guesses_are_made_as_far_as_they_pay():
    chains = [[0.9, 0.8, 0.7], [0.5, 0.2]]
    free = switch_with({2: 1.0, 3: 1.0, 4: 1.0, 8: 1.0})
    assert free.depths(chains, 2, packs) == [3, 2]
    dear = switch_with({2: 1.0, 3: 1.5, 4: 2.0, 5: 2.5, 6: 3.0, 7: 3.5})  # as much as a token alone
    assert dear.depths(chains, 2, packs) == [0, 0]
    some = switch_with({2: 1.0, 3: 1.2, 4: 1.4, 5: 1.6, 6: 2.2, 7: 2.5})
    assert some.depths(chains, 2, packs) == [3, 0]
    # Padded, the second row would pay for what the first one guesses.
    assert some.depths(chains, 2, padded) == [0, 0]
    # The program of a step takes four tokens: with more it would be left.
    assert some.depths(chains, 2, lambda tokens: tokens <= 4) == [2, 0]
    assert Switch(4, always=False).depths(chains, 2, packs) == [0, 0]  # nothing known yet
    assert Switch(4, always=True).depths(chains, 2, packs) == [3, 2]


def test_no_guess_leaves_the_program_of_a_step():
    few, switch = (lambda tokens: tokens <= 4), switch_with({2: 1.0, 4: 1.0})
    assert switch.could(3, few)
    assert not switch.could(4, few)
    assert switch.could(4, padded)
    assert Switch(4, always=True).could(4, few)


def test_what_cannot_pay_is_not_looked_for():
    switch = switch_with({1: 1.0, 2: 1.1, 8: 2.0, 16: 3.6})
    assert switch.least(1) < 0.1
    assert 0.3 < switch.least(8) < 0.5
    assert Switch(4, always=True).least(8) == 0


def test_sizes_that_were_not_tried_for_long_are_tried_again():
    switch = switch_with({1: 1.0, 4: 50.0})
    costs = switch.costs
    assert costs.of(4) == 50
    assert costs.of(2) == pytest.approx(1 + 49 / 3)
    assert switch.depths([[0.9, 0.8, 0.7]], 1, packs) == [0]
    for _ in range(500):
        costs.timed(1, 1.0)
    assert costs.of(4) == 2
    assert switch.depths([[0.5]], 1, packs) == [1]
    assert [costs.of(tokens) for tokens in (1, 2)] == [1, pytest.approx(math.sqrt(2))]


def test_one_slow_pass_says_little():
    costs = Costs()
    for tokens, times in ((1, 9), (3, 1), (4, 9)):
        for _ in range(times):
            costs.timed(tokens, {1: 1.0, 3: 9.0, 4: 1.4}[tokens])
    assert costs.of(4) < 2.3
    assert costs.of(3) == costs.of(4)


def test_rates_follow_what_comes():
    switch = Switch(2, always=False)
    assert switch.rate(0) == switch.rate(1) < 0.5
    for _ in range(2000):
        switch.tell(0, True)
    assert switch.rate(0) > 0.98
    for _ in range(1000):
        switch.tell(0, False)
    assert switch.rate(0) < 0.1
    assert switch.rate(1) == Switch(2, always=False).rate(1)


def test_what_some_rows_gain_alone_counts_less():
    """A batch is done when its slowest row is; one for whose places others wait is not."""
    switch, chains = switch_with({8: 1.0, 16: 1.4}), [[0.9]] * 8
    assert switch.depths(chains, 8, packs) == [1] * 8
    for _ in range(5):  # rows come a token further on average, and no pass is spared
        switch.guessed(8, 16, 1.0)
        switch.showed(8, 8, True)
    assert switch.depths(chains, 8, packs) == [0] * 8
    assert switch.depths(chains, 8, packs, waiting=True) == [1] * 8
    assert switch_with({2: 1.0, 4: 1.0}).depths([[0.9]] * 2, 2, packs) == [1, 1]
    for _ in range(9):
        switch.showed(8, 8, False)
    assert switch.depths(chains, 8, packs) == [1] * 8


def test_no_more_is_lost_than_allowed():
    switch, chains = switch_with({8: 1.0, 16: 1.5}), [[0.9]] * 8
    assert switch.depths(chains, 8, packs) == [1] * 8
    switch.guessed(8, 16, 0.0)  # half a pass, for nothing
    assert switch.depths(chains, 8, packs) == [0] * 8
    for _ in range(30):
        switch.showed(8, 8, True)
    assert switch.depths(chains, 8, packs) == [0] * 8
    for _ in range(40):
        switch.showed(8, 8, True)
    assert switch.depths(chains, 8, packs) == [1] * 8
    # What is allowed is not saved up, only what was gained, and no more than for a while.
    for _ in range(1000):
        switch.showed(8, 8, True)
    switch.guessed(8, 16, 0.0)
    assert switch.depths(chains, 8, packs) == [0] * 8
    for _ in range(50):
        switch.guessed(8, 16, 1.0)
        switch.showed(8, 8, False)
    lost = 0
    while switch.depths(chains, 8, packs) != [0] * 8:
        switch.guessed(8, 16, 0.0)
        lost += 1
    assert lost == 5


def ratio(switch: Switch, right: list[float], rng: np.random.Generator, length: int = 64) -> float:
    """How many times as fast a batch is with guesses, of rows whose guesses are right so often."""
    leads, drawn = [1] * len(right), [1] * len(right)
    seconds = usual = 0.0

    def took(tokens: int) -> float:
        return float(np.interp(tokens, TOKENS, SECONDS))

    for _ in range(1, length):
        leads = [lead - 1 for lead in leads]
        usual += took(len(right))
        going = [i for i, n in enumerate(drawn) if n < length]
        passing = any(leads[i] == 0 for i in going)
        if passing:
            near = [i for i in going if leads[i] < min(leads[j] for j in going) + 4]
            rooms = {i: min(8, length - drawn[i] - 1) for i in near}
            rate = min(0.98, switch.rate(0))
            chains = [[rate ** (n + 1) for n in range(rooms[i])] for i in near]
            depths = dict(zip(near, switch.depths(chains, len(going), packs), strict=True))
            tokens, gained = len(going) + sum(depths.values()), 0
            for i in going:
                depth, came = depths.get(i, 0), 0
                while came < min(rooms.get(i, 0), depth + 1):
                    hit = rng.random() < right[i]
                    switch.tell(0, hit)
                    if not hit or came == depth:
                        break
                    came += 1
                gained += came
                leads[i], drawn[i] = leads[i] + 1 + came, drawn[i] + 1 + came
            seconds += took(tokens)
            switch.costs.timed(tokens, took(tokens) * rng.lognormal(0, 0.1))
            if tokens > len(going):
                switch.guessed(len(going), tokens, gained / len(near))
        switch.showed(len(right), len(going), passing)
    return usual / seconds


@pytest.mark.parametrize("rows", [1, 8, 32])
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("alike", [True, False])
def test_little_is_lost_in_finding_out(rows, rate, alike):
    """Whether all rows are guessed as well as each other, or half of them hardly at all."""
    right = [rate if alike or i % 2 else rate / 4 for i in range(rows)]
    found = []
    for seed in range(3):
        rng, switch = np.random.default_rng(seed), Switch(1, always=False)
        found.append([ratio(switch, right, rng) for _ in range(3)])
    first, *later = np.mean(found, 0)
    assert first > 0.97
    assert min(later) > 0.98


@pytest.mark.parametrize(("rows", "least"), [(4, 0.93), (8, 0.93)])
def test_little_is_lost_when_other_work_comes(rows, least):
    """After three batches that are guessed well, one that is not, or of which half the rows are:
    what was saved may be spent, once."""
    found = []
    for right in ([0.3] * rows, [0.9, 0.225] * (rows // 2), [0.95, 0.24] * (rows // 2)):
        for seed in range(6):
            rng, switch = np.random.default_rng(seed), Switch(1, always=False)
            for _ in range(3):
                ratio(switch, [0.97] * rows, rng)
            found.append([ratio(switch, right, rng) for _ in range(2)])
    first, later = np.mean(found, 0)
    assert first > least
    assert later > 0.975


@pytest.mark.parametrize(("rows", "rate", "least"), [(1, 0.5, 1.1), (1, 0.95, 2.5), (8, 0.95, 1.2)])
def test_what_pays_is_found(rows, rate, least):
    found = []
    for seed in range(4):
        rng, switch = np.random.default_rng(seed), Switch(1, always=False)
        for _ in range(2):  # what has lost before
            ratio(switch, [0.2] * rows, rng)
        found.append([ratio(switch, [rate] * rows, rng) for _ in range(3)])
    assert np.mean(found, 0)[1] > least
