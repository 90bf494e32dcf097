"""Several rankings at once: each picks its best, nobody picks twice, equal states are one."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import TOY, VERIFIERS, branching, toy

import ppl
from ppl.errors import SearchStateError, VerifierError
from ppl.searchers import BestFirst, MultiPerspective
from ppl.searchers.duplicates import distinct
from ppl.searchers.likelihood import log_prior
from ppl.verifiers import ranker, verifier


def few_b(node: ppl.Node) -> float:
    return -float(str(node.text).count("b"))


def position(node: ppl.Node) -> int:
    return sum(2 * int(r.value) - 1 for r in node.history if r.kind == "choice")


def walk(steps: int, goal: int) -> int:
    """One to the left or to the right at a time, until the goal or the last step."""
    x = 0
    for t in range(steps):
        x += 2 * int(pyro.sample(f"right_{t}", dist.Bernoulli(0.5))) - 1
        pyro.factor(f"at_{t}", torch.tensor(0.1 * x))
        if x == goal:
            break
    return x


@pytest.mark.parametrize(
    "program", [(toy, "prod"), (toy, "last"), (branching,)], ids=["prod", "last", "branching"]
)
@pytest.mark.parametrize("seed", range(5))
def test_one_perspective_is_best_first(program, seed):
    """The likelihood alone, by name or as a function: node by node what BestFirst grows."""

    def trees(searcher):
        search = searcher.begin(*program, seed=seed)
        posterior = search.run()
        nodes = [(n.identity, n.parent.identity, n.step) for n in search.tree.nodes[1:]]
        return nodes, [(s.node, s.value, s.log_weight) for s in posterior.samples]

    best_first = trees(BestFirst(7, 3))
    assert trees(MultiPerspective(7, 3, ("likelihood",))) == best_first
    assert trees(MultiPerspective(7, 3, (lambda node: node.log_promise,))) == best_first


def long() -> str:
    text = TOY.prompt("^")
    for t in range(6):
        text += pyro.sample(f"step_{t}", TOY(text, max_tokens=1))
        pyro.sample(f"ok_{t}", VERIFIERS["last"](text), obs=True)
        if text.finished:
            break
    return text.text


SCORES = {
    "likelihood": lambda node: node.log_likelihood,
    "prior": log_prior,
    "shortest": lambda node: -len(node.text.tokens),
    few_b: few_b,
}


@pytest.mark.parametrize(
    "perspectives", [tuple(SCORES), (few_b, "likelihood", few_b)], ids=["names", "functions"]
)
@pytest.mark.parametrize("seed", range(3))
def test_every_round_takes_the_best_of_each_perspective_in_one_batch(
    perspectives, seed, monkeypatch
):
    """The frontier is kept by hand, and every pick compared with the argmax over what is left."""
    batches, expand = [], ppl.Tree.expand

    def noted(tree, nodes, counts=1):
        batches.append([node.identity for node in nodes])
        return expand(tree, nodes, counts)

    monkeypatch.setattr(ppl.Tree, "expand", noted)
    search = MultiPerspective(14, 3, perspectives).begin(long, seed=seed)
    search.run()
    assert batches[0] == [0]
    waiting, expanded = [search.tree.root], 0
    for batch in batches:
        if batch != [0]:
            assert len(batch) == min(len(perspectives), len(waiting), 14 - expanded)
            left = list(waiting)
            for name, popped in zip(perspectives, batch, strict=False):
                best = max(left, key=SCORES[name])  # of equals the first: first come, first served
                assert popped == best.identity
                left.remove(best)
        expanded += len(batch)
        waiting = [node for node in waiting if node.identity not in batch]
        children = [n for n in search.tree.nodes[1:] if n.parent.identity in batch]
        waiting += [child for child in distinct(children) if child.open]
    assert expanded == 14 or (seed == 0 and not waiting)


def test_a_bad_critic_does_not_trap_the_search():
    """The observed likelihood loves an endless corridor; the answer is the least of all steps."""

    def maze():
        text = TOY.prompt("^")
        for t in range(30):
            text += pyro.sample(f"s_{t}", TOY(text, max_tokens=1, allowed=TOY.encode("ab")))
            pyro.factor(f"critic_{t}", torch.tensor(1.0 if text.text[0] == "a" else -1.0))
            if text.text == "bb":
                break
        return text.text

    trapped = BestFirst(14, 6).run(maze, seed=0)
    assert trapped.best is not None  # run on to its end, which nobody chose
    assert trapped.best.startswith("a")
    free = MultiPerspective(14, 6).run(maze, seed=0)
    assert free.best == "bb"


def test_equal_states_are_expanded_once_and_none_returns_to_an_ancestors():
    plain = MultiPerspective(30, 4, ("likelihood", few_b)).begin(walk, 9, 4, seed=1)
    search = MultiPerspective(30, 4, ("likelihood", few_b), position).begin(walk, 9, 4, seed=1)
    for each in (plain, search):
        each.run()

    def places(each):
        nodes = {n.identity: n for n in each.tree.nodes}
        return [position(nodes[i]) for note in each.notes for i in note["nodes"]][1:]

    assert len(set(places(plain))) < len(places(plain))
    assert len(set(places(search))) == len(places(search))
    # The origin is the root's state, which has no text and no choice: it may be entered once.
    assert set(places(search)) <= set(range(-8, 4))
    assert 4 in {sample.value for sample in search.posterior().samples}


def test_a_search_of_duplicates_only_says_so():
    searcher = MultiPerspective(9, 2, ("likelihood",), normal_form=lambda node: "all the same")
    with pytest.raises(SearchStateError, match="normal_form"):
        searcher.run(walk, 9, 4, seed=0)


def test_verifiers_and_rankers_judge_every_open_node_once():
    judged: list[str] = []

    @verifier(aggregate="last")
    def likes_b(text):
        judged.append(text.text)
        return (1 + text.text.count("b")) / 5

    @ranker
    def likes_a(text):
        return 100.0 * text.text.count("a")

    searcher = MultiPerspective(10, 3, (likes_b, likes_a))
    search = searcher.begin(toy, "last", seed=3)
    posterior = search.run()
    rules = (lambda n: math.log((1 + n.text.text.count("b")) / 5), lambda n: n.text.text.count("a"))
    same = MultiPerspective(10, 3, rules).begin(toy, "last", seed=3)
    same.run()
    assert [n.step for n in search.tree.nodes] == [n.step for n in same.tree.nodes]
    ranked = posterior.cost.verifier_calls - same.posterior().cost.verifier_calls
    assert ranked == 2 * len(judged)
    assert len(judged) <= sum(node.open for node in search.tree.nodes[1:])
    for limit in range(0, posterior.cost.calls, 7):
        assert searcher.run(toy, "last", seed=3, budget=ppl.Budget(calls=limit)).cost.calls <= limit


def width_of(draws: list[str], most: int) -> int:
    """The rule, from its formula."""
    shares = [draws.count(d) / len(draws) for d in set(draws)]
    entropy = sum(-p * math.log(p) for p in shares)
    return max(len(draws), min(most, round(most * entropy / math.log(len(draws)))))


def test_undecided_nodes_are_drawn_more_of():
    """Per node: as many children as the entropy of the first three says, by tree and formula."""
    searcher = MultiPerspective(8, 3, ("likelihood", few_b), most_expansions=9)
    search = searcher.begin(long, seed=4)
    search.run()
    widths = set()
    children: dict[int, list[ppl.Node]] = {}
    for node in search.tree.nodes[1:]:
        if not node.simulated:
            children.setdefault(node.parent.identity, []).append(node)
    for drawn in children.values():
        steps = [child.step for child in drawn]
        assert len(steps) == width_of(steps[:3], 9)
        widths.add(len(steps))
    assert {3, 9} < widths  # and one between: 9 * .579 is 5
    assert widths == {3, 5, 9}
    same = MultiPerspective(8, 3, ("likelihood", few_b), most_expansions=3).begin(long, seed=4)
    plain = MultiPerspective(8, 3, ("likelihood", few_b)).begin(long, seed=4)
    for each in (same, plain):
        each.run()
    assert [n.step for n in same.tree.nodes] == [n.step for n in plain.tree.nodes]
    assert repr(searcher).endswith("most_expansions=9)")


def test_widths_that_cannot_adapt_are_refused():
    for k, most in ((1, 4), (4, 3), (2, 0)):
        with pytest.raises(ValueError, match="most_expansions="):
            MultiPerspective(3, k, most_expansions=most)


def test_a_saved_search_with_functions_goes_on(tmp_path):
    searcher = MultiPerspective(6, 3, ("prior", few_b), normal_form=log_prior)
    search = searcher.begin(toy, "last", seed=2)
    search.step()
    search.step()
    search.save(tmp_path / "search")
    resumed = ppl.searchers.Search.load(tmp_path / "search")
    assert resumed.searcher == searcher
    whole = searcher.run(toy, "last", seed=2)
    assert [s.node for s in resumed.run().samples] == [s.node for s in whole.samples]


def test_bad_perspectives_are_named():
    for wrong in [(), ["likelihood"], ("likelyhood",), (3,)]:
        with pytest.raises(ValueError, match="perspective"):
            MultiPerspective(3, perspectives=wrong)
    for said in (math.nan, None, "best"):
        with pytest.raises(VerifierError, match=rf"gave {said!r} for node 1"):
            MultiPerspective(3, 1, (lambda node, said=said: said,)).run(walk, 9, 4, seed=0)


def test_equal_tensors_make_no_width():
    """Of a Pyro choice that always comes out the same there is nothing more to be drawn."""

    def out_of(values: int) -> int:
        x = int(pyro.sample("x", dist.Categorical(torch.ones(values) / values)))
        pyro.factor("f", torch.tensor(0.0))
        return x

    for values, nodes in ((1, 4), (1000, 8)):
        search = MultiPerspective(1, 4, most_expansions=8).begin(out_of, values, seed=1)
        search.step()
        assert len(search.tree.nodes) - 1 == nodes
