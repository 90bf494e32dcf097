"""Planning with Gumbel: Danihelka, Guez, Schrittwieser, Silver 2022 (ICLR, "Policy improvement by
planning with Gumbel"), for steps that are sampled instead of enumerated.

    root      draw steps of the program; the k-th draw has G = -ln(E_1 + .. + E_k), E exponential;
              of equal steps the first counts
    repeat    sequential halving: visit the steps of highest G + sigma(q) among those next in turn
    decide    the step of highest G + sigma(q) among the most visited

    visit     go down by argmax pi'(a) - N(a) / (1 + sum_b N(b)), pi' = softmax(logits + sigma(q)),
              draw one step, run the program on to its end, add the value to every node passed
    sigma(q)  (50 + max_b N(b)) * value_scale * q, with q rescaled to [0, 1] among siblings

The paper adds Gumbel noise to the logits of all actions and keeps the m highest. The steps of a
language model cannot be listed, but the G of those with the highest can still be had: let draws
arrive as a Poisson process of rate one. Step a arrives with rate p(a), its first arrival time is
exponential, and minus its logarithm is Gumbel noise plus log p(a), independently for all steps.
So the draws are the m highest of all steps, with exactly the values they have in the paper: the
logit is the step's log-probability, and it is in G already. (New noise on the log-probabilities of
drawn steps would count the probability twice.) For equal q the decision is the first draw, a sample
of the model; for exact q it is never worse than the first draw, whatever the number of simulations.

Inside the tree the deterministic rule has one slot per step to draw, all with the same logit:
drawing has already followed the model (Hubert et al. 2021, "Learning and planning in complex action
spaces", whose prior is the share among the draws). A slot is drawn when first chosen; till then its
q is the paper's mixed value, with the first completion from a node as its own value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from ppl.language import checks
from ppl.language.randomness import generator
from ppl.runtime.node import Node
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.anytime import answers
from ppl.searchers.duplicates import origin
from ppl.searchers.search import Note, Searcher, all_dead
from ppl.searchers.state import State
from ppl.searchers.trees.persistent import IntMap

Floats = NDArray[np.float64]
_VISIT_OFFSET = 50.0


@dataclass(frozen=True)
class Branch:
    """What is known below a node: N, the sum of values, the first of them, the steps drawn."""

    visits: int = 0
    total: float = 0.0
    first: float = 0.0
    children: tuple[Node, ...] = ()

    @property
    def mean(self) -> float:
        """q of the step that leads here; 0 if it was never visited."""
        return self.total / max(self.visits, 1)

    def visited(self, value: float) -> Branch:
        """After one visit more."""
        first = self.first if self.visits else value
        return Branch(self.visits + 1, self.total + value, first, self.children)


@dataclass(frozen=True)
class GumbelState(State):
    """What the next round needs.

    Attributes:
        actions: `[K]` distinct first steps, in the order of their first draws.
        gumbels: `[K]` perturbed log-probabilities, falling.
        branches: by number of node.
        schedule: of sequential halving, the number of actions to visit in each round.
    """

    actions: tuple[Node, ...]
    gumbels: tuple[float, ...]
    branches: IntMap[Branch]
    schedule: tuple[int, ...]


@dataclass(frozen=True)
class GumbelMCTS(Searcher[GumbelState]):
    """Monte Carlo tree search that decides on a first step, good for few simulations (8 to 64).

    Attributes:
        simulations: n, visits of first steps; each costs a completion at most (a step that has
            finished is visited again for free).
        max_actions: m, draws of first steps to choose among; no more than n are drawn. Equal
            draws are one step, so that fewer may be considered.
        width: steps to draw at every deeper node that is visited often enough.
        value_scale: of sigma. 0.1 is that of the paper's Atari agents and of the authors' library;
            its board games have 1.

    The steps of a round are distinct, so their visits are one batch. What proposes is what is
    improved: with a guide, the guide.

    All completions are samples: `posterior.samples[0]` is the best completion of the step decided
    on, followed by the others of this step, best first, and then those of other steps. So `best`
    is the best completion anywhere, as in best-of-N, and `vote()` counts each by its value, whereas
    `samples[0]` trusts the mean of a step's completions and not only one. The last entry of
    `history` has the decision: `"chosen"`, the number of its node. Not a sampler: no evidence.
    """

    simulations: int
    max_actions: int = 16
    width: int = 4
    value_scale: float = 0.1

    def __post_init__(self) -> None:
        checks.count(simulations=self.simulations, max_actions=self.max_actions, width=self.width)
        checks.positive(value_scale=self.value_scale)

    def start(self, tree: Tree) -> GumbelState:
        """Draws the root's actions, perturbs them and plans the halvings."""
        draws = tree.expand([tree.root], min(self.max_actions, self.simulations))
        first: dict[tuple[object, ...], int] = {}
        for k, node in enumerate(draws):
            first.setdefault(origin(node), k)
        kept = list(first.values())
        actions = tuple(draws[k] for k in kept)
        return GumbelState(
            actions,
            tuple(perturbed(len(draws), generator(tree.seed, "gumbel"))[kept].tolist()),
            IntMap({node.identity: Branch() for node in actions}),
            tuple(sequential_halving(len(actions), self.simulations)),
        )

    def step(self, tree: Tree, state: GumbelState) -> tuple[GumbelState, Note]:
        """One visit of each first step whose turn it is."""
        branches = state.branches
        in_turn = self._ranked(state, state.round)[: state.schedule[state.round]]
        paths = [self._descend(action, branches) for action in in_turn]
        growing = [p for p in paths if p[-1].open and branches[p[-1].identity].visits]
        for path, child in zip(growing, tree.expand([p[-1] for p in growing]), strict=True):
            path.append(child)
        leaves = tree.rollout([path[-1] for path in paths])
        for *_, parent, child in growing:
            here = branches[parent.identity]
            grown = replace(here, children=(*here.children, child))
            branches = branches.set(parent.identity, grown).set(child.identity, Branch())
        for path, leaf in zip(paths, leaves, strict=True):
            for node in path:
                here = branches[node.identity].visited(leaf.value)
                branches = branches.set(node.identity, here)
        over = state.round + 1 == len(state.schedule)
        if over and not answers(tree):
            raise all_dead(tree, leaves, self)
        new = state.after(branches=branches, over=over)
        note = {
            "visits": {a.identity: branches[a.identity].visits for a in state.actions},
            "chosen": self._chosen(new).identity,
        }
        return new, note

    def _ranked(self, state: GumbelState, visits: int) -> list[Node]:
        """First steps that have been visited so often, by falling G + sigma(q)."""
        here = [state.branches[a.identity] for a in state.actions]
        most = max(b.visits for b in here)
        scores = np.array(state.gumbels) + sigma([b.mean for b in here], most, self.value_scale)
        order = np.argsort(-scores, kind="stable")
        return [state.actions[i] for i in order if here[i].visits == visits]

    def _chosen(self, state: GumbelState) -> Node:
        most = max(state.branches[a.identity].visits for a in state.actions)
        return self._ranked(state, most)[0]

    def _descend(self, action: Node, branches: Mapping[int, Branch]) -> list[Node]:
        """From a first step to a node that has no value yet, or never changes, or gets a child."""
        path = [action]
        while path[-1].open and branches[path[-1].identity].visits:
            here = branches[path[-1].identity]
            below = [branches[c.identity] for c in here.children]
            means, visits = [b.mean for b in below], [b.visits for b in below]
            slot = interior(means, visits, here.first, self.width, self.value_scale)
            if slot == len(below):
                break
            path.append(here.children[slot])
        return path

    def result(self, tree: Tree, state: GumbelState) -> Result:
        """Answers below the chosen action, best first, then the others; weighted by likelihood."""
        chosen = self._chosen(state)
        own = [node for node in answers(tree) if chosen in node.path]
        others = [node for node in answers(tree) if chosen not in node.path]
        nodes = sorted(own, key=lambda node: -node.log_likelihood) + others
        return Result.by_likelihood(nodes or [chosen])


