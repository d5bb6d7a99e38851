"""Segmentations to look at: images, their masks, and the masks that were predicted."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from ser_lightning.reporting.panels import as_picture, save_picture, title_at
from ser_lightning.results.shown import MaskPicture, MaskPictures

MAX_SHADES = 7
"""Classes with a shade of their own; their steps are told apart in grey too."""

Colour = tuple[float, float, float]
_IGNORED = 255
_SIDE = 2.35  # inches, width of a picture
_OTHER = (0.55, 0.55, 0.55)
_WHITE = (1.0, 1.0, 1.0)


def mask_figure(path: Path, shown: MaskPictures, title: str = "") -> None:
    """Draws images beside their masks and writes them as PNG, whole or not at all.

    The commonest classes have the shades of cividis, from dark to bright, which are told apart in
    grey and by the colour-blind; all others are grey dots, and what does not count is white.
    Nothing is written where there are no images.
    """
    if not shown.pictures:
        return
    shades = _shades(shown)
    columns = ["image", "truth", *shown.pictures[0].predicted]
    sides = [_SIDE * min(p.truth.shape[0] / p.truth.shape[1], 1.3) for p in shown.pictures]
    legend = _legend(shown, shades)
    below = 0.35 + 0.22 * (len(legend) // len(columns))
    height = sum(sides) + 0.3 * len(sides) + 0.6 + below
    figure = Figure(figsize=(_SIDE * len(columns) + 0.2, height), dpi=110, facecolor="white")
    ratios = {"height_ratios": sides}
    panels = figure.subplots(len(sides), len(columns), squeeze=False, gridspec_kw=ratios)
    figure.subplots_adjust(
        left=0.01, right=0.99, top=1 - 0.6 / height, bottom=(below + 0.25) / height,
        wspace=0.03, hspace=0.3 * len(sides) / sum(sides),
    )  # fmt: skip
    for row, picture in zip(panels, shown.pictures, strict=True):
        _draw_row(row, picture, shades)
    for axes, name in zip(panels[0], columns, strict=True):
        axes.set_title(name, fontsize=10, loc="left", pad=5)
    title_at(figure, title or "Segmentation")
    figure.legend(handles=legend, loc="lower center", ncol=len(columns), frameon=False, fontsize=9)
    save_picture(figure, path)


def _shades(shown: MaskPictures) -> dict[int, Colour]:
    """The shades of the classes that cover most, in the order of their numbers."""
    totals = np.zeros(256, dtype=np.int64)
    for picture in shown.pictures:
        for mask in (picture.truth, *picture.predicted.values()):
            totals += np.bincount(mask.numpy().ravel().astype(np.int64), minlength=256)
    totals[_IGNORED] = 0
    commonest = sorted(np.argsort(-totals, kind="stable")[:MAX_SHADES].tolist())
    present = [number for number in commonest if totals[number]]
    levels = np.linspace(0, 1, max(len(present), 2))
    palette = mpl.colormaps["cividis"]
    return {number: palette(level)[:3] for number, level in zip(present, levels, strict=False)}


def _draw_row(row: np.ndarray, picture: MaskPicture, shades: Mapping[int, Colour]) -> None:
    """Draws an image, its mask, and each predicted one with its mean IoU on this image."""
    _show(row[0], as_picture(picture.image / 255))
    _show(row[1], coloured(picture.truth, shades))
    for axes, mask in zip(row[2:], picture.predicted.values(), strict=True):
        _show(axes, coloured(mask, shades))
        overlap = 100 * mean_overlap(mask, picture.truth)
        axes.set_xlabel(f"mIoU {overlap:.0f} % here", fontsize=8, labelpad=2, loc="left")


def coloured(mask: Tensor, shades: Mapping[int, Colour]) -> np.ndarray:
    """(H, W, 3) colours of a mask (H, W): shades, dots for other classes, white for ignored."""
    values = mask.numpy()
    picture = np.full((*values.shape, 3), _WHITE)
    step = max(2, min(values.shape) // 40)
    y, x = np.indices(values.shape) // step
    picture[(values != _IGNORED) & ((x + y) % 2 == 0)] = _OTHER
    for number, shade in shades.items():
        picture[values == number] = shade
    return picture


def mean_overlap(predicted: Tensor, truth: Tensor) -> float:
    """The mean IoU of one image over the classes in it or predicted, of the pixels that count."""
    counts = truth != _IGNORED
    found, right = predicted[counts].long(), truth[counts].long()
    overlaps = [
        ((found == c) & (right == c)).sum() / ((found == c) | (right == c)).sum()
        for c in {*found.unique().tolist(), *right.unique().tolist()}
    ]
    return float(sum(overlaps)) / max(len(overlaps), 1)


def _show(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("0.6")


def _legend(shown: MaskPictures, shades: Mapping[int, Colour]) -> list[Patch]:
    """A patch for each shade, and for what has none where it is there."""
    names = [name if len(name) < 20 else f"{name[:17]}..." for name in shown.class_names]
    patches = [
        Patch(facecolor=shade, edgecolor="0.4", label=names[number])
        for number, shade in shades.items()
    ]
    masks = [m for p in shown.pictures for m in (p.truth, *p.predicted.values())]
    values = {int(value) for mask in masks for value in mask.unique()}
    if values - {*shades, _IGNORED}:
        patches.append(
            Patch(facecolor=_WHITE, edgecolor="0.4", hatch="....", label="other classes")
        )
    if _IGNORED in values:
        patches.append(Patch(facecolor=_WHITE, edgecolor="0.4", label="does not count"))
    return patches
