"""Architectures of Archon: layers of operators, as a program.

    archon = Archon([
        [generate(small, 4), generate(large, 2)],
        critique(large),
        rank(large, 3),
        fuse(large),
    ])
    BestOfN(1).run(archon, question).best

Rules of construction (Saad-Falcon et al. 2024, arXiv 2409.15254, section 3):

1. Generators stand in the first layer, and only there.
2. A layer holds operators of one kind, and only generators and fusers may be several.
3. A critic comes before a ranker or a fuser, which read what it says.
4. Tests are run in the layer after the one that writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ppl.errors import ArgumentError
from ppl.language.arguments import shown
from ppl.language.primitives import parallel
from ppl.programs.archon.drafts import Drafts
from ppl.programs.archon.operators import Operator

Layer = tuple[Operator, ...]


@dataclass(frozen=True, init=False)
class Archon:
    """A program: the question goes in, the first text behind the last layer comes out.

    All sites are those of one particle, so that any searcher runs it, and `BestOfN(1)` is the
    system as published. Nothing in it is observed.

    Attributes:
        layers: each a tuple of operators.
        read: makes the result of the final text, such as `ppl.extract_answer`; None for the text.
    """

    layers: tuple[Layer, ...]
    read: Callable[[str], Any] | None = None

    def __init__(
        self,
        layers: Sequence[Operator | Sequence[Operator]],
        *,
        read: Callable[[str], Any] | None = None,
    ) -> None:
        """A new architecture.

        Raises:
            ArgumentError: it breaks a rule of construction, which is named.
        """
        if isinstance(layers, str | Operator) or not isinstance(layers, Sequence):
            raise ArgumentError(f"layers={shown(layers)}: a list of operators, or of lists of them")
        if read is not None and not callable(read):
            raise ArgumentError(f"read={shown(read)}: a function of the final text, or None")
        for layer in layers:
            if not isinstance(layer, Operator | list | tuple):
                raise ArgumentError(
                    f"layers: {shown(layer)} is no operator, such as generate(lm), and no list of "
                    "operators"
                )
        whole = tuple((x,) if isinstance(x, Operator) else tuple(x) for x in layers)
        check_layers(whole)
        object.__setattr__(self, "layers", whole)
        object.__setattr__(self, "read", read)

    def __call__(self, question: str) -> Any:
        """The final text, or what `read` makes of it."""
        final = self.drafts(question).drafts[0].text
        return final if self.read is None else self.read(final)

    def drafts(self, question: str) -> Drafts:
        """All texts behind the last layer, with where they come from and what went wrong."""
        drafts = Drafts(question)
        for layer in self.layers:
            drafts = _through(layer, drafts)
        return drafts

    @property
    def calls(self) -> int:
        """How often writers and judges are asked for a question, at most. A program that is one may
        make several requests each time."""
        total, size = 0, 0
        for layer in self.layers:
            total += sum(operator.calls(size) for operator in layer)
            size = sum(operator.size(size) for operator in layer)
        return total

    def __repr__(self) -> str:
        return f"Archon({' > '.join('+'.join(o.kind for o in layer) for layer in self.layers)})"


def check_layers(layers: Sequence[Layer]) -> None:
    """Raises ArgumentError for the first rule of construction that is broken."""
    for number, layer in enumerate(layers):
        where = f"layers: layer {number}"
        if not layer or not all(isinstance(operator, Operator) for operator in layer):
            raise ArgumentError(f"{where}: at least one operator, and operators only, got {layer}")
        kinds = {operator.kind for operator in layer}
        if len(kinds) > 1:
            raise ArgumentError(f"{where} holds {' and '.join(sorted(kinds))}: one kind a layer")
        (kind,) = kinds
        if (kind == "generate") != (number == 0):
            raise ArgumentError(
                f"{where} is {kind}: generators stand in the first layer, and only there"
            )
        if len(layer) > 1 and layer[0].alone:
            raise ArgumentError(f"{where} holds {len(layer)} of {kind}: at most one a layer")
        after = [other[0].kind for other in layers[number + 1 :] if other]
        if kind == "critique" and not {"rank", "fuse"} & set(after):
            raise ArgumentError(f"{where}: a critic comes before a ranker or a fuser")
        if kind == "write_tests" and after[:1] != ["run_tests"]:
            raise ArgumentError(f"{where}: run_tests comes right after write_tests")
        if kind == "run_tests" and layers[number - 1][0].kind != "write_tests":
            raise ArgumentError(f"{where}: run_tests comes right after write_tests")
    if not layers:
        raise ArgumentError("layers=[]: at least a generator")


def _through(layer: Layer, drafts: Drafts) -> Drafts:
    """What a layer makes of drafts; several operators work side by side on the same ones."""
    if len(layer) == 1:
        return layer[0](drafts)
    name = f"layer_{drafts.depth}"
    made = parallel([partial(operator, drafts) for operator in layer], name=name)
    new = [
        replace(draft, origin=f"{name}/{i}/{draft.origin}")
        for i, each in enumerate(made)
        for draft in each
    ]
    flags = [flag for each in made for flag in each.flags[len(drafts.flags) :]]
    return drafts.after(new, *flags)