def perturbed(n: int, rng: np.random.Generator) -> Floats:
    """`[n]` perturbed log-probabilities of n draws: minus the log of their times of arrival."""
    return np.asarray(-np.log(np.cumsum(rng.exponential(size=n))))


def sequential_halving(actions: int, simulations: int) -> list[int]:
    """How many actions to visit in each round (Karnin, Koren, Somekh 2013), as the authors' library
    has it: phases get equal shares of the simulations, at least a visit each; two always remain.
    Those next in turn in round t are the actions with t visits."""
    phases = math.ceil(math.log2(actions)) if actions > 1 else 1
    rounds: list[int] = []
    considered = actions
    while sum(rounds) < simulations:
        rounds += [considered] * max(1, simulations // (phases * considered))
        considered = max(min(2, actions), considered // 2)
    ends = np.minimum(np.cumsum(rounds), simulations)
    return [int(number) for number in np.diff(ends, prepend=0) if number]


def sigma(values: Sequence[float], most_visits: int, value_scale: float) -> Floats:
    """`[K]` values rescaled to [0, 1] and scaled up as visits make them reliable."""
    q: Floats = np.array(values, dtype=np.float64)
    rescaled: Floats = (q - q.min()) / max(float(np.ptp(q)), 1e-8)
    return (_VISIT_OFFSET + most_visits) * value_scale * rescaled


def interior(
    means: Sequence[float], visits: Sequence[int], first: float, width: int, value_scale: float
) -> int:
    """The slot that brings the visits closest to pi', argmax pi'(a) - N(a) / (1 + sum_b N(b)).

    Args:
        means, visits: of the slots drawn so far.
        first: the node's own value.
        width: number of slots; those not drawn yet share the mixed value.
        value_scale: of sigma.
    """
    completed = [*means, *[mixed_value(means, visits, first)] * (width - len(means))]
    counts = np.array([*visits, *[0] * (width - len(means))])
    improved = softmax(sigma(completed, int(counts.max()), value_scale))
    return int(np.argmax(improved - counts / (1 + counts.sum())))


def mixed_value(means: Sequence[float], visits: Sequence[int], first: float) -> float:
    """v_mix, for what was not visited: a node's own value and the mean q of its slots, the latter
    with the weight of all their visits (Danihelka et al. 2022, appendix D, for equal priors)."""
    total = sum(visits)
    return (first + total * float(np.mean(means or [0.0]))) / (1 + total)
