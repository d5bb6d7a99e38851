"""What the online evaluation of a run measured, in words."""

import re
from collections.abc import Mapping
from typing import NamedTuple


class OnlineMetric(NamedTuple):
    """How a metric is shown.

    Attributes:
        title: in words.
        short: heading where runs stand side by side; "" where they leave it out.
        unit: after the number.
        digits: decimals to print.
    """

    title: str
    short: str = ""
    unit: str = ""
    digits: int = 3

    def text(self, value: float | None) -> str:
        """The number, or "-"."""
        return "-" if value is None else f"{value:.{self.digits}f}{self.unit}"


_METRICS = {
    "knn_top1": OnlineMetric("k-NN top-1", "k-NN top-1", " %", 1),
    "knn_top5": OnlineMetric("k-NN top-5", "", " %", 1),
    "rankme": OnlineMetric("RankMe", "RankMe", digits=1),
    "feature_std": OnlineMetric("feature std", "feature std", digits=4),
    "token_spatial_variance": OnlineMetric("token spatial variance"),
}


def describe_metric(name: str) -> OnlineMetric:
    """How a metric of the online evaluation is shown."""
    pattern = r"equivariance/(mean_centred/)?(\w+)_(?:block(\d+)|final)"
    if match := re.fullmatch(pattern, name):
        is_centred, family, block = match.groups()
        kind = "equivariance" if is_centred else "raw equivariance"
        place = f"block {block}" if block else "final"
        short = f"eq. {family}" if block and is_centred else ""
        return OnlineMetric(f"{kind}, {family} {place}", short)
    return _METRICS.get(name, OnlineMetric(name))


def summary_table(
    baseline: Mapping[str, float],
    latest: Mapping[str, float],
    num_classes: int = 0,
    width: int | None = None,
    columns: tuple[str, str] = ("random init", "trained"),
) -> str:
    """Sets the metrics of an online evaluation side by side, as plain text.

    Args:
        baseline: metrics by name before the first step; where it is empty, so is its column.
        latest: metrics by name after training; may be empty.
        num_classes: number of labels, for the chance level; 0 where there are none.
        width: channels of the embedding, for the greatest RankMe and the healthy feature std.
        columns: headings of the two columns of numbers.

    Returns:
        Aligned lines without a trailing newline.
    """
    rows = [("", columns[0] if baseline else "", columns[1], "")]
    for name in dict.fromkeys([*latest, *baseline]):
        metric = describe_metric(name)
        before = metric.text(baseline.get(name)) if baseline else ""
        note = _note(name, num_classes, width)
        rows.append((metric.title, before, metric.text(latest.get(name)), note))
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = []
    for title, before, after, note in rows:
        cells = f"{title:<{first}}", f"{before:>{others[0]}}", f"{after:>{others[1]}}", note
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _note(name: str, num_classes: int, width: int | None) -> str:
    """Says in a few words how to read a number."""
    if name.startswith("knn"):
        best = min(5, num_classes) if name == "knn_top5" else 1
        return f"chance {100 * best / num_classes:.1f} %" if num_classes else ""
    if name.startswith("equivariance/"):
        return "1 is exact"
    notes = {
        "rankme": f"of {width} dimensions" if width else "dimensions in use",
        "feature_std": f"{width**-0.5:.4f} at best" if width else "0 is collapsed",
        "token_spatial_variance": "0: no structure",
    }
    return notes.get(name, "")
