"""Tables to read: what training changed, next to the random initialisation."""

import re
from collections.abc import Mapping, Sequence
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
        baseline: metrics by name before the first step; where it is empty, so is its column.
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


class RunMetrics(NamedTuple):
    """What the online evaluation of a run measured.

    Attributes:
        name: of the run.
        baseline: metrics by name before the first step.
        latest: metrics by name at the last evaluation.
        step: optimizer steps before the last evaluation.
    """

    name: str
    baseline: Mapping[str, float]
    latest: Mapping[str, float]
    step: int


def runs_markdown(runs: Sequence[RunMetrics]) -> str:
    """Sets runs side by side as a Markdown table: the main metrics, in brackets at random init.

    Args:
        runs: one line each.

    Returns:
        The table and a line that explains the brackets, without a trailing newline.
    """
    metrics = {name: _short_title(name) for run in runs for name in run.latest}
    columns = {name: title for name, title in metrics.items() if title}
    titles = list(dict.fromkeys(columns.values()))
    lines = ["| run | steps | " + " | ".join(titles) + " |"]
    lines.append("|---|---:|" + "---:|" * len(titles))
    for run in runs:
        cells = dict.fromkeys(titles, "-")
        for name, title in columns.items():
            if name in run.latest:
                before, after = (_number(name, m.get(name)) for m in (run.baseline, run.latest))
                cells[title] = f"{after} ({before})"
        lines.append(f"| {run.name} | {run.step} | " + " | ".join(cells.values()) + " |")
    lines += ["", "In brackets: the same at random initialisation."]
    return "\n".join(lines)


def _short_title(name: str) -> str:
    """A column's heading; empty for what the table leaves out."""
    if match := re.fullmatch(r"equivariance/(\w+)_block\d+", name):
        return f"eq. {match[1]}"
    return {"knn_top1": "k-NN top-1", "rankme": "RankMe", "feature_std": "feature std"}.get(
        name, ""
    )


def _rows(
    baseline: Mapping[str, float],
    latest: Mapping[str, float],
    num_classes: int,
    width: int | None,
    columns: tuple[str, str],
) -> list[_Row]:
    """Collects the heading and one row per metric, in the order they were measured."""
    names = list(dict.fromkeys([*latest, *baseline]))
    rows = [_Row("", columns[0] if baseline else "", columns[1], "")]
    for name in names:
        before = _number(name, baseline.get(name)) if baseline else ""
        after = _number(name, latest.get(name))
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
