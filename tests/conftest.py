"""One thread is enough for models this small, and keeps the tests quick on a busy machine."""

import re

import pytest
import torch

import ppl
from ppl.verifiers import PRM

torch.set_num_threads(1)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Names without addresses: processes that share the tests must call them alike."""
    item._nodeid = re.sub(r" at 0x[0-9a-f]+", "", item._nodeid)


@pytest.fixture(scope="session")
def tiny() -> tuple[ppl.HFModel, PRM]:
    """The embedded language model and its verifier."""
    return ppl.load("tiny"), PRM.load("tiny")
