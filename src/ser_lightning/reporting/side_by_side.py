"""Runs that began alike, side by side: one table at 80 columns, and what it says in words."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

FAMILIES = {"rotation": "turns", "flip": "flips", "scale": "resizes"}
_VISIBLE = 0.02  # smaller differences of a score are not worth a word
_KEPT = 0.1  # a score is kept if it falls by no more


_NOTE = """
Scores: cosine of the moved image's map and the image's map, moved likewise,
without what all tokens have in common; 1 is exact. In brackets: with it.
Before training (random init) a token says little but the colour of its patch,
which moves along by itself."""


class RunCurve(NamedTuple):
    """What a run measured over its steps.

    Attributes:
        name: of the run.
        steps: optimizer steps before each measurement; 0 is the random initialisation.
        metrics: metrics by name of each measurement.
    """

    name: str
    steps: Sequence[int]
    metrics: Sequence[Mapping[str, float]]

    def points(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, where it was measured."""
        found = [
            (step, values[name])
            for step, values in zip(self.steps, self.metrics, strict=True)
            if name in values
        ]
        return [step for step, _ in found], [value for _, value in found]


def side_by_side(runs: Sequence[RunCurve], num_classes: int = 0) -> str:
    """Sets the random initialisation and the ends of runs side by side, as plain text.

    Args:
        runs: of the same random initialisation; its numbers are taken from the first one.
        num_classes: of the labels, for the chance level; 0 where there are none.

    Returns:
        Aligned lines without a trailing newline.
    """
    columns = [runs[0].metrics[0], *(run.metrics[-1] for run in runs)]
    rows = [["", "random init", *(run.name for run in runs)]]
    if num_classes:
        knn = [f"{values['knn_top1']:.1f} %" for values in columns]
        rows.append([f"k-NN top-1 (chance {100 / num_classes:.1f} %)", *knn])
    for family, words in FAMILIES.items():
        centred, raw = f"equivariance/mean_centred/{family}", f"equivariance/{family}"
        cells = [f"{values[centred]:.3f} ({values[raw]:.3f})" for values in columns]
        rows.append([f"token map follows {words}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([name.ljust(widths[0]), *aligned]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*lines, _NOTE])


def takeaway(runs: Sequence[RunCurve], num_classes: int = 0) -> str:
    """Says in plain words what two runs show, the second one with SER.

    Args:
        runs: without and with SER, of the same random initialisation.
        num_classes: of the labels; 0 where there are none.
    """
    without, with_ser = runs
    start, plain, ser = without.metrics[0], without.metrics[-1], with_ser.metrics[-1]
    words = []
    if num_classes:
        name = "knn_top1"
        words.append(
            f"The class of a new image, told by its nearest neighbours, is right {plain[name]:.0f} "
            f"times in 100 without SER and {ser[name]:.0f} with it (before training "
            f"{start[name]:.0f}, by guessing {100 / num_classes:.0f})."
        )
    name = "equivariance/mean_centred/rotation"
    words.append(
        f"Turn the image, and its token map should turn along: score {ser[name]:.2f} with SER, "
        f"{plain[name]:.2f} without, {start[name]:.2f} before training; 1 is exact."
    )
    return " ".join([_conclusion(start[name], plain[name], ser[name]), *words])


def _conclusion(start: float, plain: float, ser: float) -> str:
    """What the scores before training, without and with SER amount to."""
    if abs(ser - plain) < _VISIBLE:
        return "SER makes no visible difference here."
    if ser < plain:
        return "SER does not help here."
    if ser >= start + _VISIBLE:
        return "SER teaches token maps to move with the image; MoCo-v3 alone does not."
    if ser >= start - _KEPT:
        return "With SER token maps go on moving with the image; MoCo-v3 alone unlearns that."
    return "With SER token maps move with the image better than with MoCo-v3 alone."
