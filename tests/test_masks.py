"""`allowed=` as ids, as a boolean mask and as a function of either: one law, told three ways."""

from __future__ import annotations

import pickle

import numpy as np
import pyro
import pytest
import torch
from programs import TOY

import ppl
from ppl.errors import NoAllowedTokenError
from ppl.language.steps import StepRule
from ppl.lm.base import ContinueRequest, ScoreRequest, Spec
from ppl.lm.masks import as_mask
from ppl.lm.sampling import Warp, draw, nothing_left, warped_log_probs
from ppl.searchers import SMC, BestOfN


def told_every_way(ids: set[int], size: int) -> list:
    """The same tokens as everything that `allowed=` takes."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[sorted(ids)] = True
    return [
        ids,
        sorted(ids),
        np.array(sorted(ids)),
        torch.tensor(sorted(ids)),
        mask,
        mask.numpy(),
        lambda new: ids,
        lambda new: mask,
        lambda new: mask.numpy(),
    ]


@pytest.mark.parametrize("warp", [Warp(), Warp(temperature=0.7, top_p=0.9, top_k=9)])
def test_ids_and_masks_give_the_same_draws_and_log_probs(tiny, warp):
    lm, _ = tiny
    text = lm.prompt("3 + 4")
    ids = set(range(1, lm.codec.size, 3)) | lm.codec.end_tokens
    results = []
    for allowed in told_every_way(ids, lm.codec.size):
        spec = Spec(text.tokens, StepRule(), 6, warp, allowed)
        free = Spec(text.tokens, StepRule(), 6, warp, None)
        # Every other row is free: a mask is for its own row only.
        requests = [ContinueRequest(lm, free if i % 2 else spec, 77 * i) for i in range(16)]
        drawn = lm.sample_batch(requests)
        assert all(set(d.value.tokens) <= ids for d in drawn[::2])
        assert not all(set(d.value.tokens) <= ids for d in drawn[1::2])
        scores = lm.score_batch([ScoreRequest(lm, spec, d.value) for d in drawn])
        assert np.isfinite(scores[::2]).all()
        assert scores[::2] == pytest.approx([d.log_prob for d in drawn[::2]], abs=1e-5)
        results.append(([d.value for d in drawn], [d.log_prob for d in drawn], scores))
    assert all(result == results[0] for result in results)


def by_hand(ids: set[int]) -> dict[str, float]:
    """The table's distribution after "^", renormalised over some symbols."""
    table = {s: p for s, p in TOY_AFTER_START.items() if TOY.codec.symbols.index(s) in ids}
    return {s: p / sum(table.values()) for s, p in table.items()}


TOY_AFTER_START = {
    value.text or "$": float(np.exp(log_prob))
    for value, log_prob in TOY.support(TOY(TOY.prompt("^"), max_tokens=1))
}


def test_enumeration_draws_from_the_renormalised_table():
    ids = {1, 3}
    for allowed in told_every_way(ids, 4):
        support = TOY.support(TOY(TOY.prompt("^"), max_tokens=1, allowed=allowed))
        found = {value.text or "$": float(np.exp(log_prob)) for value, log_prob in support}
        assert found == pytest.approx(by_hand(ids))


def test_a_search_is_the_same_whichever_way_it_is_told():
    def guide(allowed, awrs):
        text = TOY.prompt("^")
        for t in range(3):
            proposal = TOY(text, max_tokens=1, allowed=allowed)
            step = pyro.sample(f"s_{t}", ppl.AWRS(proposal, valid) if awrs else proposal)
            text = text + step
            if step.finished:
                break

    def valid(text):
        return text.text.count("b") < 2

    def model(allowed, awrs):
        text = TOY.prompt("^")
        for t in range(3):
            step = pyro.sample(f"s_{t}", TOY(text, max_tokens=1))
            text = text + step
            ppl.condition(valid(text))
            if step.finished:
                break
        return text.text

    for awrs in (False, True):
        found = {
            (run.log_evidence, tuple(s.value for s in run.samples))
            for allowed in told_every_way({1, 2, 3}, 4)
            for run in [SMC(6).run(model, allowed, awrs, guide=guide, seed=3)]
        }
        assert len(found) == 1


