"""The page of a search: what it holds; nothing in it is markup; a browser shows it."""

from __future__ import annotations

import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from chromium import dom, facts, needs_chromium, picture, rows
from programs import contents, toy

import ppl
from ppl.errors import SearchStateError, ToolError
from ppl.posterior import exports
from ppl.posterior.lineage import Lineage
from ppl.posterior.view import page_data
from ppl.searchers import MCTS, SMC

EVIL = [
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "<!--<script>",
    "\"quotes\" 'single' `back` \\ & &amp; {{data}} {{js}}",
    "ünïcödé 数学 🧮 \u2028\u2029 \u202eright to left",
    "".join(map(chr, range(32))) + "\x7f\x85",
    "lone \ud800 surrogate",
    "long " * 20_000,
    "%s $& $1 ]]> --> <!DOCTYPE html>",
]


def made(rows: list[dict[str, Any]], finals: list[int], **settings: Any) -> ppl.Posterior:
    """A posterior of a tree that was written down."""
    samples = [
        ppl.Sample(
            rows[i]["result"], rows[i]["log_weight"], rows[i]["log_weight"], True, i, None, ()
        )
        for i in finals
    ]
    return ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost(), nodes=rows, **settings)


def node(number: int, parent: int | None, depth: int, step: str, **rest: Any) -> dict[str, Any]:
    row = {"log_weight": -0.1 * depth, "value": 0.9**depth, "finished": False, "dead_at": None}
    return {
        "node": number,
        "parent": parent,
        "depth": depth,
        "step": step,
        **row,
        "simulated": False,
        "result": None,
        **rest,
    }


