"""Groups of runs side by side: what they cost, what they reached, how sure a difference is.

Means and deviations over seeds are those of `groups.py`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from ser_lightning.reporting.groups import RunGroup, Sample, average, conditions, data_notes
from ser_lightning.reporting.intervals import paired_difference
from ser_lightning.reporting.tables import ReportRow, ReportTable
from ser_lightning.results.hits import Hits, load_hits
from ser_lightning.results.measures import describe, place


class GroupCost(NamedTuple):
    """Trainable parameters, multiply-accumulates of a forward pass, or why they are unknown."""

    num_parameters: int | None
    macs_per_image: float | None
    reason: str = ""


class _Column(NamedTuple):
    """A number that configurations are compared by: of a stage, on data."""

    stage: str
    metric: str
    data: str

    @property
    def title(self) -> str:
        heading = describe(self.metric).heading.format(stage=self.stage)
        return ", ".join(filter(None, [heading, self.data]))

    def samples(self, group: RunGroup) -> list[Sample]:
        """Those of the group that hold the column's number, one per run."""
        return group.newest(self.stage, self.data, self.metric)


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
    """Sets groups of runs side by side, a row each, and what differs in data in columns apart.

    A dash has a footnote where there is no number to give. The baseline is the name of the group
    that the others are compared with, by default the first.

    Raises:
        ValueError: if no group has the baseline's name, or hits cannot be read.
    """
    base = _baseline(groups, baseline)
    columns = {column: _is_compared(column, groups) for column in _columns(groups)}
    notes = _Notes()
    header = ["run", "seeds", "views", "parameters (M)", "GMAC per image"]
    differing = data_notes(sample for group in groups for sample in group.samples)
    for column, is_compared in columns.items():
        note = differing.get((column.stage, column.data))
        header.append(f"{column.title} {notes.mark(note)}" if note else column.title)
        if is_compared:
            header.append(f"minus {base.name} [95 %]")
    rows = []
    for group, cost in zip(groups, costs, strict=True):
        views = group.run.subject.views or "-"
        cells = [group.name, str(len(group.folders)), views, *_costs(cost, notes)]
        for column, is_compared in columns.items():
            cells.append(notes.cell(partial(_mean, group, column, notes)))
            if is_compared:
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
    """What any run has measured, in the order of the words."""
    samples = sorted((s for group in groups for s in group.samples), key=lambda s: s.data)
    found = dict.fromkeys(
        _Column(sample.record.stage, metric, sample.data)
        for sample in samples
        for metric in sample.record.metrics
        if describe(metric).heading
    )
    columns = sorted(found, key=lambda column: (place(column.metric), column.stage))
    return [column for column in columns if any(column.samples(group) for group in groups)]


def _is_compared(column: _Column, groups: Sequence[RunGroup]) -> bool:
    """Whether records say which test images were right."""
    paths = (sample.path for group in groups for sample in column.samples(group))
    return len(groups) > 1 and any(load_hits(path, column.metric) for path in paths)


def _costs(cost: GroupCost, notes: _Notes) -> tuple[str, str]:
    if cost.num_parameters is None or cost.macs_per_image is None:
        dash = f"- {notes.mark(cost.reason)}"
        return dash, dash
    return f"{cost.num_parameters / 1e6:.4g}", f"{cost.macs_per_image / 1e9:.5g}"


def _mean(group: RunGroup, column: _Column, notes: _Notes) -> str:
    """Mean and standard deviation over seeds."""
    found = column.samples(group)
    if not found:
        return "-"
    _check_alike(group, column, found)
    cell = average(found, column.metric)
    text = cell.text(f".{describe(column.metric).digits}f", cell.num_values < len(group.folders))
    reasons = "; ".join(found[0].record.unofficial_reasons)
    return f"{text} {notes.mark(f'{column.stage}: {reasons}')}" if reasons else text


def _check_alike(group: RunGroup, column: _Column, found: Sequence[Sample]) -> None:
    """Refuses to average what does not compare."""
    if len({conditions(sample.record) for sample in found}) > 1:
        raise _NoNumberError(
            f"{column.title} of {group.name}: the runs were not evaluated alike (protocol, kind "
            "of weights, layers or images differ)"
        )
    values = [sample.record.metrics[column.metric] for sample in found]
    if not all(value is not None and math.isfinite(value) for value in values):
        raise _NoNumberError(f"{column.title} of {group.name} is not a number in every run")


def _difference(group: RunGroup, base: RunGroup, column: _Column) -> str:
    """Difference to the baseline in points, and its interval."""
    both = [column.samples(side) for side in (group, base)]
    if not all(both):
        return "-"
    if group is base:
        return "baseline"
    names = f"{column.title} of {group.name} and {base.name}"
    for side, found in zip((group, base), both, strict=True):
        _check_alike(side, column, found)
    if len({conditions(found[0].record, within=False) for found in both}) > 1:
        raise _NoNumberError(f"{names}: the protocols differ")
    hits = [[_hits(sample, column.metric) for sample in found] for found in both]
    if len({(of_run.test_set, len(of_run.values)) for side in hits for of_run in side}) > 1:
        raise _NoNumberError(f"{names}: the test sets differ")
    first, second = ([of_run.values for of_run in side] for side in hits)
    difference, low, high = paired_difference(first, second)
    return f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def _hits(sample: Sample, metric: str) -> Hits:
    """Which images were right, if that is known."""
    path, record = sample.path, sample.record
    hits = load_hits(path, metric)
    if hits is None:
        raise _NoNumberError(
            f"{path} does not say which images were right; evaluate the run again with this version"
        )
    if not math.isclose(100 * hits.values.mean(), record.metrics[metric] or 0.0, abs_tol=1e-3):
        raise _NoNumberError(f"the hits beside {path} are not those of the record; evaluate again")
    return hits