def test_awrs_keeps_to_the_mask_and_leaves_it_as_it_was():
    mask = torch.tensor([False, True, True, False])
    proposal = TOY(TOY.prompt("^"), max_tokens=1, allowed=mask)
    drawn = {ppl.AWRS(proposal, lambda text: not text.text.endswith("a"))().text for _ in range(9)}
    assert drawn == {"b"}
    assert mask.tolist() == [False, True, True, False]


def test_the_mask_of_a_tokenizer_fits_a_model_with_more_or_fewer_logits():
    mask = torch.tensor([True, False, True])
    assert as_mask(mask, 5, 3).tolist() == [True, False, True, False, False]
    assert as_mask(mask, 2, 3).tolist() == [True, False]
    assert as_mask(mask, 3, 7).equal(mask)  # one entry per logit
    with pytest.raises(NoAllowedTokenError, match="leaves no token"):
        as_mask(torch.tensor([False, False, True]), 2, 3)


def test_a_row_without_a_mask_may_draw_everything():
    logits = torch.zeros(2, 6)
    mask = torch.tensor([False] * 5 + [True])
    tokens, log_probs = draw(logits, [Warp()] * 2, [None, mask], np.array([0.01, 0.01]))
    assert tokens == [0, 5]
    assert log_probs == pytest.approx([-np.log(6), 0.0])


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (torch.ones(5, dtype=torch.bool), r"mask of shape \[5\]; the model needs \[4\]"),
        (np.ones((1, 4), dtype=bool), r"mask of shape \[1, 4\]; the model needs \[4\]"),
        (torch.zeros(4, dtype=torch.bool), "leaves no token; allow at least the end-of-text"),
        (np.zeros(4, dtype=bool), "leaves no token"),
        (torch.ones(4), r"float32 of shape \[4\]; give token ids .* mask of dtype bool"),
        (np.ones(4, dtype=np.uint8), r"uint8 of shape \[4\]; give token ids .* mask of dtype bool"),
        ([True, False, True, True], "holds bool .* dtype bool .a torch tensor or numpy array"),
        ("ab", "holds <U1 .* give token ids"),
        (2, r"holds int64 of shape \[\]"),
        (np.array([1, 4]), "token 4; the model has the ids 0 to 3"),
        (torch.tensor([-1]), "token -1; the model has the ids 0 to 3"),
        (torch.zeros(0, dtype=torch.long), "leaves no token"),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["value", "function"])
def test_what_is_neither_ids_nor_a_mask_is_named_with_its_site(allowed, message, late):
    given = (lambda new: allowed) if late else allowed
    where = r"site 'step' of particle \d, after 0 new tokens: .*"
    with pytest.raises(NoAllowedTokenError, match=where + message):
        SMC(2).run(lambda: pyro.sample("step", TOY(TOY.prompt("^"), max_tokens=1, allowed=given)))


def test_a_site_is_known_by_the_tokens_that_it_allows():
    def law(allowed):
        return TOY(TOY.prompt("^"), allowed=allowed).fingerprint

    *sets, _, _, _ = told_every_way({1, 3}, TOY.codec.size)
    assert {law(tokens) for tokens in sets} == {law((3, 1, 1))}  # one set, however it is written

    def odd(new):
        return {1, 3}

    def even(new):
        return {2}

    others = [{1, 3}, {1, 2}, {1}, range(1, 4), None, odd, even]
    assert len({law(tokens) for tokens in others}) == len(others)
    odd.fingerprint = ("odd", 2)
    assert law(odd) != law(even)
    assert law(odd)[-2:] == ("odd", 2)


@pytest.mark.parametrize("make", [torch.zeros, np.zeros])
def test_what_a_program_refills_was_what_it_was(make):
    """One mask for all sites, filled anew for each: a site stays what it had been."""
    mask = make(TOY.codec.size, dtype=torch.bool if make is torch.zeros else bool)

    def program():
        text = TOY.prompt("^")
        for t in range(3):
            mask[:] = False
            mask[1 + t % 2] = True
            text = text + pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed=mask))
            pyro.factor(f"f_{t}", torch.tensor(0.5))
        return text.text

    tree = ppl.Tree(program)
    (node,) = tree.expand([tree.root])
    pickle.dumps(node.records)  # says what the site is while the mask is that of the next one
    for _ in range(2):
        node, _ = tree.expand([node], [2])
    assert node.result == "aba"


