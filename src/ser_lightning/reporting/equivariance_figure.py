"""Equivariance over depth: one panel per transformation, the score between its companions.

Where turns by angles were measured, a second row has the score over angles.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ser_lightning.reporting.panels import plain_axes, save_picture, title_at

_METRIC = re.compile(r"equivariance/(?:(\w+)/)?([a-z]+)_(?:block(\d+)|(final))")
_ANGLE = re.compile(r"equivariance/(?:(\w+)/)?turn([\d.]+)_(block\d+|final)")
_TITLES = {"rotation": "Rotation", "flip": "Horizontal flip", "scale": "Resize"}


class _Line(NamedTuple):
    """How a row of the record is drawn, in matplotlib's words."""

    label: str
    color: str
    linestyle: str = "-"
    linewidth: float = 1.6
    marker: str = ""


_LINES = {
    "mean_centred": _Line("backbone", "#0b6fb8", linewidth=2.6, marker="o"),
    "random_init_mean_centred": _Line("random init", "0.25", "--", marker="s"),
    "": _Line("with the mean token: backbone", "#d1570a", marker="o"),
    "random_init": _Line("with the mean token: random init", "#d1570a", "--", marker="s"),
    "no_action": _Line("with the mean token: no action", "#8a4fb0", "-."),
    "chance": _Line("with the mean token: another image (chance)", "#2a8a4a", ":", 2.0),
}


def equivariance_figure(path: Path, metrics: Mapping[str, float | None], title: str = "") -> None:
    """Draws the metrics of an equivariance record and writes them as PNG, whole or not at all.

    Metrics are `equivariance/[<row>/]<family>_<block<n> or final>`; others are ignored.

    Raises:
        ValueError: if there is no such metric.
    """
    curves = _curves(metrics)
    if not curves:
        raise ValueError(
            "no metric is called like equivariance/flip_final; give those of an equivariance record"
        )
    families = [family for family in _TITLES if any(family == other for other, _ in curves)]
    angles = _angle_curves(metrics)
    rows, columns = 1 + bool(angles), max(len(families), len(angles))
    figure = Figure(figsize=(4.9 * columns + 0.4, 4.0 * rows + 1.6), dpi=110, facecolor="white")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    height = figure.get_figheight()
    figure.subplots_adjust(0.27 / columns, 1.4 / height, 0.985, 1 - 1.0 / height, 0.06, 0.3)
    for axes, family in zip(panels[0], families, strict=False):
        _draw(axes, {row: curve for (f, row), curve in curves.items() if f == family})
        axes.set_title(_TITLES[family], fontsize=12, fontweight="bold", loc="left")
    for axes, place in zip(panels[-1], angles, strict=False):
        _draw_angles(axes, angles[place])
        words = f"Turn by any angle, after {_words(place)}"
        axes.set_title(words, fontsize=12, fontweight="bold", loc="left")
    for number, axes in enumerate(panels.ravel()):
        axes.set_visible(bool(axes.lines))
        if number % columns == 0:
            axes.set_ylabel("cosine to the map of the transformed image", fontsize=10)
    longest = max(panels.ravel(), key=lambda axes: len(axes.lines))
    figure.legend(
        *longest.get_legend_handles_labels(), loc="lower center", ncol=3, frameon=False, fontsize=10
    )
    note = (
        "f(g.x) against g.f(x): mean cosine over tokens, without what all have in common (the mean "
        "token); 1 is exact equivariance"
    )
    title_at(figure, title or "Equivariance over depth", note)
    save_picture(figure, path)


def _curves(metrics: Mapping[str, float | None]) -> dict[tuple[str, str], dict[float, float]]:
    """Values by depth, for each family and row; the last block is the final one."""
    found = [
        (match, value)
        for name, value in metrics.items()
        if value is not None and (match := _METRIC.fullmatch(name))
    ]
    final = max((int(match[3]) for match, _ in found if match[3]), default=0) + 1
    curves: dict[tuple[str, str], dict[float, float]] = {}
    for match, value in found:
        depth = final if match[4] else int(match[3])
        curves.setdefault((match[2], match[1] or ""), {})[depth] = value
    return curves


def _angle_curves(
    metrics: Mapping[str, float | None],
) -> dict[str, dict[str, dict[float, float]]]:
    """Values by angle, for each place and row."""
    curves: dict[str, dict[str, dict[float, float]]] = {}
    for name, value in metrics.items():
        if value is not None and (match := _ANGLE.fullmatch(name)):
            rows = curves.setdefault(match[3], {})
            rows.setdefault(match[1] or "", {})[float(match[2])] = value
    return dict(sorted(curves.items()))  # "block..." before "final"


def _draw_angles(axes: Axes, rows: Mapping[str, Mapping[float, float]]) -> None:
    """Draws the rows of one place; quarter turns, which need no sampling, are marked."""
    _draw_rows(axes, rows)
    angles = [angle for curve in rows.values() for angle in curve]
    step = 30 if max(angles) - min(angles) <= 180 else 60
    axes.set_xticks(range(0, int(max(angles)) + 1, step))
    for quarter in (90, 180, 270):
        if min(angles) <= quarter <= max(angles):
            axes.axvline(quarter, color="0.8", linewidth=1, zorder=0)
    axes.set_xlabel("degrees, counter-clockwise", fontsize=10)


def _draw(axes: Axes, curves: Mapping[str, Mapping[float, float]]) -> None:
    """Draws the rows of one family."""
    _draw_rows(axes, curves)
    depths = sorted({depth for curve in curves.values() for depth in curve})
    step = 1 + len(depths) // 14
    shown = [*depths[:-1:step], depths[-1]]
    axes.set_xticks(shown, [*map(str, shown[:-1]), f"{shown[-1]}\nnorm"], fontsize=9)
    axes.set_xlabel("after block", fontsize=10)


def _draw_rows(axes: Axes, curves: Mapping[str, Mapping[float, float]]) -> None:
    for row, line in _LINES.items():
        if row in curves:
            places = sorted(curves[row])
            values = [curves[row][place] for place in places]
            axes.plot(places, values, markersize=4, **line._asdict())
    axes.axhline(1, color="0.8", linewidth=1, zorder=0)
    plain_axes(axes)


def _words(place: str) -> str:
    return "the final norm" if place == "final" else place.replace("block", "block ")
