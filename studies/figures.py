"""A study's pictures: what was seen of each statement, and each measure against the layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ser_lightning.reporting.panels import plain_axes, save_picture
from ser_lightning.results.measures import describe
from studies.claims import HOLDS, NOISE, OPPOSITE, Judged, Measure, StudyRow, values

COLOURS = {"SER": "#0b6fb8", "AugSelf": "#d1570a", "EquiMod": "#8a4fb0"}
BASELINE = "0.35"
_VERDICTS = {
    HOLDS: ("#0b6fb8", "o", "#0b6fb8"),
    OPPOSITE: ("#d1570a", "D", "#d1570a"),
    NOISE: ("0.45", "o", "white"),
}
"""Colour, marker and its filling, told apart in grey too."""
_POINTS, _SCORE = "accuracy, points", "equivariance, score"
_LINE = 72  # letters of a statement
_ROW, _FRAME = 0.27, 0.85  # inches
_WIDTH, _WORDS, _NUMBERS = 11.0, 5.1, 1.9  # of the page, and of what stands beside the intervals
_TEXT: dict[str, Any] = {"va": "center", "fontsize": 8, "color": "0.3"}


def statements_figure(path: Path, judged: Sequence[Judged]) -> bool:
    """Draws the interval of each statement and writes them as PNG, whole or not at all.

    Statements without an interval are left out. Says whether there is any.
    """
    panels: dict[str, list[Judged]] = {}
    for each in judged:
        if each.interval is not None:
            is_share = describe(each.claim.measure.metric).digits < 3  # in percent
            panels.setdefault(_POINTS if is_share else _SCORE, []).append(each)
    if not panels:
        return False
    heights = [_ROW * len(found) + _FRAME for found in panels.values()]
    figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=110, facecolor="white")
    top = sum(heights)
    for (title, found), height in zip(panels.items(), heights, strict=True):
        top -= height
        axes = figure.add_axes(
            (
                _WORDS / _WIDTH,
                (top + 0.5) / sum(heights),
                1 - (_WORDS + _NUMBERS) / _WIDTH,
                (height - _FRAME) / sum(heights),
            )
        )
        _draw_statements(axes, found)
        axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
    figure.legend(
        [
            Line2D([], [], color=colour, marker=marker, markerfacecolor=filling)
            for colour, marker, filling in _VERDICTS.values()
        ],
        list(_VERDICTS),
        loc="lower right",
        ncol=3,
        frameon=False,
        fontsize=9,
    )
    save_picture(figure, path)
    return True


def _draw_statements(axes: Axes, judged: Sequence[Judged]) -> None:
    """One line for each statement, the first one at the top."""
    axes.axvline(0, color="0.3", linewidth=1)
    for height, each in zip(range(len(judged))[::-1], judged, strict=True):
        assert each.interval is not None
        difference, low, high = each.interval
        colour, marker, filling = _VERDICTS[each.verdict]
        axes.plot([low, high], [height, height], color=colour, lw=2)
        axes.plot([difference], [height], marker, color=colour, markerfacecolor=filling, ms=6)
        axes.text(1.02, height, each.seen, transform=axes.get_yaxis_transform(), **_TEXT)
    words = [fill(each.claim.text, _LINE) for each in judged]
    axes.set_yticks(range(len(judged))[::-1], words)
    axes.set_ylim(-0.6, len(judged) - 0.4)
    plain_axes(axes, "x")
    axes.tick_params(axis="y", length=0)


def layers_figure(path: Path, rows: Sequence[StudyRow], measures: Mapping[Measure, str]) -> None:
    """Draws one panel per measure and writes them as PNG, whole or not at all.

    Lines join the means over seeds; small dots are single runs. The baseline is a band from its
    smallest to its largest run.

    Args:
        path: the PNG.
        rows: add-ons at layers, and the baseline.
        measures: title by measure, in the order of the panels.
    """
    figure = Figure(figsize=(4.1 * len(measures), 4.3), dpi=110, facecolor="white")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    figure.subplots_adjust(left=0.05, right=0.99, top=0.88, bottom=0.24, wspace=0.24)
    for axes, (measure, title) in zip(panels, measures.items(), strict=True):
        _draw_layers(axes, rows, measure)
        axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
        axes.set_xlabel("the add-on reads block", fontsize=10)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncol=5, frameon=False, fontsize=10)
    save_picture(figure, path)


def _draw_layers(axes: Axes, rows: Sequence[StudyRow], measure: Measure) -> None:
    for row in rows:
        runs = values(row, measure)
        if runs and not row.family:
            axes.axhspan(min(runs), max(runs), color=BASELINE, alpha=0.2, linewidth=0)
            axes.axhline(float(np.mean(runs)), color=BASELINE, linestyle="--", label="MoCo-v3")
    for family, colour in COLOURS.items():
        found = sorted(
            (row.layer, runs)
            for row in rows
            if row.family == family and row.layer is not None and (runs := values(row, measure))
        )
        if not found:
            continue
        means = [float(np.mean(runs)) for _, runs in found]
        axes.plot([layer for layer, _ in found], means, "-o", color=colour, label=family, lw=2)
        for layer, runs in found:
            axes.plot([layer] * len(runs), runs, "o", color=colour, markersize=3, alpha=0.6)
    layers = sorted({r.layer for r in rows if r.family in COLOURS and r.layer is not None})
    if layers:
        axes.set_xticks(layers)
        axes.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
