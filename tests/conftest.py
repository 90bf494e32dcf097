"""One thread is enough for models this small, and keeps the tests quick on a busy machine.

No example of Hypothesis has a deadline, and none may fail for being slow: machines stand still.
Examples are the same in each run, and none are stored; `--hypothesis-seed=N` draws others.
"""

import pytest
import torch
from hypothesis import HealthCheck, settings

import ppl
from ppl.verifiers import PRM

torch.set_num_threads(1)
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def tiny() -> tuple[ppl.HFModel, PRM]:
    """The embedded language model and its verifier."""
    return ppl.load("tiny"), PRM.load("tiny")
