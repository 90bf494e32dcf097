"""A search as one HTML page that needs nothing but a browser.

The page's own files lie beside this one in `page/`; they are joined with the data of a posterior
into a single file without any address in it. Texts of models are data there, never markup: they
are stored as escaped JSON and shown as text nodes only, and the page forbids itself all loading.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ppl.language.cost import Cost
from ppl.posterior.container import replace_file
from ppl.posterior.lineage import Lineage, Searched, prompt_of, shown, words

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("model.js", "paint.js", "map.js", "outline.js", "panels.js", "main.js")
_FATES = ("kept", "dropped", "dead", "finished", "simulated")
_LONGEST_ANSWER = 200  # characters of an answer in lists; its whole text is in its steps
_NOTEBOOK_HEIGHT = 720


class Page:
    """An HTML page.

    Attributes:
        html: all of it.
        path: where it was written, or None.
    """

    def __init__(self, content: str, path: Path | None = None) -> None:
        self.html, self.path = content, path

    def __str__(self) -> str:
        return self.html

    def __repr__(self) -> str:
        where = "not written" if self.path is None else str(self.path)
        return f"Page({len(self.html)} characters, {where})"

    def _repr_html_(self) -> str:
        """In notebooks the page is shown in a frame of its own, which may run scripts only."""
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" '
            f'style="width:100%;height:{_NOTEBOOK_HEIGHT}px;border:0"></iframe>'
        )


def page(posterior: Searched, path: str | Path | None = None) -> Page:
    """The page of a posterior; written to `path`, whole or not at all, if one is given.

    Raises:
        SearchStateError: the file cannot be written.
    """
    parts = {
        "title": html.escape(clean(posterior.searcher or "Posterior")),
        "css": _file("view.css"),
        "js": "\n".join(_file(name) for name in _SCRIPTS),
        "plain": html.escape(clean(str(posterior))),
        "data": embedded(page_data(posterior)),
    }
    # One pass: what a model wrote may look like a place for something.
    content = re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _file("view.html"))
    if path is None:
        return Page(content)
    replace_file(path, content.encode("utf-8"))
    return Page(content, Path(path))


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: ASCII without `<`, `>` and `&`."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def clean(text: str) -> str:
    """A string as HTML may hold it: no control characters but line ends, no lone surrogates."""
    return re.sub(r"[^\n\t\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def page_data(posterior: Searched) -> dict[str, Any]:
    """What the page knows of a posterior: columns over nodes, candidates, rounds, cost."""
    lineage = Lineage(posterior)
    answers: dict[str, int] = {}
    sites: dict[str, int] = {}

    def answer(text: str) -> int:
        return answers.setdefault(text[:_LONGEST_ANSWER], len(answers))

    candidates = [
        {
            "node": lineage.node_of.get(number, -1),
            "answer": answer(shown(sample)),
            "answered": sample.answered,
            "finished": sample.finished,
            "p": _number(p),
            "lw": _number(sample.log_weight),
            "score": _number(sample.score),
        }
        for number, (sample, p) in enumerate(
            zip(posterior.samples, posterior.probabilities.tolist(), strict=True)
        )
    ]
    rows, vote = lineage.rows, _vote(posterior)
    nodes = {
        "id": [row["node"] for row in rows],
        "parent": lineage.parents,
        "depth": [row["depth"] for row in rows],
        "step": [lineage.written(i) for i in range(len(rows))],
        "sites": {i: row["sites"] for i, row in enumerate(rows) if row.get("sites")},
        "lw": [_number(row["log_weight"]) for row in rows],
        "value": [_number(row["value"]) for row in rows],
        "tokens": [row.get("tokens") for row in rows],
        "fate": [_FATES.index(fate) for fate in lineage.fates],
        "finished": [int(row["finished"]) for row in rows],
        "site": [
            sites.setdefault(row["dead_at"], len(sites)) if row["dead_at"] is not None else -1
            for row in rows
        ],
        "result": [answer(words(row["result"])) if row["finished"] else -1 for row in rows],
    }
    return {
        "searcher": posterior.searcher,
        "prompt": prompt_of(posterior.samples),
        "stopped": posterior.stopped,
        "logEvidence": _number(posterior.log_evidence),
        "ess": _number(posterior.ess),
        "best": lineage.best,
        "vote": vote,
        "nodes": nodes,
        "fates": _FATES,
        "sites": list(sites),
        "answers": list(answers),
        "candidates": candidates,
        "rounds": [_note(note) for note in posterior.history],
        "cost": _cost(posterior.cost),
    }


def _vote(posterior: Searched) -> str | None:
    """The answer of most weight in words, None where there is none."""
    try:
        vote = posterior.vote()
    except TypeError:  # results that cannot be counted can be looked at all the same
        return None
    return None if vote is None else words(vote)[:_LONGEST_ANSWER]


def _cost(cost: Cost) -> dict[str, Any]:
    names = ("lm_tokens", "prompt_tokens", "reused_tokens", "scored_tokens", "verifier_tokens")
    total = {name: getattr(cost, name) for name in (*names, "lm_calls", "verifier_calls")}
    models = {
        name: {
            "written": model.lm_tokens,
            "computed": model.computed_tokens,
            "calls": model.lm_calls + model.verifier_calls,
        }
        for name, model in cost.models.items()
    }
    return {**total, "seconds": _number(cost.seconds), "models": models}


def _note(note: Mapping[str, Any]) -> dict[str, Any]:
    """What of a round's note is a word or a number."""
    found: dict[str, Any] = {}
    for name, value in note.items():
        if isinstance(value, bool | str):
            found[str(name)] = value
        elif isinstance(value, Integral):
            found[str(name)] = int(value)
        elif isinstance(value, Real):
            found[str(name)] = _number(float(value))
    return found


def _number(value: float | None) -> float | None:
    """Six digits of a number; None for one that JSON cannot write (a dead particle's weight)."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def _file(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
