"""A search drawn as text: its steps, what the verifier thought of them, and what became of them."""

from __future__ import annotations

from typing import Any

MOST = 400  # nodes that are drawn
_FATES = {"kept": "", "dropped": "  (dropped)", "simulated": "  (simulated)", "finished": ""}


def drawn(posterior: Any, most: int = MOST) -> str:
    """The tree of a posterior, a node a line: value of the verifier, step, and fate or answer.

    Chains of single children stay in one column. Beyond `most` nodes the rest is left out.
    """
    from ppl.posterior.lineage import Lineage

    lineage = Lineage(posterior)
    lines: list[str] = []
    # (node, what stands before it, what stands before its children)
    waiting = [(root, "", "") for root in reversed(lineage.roots)]
    while waiting and len(lines) < most:
        node, before, below = waiting.pop()
        lines.append(f"{before}{_said(lineage, posterior, node)}")
        children = lineage.children[node]
        if len(children) == 1:
            waiting.append((children[0], below, below))
            continue
        for place, child in reversed(list(enumerate(children))):
            last = place == len(children) - 1
            waiting.append(
                (child, f"{below}{'└─ ' if last else '├─ '}", f"{below}{'   ' if last else '│  '}")
            )
    if waiting:
        lines.append(f"... {len(lineage)} nodes in all: `--save FILE`, then `ppl view FILE`")
    return "\n".join(lines)


def _said(lineage: Any, posterior: Any, node: int) -> str:
    row = lineage.rows[node]
    if lineage.parents[node] < 0:
        return "(question)  value of the verifier, step  = answer  (its probability)"
    value = "      " if row["value"] is None else f"{row['value']:6.3f}"
    said = f"{value}  {lineage.written(node).strip()!r}"
    fate = lineage.fates[node]
    if fate == "dead":
        return f"{said}  (dead{'' if row['dead_at'] is None else ' at ' + str(row['dead_at'])})"
    if row["finished"]:
        weight = sum(float(posterior.probabilities[n]) for n in lineage.carriers.get(node, ()))
        return f"{said}  = {row['result']}" + (f"  ({weight:.3f})" if weight else "")
    return said + _FATES[fate]
