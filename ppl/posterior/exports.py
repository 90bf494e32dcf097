"""A posterior for other programs: GraphML, Mermaid, pandas, ArviZ. (`genealogy` is networkx.)"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ppl.errors import PPLError
from ppl.language.randomness import generator
from ppl.posterior.container import replace_file
from ppl.posterior.lineage import Lineage, Searched, shown, words

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LABEL = 40  # characters of a step in a Mermaid box


class Frames(NamedTuple):
    """Data frames of a posterior.

    Attributes:
        samples: a row per particle.
        nodes: a row per node of the search, with its fate.
        rounds: a row per round, as the searcher noted it.
    """

    samples: Any
    nodes: Any
    rounds: Any


def graphml(posterior: Searched, path: str | Path) -> None:
    """Writes the genealogy as GraphML, for Gephi, yEd or networkx.

    XML has no control characters: they are written as Python escapes them. Attributes that a node
    does not have are left out, among them the `log_weight` of a dead one, which is minus infinity.
    """
    lineage = Lineage(posterior)
    graph: nx.DiGraph[int] = nx.DiGraph(searcher=_xml(posterior.searcher))
    for i, row in enumerate(lineage.rows):
        attributes: dict[str, Any] = {
            "depth": int(row["depth"]),
            "step": _xml(lineage.written(i)),
            "value": float(row["value"]),
            "finished": bool(row["finished"]),
            "simulated": bool(row["simulated"]),
            "fate": lineage.fates[i],
            "probability": float(sum(posterior.probabilities[lineage.carriers.get(i, [])])),
        }
        if math.isfinite(row["log_weight"]):
            attributes["log_weight"] = float(row["log_weight"])
        if row["dead_at"] is not None:
            attributes["dead_at"] = _xml(row["dead_at"])
        if row["finished"]:
            attributes["result"] = _xml(words(row["result"]))
        graph.add_node(i, node=int(row["node"]), **attributes)
    graph.add_edges_from((p, i) for i, p in enumerate(lineage.parents) if p >= 0)
    lines = '<?xml version="1.0" encoding="utf-8"?>\n' + "\n".join(nx.generate_graphml(graph))
    replace_file(path, (lines + "\n").encode("utf-8"))


def mermaid(posterior: Searched, most: int = 60) -> str:
    """The genealogy as a Mermaid flowchart, which Markdown pages draw.

    Args:
        posterior: a posterior.
        most: most nodes to draw; those on the best particle's path first, then what was kept.
    """
    lineage = Lineage(posterior)
    won = set() if lineage.best is None else set(lineage.path(_end(lineage, lineage.best)))
    order = sorted(range(len(lineage)), key=lambda i: (i not in won, lineage.fates[i] != "kept", i))
    chosen = set[int]()
    for i in order:
        path = [j for j in lineage.path(i) if j not in chosen]
        if len(chosen) + len(path) <= most:
            chosen.update(path)
    lines = ["flowchart LR"]
    for i in sorted(chosen):
        row = lineage.rows[i]
        label = _label(lineage.written(i)) or ("start" if lineage.parents[i] < 0 else "...")
        if row["dead_at"] is not None:
            label += f" &#10007; {_label(row['dead_at'])}"
        elif lineage.parents[i] >= 0:
            label += f"<br>{row['value']:.3f}"
        kind = "won" if i in won else lineage.fates[i]
        edges = ('(["', '"])') if row["finished"] else ('["', '"]')
        lines.append(f"  n{i}{edges[0]}{label}{edges[1]}:::{kind}")
        if lineage.parents[i] >= 0:
            lines.append(f"  n{lineage.parents[i]} {'==>' if i in won else '-->'} n{i}")
    left = len(lineage) - len(chosen)
    if left:
        lines.append(f'  more["{left} more nodes"]:::dropped')
    return "\n".join([*lines, *(f"  classDef {name} {style}" for name, style in _STYLES.items())])


_STYLES = {
    "won": "fill:#e6edfb,stroke:#2456c4,stroke-width:2px,color:#1d2530",
    "kept": "fill:#ffffff,stroke:#7d8b9b,color:#1d2530",
    "finished": "fill:#f4f5f6,stroke:#7d8b9b,color:#5d6875",
    "dropped": "fill:#f4f5f6,stroke:#d7dbdf,color:#98a1ab",
    "simulated": "fill:#f4f5f6,stroke:#d7dbdf,stroke-dasharray:3,color:#98a1ab",
    "dead": "fill:#fbe9e8,stroke:#c2262e,color:#c2262e",
}


def frames(posterior: Searched) -> Frames:
    """Pandas frames of samples, nodes and rounds.

    Raises:
        PPLError: pandas is missing.
    """
    try:
        import pandas as pd  # type: ignore[import-untyped]
    except ImportError as error:
        raise PPLError("frames need pandas: pip install pandas") from error
    lineage = Lineage(posterior)
    samples = [
        {
            "answer": shown(s),
            "value": s.value,
            "finished": s.finished,
            "provisional": s.provisional,
            "probability": float(p),
            "log_weight": s.log_weight,
            "log_likelihood": s.log_likelihood,
            "score": s.score,
            "log_joint": s.log_joint,
            "node": s.node,
            "text": None if s.text is None else s.text.text,
        }
        for s, p in zip(posterior.samples, posterior.probabilities, strict=True)
    ]
    nodes = [
        {
            **{name: value for name, value in row.items() if name not in ("written", "sites")},
            "step": lineage.written(i),
            "children": len(lineage.children[i]),
            "fate": lineage.fates[i],
        }
        for i, row in enumerate(lineage.rows)
    ]
    rounds = pd.DataFrame([dict(note) for note in posterior.history])
    rounds.index = pd.RangeIndex(1, len(rounds) + 1, name="round")
    return Frames(pd.DataFrame(samples), pd.DataFrame(nodes).set_index("node"), rounds)


def arviz(posterior: Searched, draws: int | None = None, *, seed: int = 0) -> Any:
    """The posterior for ArviZ: one chain, a draw per particle (or per resampled particle).

    Numeric results are the variable `value`; other results are `answer`, the number of the answer
    in its attribute `answers`. Numeric choices that all particles made are variables by their
    sites. `sample_stats` has `log_weight`, `probability`, `log_likelihood`, `lp` (the log joint
    density), `finished`, and `ancestor[draw, checkpoint]`: the number of the particle's node at
    each checkpoint, -1 once it had finished.

    Args:
        posterior: a posterior.
        draws: so many particles drawn with their probabilities, as equal ones: what ArviZ's own
            summaries expect. None keeps the particles as they are, with their weights beside them.
        seed: of the draws.

    Returns:
        An `InferenceData` of ArviZ 0.x, a `DataTree` of ArviZ 1.x.

    Raises:
        PPLError: ArviZ is missing, or there is no particle of positive weight.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 0.23 announces 1.0 at every import
            import arviz as az
    except ImportError as error:
        raise PPLError("this export needs ArviZ: pip install arviz") from error
    p = posterior.probabilities
    if not p.sum() > 0:
        raise PPLError("there is no particle of positive weight to export")
    chosen = np.arange(len(p))
    if draws is not None:
        chosen = np.sort(generator(seed, "arviz").choice(len(p), size=draws, p=p))
    samples = [posterior.samples[i] for i in chosen]
    variables, answers = _variables(samples)
    stats = {
        "log_weight": np.array([s.log_weight for s in samples]),
        "probability": p[chosen] if draws is None else np.full(draws, 1.0 / draws),
        "log_likelihood": np.array([s.log_likelihood for s in samples]),
        "lp": np.array([s.log_joint for s in samples]),
        "finished": np.array([s.finished for s in samples]),
        "ancestor": _ancestors(Lineage(posterior), chosen),
    }
    groups: dict[str, Any] = {
        name: {k: v[np.newaxis] for k, v in group.items()}  # [1, N, ...]
        for name, group in (("posterior", variables), ("sample_stats", stats))
    }
    dims = {"ancestor": ["checkpoint"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "posterior" in inspect.signature(az.from_dict).parameters:  # ArviZ 0.x
            data = az.from_dict(**groups, dims=dims)
        else:  # pragma: no cover (ArviZ 1.x)
            data = az.from_dict(groups, dims=dims)
    for name in groups:
        data[name].attrs["searcher"] = posterior.searcher
        if posterior.log_evidence is not None:
            data[name].attrs["log_evidence"] = posterior.log_evidence
    if answers:
        data["posterior"]["answer"].attrs["answers"] = answers
    return data


def _variables(samples: Sequence[Any]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """`[N, ...]` numbers by name: the result, and choices that all made; what answers stand for."""
    found: dict[str, NDArray[Any]] = {}
    answers: list[str] = []
    values = [_numeric(s.value) for s in samples]
    if all(v is not None and v.shape == () for v in values):
        found["value"] = np.array(values, dtype=float)
    else:
        said = [shown(s) for s in samples]
        answers = sorted(set(said))
        found["answer"] = np.array([answers.index(each) for each in said])
    each = [{r.name: r.value for r in s.records if r.kind == "choice"} for s in samples]
    for name in each[0]:
        drawn = [_numeric(choices.get(name)) for choices in each]
        kept = [v for v in drawn if v is not None]
        if len(kept) == len(each) and len({v.shape for v in kept}) == 1:
            found[name if name not in found else f"site_{name}"] = np.stack(kept)
    return found, answers


def _numeric(value: Any) -> NDArray[Any] | None:
    """A number, or an array or tensor of them; None for anything else."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, bool | int | float | np.number | np.ndarray):
        array = np.asarray(value)
        return array.astype(float) if array.dtype.kind in "biuf" else None
    return None


def _ancestors(lineage: Lineage, chosen: NDArray[Any]) -> NDArray[np.int64]:
    """`[N, checkpoints]` numbers of the nodes that each particle came through, -1 after its end."""
    paths = [lineage.path(i) if (i := lineage.node_of.get(int(n))) is not None else []
             for n in chosen]  # fmt: skip
    found = np.full((len(paths), max(map(len, paths), default=0)), -1, dtype=np.int64)
    for row, path in zip(found, paths, strict=True):
        row[: len(path)] = [lineage.rows[i]["node"] for i in path]
    return found


def _end(lineage: Lineage, number: int) -> int:
    return lineage.node_of.get(number, 0)


def _xml(text: str) -> str:
    return _NOT_XML.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def _label(text: str) -> str:
    """Text inside a Mermaid label: nothing in it is markup."""
    line = " ".join(_NOT_XML.sub("\ufffd", text).split())
    line = line if len(line) <= _LABEL else line[: _LABEL - 1] + "…"
    return "".join(c if c.isalnum() or c in " .,=+-…" else f"&#{ord(c)};" for c in line)
