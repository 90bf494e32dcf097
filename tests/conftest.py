"""One thread is enough for models this small, and keeps the tests quick on a busy machine.

No example of Hypothesis has a deadline, and none may fail for being slow: machines stand still.
"""

import pytest
import torch
from hypothesis import HealthCheck, settings
from notebook import Notebook

import ppl
from ppl.verifiers import PRM

torch.set_num_threads(1)
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.fixture
def notebook(monkeypatch) -> Notebook:
    """Cells that are run in `__main__`."""
    return Notebook(monkeypatch)


@pytest.fixture(scope="session")
def tiny() -> tuple[ppl.HFModel, PRM]:
    """The embedded language model and its verifier."""
    return ppl.load("tiny"), PRM.load("tiny")
