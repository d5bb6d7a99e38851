"""The study's picture: accuracy and equivariance against the layer that the add-on reads."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ser_lightning.files import atomic_path

COLOURS = {"SER": "#0b6fb8", "AugSelf": "#d1570a", "EquiMod": "#8a4fb0"}
BASELINE = "0.35"


class Point(NamedTuple):
    """An add-on at a layer.

    Attributes:
        family: the add-on, "" for the baseline, which reads no layer.
        layer: the block that it reads.
        values: by measure, one number per seed.
    """

    family: str
    layer: int | None
    values: Mapping[str, Sequence[float]]


def study_figure(
    path: str | os.PathLike[str], points: Sequence[Point], measures: Mapping[str, str]
) -> None:
    """Draws one panel per measure and writes them as PNG, whole or not at all.

    Lines join the means over seeds; small dots are single runs. The baseline is a band from its
    smallest to its largest run.

    Args:
        path: of the PNG.
        points: add-ons at layers, and the baseline.
        measures: title by measure, in the order of the panels.
    """
    figure = Figure(figsize=(4.1 * len(measures), 4.3), dpi=110, facecolor="white")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    figure.subplots_adjust(left=0.05, right=0.99, top=0.88, bottom=0.24, wspace=0.24)
    for axes, (measure, title) in zip(panels, measures.items(), strict=True):
        _draw(axes, points, measure)
        axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
        axes.set_xlabel("the add-on reads block", fontsize=10)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncol=5, frameon=False, fontsize=10)
    with atomic_path(Path(path)) as partial, partial.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def _draw(axes: Axes, points: Sequence[Point], measure: str) -> None:
    for point in points:
        if not point.family and len(point.values.get(measure, ())):
            runs = point.values[measure]
            axes.axhspan(min(runs), max(runs), color=BASELINE, alpha=0.2, linewidth=0)
            axes.axhline(float(np.mean(runs)), color=BASELINE, linestyle="--", label="MoCo-v3")
    for family, colour in COLOURS.items():
        found = sorted(
            (p.layer, p.values[measure])
            for p in points
            if p.family == family and p.layer is not None and len(p.values.get(measure, ()))
        )
        if not found:
            continue
        means = [float(np.mean(runs)) for _, runs in found]
        axes.plot([layer for layer, _ in found], means, "-o", color=colour, label=family, lw=2)
        for layer, runs in found:
            axes.plot([layer] * len(runs), runs, "o", color=colour, markersize=3, alpha=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
