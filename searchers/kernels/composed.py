"""The searcher that a kernel is, with what it promises derived from its parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ppl.language import checks
from ppl.language.arguments import check_fields
from ppl.runtime.result import Result
from ppl.runtime.tree import Tree
from ppl.searchers.kernels.kernel import Chain, Cloud, Kernel, Repeat
from ppl.searchers.search import Note, Searcher, all_dead


@dataclass(frozen=True)
class Going(Cloud):
    """A cloud, and where in its kernel it is.

    Attributes:
        part: number of the part that is next.
        times: how often that part has been done, if it repeats.
    """

    part: int = 0
    times: int = 0


@dataclass(frozen=True)
class Composed(Searcher[Going]):
    """N particles through a kernel. A round is one part of it, or one repetition.

    It offers an evidence exactly if its law says `proper` (`searcher.kernel.law`).

    Attributes:
        num_particles: N at the start; kernels may change it.
        kernel: what happens to them.
    """

    num_particles: int
    kernel: Kernel

    def __post_init__(self) -> None:
        check_fields(self)
        checks.count(num_particles=self.num_particles)

    @property
    def _parts(self) -> tuple[Kernel, ...]:
        return self.kernel.parts if isinstance(self.kernel, Chain) else (self.kernel,)

    def start(self, tree: Tree) -> Going:
        """N particles of equal weight, at the root."""
        cloud = Cloud.of([tree.root] * self.num_particles)
        return Going(cloud.nodes, cloud.weights, cloud.pending, cloud.twists)

    def step(self, tree: Tree, state: Going) -> tuple[Going, Note]:
        """The next part, once."""
        parts, at, done = self._parts, state.part, state.times
        part = parts[at] if at < len(parts) else None
        cloud: Cloud = replace(state, draws=0)
        if isinstance(part, Repeat):
            if not part.over(cloud, done):
                cloud, done = part.once(tree, cloud), done + 1
            if part.over(cloud, done):
                cloud, at, done = part.left(cloud), at + 1, 0
        elif part is not None:
            cloud, at = part(tree, cloud), at + 1
        if cloud.weights.dead:
            raise all_dead(tree, cloud.nodes, self)
        assert isinstance(cloud, Going)
        new = replace(cloud, part=at, times=done)
        note = {"ess": new.weights.ess, "particles": len(new.nodes)}
        return new.after(over=at >= len(parts)), note

    def result(self, tree: Tree, state: Going) -> Result:
        """The particles; their evidence, if the kernel keeps them properly weighted."""
        claims = self.kernel.law.proper and state.over
        evidence = state.weights.log_evidence if claims else None
        return Result(state.nodes, state.weights.tolist(), evidence)
