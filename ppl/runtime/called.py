"""What becomes of verifiers in a search: a call alone, or a draw, weighs nothing and is easily
taken for an observation."""

from __future__ import annotations

from ppl.runtime.program import Program, warn_of


class Calls:
    """Which verifiers the finished runs of one search have called, and what any run has done with
    them, by name.

    Attributes:
        called: on a text.
        used: their numbers were asked for.
        drawn: at a site without `obs=`.
        weighed: at a site with it, or proposed by a guide.
    """

    def __init__(self) -> None:
        self.called: set[str] = set()
        self.used: set[str] = set()
        self.drawn: set[str] = set()
        self.weighed: set[str] = set()

    def warn(self, program: Program) -> None:
        """Warns of verifiers without any influence; once, the count starts again."""
        for name in sorted(self.called - self.used):
            warn_of(
                program,
                f"verifier {name} was called on texts, but in the whole search nothing that it "
                "says was observed, so it had no influence: observe it, as in "
                f'pyro.sample("ok", {name}(text), obs=True)',
            )
        for name in sorted(self.drawn - self.weighed):
            warn_of(
                program,
                f"verifier {name} was drawn, but nothing that it says was observed, and a draw "
                f'weighs nothing: write obs=True, as in pyro.sample("ok", {name}(text), obs=True); '
                "if a coin is meant, Bernoulli(math.exp(verdict.log_probability)) is one",
            )
        self.called.clear()
        self.drawn.clear()

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        return Calls, ()  # of a search that is continued, the rest counts
