"""After `lm.fresh()` nothing is known of any text."""

from __future__ import annotations

import families
import pytest
from engines import Letters, make, request

import ppl
from ppl.language.cost import Account
from ppl.lm.drafts import Drafts
from ppl.study.work import Bench

TEXT = tuple(3 + i % 7 for i in range(40))


def paid(lm) -> int:
    account = Account()
    lm.sample_batch([request(lm, TEXT, 1, max_tokens=20, ledger=account)])
    return account.cost.prompt_tokens


def forget(lm) -> None:
    lm.fresh()


def study(lm) -> None:
    """As between groups of a study."""
    bench = object.__new__(Bench)
    bench._models, bench._verifiers = {"lm": lm}, {}
    bench.fresh()


@pytest.mark.parametrize("fresh", [forget, study])
@pytest.mark.parametrize("source", ["siblings", "small"])
def test_guesses_begin_from_nothing_too(source, fresh):
    small = make() if source == "small" else None
    lm = make(drafts=Drafts(small or "siblings", switch="always"))
    assert paid(lm) == len(TEXT)
    assert paid(lm) == 0
    drafted = lm.drafts.tokens_drafted
    assert len(lm.drafts.store) or source == "small"
    fresh(lm)
    assert len(lm.drafts.store) == 0
    assert small is None or paid(small) == len(TEXT)
    assert lm.drafts.tokens_drafted == drafted  # what was counted stays
    assert paid(lm) == len(TEXT)


def test_states_are_forgotten_with_the_texts():
    lm = ppl.HFModel(families.random_model(families.config_of("lfm2")), Letters(), name="states")
    assert paid(lm) == len(TEXT)
    assert lm.engine.runner.snapshots.nbytes > 0
    lm.fresh()
    assert lm.engine.runner.snapshots.nbytes == 0
    assert paid(lm) == len(TEXT)
