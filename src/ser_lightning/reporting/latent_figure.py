"""Embeddings of a few classes in a plane and the purity of each; checkpoints side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ser_lightning.reporting.panels import plain_axes, save_picture, title_at
from ser_lightning.results.points import Points, read_points

_LONGEST = 24  # letters of a class name


class LatentPanel(NamedTuple):
    """What is drawn of one checkpoint.

    Metrics are `purity`, `purity/<class>`, and where known `random_init/purity` and
    `purity_chance`, in percent.
    """

    title: str
    points: Points
    metrics: Mapping[str, float | None]


def latent_figure(path: Path, metrics: Mapping[str, float | None], title: str = "") -> None:
    """Draws the record whose picture is `path`, with the points beside it."""
    panel = LatentPanel("", read_points(Path(path).with_suffix(".json")), metrics)
    latent_figures(path, [panel], title)


def latent_figures(path: Path, panels: Sequence[LatentPanel], title: str = "") -> None:
    """Draws checkpoints side by side and writes them as PNG, whole or not at all.

    Raises:
        ValueError: if the classes differ.
    """
    names = panels[0].points.class_names
    if any(panel.points.class_names != names for panel in panels):
        raise ValueError(
            "the checkpoints were measured on other classes; give the same images and seed for all"
        )
    first = [panels[0].metrics.get(f"purity/{name}") or 0.0 for name in names]
    order = sorted(range(len(names)), key=first.__getitem__)  # the purest one on top
    bars = 0.6 + 0.2 * len(names)
    height = 5.6 + bars + 1.0
    figure = Figure(figsize=(5.4 * len(panels) + 1.6, height), dpi=110, facecolor="white")
    axes = figure.subplots(
        2, len(panels), squeeze=False, gridspec_kw={"height_ratios": [5.2, bars]}
    )
    left = 1.7 / figure.get_figwidth()
    figure.subplots_adjust(left, 0.5 / height, 0.99, 1 - 1.15 / height, 0.06, 0.08)
    for number, panel in enumerate(panels):
        _scatter(axes[0][number], panel)
        _bars(axes[1][number], panel, order, number == 0)
    note = (
        "t-SNE of [CLS]; numbers stand at the medians of their classes. Bars: share of the nearest "
        "neighbours that are of the same class, in the embedding space, in percent"
    )
    if len(panels) == 1:
        note = note.replace(". Bars", ".\nBars")
    title_at(figure, title or "Latent space", note, 9)
    save_picture(figure, path)


def _scatter(axes: Axes, panel: LatentPanel) -> None:
    plane, label = panel.points.plane.numpy(), panel.points.label.numpy()
    for number in range(len(panel.points.class_names)):
        own = plane[label == number]
        axes.scatter(own[:, 0], own[:, 1], s=11, color=_color(number), linewidths=0)
        if len(own):
            style = "circle,pad=0.15"
            box = {"boxstyle": style, "fc": "white", "ec": _color(number), "alpha": 0.85}
            x, y = np.median(own, axis=0)
            axes.text(x, y, str(number + 1), fontsize=8, ha="center", va="center", bbox=box)
    axes.set(xticks=[], yticks=[])
    axes.set_title(_headline(panel), fontsize=10, loc="left")


def _headline(panel: LatentPanel) -> str:
    companions = [
        f"{word} {value:.1f}"
        for word, name in (("random init", "random_init/purity"), ("chance", "purity_chance"))
        if (value := panel.metrics.get(name)) is not None
    ]
    name = f"{panel.title}: " if panel.title else ""
    told = f" ({', '.join(companions)})" if companions else ""
    return f"{name}purity {panel.metrics.get('purity') or 0.0:.1f} %{told}"


def _bars(axes: Axes, panel: LatentPanel, order: Sequence[int], is_first: bool) -> None:
    names = panel.points.class_names
    for place, number in enumerate(order):
        value = panel.metrics.get(f"purity/{names[number]}") or 0.0
        axes.barh(place, value, color=_color(number), edgecolor="0.25", linewidth=0.6)
        axes.text(value + 1, place, f"{value:.0f}", fontsize=8, va="center")
    words = [f"{names[i][:_LONGEST]}  {i + 1}" for i in order]
    axes.set_yticks(range(len(order)), words if is_first else [], fontsize=8)
    axes.set_xlim(0, 108)
    axes.set_ylim(-0.6, len(order) - 0.4)
    plain_axes(axes, "x", 8)


def _color(number: int) -> tuple[float, ...]:
    return tuple(colormaps["tab20"](number % 20))
