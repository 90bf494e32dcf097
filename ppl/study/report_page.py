"""The report as one HTML page: no network, light and dark, tables that sort by a click."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from string import Template

from ppl.study.report_plots import picture
from ppl.study.sheets import DASH, Results, Sheet, count, interval, percent, scientific, sheets

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1b1f24; --faint: #5d6670; --paper: #ffffff; --rule: #d6dbe1;
  --band: #f4f6f8; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { color-scheme: dark;
  --ink: #e4e8ec; --faint: #9aa4af; --paper: #14181d; --rule: #333b44; --band: #1c2229;
  --link: #7db7f0; } }
:root[data-theme=dark] { color-scheme: dark; --ink: #e4e8ec; --faint: #9aa4af; --paper: #14181d;
  --rule: #333b44; --band: #1c2229; --link: #7db7f0; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header { display: flex; align-items: baseline; gap: 1rem; }
h1 { font-size: 1.5rem; margin: 0; flex: 1; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--rule); }
button { font: inherit; color: var(--ink); background: var(--band); border: 1px solid var(--rule);
  border-radius: .3rem; padding: .1rem .6rem; cursor: pointer; }
p.faint, p.note, li { color: var(--faint); font-size: .9rem; max-width: 60rem; }
a { color: var(--link); }
.scroll { overflow-x: auto; }
figure { margin: 1rem 0; }
figure svg { width: 100%; height: auto; max-width: 60rem; color: var(--ink); }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  margin-top: 1rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid var(--ink); cursor: pointer; }
th.up::after { content: " ▲"; font-size: .7em; } th.down::after { content: " ▼"; font-size: .7em; }
td.word, th.word { text-align: left; }
tbody tr:nth-child(even) { background: var(--band); }
tr.faint td { color: var(--faint); }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--link); }
</style>
</head>
<body>
<header><h1>$title</h1><button id="theme" type="button">light / dark</button></header>
$head
$contents
$sections
<script>
"use strict";
document.getElementById("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
const value = cell => {
  const text = cell.textContent.trim();
  const number = parseFloat(text.replace(/^[~<+]/, "").replace(/,/g, ""));
  return text === "$dash" ? -Infinity : Number.isNaN(number) ? text : number;
};
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], down = !head.classList.contains("down");
  for (const other of head.parentNode.children) other.classList.remove("up", "down");
  head.classList.add(down ? "down" : "up");
  const at = head.cellIndex, sign = down ? -1 : 1;
  const order = [...body.rows].sort((a, b) => {
    const x = value(a.cells[at]), y = value(b.cells[at]);
    return sign * (typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0)
      : typeof x === "number" ? -1 : 1);
  });
  body.append(...order);
};
</script>
</body>
</html>
""")

_EVERY = (
    "searcher", "rule", "N", "% right", "95%", "generated", "prompt", "verifier", "tokens",
    "per right", "FLOPs", "FLOPs per right",
)  # fmt: skip


def page(results: Sequence[Results], head: Sequence[str], *, title: str = "Report") -> str:
    """The whole page."""
    links = "".join(
        f'<li><a href="#s{i}">{escape(str(each.section.group))}</a></li>'
        for i, each in enumerate(results)
    )
    return _PAGE.substitute(
        title=escape(title),
        dash=DASH,
        head="".join(f'<p class="faint">{escape(line)}</p>' for line in head),
        contents=f"<nav><ul>{links}</ul></nav>" if len(results) > 1 else "",
        sections="\n".join(_section(i, each) for i, each in enumerate(results)),
    )


def _section(number: int, results: Results) -> str:
    section = results.section
    drawn = picture(section, "svg").decode()
    svg = re.sub(r"^.*?(?=<svg)", "", drawn, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Names inside a picture are its own: pages hold several.
    svg = re.sub(r'(id="|xlink:href="#|url\(#)', rf"\g<1>p{number}-", svg)
    label = escape(f"Accuracy against tokens: {section.group}", quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    parts = [f'<h2 id="s{number}">{escape(str(section.group))}</h2>', f"<figure>{svg}</figure>"]
    parts += [_table(sheet) for sheet in sheets(results)]
    parts.append(f"<details><summary>Every line</summary>{_table(_every(results))}</details>")
    if section.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(n)}</li>" for n in section.notes) + "</ul>")
    return f"<section>{''.join(parts)}</section>"


def _every(results: Results) -> Sheet:
    """All lines at all sizes."""
    rows = tuple(
        (
            line.searcher + (f" ≤ {line.budget}" if line.budget else ""),
            line.rule,
            str(line.n),
            ("" if line.exact else "~") + percent(line.accuracy),
            interval(*line.interval),
            count(line.cost.lm_tokens),
            count(line.cost.prompt_tokens),
            count(line.cost.verifier_tokens),
            count(line.cost.tokens),
            count(line.tokens_per_right),
            scientific(line.cost.flops),
            scientific(line.flops_per_right),
        )
        for line in results.section.lines
    )
    return Sheet("Every line, a question", _EVERY, rows, words=2)


def _table(sheet: Sheet) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        word = [' class="word"' if i < sheet.words else "" for i in range(len(row))]
        scope = ' scope="col"' if tag == "th" else ""
        return "".join(
            f"<{tag}{w}{scope}>{escape(c)}</{tag}>" for w, c in zip(word, row, strict=True)
        )

    rows = []
    for row in sheet.rows:
        faint = row[0] in ("oracle", "random") or row[0].startswith("tokens,")
        rows.append(f"<tr{' class=faint' if faint else ''}>{cells('td', row)}</tr>")
    note = f'<p class="note">{escape(sheet.note)}</p>' if sheet.note else ""
    return (
        f'<div class="scroll"><table><caption>{escape(sheet.title)}</caption>'
        f"<thead><tr>{cells('th', sheet.columns)}</tr></thead><tbody>{''.join(rows)}</tbody>"
        f"</table></div>{note}"
    )
