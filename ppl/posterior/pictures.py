"""Pictures of a search: who descends from whom, and how good each particle looked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx

from ppl.errors import PPLError
from ppl.posterior.posterior import Posterior


def layout(graph: nx.DiGraph[int]) -> dict[int, tuple[float, float]]:
    """Positions for a forest: depth to the right, leaves spread evenly, parents centred."""
    rows: dict[int, float] = {}
    next_row = 0
    roots = [n for n in graph if graph.in_degree(n) == 0]
    for node in nx.dfs_postorder_nodes(graph, roots[0]) if roots else ():
        children = [rows[c] for c in graph.successors(node)]
        if children:
            rows[node] = sum(children) / len(children)
        else:
            rows[node] = float(next_row)
            next_row += 1
    return {n: (float(graph.nodes[n]["depth"]), -row) for n, row in rows.items()}


def draw_genealogy(posterior: Posterior, path: str | Path, *, labels: bool = True) -> None:
    """Draws the genealogy of a search to an image file (the ending gives the format).

    A dot is a particle at a checkpoint, its colour the verifier's value; strong lines lead
    to particles of the final set, pale ones to those that were dropped. A ring marks a finished
    particle, a cross a dead one.

    Args:
        posterior: the result of a search.
        path: for example `"genealogy.png"`.
        labels: write the text of each step beside its dot.

    Raises:
        PPLError: matplotlib is missing, or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PPLError("drawing needs matplotlib: pip install 'ppl-search[plots]'") from error
    graph = posterior.genealogy
    if len(graph) < 2:
        raise PPLError("the search has not expanded any node: there is nothing to draw")
    places = layout(graph)
    kept = {sample.node for sample in posterior.samples}
    kept |= {ancestor for node in kept for ancestor in nx.ancestors(graph, node)}
    rows = 1 + round(-min(y for _, y in places.values()))
    depth = 1 + max(x for x, _ in places.values())
    figure = Figure(figsize=(2.0 + 1.9 * depth, 1.2 + 0.34 * rows), layout="constrained")
    axes = figure.add_subplot()
    for parent, child in graph.edges:
        strong = child in kept
        xs, ys = zip(places[parent], places[child], strict=True)
        axes.plot(xs, ys, color="#35618f" if strong else "#d5d9de", lw=1.6 if strong else 0.8,
                  zorder=2 if strong else 1)  # fmt: skip
    nodes = [n for n in graph if n in places]
    dots = axes.scatter(
        [places[n][0] for n in nodes],
        [places[n][1] for n in nodes],
        c=[min(graph.nodes[n]["value"], 1.0) for n in nodes],
        cmap="RdYlGn",
        vmin=0.0,
        vmax=1.0,
        s=[58 if graph.nodes[n]["finished"] else 30 for n in nodes],
        edgecolors=["#20262e" if graph.nodes[n]["finished"] else "none" for n in nodes],
        zorder=3,
    )
    for n in nodes:
        _annotate(axes, graph.nodes[n], places[n], faded=n not in kept, labels=labels)
    axes.set_title(posterior.searcher, fontsize=10, loc="left")
    axes.set_xlabel("checkpoint")
    axes.set_xlim(-0.3, depth - 0.2)
    axes.set_xticks(range(int(depth)))
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.colorbar(dots, ax=axes, label="verifier's value", shrink=0.7)
    figure.savefig(path, dpi=130)


def _annotate(
    axes: Any, attributes: Any, place: tuple[float, float], *, faded: bool, labels: bool
) -> None:
    if attributes["dead_at"] is not None:
        axes.plot(*place, marker="x", color="#b3261e", zorder=4)
    text = attributes["step"].strip()
    if labels and text:
        short = text if len(text) <= 18 else text[:17] + "…"
        axes.annotate(
            short.replace("$", r"\$"),
            place,
            xytext=(6, 3),
            textcoords="offset points",
            fontsize=7,
            color="#8a929b" if faded else "#20262e",
            family="monospace",
        )
