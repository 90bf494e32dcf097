"""A posterior as people see it: a table of its answers, and what they cost."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, Protocol

from ppl.language.cost import Cost
from ppl.language.text import Continuation, Text
from ppl.posterior.lineage import UNFINISHED

_MOST = 10  # answers that are shown
_LONGEST, _LONGEST_HTML = 80, 400  # characters of an answer


class Shown(Protocol):
    """What is looked at of a `Posterior`."""

    log_evidence: float | None
    cost: Cost
    searcher: str

    # Read only, so that more special types will do.
    @property
    def samples(self) -> Sequence[Any]:
        """N particles."""

    @property
    def stopped(self) -> str:
        """Why the search ended."""

    @property
    def probabilities(self) -> Any:
        """`[N]` of the samples."""

    @property
    def ess(self) -> float:
        """The effective sample size."""


def as_text(posterior: Shown) -> str:
    """Lines: the answers, most probable first, then the searcher and the cost."""
    rows = _merged(posterior)
    lines = ["probability  particles     score  answer"] if rows else ["nothing was finished"]
    for probability, number, score, answer in rows[:_MOST]:
        lines.append(f"{probability:11.4f}  {number:9d}  {score:8.4f}  {_cut(answer, _LONGEST)}")
    if len(rows) > _MOST:
        lines.append(_more(rows))
    return "\n".join([*lines, _head(posterior, rows), _cost(posterior)])


def as_html(posterior: Shown) -> str:
    """The same as a table for notebooks. What a model wrote is shown as code, in which no notebook
    looks for formulas between dollars."""
    merged = _merged(posterior)
    rows = "".join(
        f"<tr><td>{probability:.4f}</td><td>{number}</td><td>{score:.4f}</td>"
        "<td style='text-align:left'><code style='white-space:pre-wrap'>"
        f"{html.escape(_cut(answer, _LONGEST_HTML))}</code></td></tr>"
        for probability, number, score, answer in merged[:_MOST]
    )
    more = f"<small>{_more(merged)}</small><br>" if len(merged) > _MOST else ""
    return (
        "<table><thead><tr><th>probability</th><th>particles</th><th>score</th><th>answer</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>"
        f"{more}<code>{html.escape(_head(posterior, merged))}</code><br>"
        f"<small>{html.escape(_cost(posterior))}</small>"
    )


_Row = tuple[float, int, float, str]


def _more(rows: list[_Row]) -> str:
    return f"... and {several(len(rows) - _MOST, 'more answer')}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _merged(posterior: Shown) -> list[_Row]:
    """Answers by falling probability: that, how many particles gave it, their best score, and
    it in quotes, or as Python shows it. Particles without an answer are one entry, the last."""
    merged: dict[tuple[bool, str], tuple[float, int, float]] = {}
    for p, s in zip(posterior.probabilities.tolist(), posterior.samples, strict=True):
        answer = (s.answered, _quoted(s.value) if s.answered else UNFINISHED)
        probability, number, score = merged.get(answer, (0.0, 0, 0.0))
        merged[answer] = probability + p, number + 1, max(score, s.score)
    rows = [(*row, answer) for (_, answer), row in merged.items()]
    answered = [key[0] for key in merged]
    order = sorted(range(len(rows)), key=lambda i: (not answered[i], -rows[i][0], -rows[i][2]))
    return [rows[i] for i in order]


def _quoted(value: Any) -> str:
    return repr(value.text if isinstance(value, Text | Continuation) else value)


def _head(posterior: Shown, rows: list[_Row]) -> str:
    answers = sum(answer != UNFINISHED for *_, answer in rows)
    number = f"{several(answers, 'answer')} of {several(len(posterior.samples), 'particle')}"
    evidence = posterior.log_evidence
    said = "" if evidence is None else f", log evidence {evidence:.4f}"
    return f"{posterior.searcher or 'Posterior'}: {number}, ESS {posterior.ess:.1f}{said}"


def several(number: int, thing: str) -> str:
    """A number with its noun: "1 core", "2 cores"."""
    return f"{number} {thing}{'s' * (number != 1)}"


def _cost(posterior: Shown) -> str:
    c = posterior.cost
    return (
        f"cost: {c.lm_tokens} LM tokens, {c.prompt_tokens} prompt tokens "
        f"({c.reused_tokens} reused), {c.verifier_tokens} verifier tokens, "
        f"{c.calls} calls, {c.seconds:.2f} s"
        + {
            "budget": "; stopped by the budget",
            "settled": "; settled early",
            "expansions": "; out of expansions",
        }.get(posterior.stopped, "")
    )
