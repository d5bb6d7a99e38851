"""Groups of runs side by side: what they cost, what they reached, how sure a difference is."""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

from ser_lightning.reporting.groups import RunGroup
from ser_lightning.reporting.intervals import paired_difference
from ser_lightning.reporting.rendering import ReportRow, ReportTable
from ser_lightning.results.hits import load_hits
from ser_lightning.results.record import LoadedRecord, ResultRecord


class GroupCost(NamedTuple):
    """What a group's model costs.

    Attributes:
        num_parameters: trainable ones; None where unknown.
        macs_per_image: multiply-accumulates of one forward pass; None where unknown.
        reason: why they are unknown.
    """

    num_parameters: int | None
    macs_per_image: float | None
    reason: str = ""


class _Measure(NamedTuple):
    stage: str
    metric: str
    title: str
    digits: int = 2
    is_paired: bool = False


_MEASURES = (
    _Measure("linear", "top1", "linear top-1", is_paired=True),
    _Measure("knn", "top1_k20", "20-NN top-1", is_paired=True),
    _Measure("imagenet-c", "top1/avg", "corrupted top-1"),
    _Measure("imagenet-c", "top1/avg_without_frost", "corrupted top-1 without frost"),
    *(
        _Measure("equivariance", f"equivariance/{family}_final", f"eq. {family}", 3)
        for family in ("rotation", "flip", "scale")
    ),
)


class _Column(NamedTuple):
    measure: _Measure
    dataset: str

    @property
    def title(self) -> str:
        return f"{self.measure.title}, {self.dataset}" if self.dataset else self.measure.title

    def records(self, group: RunGroup) -> list[LoadedRecord]:
        """Those of the group that hold the column's number."""
        key = self.measure.stage, self.dataset
        found = [records[key] for records in group.records if key in records]
        return [loaded for loaded in found if self.measure.metric in loaded.record.metrics]


class _NoNumberError(Exception):
    """A cell has no honest number; the message is its footnote."""


