"""Tables to read: what training changed, next to the random initialisation."""

import re
from collections.abc import Mapping
from typing import NamedTuple


class _Row(NamedTuple):
    """A line of the table; numbers are text already."""

    name: str
    before: str
    after: str
    note: str


def summary_table(
    baseline: Mapping[str, float],
    latest: Mapping[str, float],
    num_classes: int = 0,
    width: int | None = None,
    columns: tuple[str, str] = ("random init", "trained"),
) -> str:
    """Sets the metrics of an online evaluation side by side, as plain text.

    Args:
        baseline: metrics by name before the first step; may be empty.
        latest: metrics by name after training; may be empty.
        num_classes: of the labels, for the chance level; 0 where there are none.
        width: channels of the embedding, for the greatest RankMe and the healthy feature std.
        columns: headings of the two columns of numbers.

    Returns:
        Aligned lines without a trailing newline.
    """
    rows = _rows(baseline, latest, num_classes, width, columns)
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{row.name:<{widths[0]}}  {row.before:>{widths[1]}}  {row.after:>{widths[2]}}"
        f"  {row.note:<{widths[3]}}".rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def summary_markdown(
    baseline: Mapping[str, float],
    latest: Mapping[str, float],
    num_classes: int = 0,
    width: int | None = None,
    columns: tuple[str, str] = ("random init", "trained"),
) -> str:
    """Sets the metrics side by side as a Markdown table; arguments as `summary_table`."""
    rows = _rows(baseline, latest, num_classes, width, columns)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---|---:|---:|---|")
    return "\n".join(lines)


def _rows(
    baseline: Mapping[str, float],
    latest: Mapping[str, float],
    num_classes: int,
    width: int | None,
    columns: tuple[str, str],
) -> list[_Row]:
    """Collects the heading and one row per metric, in the order they were measured."""
    names = list(dict.fromkeys([*latest, *baseline]))
    rows = [_Row("", *columns, "")]
    for name in names:
        before, after = (_number(name, metrics.get(name)) for metrics in (baseline, latest))
        rows.append(_Row(_title(name), before, after, _note(name, num_classes, width)))
    return rows


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name.startswith("knn"):
        return f"{value:.1f} %"
    if name == "rankme":
        return f"{value:.1f}"
    return f"{value:.4f}" if name == "feature_std" else f"{value:.3f}"


def _title(name: str) -> str:
    equivariance = re.fullmatch(r"equivariance/(\w+)_(block(\d+)|final)", name)
    if equivariance:
        family, place, block = equivariance.groups()
        where = "final" if place == "final" else f"after block {block}"
        return f"equivariance to {family}, {where}"
    titles = {
        "knn_top1": "k-NN top-1",
        "knn_top5": "k-NN top-5",
        "rankme": "RankMe",
        "feature_std": "feature std",
        "token_spatial_variance": "token spatial variance",
    }
    return titles.get(name, name)


def _note(name: str, num_classes: int, width: int | None) -> str:
    """Says in a few words how to read a number."""
    if name.startswith("knn"):
        best = min(5, num_classes) if name == "knn_top5" else 1
        return f"chance {100 * best / num_classes:.1f} %" if num_classes else ""
    if name.startswith("equivariance/"):
        return "1 is exact"
    if name == "rankme":
        return "dimensions in use" + (f", at most {width}" if width else "")
    if name == "feature_std":
        return "0 is collapsed" + (f", {width**-0.5:.4f} is spread out" if width else "")
    if name == "token_spatial_variance":
        return "0 is a map without structure"
    return ""
