"""Golden trees: what each searcher grows on the toy, stored, so that a change of behaviour is seen.

After a change that is meant, write them anew and read the difference:

    python tests/test_golden.py && git diff tests/golden
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import SEARCHERS, toy

from ppl.searchers import Searcher

FOLDER = Path(__file__).parent / "golden"


def grown(searcher: Searcher) -> list[str]:
    """A line per node: its number and its parent's, the symbol, the log-likelihood, its state."""
    search = searcher.begin(toy, "prod", seed=7)
    search.run()
    lines = []
    for node in search.tree.nodes[1:]:
        assert node.parent is not None
        kind = "dead" if node.dead else "finished" if node.finished else "open"
        kind += " simulated" * node.simulated
        line = f"{node.identity} < {node.parent.identity} {node.step or '$'}"
        lines.append(f"{line} {node.log_likelihood:.4f} {kind}")
    results = ", ".join(str(s.value) for s in search.posterior().samples)
    return [*lines, f"results: {results}"]


def file_of(searcher: Searcher) -> Path:
    """Named by the searcher and its place among those of its kind."""
    kind = type(searcher)
    same = [s for s in SEARCHERS if type(s) is kind]
    return FOLDER / f"{kind.__name__}-{same.index(searcher) + 1}.json"


@pytest.mark.parametrize("searcher", SEARCHERS, ids=repr)
def test_trees_grow_as_they_did(searcher):
    stored = json.loads(file_of(searcher).read_text(encoding="utf-8"))
    assert stored["searcher"] == repr(searcher), "written anew by: python tests/test_golden.py"
    assert grown(searcher) == stored["tree"]


def test_no_tree_is_left_over():
    assert {f.name for f in FOLDER.iterdir()} == {file_of(s).name for s in SEARCHERS}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for one in SEARCHERS:
        content = json.dumps({"searcher": repr(one), "tree": grown(one)}, indent=1)
        file_of(one).write_text(content + "\n", encoding="utf-8")
