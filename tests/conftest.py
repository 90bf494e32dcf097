"""One thread is enough for models this small, and keeps the tests quick on a busy machine."""

import pytest
import torch

import ppl
from ppl.verifiers import PRM

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> tuple[ppl.HFModel, PRM]:
    """The embedded language model and its verifier."""
    return ppl.load("tiny"), PRM.load("tiny")
