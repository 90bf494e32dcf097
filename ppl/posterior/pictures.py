"""Pictures of a search: who descends from whom, and how good each particle looked."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import networkx as nx

from ppl.errors import PPLError
from ppl.posterior.lineage import Lineage, shown
from ppl.posterior.posterior import Posterior

_WON, _KEPT, _LOST, _DEAD, _INK = "#2456c4", "#7d8b9b", "#d5d9de", "#c2262e", "#1d2530"
_WIDEST = 40  # particles in a round up to which a round is drawn as a column of particles
_VALUES = ["#d9622b", "#e6c25c", "#12857a"]  # from poor to good, as on the page
Places = dict[int, tuple[float, float]]
_BIGGEST = 210.0  # points^2 of the disc of a particle with all the weight of its round


def layout(graph: nx.DiGraph[int]) -> dict[int, tuple[float, float]]:
    """Positions for a forest: depth to the right, leaves spread evenly, parents centred."""
    rows: dict[int, float] = {}
    next_row = 0
    for root in [n for n in graph if graph.in_degree(n) == 0]:
        for node in nx.dfs_postorder_nodes(graph, root):
            children = [rows[c] for c in graph.successors(node)]
            if children:
                rows[node] = sum(children) / len(children)
            else:
                rows[node] = float(next_row)
                next_row += 1
    return {n: (float(graph.nodes[n]["depth"]), -row) for n, row in rows.items()}


class Picture:
    """A picture, which a notebook shows.

    Attributes:
        figure: the figure of matplotlib, for changes; `figure.savefig(path)` writes it.
    """

    def __init__(self, figure: Any) -> None:
        self.figure = figure

    def __repr__(self) -> str:
        wide, high = self.figure.get_size_inches()
        return f"<Picture of {wide:.1f} x {high:.1f} inches>"

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=100)
        return file.getvalue()


def draw_genealogy(
    posterior: Posterior, path: str | Path | None = None, *, labels: bool = True
) -> Picture:
    """Draws the genealogy of a search, to an image file if a path is given.

    A disc is a particle at a checkpoint: its colour the verifier's value, its size (for particle
    methods) its share of the weight then. Lines lead to children; those that end in nothing were
    dropped, a cross marks a dead one, a ring a finished one. The best particle's line is blue. At
    the right stand the answers, each with its probability as a bar and in percent.
    Particle methods are drawn round by round in one column each, with a dashed line where they
    resampled: big discs fan out there and small ones end. Other searches are drawn as trees.

    Args:
        posterior: the result of a search.
        path: for example `"genealogy.png"`, whose ending gives the format; None writes nothing.
        labels: write the texts of steps: below the columns those of the best particle, in trees
            beside every disc.

    Returns:
        The picture, which a notebook shows.

    Raises:
        PPLError: matplotlib is missing, or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PPLError("drawing needs matplotlib: pip install 'ppl-search[plots]'") from error
    lineage = Lineage(posterior)
    if len(posterior.nodes) < 2:
        raise PPLError("the search has not expanded any node: there is nothing to draw")
    rounds = lineage.rounds()
    widest = max(map(len, rounds))
    weighted = posterior.history and all("ess" in note for note in posterior.history)
    columns = bool(weighted) and widest <= _WIDEST and len(posterior.history) == len(rounds) - 1
    if columns:
        places, high = _columns(lineage, rounds), 0.9 + 0.27 * widest
        figure = Figure(figsize=(2.6 + 1.05 * len(rounds), high), layout="constrained")
    else:
        places = layout(_graph(lineage))
        figure = Figure(
            figsize=(
                3.2 + 1.9 * len(rounds),
                1.2 + 0.34 * (1 - min(y for _, y in places.values())),
            ),
            layout="constrained",
        )
    axes = figure.add_subplot()
    best = None if lineage.best is None else lineage.node_of.get(lineage.best)
    won = set() if best is None else set(lineage.path(best))
    _lines(axes, lineage, places, won)
    dots = _discs(axes, lineage, places, rounds if columns else None, won)
    if columns:
        _rounds(axes, posterior, max(y for _, y in places.values()) + 0.55)
    _endings(axes, posterior, lineage, places, best, room=10 if columns else 18)
    if labels:
        _words(axes, lineage, places, best, below=columns)
    axes.set_title(
        posterior.searcher, fontsize=9, loc="left", color=_KEPT, pad=20 if columns else 6
    )
    axes.set_yticks([])
    axes.set_xlim(-0.25, len(rounds) - 1 + 1.4)
    if not columns:
        axes.set_xlabel("checkpoint")
        axes.set_xticks(range(len(rounds)))
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(dots, ax=axes, label="verifier's value", pad=0.01, aspect=24,
                    shrink=min(0.6, 3.2 / figure.get_figheight()))  # fmt: skip
    if path is not None:
        figure.savefig(path, dpi=130)
    return Picture(figure)


