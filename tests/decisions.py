"""Programs with decisions whose worth is known."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

DECISION = {"decision": True}


def gamble():
    """One surely, or three with probability .3."""
    arm = pyro.sample("arm", dist.Bernoulli(0.9), infer=DECISION)
    win = pyro.sample("win", dist.Bernoulli(0.3))
    pyro.factor("reward", 3.0 * win if arm else torch.tensor(1.0))


def match_the_coin():
    """A coin is shown, and one says what it shows."""
    coin = pyro.sample("coin", dist.Bernoulli(0.5))
    said = pyro.sample("said", dist.Bernoulli(0.2), infer=DECISION)
    pyro.factor("reward", torch.tensor(float(coin == said)))


def guess_the_coin():
    """The same, before it is shown."""
    said = pyro.sample("said", dist.Bernoulli(0.2), infer=DECISION)
    coin = pyro.sample("coin", dist.Bernoulli(0.5))
    pyro.factor("reward", torch.tensor(float(coin == said)))
