"""The search tree: nodes are particles at checkpoints, and `expand` is the one primitive.

A node knows the segment of its particle's record since its parent's checkpoint; the path from the
root is the particle. The tree keeps the program, the seed, the account and the genealogy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from ppl.errors import SearchStateError
from ppl.language import checks
from ppl.language.arguments import check_fields, checked
from ppl.language.cost import Account, Budget, Cost
from ppl.language.randomness import key
from ppl.runtime.batch import Cancelled, Host
from ppl.runtime.called import Calls
from ppl.runtime.coroutine import this_thread
from ppl.runtime.job import current_job
from ppl.runtime.loop import SHARED, loop_here
from ppl.runtime.node import Node, child_of
from ppl.runtime.particle import DRAWN, Decide, Particle, Segment
from ppl.runtime.program import Program, Task, check_program
from ppl.runtime.turns import TURNS
from ppl.runtime.verdict import JudgeRequest, Scorer, log_potential
from ppl.runtime.wave import Flight, Wave, ask, until


@dataclass
class Tree:
    """Everything one search has grown.

    Args:
        program: the model; a plain callable that uses Pyro's primitives.
        args, kwargs: its arguments.
        guide: a program with the same site names that proposes instead of the model.
        seed: keys all randomness of the search.
        budget: hard limits.
    """

    program: Program
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    guide: Program | None = None
    seed: int = 0
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_program(self.program)
        if self.guide is not None:
            check_program(self.guide, "the guide")
        check_fields(self)
        self.account = Account(self.budget)
        self.calls = Calls()
        self.root = Node(0, None)
        self.nodes: list[Node] = [self.root]
        self._next = 1
        self._flights: list[Flight] = []
        self._host: Host | None = None

    @property
    def cost(self) -> Cost:
        """All that the search has spent."""
        return self.account.cost

    @checked
    def expand(
        self,
        nodes: Sequence[Node],
        counts: int | Sequence[int] = 1,
        decide: Decide | Sequence[Decide | None] | None = None,
        *,
        power: float | Sequence[float] = 1.0,
        quorum: int | None = None,
        alone: bool = False,
    ) -> list[Node]:
        """Forks every node and runs all forks to their next checkpoint, as one batch.

        With a quorum it returns as soon as that many have arrived. The others go on whenever the
        search waits for something: `underway` names them, `collect` gets them, and `abandon` ends
        them where they are, paid as far as they have come. Who arrives first depends on lengths, on
        how many rows a batch holds, and on the pace of servers; what they bring does not.

        Args:
            nodes: open nodes of this tree.
            counts: forks per node, or one number for all.
            decide: is asked, with a site's name and the model's distribution there, for every
                choice that no language model makes: the value to take, or None to draw one. A value
                that is taken has proposal probability 1, so that its log-probability under the
                model goes into the weight: over all values that could be taken, weights sum to what
                drawing would give on average. One for all children, or one for each.
            power: language models draw every token with its probability to this power,
                renormalised, and the weight is corrected; 1 draws as the program says. Of a guide's
                sites, and of sites with `top_p`, it says nothing. For all children, or for each.
            quorum: how many children to wait for, None for all; with 0 they set out, and `collect`
                waits.
            alone: every child draws by itself. Otherwise children of one node may share out a
                choice that says so (`ppl.perturbed`): each still follows its law, so that means
                stay what they are; what relies on independent draws (conditional sweeps, counts
                of tries) has to ask for them.

        Returns:
            The children, in the order of `nodes`, those of one node side by side. With a quorum
            those that have arrived: at least that many, as several may arrive at once.

        Raises:
            BudgetExhausted: the budget does not pay for it; the tree is as before.
            PPLError: a particle failed.
        """
        many = list(decide) if isinstance(decide, Sequence) else [decide]
        powers = [float(p) for p in power] if isinstance(power, Sequence) else [float(power)]
        for each in powers:
            checks.positive(power=each)
        if len(many) == 1:
            many *= len(powers)
        if len(powers) == 1:
            powers *= len(many)
        if len(many) != len(powers):
            raise ValueError(f"power: {len(powers)} for {len(many)} children")
        segments = [
            Segment(decide=d, power=p, alone=alone) for d, p in zip(many, powers, strict=True)
        ]
        return self._grow(nodes, counts, segments, simulated=False, quorum=quorum)

    @property
    def underway(self) -> dict[int, Node]:
        """Children that an `expand` with a quorum left on their way: their numbers, and the nodes
        that they will continue."""
        return {
            flight.first + i: flight.parents[i] for flight in self._flights for i in flight.missing
        }

    @checked
    def collect(self, quorum: int | None = None) -> list[Node]:
        """Waits for children that are underway.

        Args:
            quorum: how many of them to wait for, None for all.

        Returns:
            Those that have arrived since, by number; none if none are underway. After a search was
            loaded from a file they start again, and draw what they would have drawn.

        Raises:
            BudgetExhausted: the budget does not pay for them; they are given up.
            PPLError: a particle failed; it and those expanded with it are given up.
        """
        if quorum is not None:
            checks.count(least=0, quorum=quorum)
        most = len(self.underway)
        wanted = most if quorum is None else min(quorum, most)
        waves = [self._started(flight) for flight in self._flights]

        def over() -> bool:
            new = sum(len(wave.arrived) - len(wave.delivered) for wave in waves)
            return new >= wanted or any(wave.failure is not None for wave in waves)

        for wave in waves:
            wave.wanted = 0  # every arrival is news
        until(waves, over)
        self._check_flights()
        return sorted(
            (child for flight in self._flights[:] for child in self._landed(flight)),
            key=lambda child: child.identity,
        )

    def abandon(self) -> None:
        """Ends all children that are underway; what they have cost is paid."""
        flights, self._flights = self._flights, []
        for flight in flights:
            flight.stop()

    @checked
    def rollout(
        self, nodes: Sequence[Node], horizon: int | None = None, *, greedy: bool = False
    ) -> list[Node]:
        """Simulates one particle ahead from every node; one leaf per node, in order.

        Args:
            nodes: where to start; nodes that cannot be expanded are returned as they are.
            horizon: most checkpoints to pass, None to run to the end.
            greedy: language models give their most likely tokens (temperature 0); other choices
                are drawn.
        """
        if horizon is not None:
            checks.count(least=0, horizon=horizon)
        leaves = list(nodes)
        steps = 0
        while horizon is None or steps < horizon:
            going = [i for i, leaf in enumerate(leaves) if leaf.open]
            if not going:
                break
            segment = Segment(greedy=greedy)
            children = self._grow([leaves[i] for i in going], 1, [segment], simulated=True)
            for i, child in zip(going, children, strict=True):
                leaves[i] = child
            steps += 1
        return leaves

    @checked
    def force(self, nodes: Sequence[Node], examples: Sequence[Node]) -> list[Node]:
        """The child that each node would have with the choices of another node's segment.

        Costs what scoring the choices and judging the new text costs; nothing is drawn.

        Args:
            nodes: open nodes of this tree.
            examples: for each the node whose choices to take.

        Returns:
            A child per node, weighed as if what proposes had proposed these choices. It is dead if
            the segment could not have happened here: other sites, an impossible value, another end.
        """
        if len(nodes) != len(examples):
            raise ValueError(f"{len(examples)} examples for {len(nodes)} nodes")
        choices = [{r.name: r.value for r in e.records if r.kind == "choice"} for e in examples]
        segments = [Segment(forced=values) for values in choices]
        children = self._grow(nodes, 1, segments, simulated=False)
        for child, example, chosen in zip(children, examples, choices, strict=True):
            names = [r.name for r in child.records if r.kind == "choice"]
            if not child.dead and (names != list(chosen) or child.finished != example.finished):
                child.log_increment = child.log_weight = child.log_likelihood = -math.inf
                child.dead_at = names[-1] if names else "the start"
        return children

    @checked
    def score(self, nodes: Sequence[Node], verifier: Scorer) -> list[float]:
        """Judges nodes with a verifier or ranker that the program does not observe.

        Returns:
            Per node log A(s_1 .. s_t) of its text; a ranker's own number.

        Raises:
            BudgetExhausted: the budget does not pay for it; nothing is asked.
            SearchStateError: a node has no text yet.
        """
        requests = []
        for node in nodes:
            if node.text is None:
                raise SearchStateError(
                    f"node {node.identity} has no text to score: its program has not called a "
                    "language model yet"
                )
            requests.append(
                JudgeRequest(
                    verifier,
                    node.text,
                    0,
                    f"node {node.identity}",
                    self.account,
                    key(self.seed, node.identity, verifier.name, "score"),
                )
            )
        return [log_potential(scores, verifier.aggregate) for scores in ask(requests)]

    def _grow(
        self,
        nodes: Sequence[Node],
        counts: int | Sequence[int],
        segments: Sequence[Segment],
        *,
        simulated: bool,
        quorum: int | None = None,
    ) -> list[Node]:
        """`segments` are for each child, or one for all."""
        given: Any = counts
        numbers = [given] * len(nodes) if isinstance(given, Integral) else list(given)
        if len(numbers) != len(nodes) or any(n < 0 for n in numbers):
            raise ValueError(f"counts {numbers} do not fit {len(nodes)} nodes")
        parents: list[Node] = []
        for node, number in zip(nodes, numbers, strict=True):
            if number and not node.open:
                state = "finished" if node.finished else "dead"
                raise ValueError(f"node {node.identity} is {state} and cannot be expanded")
            parents += [node] * number
        if quorum is not None and not 0 <= quorum <= len(parents):
            raise ValueError(f"quorum={quorum}: must be from 0 to {len(parents)}, the children")
        if not parents:
            return []
        if len(segments) == 1:
            segments = [segments[0]] * len(parents)
        if len(segments) != len(parents):
            raise ValueError(f"{len(segments)} of decide= or power= for {len(parents)} children")
        flight = Flight(parents, self._next, segments, simulated, quorum)
        wave = self._started(flight)
        until([wave], lambda: wave.over)
        if wave.failure is not None:
            raise wave.failure
        self._next += len(parents)
        self._flights.append(flight)
        return self._landed(flight)

    def _started(self, flight: Flight) -> Wave:
        """The flight's wave, which runs from now on."""
        wave = flight.wave
        if wave is not None and isinstance(wave.failure, Cancelled):
            wave = None  # an interrupt ended it
        host = self._waiting()
        if wave is None or not wave.move(host, this_thread()):
            flight.offset = [*flight.missing]
            firsts: dict[int, int] = {}
            for i, parent in enumerate(flight.parents):
                firsts.setdefault(parent.identity, flight.first + i)
            particles = [
                self._particle(
                    flight.parents[i],
                    flight.first + i,
                    flight.segments[i],
                    firsts[flight.parents[i].identity],
                )
                for i in flight.offset
            ]
            wave = Wave(host, particles, self.account, flight.quorum)
            wave.start()
        flight.wave = wave
        return wave

    def _waiting(self) -> Host:
        """Who waits here: the search's job, or, outside of searches, the tree itself."""
        job = current_job()
        if job is not None:
            return job
        loop = loop_here()
        if loop is not SHARED:  # inside of another search's program, which waits for this one
            return Host(loop)
        if self._host is None:
            self._host = Host(SHARED)
        if TURNS.taken(self._host.seat):
            raise SearchStateError(
                "two threads use one tree at the same time: give each a search of its own"
            )
        return self._host

    def _landed(self, flight: Flight) -> list[Node]:
        """The children of a flight that have arrived; they are in the tree from now on."""
        wave, children = flight.wave, []
        assert wave is not None
        for index in sorted(wave.arrived.keys() - wave.delivered):
            number = flight.offset[index]
            particle, checkpoint = wave.particles[index], wave.arrived[index]
            children.append(
                child_of(flight.parents[number], particle, checkpoint, flight.simulated)
            )
            wave.delivered.add(index)
            flight.missing.remove(number)
        if not flight.missing:
            self._flights.remove(flight)
        self.nodes += children
        return children

    def _check_flights(self) -> None:
        for flight in self._flights:
            if flight.wave is not None and flight.wave.failure is not None:
                self._flights.remove(flight)
                raise flight.wave.failure

    def _particle(
        self, node: Node, identity: int, segment: Segment = DRAWN, first: int | None = None
    ) -> Particle:
        """A particle that stands at `node`: its own, still running, the first time; then forks."""
        particle, node._particle = node._particle, None
        if particle is not None and particle.thread is not this_thread():
            particle = None  # greenlets belong to a thread, records do not
        if particle is None:
            task = Task(self.program, self.args, self.kwargs, self.guide)
            particle = Particle(
                task,
                node.history,
                seed=self.seed,
                identity=identity,
                ledger=self.account,
                segment=segment,
                calls=self.calls,
                first=first,
            )
        else:
            particle.begin(identity, segment, first)
        return particle

    def close(self) -> None:
        """Ends all particles that still run; the tree stays usable, forks will replay."""
        for flight in self._flights:
            flight.stop()
        for node in self.nodes:
            particle, node._particle = node._particle, None
            if particle is not None and particle.thread is this_thread():
                particle.close()
        self.calls.warn(self.program)

    def __getstate__(self) -> dict[str, Any]:
        # Nodes in order, so that pickling never recurses along a path.
        return {**self.__dict__, "nodes": list(self.nodes), "_host": None}
