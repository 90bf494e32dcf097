"""Accuracy against tokens: one picture a section, readable without its text.

Colours are those of Okabe and Ito (2008), told apart by colour-blind readers; every curve has a
marker and its name at its end, so that the picture needs neither colour nor a legend.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ppl.errors import StudyError
from ppl.study.lines import Line
from ppl.study.tables import Section

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#6B6B00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
FIRST = ("vote", "weighted vote", "best", "majority of the bests")
"""Rules that are drawn of what is re-selected; `best (last)` where there is no `best`."""
MOST = len(COLOURS)
_INK = "#010203"  # stands for the page's own colour in SVG
_GREY = "#808080"


@dataclass(frozen=True)
class Curve:
    """Points of one name, from cheap to dear.

    Attributes:
        name: at its end.
        lines: its points.
        frame: whether it is the oracle or the floor, which are drawn without bands.
    """

    name: str
    lines: tuple[Line, ...]
    frame: bool = False


def curves(section: Section) -> list[Curve]:
    """What is drawn of a section: the frame, then up to eight curves.

    A curve has one meaning: means over subsets, or runs as they were. A run of a size that is
    re-selected for that rule is drawn once, as that mean; runs with a limit make a curve of their
    own.
    """
    again_too = {line.curve for line in section.lines if line.reselected}
    found: dict[str, list[Line]] = {}
    for line in section.lines:
        name = line.curve
        if not line.reselected and name in again_too:
            if not line.budget:
                continue
            name += " (limited)"
        found.setdefault(name, []).append(line)
    for each in found.values():
        each.sort(key=lambda line: line.cost.tokens)
    there = {line.rule for line in section.lines if line.reselected}
    wanted = [rule for rule in FIRST if rule in there]
    if "best" not in there:
        wanted += [rule for rule in sorted(there) if rule.startswith("best (")][:1]
    frame, own, again = [], [], []
    for name, lines in found.items():
        first = lines[0]
        if not first.reselected:
            own.append(Curve(name, tuple(lines)))
        elif first.rule in ("oracle", "random"):
            frame.append(Curve(first.rule, tuple(lines), frame=True))
        elif first.rule in wanted:
            again.append(Curve(name, tuple(lines)))
    again.sort(key=lambda curve: wanted.index(curve.lines[0].rule))
    return [*frame, *(again + own)[:MOST]]


def picture(section: Section, kind: Literal["png", "svg"]) -> bytes:
    """The picture of a section.

    Raises:
        StudyError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise StudyError(
            "pictures need matplotlib: pip install 'ppl-search[plots]', or ask for formats without "
            "png, svg and html"
        ) from error
    # Text stays text, and equal reports make equal files.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "ppl", "font.family": "sans-serif"}
    svg = kind == "svg"
    with rc_context({**settings, "font.size": 11}):
        figure = Figure(figsize=(8.4, 4.8), layout="constrained")
        axes: Any = figure.subplots()
        _draw(axes, section, curves(section), _INK)
        file = io.BytesIO()
        if svg:
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
            text = file.getvalue().decode()
            return text.replace(_INK, "currentColor").encode()
        figure.savefig(file, format="png", dpi=160, metadata={"Software": None})
    return file.getvalue()


def _draw(axes: Any, section: Section, drawn: Sequence[Curve], ink: str) -> None:
    ends = []
    real = 0
    for curve in drawn:
        x = np.array([line.cost.tokens for line in curve.lines])
        y = 100 * np.array([line.accuracy for line in curve.lines])
        if curve.frame:
            dashes = "--" if curve.name == "oracle" else ":"
            axes.plot(x, y, dashes, color=_GREY, linewidth=1.4)
            ends.append((x[-1], y[-1], curve.name, _GREY))
            continue
        colour, marker = COLOURS[real], MARKERS[real]
        real += 1
        low, high = 100 * np.array([line.interval for line in curve.lines]).T
        if len(x) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
        else:
            axes.plot([x[0], x[0]], [low[0], high[0]], color=colour, alpha=0.5, linewidth=1.2)
        axes.plot(x, y, "-", color=colour, marker=marker, markersize=5.5, linewidth=1.8)
        ends.append((x[-1], y[-1], curve.name, colour))
    axes.set_xscale("log")
    _ticks(axes, [line.cost.tokens for curve in drawn for line in curve.lines])
    axes.set_xlabel("tokens a question (prompt, generated, read by verifiers)", color=ink)
    axes.set_ylabel("right answers, %", color=ink)
    count = max((len(line.questions) for line in section.lines), default=0)
    axes.set_title(
        f"{section.group}: {count} questions, bands are 95% intervals",
        loc="left", fontsize=11, color=ink,
    )  # fmt: skip
    axes.grid(visible=True, color=_GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GREY)
    axes.tick_params(colors=ink, which="both")
    _labels(axes, ends)


def _ticks(axes: Any, tokens: Sequence[float]) -> None:
    """Round numbers of tokens, written out: 100, 200, 500, 1,000."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(tokens, default=1.0), max(tokens, default=10.0)
    low = max(low, 1e-3)
    high = max(high, low)
    left, right = low / 1.25, high * 1.25
    decades = range(int(np.floor(np.log10(left))), int(np.ceil(np.log10(right))) + 1)
    # The coarsest that leaves enough of them to read a value between two.
    for steps in ((1,), (1, 2, 5), range(1, 10), np.arange(1, 10, 0.5)):
        places = [p for d in decades for m in steps if left <= (p := m * 10.0**d) <= right]
        if len(places) > 2:
            break
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{m:,.0f}" if m == round(m) else f"{m:g}" for m in places])
    axes.set_xlim(left, right)


def _labels(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names to the right of the picture, at the heights of the ends, moved apart."""
    low, high = axes.get_ylim()
    low, high = max(low, -2.0), min(high, 102.0)
    axes.set_ylim(low, high)
    gap = 0.058 * (high - low)
    order = sorted(ends, key=lambda end: end[1])
    heights = [end[1] for end in order]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    over = max(0.0, heights[-1] - high) if heights else 0.0
    for i in reversed(range(len(heights))):
        limit = high if i == len(heights) - 1 else heights[i + 1] - gap
        heights[i] = min(heights[i], limit) if over else heights[i]
    edge = axes.get_xlim()[1]
    for (x, y, name, colour), height in zip(order, heights, strict=True):
        axes.plot(
            [x, edge * 1.02], [y, height], color=colour, linewidth=0.7, alpha=0.6, clip_on=False
        )
        axes.text(edge * 1.04, height, name, color=colour, va="center", fontsize=10)
    axes.set_xlim(right=edge)