def _graph(lineage: Lineage) -> nx.DiGraph[int]:
    graph: nx.DiGraph[int] = nx.DiGraph()
    for i, row in enumerate(lineage.rows):
        graph.add_node(i, depth=row["depth"])
    graph.add_edges_from((p, i) for i, p in enumerate(lineage.parents) if p >= 0)
    return graph


def _columns(lineage: Lineage, rounds: list[list[int]]) -> Places:
    """A column per round, particles evenly spread in the order of their ancestors: no line crosses
    another. A finished particle keeps its row free."""
    places: Places = {}
    order: dict[int, float] = {}
    rows = max(map(len, rounds))
    waiting: list[int] = []  # finished earlier
    for depth, nodes in enumerate(rounds):
        for rank, i in enumerate(nodes):
            order[i] = order.get(lineage.parents[i], 0.0) + 1e-9 * rank
        column = sorted([*nodes, *waiting], key=lambda i: (order[i], i))
        for row, i in enumerate(column):
            order[i] = float(row)
            if i not in places:
                spread = (row + 0.5) * rows / len(column)
                places[i] = (float(depth), -spread)
        waiting = [i for i in column if lineage.rows[i]["finished"] and lineage.fates[i] == "kept"]
    return places


def _lines(axes: Any, lineage: Lineage, places: Places, won: set[int]) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    for i, parent in enumerate(lineage.parents):
        if parent < 0 or i not in places or parent not in places:
            continue
        (x0, y0), (x1, y1) = places[parent], places[i]
        bend = 0.5 * (x1 - x0)
        codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
        curve = Curve([(x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1, y1)], codes)
        kept = lineage.fates[i] == "kept"
        color, width = (_WON, 3.2) if i in won else (_KEPT, 1.5) if kept else (_LOST, 1.0)
        order = 3 if i in won else 2 if kept else 1
        axes.add_patch(PathPatch(curve, fill=False, ec=color, lw=width, zorder=order))


def _discs(
    axes: Any,
    lineage: Lineage,
    places: Places,
    rounds: list[list[int]] | None,
    won: set[int],
) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    nodes = [i for i in places if lineage.fates[i] != "dead"]
    sizes = dict.fromkeys(nodes, 34.0)
    for column in rounds or []:
        sizes |= _sizes(lineage, column)
    rings = [_INK if lineage.rows[i]["finished"] else _WON if i in won else "white" for i in nodes]
    dots = axes.scatter(
        [places[i][0] for i in nodes],
        [places[i][1] for i in nodes],
        c=[min(lineage.rows[i]["value"], 1.0) for i in nodes],
        cmap=LinearSegmentedColormap.from_list("value", _VALUES),
        vmin=0.0,
        vmax=1.0,
        s=[sizes[i] for i in nodes],
        alpha=[1.0 if lineage.fates[i] in ("kept", "finished") else 0.55 for i in nodes],
        edgecolors=rings,
        linewidths=[0.6 if ring == "white" else 1.3 for ring in rings],
        zorder=4,
    )
    dead = [places[i] for i in places if lineage.fates[i] == "dead"]
    if dead:
        xs, ys = zip(*dead, strict=True)
        axes.scatter(xs, ys, marker="x", s=44, color=_DEAD, lw=2.0, zorder=5)
    return dots


