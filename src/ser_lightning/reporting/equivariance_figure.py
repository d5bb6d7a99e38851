"""Equivariance over depth: one panel per transformation, the score between its companions."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ser_lightning.files import atomic_path

_METRIC = re.compile(r"equivariance/(?:(\w+)/)?([a-z]+)_(?:block(\d+)|(final))")
_TITLES = {"rotation": "Rotation", "flip": "Horizontal flip", "scale": "Resize"}


class _Line(NamedTuple):
    """How a row of the record is drawn, in matplotlib's words."""

    label: str
    color: str
    linestyle: str = "-"
    linewidth: float = 1.6
    marker: str = ""


_LINES = {
    "": _Line("trained", "#0b6fb8", linewidth=2.6, marker="o"),
    "random_init": _Line("random init", "0.25", "--", marker="s"),
    "mean_centred": _Line("trained, mean-centred", "#d1570a", linewidth=2.0, marker="o"),
    "random_init_mean_centred": _Line("random init, mean-centred", "#d1570a", "--", marker="s"),
    "no_action": _Line("trained, no action", "#8a4fb0", "-."),
    "chance": _Line("trained, another image (chance)", "#2a8a4a", ":", 2.0),
}


def equivariance_figure(
    path: str | os.PathLike[str], metrics: Mapping[str, float | None], title: str = ""
) -> None:
    """Draws the metrics of an equivariance record and writes them as PNG, whole or not at all.

    Args:
        path: the PNG; its folder is made if need be.
        metrics: `equivariance/[<row>/]<family>_<block<n> or final>`; others are ignored.
        title: a line at the top.

    Raises:
        ValueError: if there is no such metric.
    """
    curves = _curves(metrics)
    if not curves:
        raise ValueError(
            "no metric is called like equivariance/flip_final; give those of an equivariance record"
        )
    families = sorted({family for family, _ in curves}, key=[*_TITLES, *curves].index)
    figure = Figure(figsize=(4.9 * len(families) + 0.4, 5.6), dpi=110, facecolor="white")
    panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(left=0.055, right=0.985, top=0.84, bottom=0.25, wspace=0.06)
    for axes, family in zip(panels, families, strict=True):
        _draw(axes, {row: curve for (f, row), curve in curves.items() if f == family})
        axes.set_title(_TITLES.get(family, family), fontsize=12, fontweight="bold", loc="left")
    panels[0].set_ylabel("cosine to the map of the transformed image", fontsize=10)
    longest = max(panels, key=lambda axes: len(axes.lines))
    figure.legend(
        *longest.get_legend_handles_labels(), loc="lower center", ncol=3, frameon=False, fontsize=10
    )
    note = "f(g.x) against g.f(x), mean cosine over tokens; 1 is exact equivariance"
    figure.text(
        0.01, 0.97, title or "Equivariance over depth", fontsize=13, va="top", weight="bold"
    )
    figure.text(0.01, 0.915, note, fontsize=10, va="top", color="0.35")
    with atomic_path(Path(path)) as partial, partial.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def _curves(metrics: Mapping[str, float | None]) -> dict[tuple[str, str], dict[int, float]]:
    """Values by depth, for each family and row; the last block is the final one."""
    found = [
        (match, value)
        for name, value in metrics.items()
        if value is not None and (match := _METRIC.fullmatch(name))
    ]
    final = max((int(match[3]) for match, _ in found if match[3]), default=0) + 1
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for match, value in found:
        depth = final if match[4] else int(match[3])
        curves.setdefault((match[2], match[1] or ""), {})[depth] = value
    return curves


def _draw(axes: Axes, curves: Mapping[str, Mapping[int, float]]) -> None:
    """Draws the rows of one family."""
    for row, line in _LINES.items():
        if row in curves:
            depths = sorted(curves[row])
            values = [curves[row][depth] for depth in depths]
            axes.plot(depths, values, markersize=4, **line._asdict())
    depths = sorted({depth for curve in curves.values() for depth in curve})
    step = 1 + len(depths) // 14
    shown = [*depths[:-1:step], depths[-1]]
    axes.set_xticks(shown, [*map(str, shown[:-1]), f"{shown[-1]}\nnorm"], fontsize=9)
    axes.set_xlabel("after block", fontsize=10)
    axes.axhline(1, color="0.8", linewidth=1, zorder=0)
    axes.grid(color="0.92", linewidth=0.8)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
