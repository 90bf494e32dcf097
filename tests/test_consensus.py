"""The consensus of unfinished samples: what it says of probes, and what a search does with it."""

from __future__ import annotations

import pyro
import pytest
from programs import TOY, toy
from test_stopping import seen

import ppl
from ppl import Budget
from ppl.decide import Consensus, Seen, Settled
from ppl.searchers import MCTS, RAIN, SMC, VGB, BestOfN, Frontier, Search


def probed(*rows: str) -> Seen:
    classes = [tuple(".abc".index(x) - 1 for x in row) for row in rows]
    return Seen(classes[-1], probes=tuple(classes))


def test_a_consensus_has_to_last():
    rule = Consensus(3)
    assert rule.stops(probed("b..", "aab", "aab", "aba"))
    assert not rule.stops(probed("aab", "aba"))
    assert not rule.stops(probed("aab", "abb", "aab"))
    assert not rule.stops(probed("...", "aab", "aab"))  # nothing said is nobody's lead
    assert rule.stops(probed("a..", "a..", "a.."))
    assert not Consensus(3, share=0.5).stops(probed("a..", "a..", "a.."))
    with pytest.raises(ppl.PPLError, match="no probes"):
        rule.stops(seen(3))


@pytest.mark.parametrize(
    "searcher", [VGB(30, 3), RAIN(6, 2, 3), MCTS(8), SMC(3), BestOfN(3)], ids=repr
)
def test_a_consensus_may_be_asked_of_any_searcher(searcher):
    """Also of those that may show the root for a while, where nobody has said anything."""
    for share in (0.0, 1.0):
        posterior = searcher.run(toy, "prod", seed=2, budget=Budget(settled=Consensus(2, share)))
        assert posterior.best is not None
        assert posterior.log_evidence is None


def spoken(steps: int = 6) -> str:
    """Says early what its answer will be, and goes on."""
    text = TOY.prompt("^")
    first = ""
    for t in range(steps):
        step = pyro.sample(f"s_{t}", TOY(text, max_tokens=1))
        text = text + step
        first = first or step.text
        ppl.answer(first)
        ppl.condition(True)
        if step.finished:
            break
    return first


def test_a_consensus_of_what_unfinished_samples_say_ends_the_search():
    whole = BestOfN(32).run(spoken, seed=4)
    early = BestOfN(32, stop=Consensus(2)).run(spoken, seed=4)
    assert early.stopped == "settled"
    assert early.cost.lm_tokens < whole.cost.lm_tokens
    assert len(early.samples) == 32  # side by side, and stopped together
    assert any(sample.provisional for sample in early.samples)
    assert early.vote() == "a" == whole.vote()


def test_who_has_dissented_for_long_enough():
    rule = Consensus(9, drop=2)
    assert rule.probes == 9
    assert rule.dissenters(probed("aab.", "aab.")) == (2,)
    assert rule.dissenters(probed("aab")) == ()  # once
    assert rule.dissenters(probed("aaab", "aabb")) == (3,)  # one of them came late
    assert rule.dissenters(probed("aab", "abb")) == ()  # the leader changed sides
    assert rule.dissenters(probed("aacb", "aabc")) == (2, 3)  # always against, never the same
    late = Consensus(1, drop=2, warm_up=3)
    assert late.probes == 5
    assert late.dissenters(probed(*["aab"] * 4)) == ()
    assert late.dissenters(probed(*["aab"] * 5)) == (2,)
    assert Consensus(3).dissenters(probed(*["aab"] * 5)) == ()
    assert Settled("beta").dissenters(seen(3, 1)) == ()


def test_dissenters_are_dropped_and_paid_for_as_far_as_they_came():
    rule = Consensus(99, drop=2)
    search = BestOfN(24, stop=rule).begin(spoken, seed=4)
    posterior = search.run()
    # Its leader is "a" from the start, so that all others go two steps, and no further.
    dropped = [node for note in search.notes for node in note["dropped"]]
    nodes = {node.identity: node for node in search.tree.nodes}
    assert len(dropped) > 3
    for node in dropped:
        assert nodes[node].depth == 2
        assert nodes[node].answer != "a"
        assert all(other.parent is not nodes[node] for other in nodes.values())
    assert posterior.stopped == "done"
    assert len(posterior.samples) == 24 - len(dropped)
    assert {s.value for s in posterior.samples if nodes[s.node].depth > 2} == {"a"}
    # What was spent is what all have written, those that were dropped among them.
    assert posterior.cost.lm_tokens == sum(node.cost.lm_tokens for node in nodes.values())
    stopped_only = BestOfN(24, stop=Consensus(99)).run(spoken, seed=4)
    assert posterior.cost.lm_tokens < stopped_only.cost.lm_tokens
    assert posterior.vote() == stopped_only.vote() == "a"
    assert posterior.log_evidence is None


def test_asking_changes_no_sample():
    """Nobody is dropped and nothing stops: the same draws as without a rule."""
    asked = BestOfN(8, stop=Consensus(99)).run(spoken, seed=2)
    assert [s.value for s in asked.samples] == [
        s.value for s in BestOfN(8).run(spoken, seed=2).samples
    ]


def test_who_was_dropped_stays_out_when_others_come_to_agree(tmp_path):
    """The first step says what will lead first; the leader changes at the third."""
    searcher = BestOfN(24, stop=Consensus(99, drop=1))
    search = searcher.begin(changing, seed=1)
    while not search.over:
        search.step()
        search.save(tmp_path / "s")
        search = Search.load(tmp_path / "s")
    whole = searcher.begin(changing, seed=1)
    whole.run()
    assert search.notes == whole.notes
    assert search.tree.cost.lm_tokens == whole.tree.cost.lm_tokens
    assert whole.notes[0]["dropped"]
    assert {s.value for s in whole.posterior().samples} <= {"late", "short"}
    at_first = set(whole.notes[0]["dropped"])
    assert not at_first & {node.parent.identity for node in whole.tree.nodes[1:]}


def changing() -> str:
    text, said = TOY.prompt("^"), "short"
    for t in range(4):
        step = pyro.sample(f"s_{t}", TOY(text, max_tokens=1))
        text = text + step
        if step.finished:
            return "short"
        said = text.text[:1] if t < 2 else "late"
        ppl.answer(said)
        ppl.condition(True)
    return said


def test_a_state_from_before_samples_could_be_dropped_goes_on():
    search = BestOfN(6, stop=Consensus(99, drop=2)).begin(spoken, seed=4)
    search.step()
    search.state = Frontier(search.state.nodes, round=1)
    whole = BestOfN(6, stop=Consensus(99, drop=2)).run(spoken, seed=4)
    assert [s.node for s in search.run().samples] == [s.node for s in whole.samples]


def test_a_search_that_drops_nobody_refuses_to_be_told_to():
    rule = Consensus(2, drop=3)
    with pytest.raises(ppl.PPLError, match=r"MCTS drops nobody.*BestOfN"):
        MCTS(8).run(spoken, seed=0, budget=Budget(settled=rule))
    by_budget = BestOfN(16).run(spoken, seed=4, budget=Budget(settled=rule))
    by_rule = BestOfN(16, stop=rule).run(spoken, seed=4)
    assert by_budget.cost.lm_tokens == by_rule.cost.lm_tokens
    with pytest.raises(ValueError, match="warm_up=2"):
        Consensus(2, warm_up=2)
    with pytest.raises(ValueError, match="drop=0"):
        Consensus(2, drop=0)