def _sizes(lineage: Lineage, column: list[int]) -> dict[int, float]:
    """Areas of discs: a particle's share of the weight of its round, the biggest of equal size.

    Weights since the last resampling: what was resampled before began anew from equal weights.
    """
    logs = {i: _since(lineage, i) for i in column}
    top = max(logs.values(), default=-math.inf)
    if top == -math.inf:
        return {}
    return {i: 15.0 + _BIGGEST * math.exp(log - top) for i, log in logs.items()}


def _since(lineage: Lineage, i: int) -> float:
    """The log-weight of a node since its lineage was last copied."""
    weight, at = float(lineage.rows[i]["log_weight"]), lineage.parents[i]
    while at >= 0 and lineage.parents[at] >= 0:
        if len(lineage.children[at]) > 1:
            return weight - float(lineage.rows[at]["log_weight"])
        at = lineage.parents[at]
    return weight


def _rounds(axes: Any, posterior: Posterior, top: float) -> None:
    """A dashed line where particles were resampled, between that round and the next."""
    for t, note in enumerate(posterior.history, start=1):
        if note.get("resampled"):
            axes.axvline(t + 0.2, color=_WON, lw=1.0, ls=(0, (3, 3)), alpha=0.6, zorder=0)
            axes.annotate("↻", (t + 0.2, top), ha="center", va="bottom", color=_WON, fontsize=15)


def _endings(
    axes: Any, posterior: Posterior, lineage: Lineage, places: Places, best: int | None, room: int
) -> None:
    """Answers at the right, each with a bar as long as its probability, which stands beside it.

    `room`: small letters that fit before the bar.
    """
    shares = {
        i: float(sum(posterior.probabilities[numbers])) for i, numbers in lineage.carriers.items()
    }
    most = max(shares.values(), default=0.0) or 1.0
    for i, numbers in lineage.carriers.items():
        if i not in places or lineage.children[i]:
            continue
        x, y = places[i]
        p = shares[i]
        answer = shown(posterior.samples[numbers[0]])
        strong = i == best
        star, many = "★ " * strong, f" ×{len(numbers)}" if len(numbers) > 1 else ""
        left = room - len(star) - len(many)
        answer = answer if len(answer) <= left else f"{answer[: left - 1]}…"
        color = _WON if strong else _INK if p > 0.01 else "#98a1ab"
        text = star + answer + many
        large = strong and 11 * len(text) <= 8 * room
        axes.annotate(text.replace("$", r"\$"), (x, y), xytext=(11, 0), va="center", color=color,
                      textcoords="offset points", fontsize=11 if large else 8,
                      weight="bold" if strong else "normal", family="DejaVu Sans Mono")  # fmt: skip
        axes.plot([x + 0.72, x + 0.72 + 0.4 * p / most], [y, y], color=color, lw=6,
                  solid_capstyle="butt", zorder=4)  # fmt: skip
        share = f"{p:.0%}" if p >= 0.005 else "<1%"
        axes.annotate(share, (x + 0.72 + 0.4 * p / most, y), xytext=(4, 0), va="center",
                      color=color, textcoords="offset points", fontsize=7.5)  # fmt: skip


def _words(axes: Any, lineage: Lineage, places: Places, best: int | None, *, below: bool) -> None:
    """What was written: by the best particle below its columns, or by all, beside their discs."""
    if below:
        path = [] if best is None else lineage.path(best)
        axes.set_xticks([places[i][0] for i in path], [_short(lineage, i) for i in path])
        axes.tick_params(
            axis="x", labelsize=9.5, labelcolor=_WON, labelfontfamily="DejaVu Sans Mono"
        )
        return
    for i, place in places.items():
        if i in lineage.carriers and not lineage.children[i]:
            continue  # its answer stands there
        color = _INK if lineage.fates[i] == "kept" else "#8a929b"
        axes.annotate(_short(lineage, i), place, xytext=(6, 3), textcoords="offset points",
                      fontsize=7, color=color, family="DejaVu Sans Mono")  # fmt: skip


def _short(lineage: Lineage, i: int) -> str:
    text = " ".join(lineage.written(i).split())
    return (text if len(text) <= 18 else text[:17] + "…").replace("$", r"\$")