def grown(size: int) -> ppl.Posterior:
    """A search of about so many nodes: chains of nine steps, a fifth killed, a fifth dropped."""
    rows = [node(0, None, 0, "")]
    finals = []
    for chain in range((size - 1) // 9):
        parent = 0
        for depth in range(1, 10):
            number = len(rows)
            end: dict[str, Any] = {}
            if chain % 5 == 3 and depth == 6:
                end = {"log_weight": -math.inf, "value": 0.0, "dead_at": f"check_{chain % 3}"}
            elif depth == 9 and chain % 5 != 4:
                end = {"finished": True, "result": str(chain % 4)}
                finals.append(number)
            rows.append(node(number, parent, depth, f"chain {chain} step {depth}\n", **end))
            if "dead_at" in end:
                break
            parent = number
    return made(rows, finals, searcher=f"Written({size})")


def embedded(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def searched() -> ppl.Posterior:
    return SMC(8, 1.0).run(toy, "prod", seed=0)


# -- what the page holds ---------------------------------------------------------------------------


def test_the_page_says_what_the_posterior_says(searched):
    data = embedded(str(searched.view()))
    assert data["searcher"] == searched.searcher
    assert data["logEvidence"] == pytest.approx(searched.log_evidence, rel=1e-5)
    assert data["vote"] == str(searched.vote())
    assert data["answers"][data["candidates"][data["best"]]["answer"]] == str(searched.best)
    graph = searched.genealogy
    assert data["nodes"]["id"] == list(graph)
    for i, parent in enumerate(data["nodes"]["parent"]):
        number = data["nodes"]["id"][i]
        assert [data["nodes"]["id"][parent]] * (parent >= 0) == list(graph.predecessors(number))
        assert data["nodes"]["step"][i] == graph.nodes[number]["step"]
        assert data["nodes"]["value"][i] == pytest.approx(graph.nodes[number]["value"], rel=1e-5)
    assert [c["p"] for c in data["candidates"]] == pytest.approx(
        searched.probabilities.tolist(), rel=1e-5
    )
    assert [note["resampled"] for note in data["rounds"]] == [
        note["resampled"] for note in searched.history
    ]
    assert data["cost"]["lm_tokens"] == searched.cost.lm_tokens == sum(data["nodes"]["tokens"])


def test_fates_are_told_apart():
    rows = [
        node(0, None, 0, ""),
        node(1, 0, 1, "kept"),
        node(2, 0, 1, "dropped"),
        node(3, 0, 1, "dead", log_weight=-math.inf, dead_at="rule"),
        node(4, 1, 2, "won", finished=True, result="x"),
        node(5, 1, 2, "left", finished=True, result="y"),
        node(6, 1, 2, "tried", simulated=True),
    ]
    lineage = Lineage(made(rows, [4]))
    assert lineage.fates == ["kept", "kept", "dropped", "dead", "kept", "finished", "simulated"]
    data = page_data(made(rows, [4]))
    assert [data["sites"][s] for s in data["nodes"]["site"] if s >= 0] == ["rule"]
    assert data["nodes"]["lw"][3] is None
    assert lineage.path(4) == [0, 1, 4]
    # Rows may come in any order in which they were read.
    assert Lineage(made([rows[0], *rows[:0:-1]], [])).parents[1:].count(0) == 3


def test_a_posterior_of_samples_alone_has_a_page():
    samples = [
        ppl.Sample(v, w, w, True, i, None, ()) for i, (v, w) in enumerate([("a", 0), ("b", -1)])
    ]
    data = embedded(str(ppl.Posterior(samples, log_evidence=None, cost=ppl.Cost()).view()))
    assert data["nodes"]["parent"] == [-1, 0, 0]
    assert [c["node"] for c in data["candidates"]] == [1, 2]
    empty = embedded(str(ppl.Posterior([], log_evidence=None, cost=ppl.Cost()).view()))
    assert (empty["best"], empty["vote"], len(empty["candidates"])) == (None, None, 0)


def test_the_words_of_a_program_belong_to_the_node_that_they_lead_to(tmp_path):
    lm = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", context_length=12)

    def spoken() -> str:
        import pyro

        text = lm.prompt("^")
        for t in range(2):
            text = text + pyro.sample(f"x_{t}", lm(text, max_tokens=1, allowed=[1, 2]))
            pyro.factor(f"f_{t}", 0.0)
            text = text + "ab"
        return text.text

    posterior = SMC(3).run(spoken, seed=0)
    lineage = Lineage(posterior)
    for sample in posterior.samples:
        path = lineage.path(lineage.node_of[posterior.samples.index(sample)])
        written = "".join(lineage.written(i) for i in path)
        assert sample.text.text.startswith(written)
        assert written[1:3] == "ab"
        assert [posterior.nodes[i]["step"] for i in path][1:3] == [written[0], written[3]]
    posterior.save(tmp_path / "p")
    assert page_data(ppl.Posterior.load(tmp_path / "p")) == page_data(posterior)


def deciding() -> str:
    """Chooses, calls and writes two texts in its first segment, and one in its second."""
    lm = ppl.TableLM({"a": 0.5, "b": 0.3, "$": 0.2}, symbols="^ab$", context_length=12)
    pyro.sample("style", pyro.distributions.Bernoulli(torch.ones(())))
    ppl.call("add", lambda a, b: {"sum <b>": a + b}, 3, 4)
    with contextlib.suppress(ToolError):
        ppl.call("fail", lambda: 1 / 0)
    first = lm.prompt("^") + pyro.sample("x", lm(lm.prompt("^"), max_tokens=2, allowed=[1]))
    other = lm.prompt("^b")
    other = other + pyro.sample("y", lm(other, max_tokens=1, allowed=[2]))
    pyro.factor("f", 0.0)
    return (other + pyro.sample("z", lm(other, max_tokens=1, allowed=[2]))).text + first.text


def test_what_was_chosen_and_called_stands_at_its_node(tmp_path):
    posterior = SMC(2).run(deciding, seed=0)
    first, last = posterior.nodes[1], posterior.nodes[-1]
    assert [site for site, _ in first["sites"]] == ["style", "add", "fail", "x", "y"]
    assert dict(first["sites"]) == {
        "style": "1.0",
        "add": "{'sum <b>': 7}",
        "fail": "ZeroDivisionError: division by zero",
        "x": "aa",
        "y": "b",
    }
    lineage = Lineage(posterior)
    assert lineage.written(1) == "aab"  # of both texts, though the node's is the second
    assert lineage.written(len(lineage) - 1) == "b"
    assert "sites" not in last  # the words of one text are the step
    assert "sites" not in exports.frames(posterior).nodes.columns
    posterior.save(tmp_path / "p")
    assert page_data(ppl.Posterior.load(tmp_path / "p")) == page_data(posterior)


@needs_chromium
def test_the_page_shows_and_finds_what_was_chosen_and_called(tmp_path):
    SMC(2).run(deciding, seed=0).view(tmp_path / "p.html")
    content = dom(tmp_path / "p.html", "path=0")
    shown = re.findall(r'<div class="site"[^>]*><b>(.*?)</b> <span>(.*?)</span>', content)
    assert ("add", "{'sum &lt;b&gt;': 7}") in shown
    assert ("fail", "ZeroDivisionError: division by zero") in shown
    assert facts(dom(tmp_path / "p.html", "q=division"))["matches"] == "2"
    assert facts(dom(tmp_path / "p.html", "q=multiplication"))["matches"] == "0"


def test_the_page_is_written_whole_or_not_at_all(searched, tmp_path):
    page = searched.view(tmp_path / "search.html")
    assert (tmp_path / "search.html").read_text(encoding="utf-8") == str(page) == page.html
    assert page.path == tmp_path / "search.html"
    assert [p.name for p in tmp_path.iterdir()] == ["search.html"]
    with pytest.raises(SearchStateError, match="cannot be written"):
        searched.view(tmp_path / "no" / "search.html")
    assert "sandbox" in page._repr_html_()
    before = contents(searched)
    assert str(searched.view()) == str(page)
    assert contents(searched) == before


def test_the_page_needs_no_network_and_forbids_itself_any(searched):
    page = str(searched.view())
    assert not re.search(r"https?://|\burl\(|@import|\bfetch\(|XMLHttp|src=|<link", page)
    assert "default-src 'none'" in page
    assert "innerHTML" not in page


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_nothing_that_a_model_writes_is_markup(evil):
    rows = [
        node(0, None, 0, ""),
        node(1, 0, 1, evil),
        node(2, 1, 2, evil, finished=True, result=evil),
        node(3, 1, 2, evil, log_weight=-math.inf, dead_at=evil[:200]),
    ]
    page = str(made(rows, [2], searcher=evil, history=[{evil[:99]: evil[:99]}]).view())
    page.encode("utf-8")
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    assert page.count("<img") == page.count("<!--") == 0
    data = embedded(page)
    assert data["nodes"]["step"][1:] == [evil] * 3
    assert data["sites"] == [evil[:200]]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page)


# -- in a browser ----------------------------------------------------------------------------------


@needs_chromium
@pytest.mark.parametrize("size", [10, 1000, 10_000])
def test_a_browser_shows_searches_of_all_sizes(size, tmp_path):
    posterior = grown(size)
    posterior.view(tmp_path / "p.html")
    content = dom(tmp_path / "p.html", "fold=none")
    said = facts(content)
    assert said["ready"] == "yes"
    assert int(said["nodes"]) == int(said["visible"]) == len(posterior.nodes)
    assert int(said["elements"]) == len(rows(content)) < 60  # only what is in sight is there
    best = Lineage(posterior)
    assert int(said["lit"]) == len(best.path(best.node_of[best.best]))
    assert rows(content)[0].startswith("0: start")
    assert rows(content)[9].startswith("9: chain 0 step 9; value 0.387; final: 0")


@needs_chromium
def test_search_filter_and_fold_follow_the_address(tmp_path):
    posterior = grown(1000)
    posterior.view(tmp_path / "p.html")
    nodes, chains = len(posterior.nodes), 111

    searched = facts(dom(tmp_path / "p.html", "q=CHAIN%2010%20step"))
    assert searched["matches"] == "9"
    answered = dom(tmp_path / "p.html", "answer=2&path=-1")
    with_two = [c for c in range(chains) if c % 4 == 2 and c % 5 not in (3, 4)]
    assert int(facts(answered)["visible"]) == 1 + 9 * len(with_two)
    assert facts(answered)["answer"] == "2"
    assert all(
        int(found) % 4 == 2 for found in re.findall(r"chain (\d+)", " ".join(rows(answered)))
    )
    folded = facts(dom(tmp_path / "p.html", "fold=3"))
    assert int(folded["visible"]) == 1 + 3 * chains + 6  # all of the highlighted path
    dead = facts(dom(tmp_path / "p.html", "dead=check_1&fold=none"))
    killed = [c for c in range(chains) if c % 5 == 3 and c % 3 == 1]
    assert int(dead["visible"]) == 1 + 6 * len(killed)
    assert dead["lit"] == "7"  # the first of them, from the start on
    kept = facts(dom(tmp_path / "p.html", "dropped=0"))
    assert int(kept["visible"]) == 1 + 9 * len(posterior.samples) < nodes
    # A match opens what is folded.
    both = dom(tmp_path / "p.html", "q=chain%207%20step%208&fold=2")
    assert facts(both)["matches"] == "1"
    assert int(facts(both)["visible"]) == 1 + 2 * chains + 6 + 7  # of the match, the lit


@needs_chromium
def test_the_path_of_a_candidate_is_highlighted_with_its_steps(tmp_path):
    posterior = grown(100)
    posterior.view(tmp_path / "p.html")
    content = dom(tmp_path / "p.html", "path=3")
    lineage = Lineage(posterior)
    path = lineage.path(lineage.node_of[3])
    assert facts(content)["path"] == "3"
    assert int(facts(content)["lit"]) == len(path) == 10
    details = content.partition('id="details"')[2]
    steps = re.findall(r'<td class="text">(.*?)</td>', details)
    assert steps == [lineage.written(i).strip() for i in path[1:]]
    assert f"candidate 3: {posterior.samples[3].value}" in details


def pressed(posterior: ppl.Posterior, folder: Path, keys: list[str], fragment: str = "") -> str:
    """What the page has become after some keys: they are pressed by a script behind its own."""
    presses = f"""<script>
    for (const key of {json.dumps(keys)}) (document.activeElement || document.body).dispatchEvent(
      new KeyboardEvent("keydown", {{ key, bubbles: true, cancelable: true }}));
    </script></body>"""
    page = str(posterior.view()).replace("</body>", presses)
    (folder / "keys.html").write_text(page, encoding="utf-8")
    return dom(folder / "keys.html", fragment)


@needs_chromium
def test_everything_is_reached_by_keys(tmp_path):
    posterior = grown(100)  # eleven chains; the highlighted one is chain 0, its end node 9
    walked = pressed(posterior, tmp_path, ["ArrowUp", "ArrowUp", "ArrowLeft"])
    assert facts(walked)["node"] == "7"
    assert int(facts(walked)["visible"]) == len(posterior.nodes) - 2  # 8 and 9 are folded
    assert 'aria-activedescendant="n7"' in walked
    opened = facts(
        pressed(posterior, tmp_path, ["Home", "ArrowDown", "f", "ArrowRight", "ArrowRight"])
    )
    assert (opened["node"], int(opened["visible"])) == ("2", len(posterior.nodes))
    found = facts(pressed(posterior, tmp_path, ["n", "n", "N"], "q=step%202"))
    assert found["node"] == "2"
    other = pressed(posterior, tmp_path, ["]", "]", "?"])
    assert facts(other)["path"] == "2"
    assert '<div id="keys">' in other  # no longer hidden
    cleared = facts(pressed(posterior, tmp_path, ["Escape"], "q=step&answer=1"))
    assert (cleared["matches"], cleared["answer"]) == ("0", "")


@needs_chromium
def test_the_killing_site_is_named(tmp_path):
    grown(100).view(tmp_path / "p.html")
    content = dom(tmp_path / "p.html", "dead=check_0")
    assert "Killed at the site “check_0”" in content
    assert any(line.endswith("killed at check_0") for line in rows(content))


@needs_chromium
def test_evil_texts_are_shown_as_they_are(tmp_path):
    # dom() fails on any console message: an error of a script, or a load that was refused.
    tree = [node(0, None, 0, "")]
    for number, evil in enumerate(EVIL, start=1):
        tree.append(node(number, number - 1, number, evil))
    tree[-1] |= {"finished": True, "result": EVIL[0]}
    made(tree, [len(EVIL)], searcher=EVIL[0]).view(tmp_path / "p.html")
    content = dom(tmp_path / "p.html", "fold=none")
    assert "<title>&lt;/script&gt;" in content  # as it was, and not 'broken'
    assert content.count("<script") == 2
    assert not re.search(
        r"<img|onerror=\"document[^&]*>", content.partition("<body")[2].partition("<script")[0]
    )
    lines = rows(content)
    assert len(lines) == len(EVIL) + 1
    assert lines[1].startswith(f"1: {EVIL[0]}; value")
    assert "␀␁␂" in lines[6]
    assert "⟨U+D800⟩" in lines[7]
    assert "⟨U+202E⟩" in lines[5]
    assert len(lines[8]) < 400
    assert "… all 100,000 characters" in content


@needs_chromium
def test_real_searches_are_shown_and_painted(searched, tmp_path):
    searched.view(tmp_path / "smc.html")
    posterior = MCTS(12).run(toy, "prod", seed=0)
    posterior.view(tmp_path / "mcts.html")
    said = facts(dom(tmp_path / "mcts.html", "fold=none&theme=dark"))
    assert int(said["visible"]) == len(posterior.nodes)
    assert int(said["drawn"]) > 1
    seen = [
        picture(tmp_path / "smc.html", tmp_path / "s.png", f"theme={theme}")
        for theme in ("light", "dark")
    ]
    assert all(image.startswith(b"\x89PNG") and len(image) > 20_000 for image in seen)
    assert seen[0] != seen[1]


def test_the_pages_own_files_are_packaged():
    import tomllib

    root = Path(__file__).parents[1]
    packaged = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packaged["package-data"]["ppl.posterior"] == ["page/*"]
    names = {p.name for p in (root / "ppl" / "posterior" / "page").iterdir()}
    from ppl.posterior import view

    assert names == {*view._SCRIPTS, "view.html", "view.css"}
