"""The local equivariance error by block: a panel per transformation, beside random weights."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ser_lightning.reporting.panels import plain_axes, save_picture, title_at

_METRIC = re.compile(r"lee/(relative|random_init_relative|no_action)/(\w+?)_(block\d+|final|cls)")
_BARS = (
    ("relative", "backbone", "#0b6fb8", ""),
    ("random_init_relative", "random init", "0.85", "///"),
)
_COLUMNS = 3


def lee_figure(path: Path, metrics: Mapping[str, float | None], title: str = "") -> None:
    """Draws the relative errors of a record and writes them as PNG, whole or not at all.

    Metrics are `lee/<row>/<transformation>_<place>`; others are ignored.

    Raises:
        ValueError: if there is no such metric.
    """
    found = {
        match.groups(): value
        for name, value in metrics.items()
        if value is not None and (match := _METRIC.fullmatch(name))
    }
    if not found:
        raise ValueError(
            "no metric is called like lee/relative/rotation_cls; give those of a lee record"
        )
    names = list(dict.fromkeys(name for _, name, _ in found))
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.9 * columns, 3.1 * rows + 1.5), dpi=110, facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    edge = 1.5 / (3.1 * rows + 1.5)
    figure.subplots_adjust(0.06, 0.56 * edge, 0.985, 1 - 0.62 * edge, wspace=0.16, hspace=0.36)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels, names, strict=False):
        values = {(row, place): v for (row, of, place), v in found.items() if of == name}
        _draw(axes, values)
        axes.set_title(name.replace("_", " ").capitalize(), fontsize=12, weight="bold", loc="left")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncol=3, frameon=False, fontsize=10)
    note = (
        "|L f|^2 relative to the spread of f, by block: 0 is an equivariant map, and an invariant "
        "[CLS]. Each panel has a scale of its own"
    )
    title_at(figure, title or "Local equivariance error", note)
    save_picture(figure, path)


def _draw(axes: Axes, values: Mapping[tuple[str, str], float]) -> None:
    """Draws the rows of one transformation, [CLS] last and apart."""
    places = sorted({place for _, place in values}, key=_order)
    where = [i + 0.6 * (place == "cls") for i, place in enumerate(places)]
    for number, (row, label, color, hatch) in enumerate(_BARS):
        heights = [values.get((row, place), 0.0) for place in places]
        left = [x + 0.4 * (number - 0.5) for x in where]
        axes.bar(left, heights, 0.4, label=label, color=color, hatch=hatch, edgecolor="0.25")
    marks = [values.get(("no_action", place), math.nan) for place in places]
    if not all(map(math.isnan, marks)):
        words = "backbone, no action on the map"
        axes.plot(where, marks, "k_", markersize=13, markeredgewidth=2, label=words)
    axes.set_xticks(where, [_name(place) for place in places], fontsize=9)
    plain_axes(axes, "y")


def _order(place: str) -> tuple[int, int]:
    number = place.removeprefix("block")
    return (0, int(number)) if number.isdigit() else (("final", "cls").index(place) + 1, 0)


def _name(place: str) -> str:
    return {"final": "norm", "cls": "[CLS]"}.get(place, place.removeprefix("block"))