def test_only_a_law_can_leave_nothing():
    """What a broken model gives is no distribution, whatever is allowed of it."""
    mask = torch.tensor([True, False, False])
    rows = {"law": [-np.inf, 0.0, 1.0], "none": [-np.inf] * 3, "nan": [-np.inf, np.nan, 1.0]}
    for name, row in rows.items():
        logits = torch.tensor([row, [0.0, 1.0, 2.0]])
        log_probs = warped_log_probs(logits, [Warp()] * 2, [mask, None])
        assert nothing_left(logits[0], mask) is (name == "law")
        assert log_probs[0].isnan().all() == (name != "law")
        torch.testing.assert_close(log_probs[1], logits[1].log_softmax(-1))
    assert (warped_log_probs(torch.tensor([rows["law"]]), [Warp()], [mask]) == -np.inf).all()


@pytest.mark.parametrize("way", ["law", "next", "known", "cut"])
def test_who_may_draw_nothing_of_what_there_is_is_dead_alone(way):
    """After "b" nothing that is allowed has any probability: that share of the evidence is lost."""
    after = {"a": {"c": 0.4, "$": 0.6}, "b": {"a": 1.0}, "c": {"$": 1.0}}
    lm = ppl.TableLM(lambda text: after.get(text[-1], {"a": 0.4, "b": 0.6}), symbols="^abc$")
    only = [lm.codec.encode("c")[0]]

    def program():
        text = lm.prompt("^")
        text = text + pyro.sample("first", lm(text, max_tokens=1))
        if way == "law":
            law = lm(text, max_tokens=2, allowed=lambda new: None if new else only)
        elif way == "cut":
            law = lm(text, max_tokens=1, allowed=only, top_k=2, temperature=0.5)
        else:
            law = lm.next(text, allowed=only)
        if way == "known":
            mass = law.log_mass
            assert mass == pytest.approx(np.log(0.4) if text.text[-1] == "a" else -np.inf)
        text = text + pyro.sample("second", law)
        return text.text

    exact = ppl.enumerate_program(program)
    assert exact.log_evidence == pytest.approx(np.log(0.4))
    posterior = BestOfN(64).run(program, seed=3)
    weights = {s.value: s.log_weight for s in posterior.samples if s.log_weight > -np.inf}
    assert list(weights) == ["ac"]
    alive = sum(s.log_weight > -np.inf for s in posterior.samples)
    assert 14 < alive < 38
    text = lm.prompt("^") + lm.continuation("b", finished=False)
    law = lm(text, max_tokens=1, allowed=only)
    assert law.log_prob(lm.continuation("c", finished=False)) == -np.inf
    with pytest.raises(NoAllowedTokenError, match="has any probability"):
        law.sample()
    tree = ppl.Tree(program)
    (node,) = tree.rollout([tree.root], greedy=True)
    assert node.dead


@pytest.mark.parametrize("way", ["drafted", "power"])
def test_who_may_propose_nothing_of_what_there_is_is_dead_alone(way):
    """Here the law that is drawn from is another than the model's own."""
    after = {"a": {"c": 0.4, "$": 0.6}, "b": {"a": 1.0}}
    lm, small = (
        ppl.TableLM(lambda text: after.get(text[-1], {"a": 0.5, "b": 0.5}), symbols="^abc$")
        for _ in range(2)
    )
    only = [lm.codec.encode("c")[0]]

    def program():
        text = lm.prompt("^")
        text = text + pyro.sample("first", lm(text, max_tokens=1))
        return (text + pyro.sample("second", lm(text, max_tokens=1, allowed=only))).text

    if way == "drafted":
        samples = BestOfN(32).run(program, seed=3, guide=ppl.drafted(program, small)).samples
        found = [(s.value if s.log_weight > -np.inf else None) for s in samples]
    else:
        tree = ppl.Tree(program)
        found = [None if n.dead else n.result for n in tree.expand([tree.root], [32], power=2.0)]
    assert 6 < found.count("ac") < 26
    assert found.count("ac") + found.count(None) == 32