class _Notes:
    """Footnotes, numbered in the order of their first mention."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """The number of a note, as [1]."""
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"

    def cell(self, number: Callable[[], str]) -> str:
        """A number, or a dash with a footnote."""
        try:
            return number()
        except _NoNumberError as error:
            return f"- {self.mark(str(error))}"


def runs_table(
    groups: Sequence[RunGroup], costs: Sequence[GroupCost], baseline: str | None = None
) -> ReportTable:
    """Sets groups of runs side by side, a row each.

    Args:
        groups: at least one.
        costs: one per group.
        baseline: name of the group that the others are compared with; by default the first.

    Returns:
        The table; a dash with a footnote where there is no number to give.

    Raises:
        ValueError: if no group has the baseline's name, or hits cannot be read.
    """
    base = _baseline(groups, baseline)
    columns = _columns(groups)
    notes = _Notes()
    header = ["run", "seeds", "views", "parameters (M)", "GMAC per image"]
    for column in columns:
        header.append(column.title)
        if _is_compared(column, groups):
            header.append(f"minus {base.name} [95 %]")
    rows = []
    for group, cost in zip(groups, costs, strict=True):
        cells = [group.name, str(len(group.folders)), group.views or "-", *_costs(cost, notes)]
        for column in columns:
            cells.append(notes.cell(partial(_mean, group, column, notes)))
            if _is_compared(column, groups):
                cells.append(notes.cell(partial(_difference, group, base, column)))
        rows.append(ReportRow(tuple(cells)))
    title = f"{len(groups)} configuration" + ("s" if len(groups) > 1 else "")
    return ReportTable(title, "", tuple(header), tuple(rows), tuple(notes.texts), num_labels=1)


def _baseline(groups: Sequence[RunGroup], name: str | None) -> RunGroup:
    found = [group for group in groups if name in (None, group.name)]
    if not found:
        known = ", ".join(group.name for group in groups)
        raise ValueError(f'no run is called "{name}"; give --baseline one of: {known}')
    return found[0]


def _columns(groups: Sequence[RunGroup]) -> list[_Column]:
    """What any run has measured, by data set."""
    datasets = sorted({key[1] for group in groups for records in group.records for key in records})
    columns = [_Column(measure, dataset) for measure in _MEASURES for dataset in datasets]
    return [column for column in columns if any(column.records(group) for group in groups)]


def _is_compared(column: _Column, groups: Sequence[RunGroup]) -> bool:
    return column.measure.is_paired and len(groups) > 1


def _costs(cost: GroupCost, notes: _Notes) -> tuple[str, str]:
    if cost.num_parameters is None or cost.macs_per_image is None:
        dash = f"- {notes.mark(cost.reason)}"
        return dash, dash
    return f"{cost.num_parameters / 1e6:.4g}", f"{cost.macs_per_image / 1e9:.5g}"


def _mean(group: RunGroup, column: _Column, notes: _Notes) -> str:
    """Mean and standard deviation over seeds."""
    found = column.records(group)
    if not found:
        return "-"
    values = _values(group, column)
    digits = column.measure.digits
    text = f"{fmean(values):.{digits}f}"
    text += f" +- {stdev(values):.{digits}f}" if len(values) > 1 else ""
    text += f" (n={len(values)})" if len(values) < len(group.folders) else ""
    reason = "; ".join(found[0].record.unofficial_reasons)
    return f"{text} {notes.mark(f'{column.measure.stage}: {reason}')}" if reason else text


def _values(group: RunGroup, column: _Column) -> list[float]:
    """The number of each seed.

    Raises:
        _NoNumberError: if they may not be averaged.
    """
    found = column.records(group)
    if len({_conditions(loaded.record, within=True) for loaded in found}) > 1:
        raise _NoNumberError(
            f"{column.title} of {group.name}: the runs were not evaluated alike (protocol, kind "
            "of weights, layers or images differ)"
        )
    values = [loaded.record.metrics[column.measure.metric] for loaded in found]
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if len(numbers) < len(values):
        raise _NoNumberError(f"{column.title} of {group.name} is not a number in every run")
    return numbers


def _difference(group: RunGroup, base: RunGroup, column: _Column) -> str:
    """Difference to the baseline in points, and its interval."""
    both = [column.records(side) for side in (group, base)]
    if not all(both):
        return "-"
    if group is base:
        return "baseline"
    names = f"{column.title} of {group.name} and {base.name}"
    for side in (group, base):
        _values(side, column)
    if len({_conditions(records[0].record, within=False) for records in both}) > 1:
        raise _NoNumberError(f"{names}: the protocols differ")
    metric = column.measure.metric
    loaded = [[_hits(record.path, record.record, metric) for record in side] for side in both]
    if len({(test_set, len(values)) for side in loaded for values, test_set in side}) > 1:
        raise _NoNumberError(f"{names}: the test sets differ")
    first, second = ([values for values, _ in side] for side in loaded)
    difference, low, high = paired_difference(first, second)
    return f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def _hits(path: Path, record: ResultRecord, metric: str) -> tuple[np.ndarray, str]:
    """Which images were right, and which images they are.

    Raises:
        _NoNumberError: if that is not known.
    """
    hits = load_hits(path, metric)
    if hits is None:
        raise _NoNumberError(
            f"{path} does not say which images were right; evaluate the run again with this version"
        )
    if not math.isclose(100 * hits.values.mean(), record.metrics[metric] or 0.0, abs_tol=1e-3):
        raise _NoNumberError(f"the hits beside {path} are not those of the record; evaluate again")
    return hits.values, hits.test_set


def _conditions(record: ResultRecord, within: bool) -> str:
    """Text that is equal where results compare: within a configuration, or across them."""
    parts: list[object] = [record.protocol, record.transform, record.num_samples]
    parts += [record.class_map_sha256, record.unofficial_reasons]
    if within:
        checkpoint = Path(record.checkpoint or "").name
        parts += [record.feature, record.layer, record.cls_layer, record.weights_key, checkpoint]
    return json.dumps(parts, sort_keys=True)
