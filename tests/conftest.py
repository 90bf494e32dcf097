"""One thread is enough for models this small, and keeps the tests quick on a busy machine.

No example of Hypothesis has a deadline, and none may fail for being slow: machines stand still.
Examples are the same in each run, and none are stored; `--hypothesis-seed=N` draws others. For the
same reason the library's own limits on programs and on checkers of answers are a minute or more,
where a test names none.
"""

import pytest
import torch
from hypothesis import HealthCheck, settings
from notebook import Notebook

import ppl
from ppl.tasks.judge import shared_judge
from ppl.verifiers import PRM, Sandbox
from ppl.verifiers.exact.math_answer import shared_comparer

torch.set_num_threads(1)
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
settings.load_profile("any machine")
Sandbox.__init__.__defaults__ = (60.0, *Sandbox.__init__.__defaults__[1:])  # seconds
shared_judge().limit = shared_comparer().limit = 120.0


@pytest.fixture
def notebook(monkeypatch) -> Notebook:
    """Cells that are run in `__main__`."""
    return Notebook(monkeypatch)


@pytest.fixture(scope="session")
def tiny() -> tuple[ppl.HFModel, PRM]:
    """The embedded language model and its verifier."""
    return ppl.load("tiny"), PRM.load("tiny")
